"""Plugins of every quality, as real distributions on the path: the good one works whatever the others do."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from scaivaultd.plugin import PLUGIN_API
from scaivaultd.plugin_manager import fits

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """
from contextlib import asynccontextmanager
from scaivaultd.plugin import SolverKind, hookimpl

@asynccontextmanager
async def _open(context):
    yield None

@hookimpl
def scaivaultd_challenge_solvers():
    return [SolverKind(name="good", challenge_type="{type}", open=_open)]
"""
PROVIDER = """
from scaivaultd.plugin import DnsProviderKind, ProviderSettings, hookimpl

class Own(ProviderSettings, frozen=True, kw_only=True):
    "Nothing of its own."

@hookimpl
def scaivaultd_dns_providers():
    return [DnsProviderKind(name="{name}", title="x", settings={settings}, open=print, example={example})]
"""
BACKEND = """
import msgspec
from scaivaultd.plugin import SecretBackendKind, hookimpl

class Own(msgspec.Struct, frozen=True):
    "Nothing."

@hookimpl
def scaivaultd_secret_backends():
    return [SecretBackendKind(scheme="{scheme}", summary="x", settings=Own, open=print)]
"""
RETURNS = """
from scaivaultd.plugin import SolverKind, hookimpl

@hookimpl
def scaivaultd_challenge_solvers():
    {body}
"""

# In its own process: what is imported there is not imported here, and a plugin that ends it ends only that.
LOADER = """
import json, logging, sys
sys.path[:0] = sys.argv[1:]
import structlog
from scaivaultd import plugin_manager
log = structlog.wrap_logger(
    structlog.PrintLogger(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING)
)
plugins = plugin_manager.load(log)
print(json.dumps({
    "solvers": ["/".join(key) for key in plugins.solvers if key[0] != key[1]],
    "dns_providers": sorted(plugins.dns_providers),
    "secret_backends": sorted(plugins.secret_backends),
    "brings": {each.name: each.brought.names for each in plugins.found},
    "refused": {each.name: each.refused for each in plugins.found},
    "distributions": {each.name: [each.distribution, each.version] for each in plugins.found},
}))
"""


@dataclass
class Loaded:
    solvers: list[str]
    dns_providers: list[str]
    secret_backends: list[str]
    brings: dict[str, list[str]]
    refused: dict[str, str | None]
    distributions: dict[str, list[str]]
    log: str


@dataclass
class Shop:
    """A folder of distributions."""

    folder: Path

    def add(self, name: str, source: str) -> None:
        """Install a distribution with one plugin of that name."""
        (self.folder / f"{name}_module.py").write_text(source)
        info = self.folder / f"{name}_dist-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-dist\nVersion: 1.2.3\n")
        (info / "entry_points.txt").write_text(f"[scaivaultd]\n{name} = {name}_module\n")

    def load(self) -> Loaded:
        """What a daemon finds that has this folder on its path."""
        ended = subprocess.run(
            [sys.executable, "-c", LOADER, str(self.folder)], check=False, capture_output=True, text=True, timeout=60
        )
        assert ended.returncode == 0, ended.stderr
        return Loaded(**json.loads(ended.stdout), log=ended.stderr)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_built_in_and_foreign_plugins_are_found_by_their_entry_points(shop: Shop) -> None:
    """Nothing has to be configured: installed is in use."""
    shop.add("foreign", GOOD.format(type="dns-01"))
    loaded = shop.load()
    assert loaded.solvers == ["dns-01/good"]
    assert set(loaded.refused.values()) == {None}
    assert loaded.brings["foreign"] == ["solver dns-01/good"]
    assert {"http01", "tlsalpn01", "dns01", "foreign"} <= set(loaded.refused)
    assert loaded.distributions["foreign"] == ["foreign-dist", "1.2.3"]
    assert loaded.log == ""


BROKEN = {
    "raises": ("raise RuntimeError('no such library')", "RuntimeError: no such library"),
    "syntax": ("def (", "SyntaxError"),
    "missing": ("import a_module_that_is_not_there", "ModuleNotFoundError"),
    "later": (f"SCAIVAULTD_PLUGIN_API = '2.0'\n{GOOD.format(type='dns-01')}", f"this daemon has {PLUGIN_API}"),
    "minor": (f"SCAIVAULTD_PLUGIN_API = '1.99'\n{GOOD.format(type='dns-01')}", "1.99"),
    "nonsense": (f"SCAIVAULTD_PLUGIN_API = object()\n{GOOD.format(type='dns-01')}", "written for"),
    "unknown": (
        "from scaivaultd.plugin import hookimpl\n@hookimpl\ndef scaivaultd_challenge_solver(): return []",
        "PluginValidationError",
    ),
    "arguments": (
        "from scaivaultd.plugin import hookimpl\n@hookimpl\ndef scaivaultd_challenge_solvers(config): return []",
        "PluginValidationError",
    ),
    "fails": (RETURNS.format(body="raise KeyError('x')"), "KeyError"),
    "number": (RETURNS.format(body="return 5"), "TypeError"),
    "text": (RETURNS.format(body="return 'http'"), "not SolverKind"),
    "dicts": (RETURNS.format(body="return [{'name': 'x'}]"), "returned dict, not SolverKind"),
    "incomplete": (RETURNS.format(body="return [SolverKind(name='x')]"), "TypeError"),
    "taken": (GOOD.format(type="http-01").replace("good", "http-01"), "the solver http-01/http-01 is there already"),
    "kind_name": (PROVIDER.format(name="Bad-Name", settings="Own", example={}), "is no name for a DNS provider"),
    "kind_settings": (PROVIDER.format(name="odd", settings="dict", example={}), "subclass of ProviderSettings"),
    "kind_example": (PROVIDER.format(name="odd", settings="Own", example={"x": 1}), "ValidationError"),
    "kind_taken": (PROVIDER.format(name="rfc2136", settings="Own", example={}), "rfc2136 is there already"),
    "scheme": (BACKEND.format(scheme="file"), "cannot be the scheme"),
    "scheme_name": (BACKEND.format(scheme="a b"), "cannot be the scheme"),
}


def test_every_broken_plugin_is_refused_with_its_reason_and_the_good_ones_work(shop: Shop) -> None:
    """One broken plugin never takes another, or the daemon, down."""
    for name, (source, _) in BROKEN.items():
        shop.add(f"x{name}", source)
    shop.add("zgood", GOOD.format(type="dns-01"))
    loaded = shop.load()
    assert loaded.solvers == ["dns-01/good"]
    for name, (_, reason) in BROKEN.items():
        assert reason in (loaded.refused[f"x{name}"] or ""), name
        assert f"plugin=x{name}" in loaded.log
    assert loaded.refused["zgood"] is None


def test_a_plugin_may_bring_kinds_of_everything(shop: Shop) -> None:
    """A package for one service often holds its DNS, its secrets and its uploads."""
    shop.add("a", PROVIDER.format(name="one_more", settings="Own", example={}))
    shop.add("b", BACKEND.format(scheme="vault"))
    loaded = shop.load()
    assert "one_more" in loaded.dns_providers
    assert loaded.secret_backends == ["vault"]
    assert (loaded.brings["a"], loaded.brings["b"]) == (["dns provider one_more"], ["secret backend vault"])


def test_two_solvers_for_one_type_have_names_of_their_own(shop: Shop) -> None:
    """A request chooses by `solver`; the daemon's own is the one that is meant without."""
    shop.add("other", GOOD.format(type="http-01"))
    assert shop.load().solvers == ["http-01/good"]


