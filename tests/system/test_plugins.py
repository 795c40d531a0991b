"""Strangers' plugins in the real daemon: a whole foreign distribution, and plugins of every bad quality beside it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from scaivaultd.demo.dns import DevelopmentDns
from scaivaultd.demo.process import until
from tests.fakes.http import FakeApi, Seen
from tests.fakes.sample_plugin import add_distribution, build_wheel, install

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

pytestmark = pytest.mark.system

ZONE = "example.org"
TOKEN = "the-token-of-the-sample"
BAD = {
    "xfuture": "SCAIVAULTD_PLUGIN_API = '2.0'",
    "ximport": "import a_module_that_is_not_there",
    "xraises": """
from scaivaultd.plugin import hookimpl

@hookimpl
def scaivaultd_dns_providers():
    raise RuntimeError("no")
""",
    "xprovider": """
import asyncio
from contextlib import asynccontextmanager
from scaivaultd.plugin import DnsProviderKind, ProviderSettings, Zone, hookimpl

SCAIVAULTD_PLUGIN_API = "1.1"

class Settings(ProviderSettings, frozen=True, kw_only=True):
    how: str

class Provider:
    def __init__(self, how):
        self.how = how

    async def find_zone(self, name):
        return Zone(name="example.org")

    async def add_txt(self, zone, name, values, ttl):
        if self.how == "raises":
            raise ValueError("the password is hunter2")
        if self.how == "rubbish":
            return {"handle": object()}
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass

    async def remove_txt(self, zone, name, values, handle):
        pass

@asynccontextmanager
async def open_it(settings, context):
    yield Provider(settings.how)

@hookimpl
def scaivaultd_dns_providers():
    return [DnsProviderKind(name="bad", title="Bad", settings=Settings, open=open_it, example={"how": "raises"})]
""",
}


class SampleService(FakeApi):
    """What the sample plugin speaks to: record sets with revisions."""

    def __init__(self) -> None:
        super().__init__()
        self.sets: dict[str, dict[str, Any]] = {}

    async def answer(self, seen: Seen) -> web.StreamResponse:
        if seen.headers.get("authorization") != f"Bearer {TOKEN}":
            return web.json_response({}, status=401)
        if seen.line == "GET /zones":
            return web.json_response({"zones": [ZONE]})
        name = seen.path.rpartition("/")[2]
        held = self.sets.get(name, {"values": [], "ttl": 0, "revision": 0})
        if seen.method == "GET":
            return web.json_response(held, status=200 if name in self.sets else 404)
        written = json.loads(seen.body)
        if written["revision"] != held["revision"]:
            return web.json_response({}, status=409)
        self.sets[name] = {**written, "revision": held["revision"] + 1}
        assert self.on_txt is not None
        self.on_txt(name, tuple(written["values"]))
        return web.json_response({})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed distributions: the sample from its own wheel, and the bad ones."""
    folder = tmp_path_factory.mktemp("plugins")
    target = folder / "site"
    target.mkdir()
    install(build_wheel(folder), target)
    for name, source in BAD.items():
        add_distribution(target, name, source)
    return target


@pytest.fixture
async def development_dns() -> AsyncIterator[DevelopmentDns]:
    async with DevelopmentDns([ZONE], default_address="127.0.0.1") as server:
        yield server


@pytest.fixture
async def web_server(tmp_path: Path) -> AsyncIterator[int]:
    """The port of a web server that serves a folder and knows nothing of the daemon."""
    webroot = tmp_path / "webroot"
    webroot.mkdir()
    application = web.Application()
    application.router.add_static("/", webroot)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@pytest.fixture
async def service(development_dns: DevelopmentDns) -> AsyncIterator[SampleService]:
    """The DNS service of the foreign provider; what is written there is what the CA sees."""
    async with SampleService() as running:
        running.on_txt = lambda name, values: development_dns.set_txt(name, values)
        yield running


