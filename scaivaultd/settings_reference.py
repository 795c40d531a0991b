"""The reference page of the configuration file, written from the Structs that read it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
from msgspec import inspect

from scaivaultd.settings import Settings
from scaivaultd.settings_check import Option, bounds_of, options_of
from scaivaultd.settings_values import SYNTAXES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_HEAD = """\
# Configuration

`scaivaultd` reads a TOML file, drop-ins beside it, and variables of the environment; see
`docs/how-to/configure.md`. Only `state_dir` must be given; every other key has the default
shown here, and so has every table that is left out. Paths are absolute. A key that is not listed
here is a mistake, not ignored; all mistakes are reported at once, each with its line.

`config/scaivaultd.toml` shows every key in its place, `config/examples/` holds whole files."""


def reference_markdown() -> str:
    """The text of `docs/reference/configuration.md`."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    options = options_of(Settings)
    yield _HEAD
    yield ""
    yield "## Above the first table"
    yield ""
    yield from _table(option for option in options if struct_of(option) is None)
    for option in options:
        if (struct := struct_of(option)) is not None:
            yield from _section(option.name, option, struct)


def struct_of(option: Option) -> type[msgspec.Struct] | None:
    """The Struct of an option that is a table, or tables."""
    kind = option.kind.item_type if isinstance(option.kind, inspect.VarTupleType) else option.kind
    return kind.cls if isinstance(kind, inspect.StructType) else None


def _section(name: str, option: Option, struct: type[msgspec.Struct]) -> Iterator[str]:
    yield ""
    yield f"## `[{name}]`" if isinstance(option.kind, inspect.StructType) else f"## `[[{name}]]`"
    yield ""
    yield (struct.__doc__ or "").strip()
    yield ""
    yield from _table(options_of(struct))
    for inner in options_of(struct):
        if (nested := struct_of(inner)) is not None:
            yield from _section(f"{name}.{inner.name}", inner, nested)


def _table(options: Iterable[Option]) -> Iterator[str]:
    yield "| key | form | default | meaning |"
    yield "|---|---|---|---|"
    for option in options:
        cells = (f"`{option.name}`", form_of(option.kind), default_of(option), option.description)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def form_of(kind: inspect.Type) -> str:
    """How values of a kind are written, in words."""
    match kind:
        case inspect.VarTupleType():
            return f"list ({form_of(kind.item_type)})"
        case inspect.DictType() | inspect.StructType():
            return "table"
        case inspect.CustomType():
            return SYNTAXES[kind.cls].form
        case inspect.LiteralType():
            return ", ".join(f"`{value}`" for value in kind.values)
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType():
            lowest, highest = bounds_of(kind)
            return f"{'integer' if isinstance(kind, inspect.IntType) else 'number'} from {lowest} to {highest}"
        case _:
            raise TypeError(f"{kind} has no place in settings")


def default_of(option: Option) -> str:
    """What holds when an option is left out, as it would be written."""
    if option.is_required:
        return "required"
    # TOML writes these values as JSON does; None, which it cannot write, is a key left out.
    return "unset" if option.default is None else f"`{json.dumps(option.default)}`"
