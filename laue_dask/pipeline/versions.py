"""Versions of what the stages compute; no release of the package changes them by itself."""

STAGE_VERSIONS = {"reduced": 1, "features": 1, "components": 1, "scores": 3, "segments": 2, "grains": 1, "quality": 1}
"""Raised when a stage's code changes what it computes, so that older outputs are not taken for its own."""

FIRST_RELEASE = "0.1.0"
"""The release whose name some keys hash: the runs of that time stay valid."""

_FIRST_VERSIONS = {"reduced": 1, "features": 1, "components": 1, "scores": 3, "segments": 2, "grains": 1, "quality": 1}


def version_of_code() -> str:
    """Return the text that names the versions of all stages together; that of the first release is its name."""
    raised = {name: version for name, version in STAGE_VERSIONS.items() if version != _FIRST_VERSIONS.get(name)}
    return FIRST_RELEASE + "".join(f" {name} {version}" for name, version in sorted(raised.items()))