def test_a_plugin_that_brings_nothing_is_no_fault(shop: Shop) -> None:
    """Other hooks will come."""
    shop.add("empty", "")
    assert shop.load().refused["empty"] is None


def test_a_plugin_that_exits_when_it_is_imported_does_not_end_the_daemon(shop: Shop) -> None:
    """`sys.exit('needs Linux 6')` at the top of a module is not that rare."""
    shop.add("exits", "import sys; sys.exit('needs something')")
    assert "needs something" in (shop.load().refused["exits"] or "")


@pytest.mark.parametrize("kind", ["challenge_type=['dns-01'], open=print", "challenge_type=None, open=None"])
def test_a_kind_with_rubbish_in_it_is_refused(shop: Shop, kind: str) -> None:
    """Structs do not check what they are made with; the host must."""
    shop.add("rubbish", RETURNS.format(body=f"return [SolverKind(name='x', {kind})]"))
    assert shop.load().refused["rubbish"] is not None


def test_two_kinds_for_one_type_in_one_plugin_are_refused(shop: Shop) -> None:
    """Which one wins would depend on the order of a list."""
    body = "return [SolverKind(name='a', challenge_type='dns-01', open=print) for n in ('a', 'b')]"
    shop.add("double", RETURNS.format(body=body))
    assert shop.load().refused["double"] is not None


@pytest.mark.parametrize(
    ("wanted", "does"),
    [
        ("1.0", True),
        (PLUGIN_API, True),
        ("1.99", False),
        ("2.0", False),
        ("0.9", False),
        ("1", False),
        ("x.y", False),
        ("1.0.0", False),
        ("", False),
        (1.0, True),
        (None, False),
    ],
)
def test_a_contract_fits_within_its_major_version_and_not_from_the_future(wanted: object, does: bool) -> None:
    """A plugin for a later minor version may call what is not here yet."""
    assert fits(wanted) is does
