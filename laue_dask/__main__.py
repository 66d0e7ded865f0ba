"""``laue-dask``, and ``python -m laue_dask``."""

from laue_dask.runtime import interruption


def main() -> None:
    """Run the command that was typed."""
    interruption.exit_at_once()
    from laue_dask.commands import main as command_line

    command_line.main()


if __name__ == "__main__":
    main()
