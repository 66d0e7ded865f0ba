"""Imports of the package go one way."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[1] / "scripts" / "architecture.py"
SPEC = importlib.util.spec_from_file_location("architecture", FILE)
assert SPEC is not None
assert SPEC.loader is not None
architecture = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(architecture)


def _package(tmp_path: Path, **modules: str) -> Path:
    root = tmp_path / "laue_dask"
    for name, text in modules.items():
        file = root / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return root


def test_packages_import_each_other_in_no_circle() -> None:
    assert architecture.circle(architecture.package_imports()) == []


def test_modules_import_each_other_in_no_circle() -> None:
    assert architecture.circle(architecture.module_imports()) == []


@pytest.mark.parametrize(
    "back",
    [
        "from laue_dask.high import a\n",
        "import laue_dask.high.a\n",
        "def late():\n    from laue_dask.high.a import b\n",
    ],
)
def test_a_circle_is_found_wherever_it_is_closed(tmp_path: Path, back: str) -> None:
    root = _package(tmp_path, high__a="from laue_dask.low.b import c\n", low__b=back)
    assert set(architecture.circle(architecture.package_imports(root))) == {"high", "low"}


def test_what_types_alone_need_is_no_import(tmp_path: Path) -> None:
    typing = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from laue_dask.high.a import b\n"
    root = _package(tmp_path, high__a="from laue_dask.low.b import c\n", low__b=typing)
    assert architecture.package_imports(root) == {"high": {"low"}, "low": set()}


def test_higher_layers_import_lower_ones_alone() -> None:
    packages = architecture.package_imports()
    rows = architecture.layers(packages)
    height = {name: i for i, row in enumerate(rows) for name in row}
    assert all(height[name] > height[below] for name, imported in packages.items() for below in imported)


def test_an_arrow_that_follows_from_others_is_left_out() -> None:
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert architecture.without_detours(graph) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_the_picture_has_every_package() -> None:
    packages = architecture.package_imports()
    svg = architecture.picture(packages)
    assert all(f">{name}</text>" in svg for name in packages)
