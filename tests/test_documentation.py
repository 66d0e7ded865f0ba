"""What README and documentation say is true: what they name is there, and what they tell to type works.

Command lines of README and of the pages that need one machine are run, on scans of a few points; all others are parsed
by the real commands, with their options and kinds of values. Python is run, that of the tutorial when the documentation
is built.
"""

import importlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import fabio
import h5py
import numpy as np
import pytest
import yaml
from PIL import Image

import laue_dask as ld
from laue_dask.commands.main import commands as group
from laue_dask.commands.process import PROGRAM_NAME
from laue_dask.config import Config

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = TOP + sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
MOST_LINES_OF_README = 130
MOST_LINES_OF_A_STEP = 3


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def _blocks(page: Path) -> Iterator[Block]:
    fenced = re.finditer(r"^```(\S+)[^\n]*\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for found in fenced:
        line = found.string.count("\n", 0, found.start()) + 1
        yield Block(page, line, found[1], found[2])


BLOCKS = [block for page in PAGES for block in _blocks(page)]


def _command_lines() -> Iterator[tuple[str, list[str]]]:
    """Commands of all pages, those of one line with && apart, each with where it stands."""
    for block in BLOCKS:
        if block.language in ("console", "bash", "sh", "shell"):
            for line in block.text.splitlines():
                assert line.startswith("$ "), f"{block}: a console block has lines of `$ command` alone: {line}"
                for part in line[2:].split("&&"):
                    yield str(block), shlex.split(part, comments=True)


COMMAND_LINES = list(_command_lines())


def _parsed(words: list[str]) -> None:
    """Parse a `laue-dask` command with the real options and values; nothing is run."""
    name = words[0]
    if name in ("--help", "--version"):
        return
    command = group.get_command(click.Context(group), name)
    assert command is not None, f"there is no command {name}"
    with command.make_context(name, list(words[1:]), parent=click.Context(group, info_name=PROGRAM_NAME)):
        pass


@pytest.mark.parametrize(
    ("where", "words"), COMMAND_LINES, ids=[f"{where} {' '.join(w)}" for where, w in COMMAND_LINES]
)
def test_a_command_line_is_one_that_the_commands_take(where: str, words: list[str]) -> None:
    program = Path(words[0]).name
    if program == PROGRAM_NAME:
        _parsed(words[1:])
    elif program == "sbatch":
        _parsed(words[2:])
    named = [word for word in words if re.match(r"(\./)?(scripts|configs)/", word)]
    assert all(list(ROOT.glob(word.removeprefix("./"))) for word in named), f"{named}: not all are in the repository"
    scripts = [ROOT / word for word in named if word.endswith(".py")]
    options = [word for word in words if word.startswith("--") and scripts]
    assert all(f'"{option}"' in scripts[0].read_text(encoding="utf-8") for option in options), options


RUN_PAGES = ("README.md", "docs/howto/own_scan.md", "docs/howto/series.md", "docs/howto/watch.md")


@pytest.mark.parametrize("page", RUN_PAGES)
def test_command_lines_of_a_page_run_one_after_the_other(
    page: str, small_scan: Path, command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _lay_out_sources(small_scan, tmp_path)
    told = [words for where, words in COMMAND_LINES if where.startswith(f"{page}:") and words[0] == PROGRAM_NAME]
    assert told
    for words in told:
        outcome = command(*_of_a_small_scan(words[1:], tmp_path))
        assert outcome.code == 0, f"{' '.join(words)}: {outcome.err}"


def _lay_out_sources(small_scan: Path, folder: Path) -> None:
    """Put a scan of 8 × 9 points wherever the pages have one."""
    frames = sorted(small_scan.glob("*.tif"))
    scans = [f"data/sample/scan000{i}" for i in (1, 2, 3)] + [f"{where}/scan1" for where in ("cold", "warm", "hot")]
    for place in (*scans, "frames", ""):
        (folder / place).mkdir(parents=True, exist_ok=True)
        for i, frame in enumerate(frames, start=1):
            (folder / place / f"img_{i:05d}.tif").symlink_to(frame)
    (folder / "configs").symlink_to(ROOT / "configs")
    shutil.copy(small_scan / "truth.npz", folder)
    with h5py.File(folder / "eiger.h5", "w") as file:
        file["entry/data/data"] = np.stack([fabio.open(str(frame)).data for frame in frames])


def _of_a_small_scan(words: list[str], folder: Path) -> list[str]:
    """Return the same words with the folder's data and the small scan's shape."""
    found = [word.replace("/data/sample", str(folder / "data" / "sample")) for word in words]
    if "--shape" in found:
        at = found.index("--shape")
        found[at + 1 : at + 3] = ["8", "9"]
    if "--rows" in found:
        found[found.index("--rows") + 1] = "0:4"
    return found


def test_commands_that_are_only_named_are_there() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "CHANGELOG.md")
    named = set(re.findall(r"`laue-dask ([a-z]+)[ `]", text))
    assert named <= set(group.commands), named - set(group.commands)


def test_the_reference_has_every_public_name() -> None:
    page = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"\.\. auto\w+:: (?:laue_dask\.)?(\w+)$", page, re.MULTILINE))
    assert set(ld.__all__) <= documented


