"""Parts of the pages that are made from the package itself, so that they cannot say anything else than it does.

Directives: ``laue-arrays``, ``laue-configuration``, ``laue-commands``, ``laue-exit-codes`` and ``laue-architecture``.
"""

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import click
import yaml
from docutils import nodes
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import architecture


class _Generated(SphinxDirective):
    """Markdown that is made when a page is read."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes("\n".join(self.lines()), allow_section_headings=True)

    def lines(self) -> Iterator[str]:
        raise NotImplementedError


class Arrays(_Generated):
    """Table of the arrays of a store: ``laue-arrays RESULTS``."""

    def lines(self) -> Iterator[str]:
        from laue_dask import schema

        specs = getattr(schema, self.arguments[0])
        if isinstance(specs, schema.ArraySpec):
            specs = {f"{self.arguments[0].lower()}/<hash>": specs}
        yield "| array | dimensions | type | empty | units | what it is |"
        yield "|---|---|---|---|---|---|"
        for name, spec in specs.items():
            kind = f"`{spec.dtype}`" if spec.dtype else "the detector's"
            fill = f"`{spec.fill}`" if spec.fill != "" else ""
            meaning = markdown(spec.meaning) + ("" if spec.required else " *(optional)*")
            yield f"| `{name}` | {', '.join(spec.dims)} | {kind} | {fill} | {markdown(spec.units)} | {meaning} |"


class Configuration(_Generated):
    """Every key of a model: ``laue-configuration laue_dask.config:Config``."""

    option_spec: ClassVar[Any] = {"without": lambda text: text.split()}

    def lines(self) -> Iterator[str]:
        module, name = self.arguments[0].split(":")
        model = getattr(importlib.import_module(module), name)
        yield from _keys(model, model.model_json_schema(), "", frozenset(self.options.get("without", ())))


class Commands(_Generated):
    """Every command with its arguments and options."""

    def lines(self) -> Iterator[str]:
        from laue_dask.commands.main import commands as group
        from laue_dask.commands.process import PROGRAM_NAME

        context = click.Context(group, info_name=PROGRAM_NAME)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if command is None or command.hidden:
                continue
            inner = click.Context(command, info_name=name, parent=context)
            usage = " ".join(command.collect_usage_pieces(inner))
            yield from ("", f"({PROGRAM_NAME}-{name})=", f"## {name}", "")
            yield from ("```text", f"{PROGRAM_NAME} {name} {usage}", "```", "")
            for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
                if paragraph.startswith("\b"):  # click's mark of lines that are not filled
                    yield from ("```text", paragraph.removeprefix("\b").strip("\n"), "```", "")
                else:
                    yield from (markdown(paragraph), "")
            for parameter in command.get_params(inner):
                name_of, said = parameter.get_help_record(inner) or ("", "")
                if said and "--help" not in name_of:
                    said = re.sub(r"\[x>=(\S+)\]", r"At least \1.", " ".join(said.split()))
                    yield from (f"`{name_of}`", f": {markdown(said)}", "")


class ExitCodes(_Generated):
    """What every exit code means, and which errors have it."""

    def lines(self) -> Iterator[str]:
        from laue_dask import errors

        yield "| exit code | name | errors with it |"
        yield "|---|---|---|"
        kinds = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, errors.LaueDaskError)]
        for code in errors.ExitCode:
            names = ", ".join(f"`{kind.__name__}`" for kind in kinds if kind.exit_code == code)
            yield f"| {int(code)} | `{code.name}` | {names} |"


class Architecture(_Generated):
    """Which package imports which, as a picture and a table; circles end the build."""

    HIDDEN: ClassVar[set[str]] = {"__main__", "errors", "schema", "config", "config_errors"}
    """Left out of the picture: nearly all import them, or nothing does."""

    def run(self) -> list[nodes.Node]:
        packages = architecture.package_imports()
        if names := architecture.circle(packages) or architecture.circle(architecture.module_imports()):
            raise ExtensionError("laue_dask imports itself in a circle: " + " → ".join(names))
        drawn = {name: below - self.HIDDEN for name, below in packages.items() if name not in self.HIDDEN}
        svg = nodes.raw("", architecture.picture(drawn), format="html")
        return [svg, *super().run()]

    def lines(self) -> Iterator[str]:
        yield "| package | what it holds | imports |"
        yield "|---|---|---|"
        for name, imported in architecture.package_imports().items():
            if name != "__main__":
                below = ", ".join(f"`{one}`" for one in sorted(imported)) or "–"
                yield f"| `{name}` | {markdown(_first_line(name))} | {below} |"


def _first_line(name: str) -> str:
    """First sentence of a package's or module's docstring, read without importing it."""
    folder = architecture.ROOT / name
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


def _keys(model: type[BaseModel], whole: Mapping[str, Any], before: str, without: frozenset[str]) -> Iterator[str]:
    """Sections of a configuration as headings, their keys as definitions."""
    said = _docstrings(model)
    sections = []
    for name, field in model.model_fields.items():
        if before + name in without:
            continue
        models = list(dict.fromkeys(_models(field.annotation)))
        if models:
            sections.append((name, models))
            if len(models) == 1 and not isinstance(field.default, models[0]):
                yield from _definition(name, "a section, or nothing", "null", said.get(name, ""))
            continue
        described = model.model_json_schema()["properties"].get(name, {})
        default = "" if field.is_required() else _yaml(model, name, field.get_default(call_default_factory=True))
        yield from _definition(name, _kind(described, whole), default, said.get(name, ""))
    for name, models in sections:
        for one in models:
            variants = _variants(one) if len(models) > 1 else ""
            yield from ("", f"{'##' if not before else '###'} `{before}{name}`{variants}", "")
            yield from (markdown(inspect.cleandoc(one.__doc__ or "")), "")
            yield from _keys(one, one.model_json_schema(), f"{before}{name}.", without)


def _definition(name: str, kind: str, default: str, meaning: str) -> Iterator[str]:
    ends = f"; default `{default}`" if default else ""
    text = " ".join(markdown(meaning).split())
    yield from (f"`{name}`", f": {kind}{ends}.{' ' + text if text else ''}", "")


def _variants(model: type[BaseModel]) -> str:
    """Of a section that has several forms: the value of `kind` for this one."""
    kind = model.model_json_schema()["properties"].get("kind", {})
    values = kind.get("enum") or [kind.get("const")]
    return f" with `kind: {' | '.join(map(str, values))}`" if values[0] else ""


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Models that an annotation names, whatever is around them."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)


def _yaml(model: type[BaseModel], name: str, default: Any) -> str:
    """A default as one would write it."""
    shown = model.model_construct(**{name: default}).model_dump(mode="json", include={name}, warnings=False)[name]
    return yaml.safe_dump(shown, default_flow_style=True, allow_unicode=True).removesuffix("...\n").strip()


def _kind(described: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "$ref" in described:
        return _kind(whole["$defs"][described["$ref"].rpartition("/")[2]], whole)
    if "anyOf" in described:
        kinds = [_kind(one, whole) for one in described["anyOf"]]
        return " or ".join(dict.fromkeys("nothing" if one == "null" else one for one in kinds))
    if "enum" in described:
        return ", ".join(f"`{one}`" for one in described["enum"])
    if "const" in described:
        return f"`{described['const']}`"
    kind = {"integer": "whole number", "boolean": "`true` or `false`", "string": "text"}.get(
        described.get("type", "any"), described.get("type", "anything")
    )
    if kind == "array":
        parts = described.get("prefixItems")
        if parts:
            return f"list of {len(parts)} values (" + "; ".join(_kind(one, whole) for one in parts) + ")"
        return f"list of {_kind(described.get('items', {}), whole)}"
    if kind == "object":
        return "mapping"
    limits = {"minimum": "≥ ", "ge": "≥ ", "exclusiveMinimum": "> ", "maximum": "≤ ", "exclusiveMaximum": "< "}
    bounds = ", ".join(f"{sign}{described[one]:g}" for one, sign in limits.items() if one in described)
    return f"{kind} {bounds}".strip()


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The text that stands below each field in the source."""
    found: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if not one.__module__.startswith("laue_dask"):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for field, below in pairwise(body):
            said = below.value if isinstance(below, ast.Expr) else None
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(said):
                found[field.target.id] = inspect.cleandoc(said.value)
    return found


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def markdown(text: str) -> str:
    """Plain text with code in single backticks as Markdown: what is markup elsewhere is escaped."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(one if one.startswith("`") else re.sub(r"([*_<>\[\]|$~])", r"\\\1", one) for one in parts)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("laue-arrays", Arrays)
    app.add_directive("laue-configuration", Configuration)
    app.add_directive("laue-commands", Commands)
    app.add_directive("laue-exit-codes", ExitCodes)
    app.add_directive("laue-architecture", Architecture)
    return {"version": "1", "parallel_read_safe": True}