@pytest.fixture
async def world(
    site: Path,
    service: SampleService,
    tmp_path: Path,
    web_server: int,
    development_dns: DevelopmentDns,
    monkeypatch: pytest.MonkeyPatch,
    make_pebble: Callable[..., Awaitable[Any]],
    make_daemon: Callable[..., Awaitable[Any]],
) -> tuple[Any, str]:
    """A daemon that finds them, and an account."""
    monkeypatch.setenv("PYTHONPATH", str(site))
    pebble = await make_pebble(dns_server=f"127.0.0.1:{development_dns.port}")
    secrets = tmp_path / "secrets.json"
    secrets.write_text(json.dumps({"token": TOKEN}))
    port = development_dns.port
    daemon = await make_daemon(
        pebble,
        http01=f'fallback = "proxy"\nupstream = "127.0.0.1:{web_server}"',
        dns=f'resolvers = ["127.0.0.1:{port}"]\nauthoritative_port = {port}\n'
        f'private_apis = ["{service.url.split("/")[2]}"]',
        **{"secrets.backends.sample": f'file = "{secrets}"', "solvers.upload": f'webroot = "{tmp_path / "webroot"}"'},
    )
    return daemon, await daemon.account(pebble)


async def test_a_foreign_provider_and_its_secret_backend_bring_a_certificate(
    world: Any, service: SampleService
) -> None:
    """Any DNS provider can be added by a third party without touching the daemon."""
    daemon, account = world
    config = {"api_base": service.url, "token_path": "sample:token"}
    reply = await daemon.ask("pki.dns_providers.create", name="theirs", type="sample", config=config)
    assert reply.get("status") == "ready", reply
    order = await daemon.issue(account, ZONE, f"*.{ZONE}", challenge_type="dns-01")
    assert order["status"] == "valid", order


async def test_a_foreign_solver_is_chosen_by_its_name(world: Any, tmp_path: Path) -> None:
    """One that puts http-01 tokens where another web server serves them: here the one behind the daemon's own port."""
    daemon, account = world
    body = {"account_id": account, "domains": ["a.example.org"], "challenge_type": "http-01"}
    refused = await daemon.ask("pki.acme.issue", **body, solver="ftp")
    assert (refused["code"], "http-01, upload" in refused["detail"]) == ("unsupported_challenge", True)
    order = await daemon.issue(account, "a.example.org", solver="upload")
    assert (order["status"], order["solver"]) == ("valid", "upload"), order
    assert list((tmp_path / "webroot/.well-known/acme-challenge").iterdir()) == []


async def test_every_bad_plugin_is_refused_with_a_reason_while_the_daemon_runs_on(world: Any) -> None:
    """One broken plugin never takes another, or the daemon, down."""
    daemon, _ = world
    info = await daemon.ask("sys.info")
    reasons = {each["name"]: each.get("refused") for each in info["plugins"]}
    assert "plugin API 2.0" in reasons["xfuture"]
    assert "ModuleNotFoundError" in reasons["ximport"]
    assert "RuntimeError" in reasons["xraises"]
    assert [name for name, reason in reasons.items() if reason] == ["xfuture", "ximport", "xraises"]


@pytest.mark.parametrize("how", ["raises", "rubbish"])
async def test_a_provider_that_breaks_is_the_end_of_its_order_only(world: Any, how: str) -> None:
    """Its failure ends at the job; its text, which may hold anything, goes nowhere."""
    daemon, account = world
    await daemon.ask("pki.dns_providers.create", name="bad", type="bad", config={"how": how})
    order = await daemon.ask(
        "pki.acme.issue", account_id=account, domains=["a.example.org"], challenge_type="dns-01", dns_provider="bad"
    )
    seen: dict[str, Any] = {}

    async def has_failed() -> bool:
        seen.update(await daemon.ask("pki.acme.orders.get", order_id=order["order_id"]))
        return bool(seen.get("error"))

    await until(has_failed, "the order tells of its first setback")
    assert seen["error"]["code"] == "dns_provider_error"
    assert (await daemon.issue(account, "b.example.org"))["status"] == "valid"
    assert "hunter2" not in daemon.process.log