def test_configurations_are_valid() -> None:
    for block in BLOCKS:
        if block.language == "yaml":
            Config.model_validate(yaml.safe_load(block.text))


def test_steps_of_the_tutorial_are_short() -> None:
    steps = [block for block in _blocks(DOCS / "tutorial.md") if block.language == "{code-cell}"]
    assert len(steps) > 10
    assert [str(one) for one in steps if len(one.text.strip().splitlines()) > MOST_LINES_OF_A_STEP] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MOST_LINES_OF_README


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_and_pictures_within_the_repository_are_there(page: Path) -> None:
    text = re.sub(r"^```(?!\{image\}).*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^```\{image\} (\S+)", text, re.MULTILINE)
    for target in targets:
        if not re.match(r"https?:|#", target):
            path = page.parent / target.partition("#")[0]
            assert path.exists(), target
            if path.suffix == ".png":
                with Image.open(path) as picture:
                    picture.verify()


def test_names_of_functions_are_those_of_the_package() -> None:
    packages = "|".join(path.name for path in (ROOT / "laue_dask").iterdir() if (path / "__init__.py").exists())
    found = []
    for page in PAGES:
        found += re.findall(
            rf"`((?:laue_dask\.)?(?:{packages})(?:\.(?!csv|md|json|html|log)\w+)+)`", page.read_text(encoding="utf-8")
        )
    assert found
    for name in sorted(set(found)):
        _resolved(name.removeprefix("laue_dask."))


def _resolved(name: str) -> Any:
    """What a dotted name within the package stands for."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(["laue_dask", *parts[:cut]]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            value = getattr(value, part)
        return value
    raise AssertionError(f"laue_dask has no {name}")


def test_messages_that_are_explained_are_in_the_source() -> None:
    # Of a message whose names and numbers are left out (`…`) each part has to stand in the source.
    source = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "laue_dask").rglob("*.py")))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (.*)$", page, re.MULTILINE)
    assert len(headings) > 30
    lost = []
    for message in (text for heading in headings for text in re.findall(r"`([^`]+)`", heading)):
        parts = [part.strip(" :,()") for part in message.split("…")]
        lost += [(message, part) for part in parts if part and part not in source]
    assert lost == []


def test_versions_agree() -> None:
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert project is not None
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project[1] == ld.__version__ == citation["version"]
    assert f"## {ld.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


EXAMPLES = [block for block in BLOCKS if block.language == "python"]
"""Python of README and pages; that of the tutorial is run when it is built."""


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: f"{block.page.stem}-{block.line}")
def test_python_of_a_page_runs(
    block: Block, small_scan: Path, on_workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del on_workers
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    for place in ("cold", "warm", "hot"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "scan1").symlink_to(small_scan)
    if '"mine.pt2"' in block.text:
        ld.export_encoder("untrained", tmp_path / "mine.pt2")
    code = block.text.replace('"/data/sample/scan0001"', repr(str(small_scan)))
    names: dict[str, Any] = {}
    exec(compile(code, block.page.name, "exec"), names)  # noqa: S102  our own text
    if block.page.name == "README.md":
        assert names["features"].shape[-1] == 256
        assert (tmp_path / "to_index.csv").stat().st_size > 0
        assert {6, 12, 24} <= set(names["run"].k)


def test_every_page_with_python_is_looked_at() -> None:
    assert {block.page.name for block in EXAMPLES} >= {
        "README.md",
        "index.md",
        "facility.md",
        "series.md",
        "weights.md",
    }
