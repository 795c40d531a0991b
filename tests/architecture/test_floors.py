"""The house has floors, and imports run down only (docs/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FLOORS = {
    "model": 0,
    "acme": 1,
    "plugin": 1,
    "api": 1,
    "services": 2,
    "store": 2,
    "net": 2,
    "listeners": 2,
    "gateways": 2,
    "settings": 2,
    "plugin_manager": 2,
    "logs": 2,
}
ROOF = 3
FORBIDDEN_IN_ACME = {"asyncio", "aiohttp", "socket", "time", "random", "nats", "ssl", "os", "threading"}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(dotted: str) -> str | None:
    parts = dotted.split(".")
    return room_named(parts[1]) if parts[0] == "scaivaultd" and len(parts) > 1 else None


def room_named(module: str) -> str:
    """The settings, and the logs, are one room in several files."""
    return next((room for room in ("settings", "logs") if module.startswith(f"{room}_")), module)


def arrow_is_wrong(path: Path, imported: str) -> bool:
    own = path.relative_to(ROOT / "scaivaultd").parts[0].removesuffix(".py")
    own = room_named(own)
    other = room_of(imported)
    if other is None or other == own or other.startswith("__"):
        return False
    floor = FLOORS.get(own, ROOF)
    return FLOORS.get(other, ROOF) >= floor and floor < ROOF


@pytest.mark.parametrize("path", modules("scaivaultd"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_down_only(path: Path) -> None:
    """A room that imports a neighbour or the floor above cannot be understood, tested or replaced alone."""
    assert [each for each in imports(path) if arrow_is_wrong(path, each)] == []


@pytest.mark.parametrize("path", modules("scaivaultd/acme"), ids=lambda path: path.name)
def test_the_protocol_core_does_no_io(path: Path) -> None:
    """`acme/` decides, others act: without clock and sockets it is tested by tables."""
    assert {each.split(".")[0] for each in imports(path)} & FORBIDDEN_IN_ACME == set()


@pytest.mark.parametrize(
    "path", [*modules("plugins"), *modules("contrib_dns")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_built_in_plugins_see_what_a_stranger_sees(path: Path) -> None:
    """What our own plugins need and strangers cannot have would make the plugin contract a lie."""
    ours = {each for each in imports(path) if each.split(".")[0] == "scaivaultd"}
    assert {each for each in ours if room_of(each) != "plugin"} == set()


@pytest.mark.parametrize("wrong", ["scaivaultd.store.sqlite", "scaivaultd.daemon"])
def test_the_rule_itself_bites(wrong: str) -> None:
    """A rule that finds nothing anywhere may be a rule that cannot find anything."""
    assert arrow_is_wrong(ROOT / "scaivaultd/services/issuing.py", wrong)
    assert not arrow_is_wrong(ROOT / "scaivaultd/services/issuing.py", "scaivaultd.acme.x509")


def test_the_command_line_tool_stays_light() -> None:
    """`scaivaultctl` starts in a moment only while it imports none of the heavy libraries."""
    import subprocess
    import sys

    code = (
        "import sys, scaivaultd.ctl; "
        "print(sorted({'nats', 'aiohttp', 'acme', 'cryptography', 'structlog'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
