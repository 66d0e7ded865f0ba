#!/usr/bin/env python
"""Which packages of laue_dask import which: a picture and a table for the documentation, and circles as an error.

Imports are read from the source, those within functions as well; what stands under `if TYPE_CHECKING:` alone does not
count, since nothing is imported there.
Usage: scripts/architecture.py            prints the table and every circle; exits with 1 if there is one
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from html import escape
from pathlib import Path

PACKAGE = "laue_dask"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE

Graph = Mapping[str, set[str]]
"""What each module or package imports."""

BOX_HEIGHT = 34
"""Height of a package in the picture, in pixels."""
LAYER_HEIGHT = 78
"""Distance from layer to layer in the picture, in pixels."""
WIDTH = 760
"""Width of the picture, in pixels."""


def modules_of(root: Path = ROOT) -> dict[str, Path]:
    """The file of each module by its dotted name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def module_imports(root: Path = ROOT) -> dict[str, set[str]]:
    """Modules of the package that each of its modules imports, wherever in its file."""
    modules = modules_of(root)
    return {name: set(_imported(path, modules)) - {name} for name, path in modules.items()}


def package_imports(root: Path = ROOT) -> dict[str, set[str]]:
    """Packages that each package imports; a module at the root counts as one, the root itself is not among them."""
    found: dict[str, set[str]] = {}
    for name, imported in module_imports(root).items():
        if name != root.name:
            found.setdefault(part_of(name), set()).update(part_of(one) for one in imported if one != root.name)
    return {name: imported - {name} for name, imported in sorted(found.items())}


def part_of(module: str) -> str:
    """The package that a module belongs to, or the module itself where it is at the root."""
    return module.split(".")[1]


def circle(graph: Graph) -> list[str]:
    """Names that import each other in a circle, the first again at the end; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])[::-1]
    return []


def layers(graph: Graph) -> list[list[str]]:
    """Names by layer, the lowest first: each imports lower layers alone."""
    height: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        height[name] = max((height[below] + 1 for below in graph.get(name, ())), default=0)
    return [[name for name in sorted(height) if height[name] == layer] for layer in range(max(height.values()) + 1)]


def without_detours(graph: Graph) -> dict[str, set[str]]:
    """The arrows that are left where one follows others: a → c goes if there is a → b → c."""
    reached: dict[str, set[str]] = {}
    for name in TopologicalSorter(graph).static_order():
        reached[name] = {far for below in graph.get(name, ()) for far in (below, *reached[below])}
    return {name: {b for b in below if not any(b in reached[c] for c in below)} for name, below in graph.items()}


def picture(graph: Graph) -> str:
    """The graph as SVG: higher packages import lower ones. Colours are those of the page around it."""
    rows = _ordered(layers(graph), graph)[::-1]
    place: dict[str, tuple[float, float]] = {}
    for depth, row in enumerate(rows):
        for i, name in enumerate(row):
            place[name] = (WIDTH * (i + 0.5) / len(row), 24 + depth * LAYER_HEIGHT)
    lines = []
    for name, below in sorted(without_detours(graph).items()):
        for other in sorted(below):
            (x0, y0), (x1, y1) = place[name], place[other]
            start, end = y0 + BOX_HEIGHT / 2, y1 - BOX_HEIGHT / 2 - 5
            bend = (end - start) / 2
            lines.append(
                f'<path d="M{x0:.0f},{start:.0f} C{x0:.0f},{start + bend:.0f} {x1:.0f},{end - bend:.0f} '
                f'{x1:.0f},{end:.0f}" class="arrow" marker-end="url(#head)"/>'
            )
    for name, (x, y) in place.items():
        half = 4.2 * len(name) + 12
        lines.append(
            f'<rect x="{x - half:.0f}" y="{y - BOX_HEIGHT / 2:.0f}" width="{2 * half:.0f}" height="{BOX_HEIGHT}" '
            f'rx="6" class="box"/><text x="{x:.0f}" y="{y + 5:.0f}" class="name">{escape(name)}</text>'
        )
    height = 24 + (len(rows) - 1) * LAYER_HEIGHT + BOX_HEIGHT
    return (
        f'<svg class="architecture" viewBox="0 0 {WIDTH} {height}" role="img" xmlns="http://www.w3.org/2000/svg">'
        "<title>Packages of laue_dask; an arrow points at what is imported</title>"
        '<defs><marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" class="head"/></marker></defs>' + "".join(lines) + "</svg>"
    )


def _ordered(rows: list[list[str]], graph: Graph) -> list[list[str]]:
    """Each layer in an order in which arrows cross little: by the mean place of what is above and below."""
    place = {name: (i + 0.5) / len(row) for row in rows for i, name in enumerate(row)}
    drawn = without_detours(graph)
    near = {name: drawn[name] | {other for other in graph if name in drawn[other]} for name in place}
    for _ in range(20):
        for row in rows:
            row.sort(key=lambda name: (sum(place[one] for one in near[name]) / max(1, len(near[name])), name))
            place.update({name: (i + 0.5) / len(row) for i, name in enumerate(row)})
    return rows


def _imported(path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    """Modules that one file imports."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                if whole in modules or node.module in modules:
                    yield whole if whole in modules else node.module


def main() -> int:
    """Print who imports whom, and the circles."""
    packages = package_imports()
    for name, imported in packages.items():
        print(f"{name:14s} {', '.join(sorted(imported)) or '-'}")
    found = [circle(packages), circle(module_imports())]
    for names in filter(None, found):
        print("circle: " + " → ".join(names), file=sys.stderr)
    return int(any(found))


if __name__ == "__main__":
    sys.exit(main())
