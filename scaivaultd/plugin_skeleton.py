"""A working plugin to begin with: what `scaivaultctl plugin new` writes.

The templates are sources with marks such as `@PACKAGE@`; a test makes a distribution of each, and runs its tests.
"""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from typing import Literal

from scaivaultd.plugin import PLUGIN_API

SkeletonKind = Literal["dns", "solver"]


def files(name: str, kind: SkeletonKind) -> dict[str, str]:
    """The files of a distribution called `name`, by their paths in it.

    Raises:
        ValueError: the name is none for a distribution, or gives none for a package; the text says why.
    """
    package = _package(name)
    word = re.sub("^(scaivaultd_)?(dns_)?", "", package) or package
    marks = {
        "DISTRIBUTION": name,
        "PACKAGE": package,
        "KIND": word,
        "TITLE": word.replace("_", " ").title(),
        "API": PLUGIN_API,
        "MODULE": kind,
    }
    module, test = (DNS_MODULE, DNS_TEST) if kind == "dns" else (SOLVER_MODULE, SOLVER_TEST)
    templates = {
        "pyproject.toml": PYPROJECT,
        "README.md": README,
        f"{package}/__init__.py": '"""A plugin for scaivaultd."""\n',
        f"{package}/py.typed": "",
        f"{package}/{kind}.py": module,
        f"tests/test_{kind}.py": test,
    }
    return {path: _filled(text, marks) for path, text in templates.items()}


def write(folder: Path, name: str, kind: SkeletonKind) -> list[Path]:
    """Write the distribution into `folder`, which is made; returns what was written.

    Raises:
        ValueError: see `files`.
        FileExistsError: there is something in the folder, or a file of its name.
        OSError: it cannot be written.
    """
    content = files(name, kind)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already, and is not an empty folder")
    for path, text in content.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return [folder / path for path in content]


def _package(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        raise ValueError(
            "a distribution's name is letters, digits, `.`, `_` and `-`, and begins and ends with a letter or digit"
        )
    package = re.sub(r"[-_.]+", "_", name).lower()
    if not package.isidentifier() or keyword.iskeyword(package):
        raise ValueError(f"{package} cannot be the name of a package")
    if package in OURS:
        raise ValueError(f"{package} is a package of the daemon itself")
    return package


def _filled(text: str, marks: dict[str, str]) -> str:
    for mark, value in marks.items():
        text = text.replace(f"@{mark}@", value)
    return text


OURS = frozenset({"scaivaultd", "scaivaultd_plugins", "scaivaultd_contrib_dns"})

PYPROJECT = r"""[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "@DISTRIBUTION@"
version = "0.1.0"
description = "A plugin for scaivaultd"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["scaivaultd"]

[project.entry-points.scaivaultd]
@KIND@ = "@PACKAGE@.@MODULE@"

[tool.hatch.build.targets.wheel]
packages = ["@PACKAGE@"]

[tool.pytest.ini_options]
asyncio_mode = "auto"
asyncio_default_fixture_loop_scope = "function"
filterwarnings = ["error"]
pythonpath = ["."]
testpaths = ["tests"]
"""

README = r"""# @DISTRIBUTION@

A plugin for scaivaultd, found by its entry point as soon as it is installed in the daemon's environment.

    pip install .
    scaivaultctl plugin check @KIND@
    python -m pytest        # needs pytest and pytest-asyncio
"""

DNS_MODULE = r'''"""A DNS provider that works, for a service that is made up: its record sets have revisions.

Replace the paths, the two Structs and `error_from` by those of the real service; keep the shape.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

import msgspec
from msgspec import Meta

from scaivaultd.plugin import (
    Capabilities,
    Conflict,
    DnsProvider,
    DnsProviderKind,
    Handle,
    PluginContext,
    ProviderError,
    ProviderSettings,
    Zone,
    ZoneNotFound,
    candidates,
    hookimpl,
)
from scaivaultd.plugin.http import HttpAnswer, HttpApi, bearer, open_api, quoted

SCAIVAULTD_PLUGIN_API = "@API@"


class OwnSettings(ProviderSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a configured provider needs besides the settings that all have."""

    api_base: Annotated[str, Meta(description="Root of the API.")]
    token_path: Annotated[str, Meta(description="The token.")]


class RecordSet(msgspec.Struct, frozen=True, kw_only=True):
    """A TXT record set as the service shows it; `revision` 0 is one that does not exist."""

    values: tuple[str, ...] = ()
    ttl: int = 0
    revision: int = 0


class ZoneList(msgspec.Struct, frozen=True, kw_only=True):
    """The zones that the token may write."""

    zones: tuple[str, ...]


class Provider:
    """Reads a set, merges, and writes it back if nobody else was faster."""

    def __init__(self, api: HttpApi) -> None:
        self._api = api

    async def find_zone(self, name: str) -> Zone:
        """See `DnsProvider`."""
        answer = await self._api.call("GET", "/zones")
        zones = msgspec.json.decode(answer.body, type=ZoneList).zones
        for candidate in candidates(name):
            if candidate in zones:
                return Zone(name=candidate)
        raise ZoneNotFound(f"no zone of this token holds {name}; it has {len(zones)}")

    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        """See `DnsProvider`."""
        await self._change(zone, name, lambda held: (*held, *(each for each in values if each not in held)), ttl)
        return {}

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        """See `DnsProvider`."""
        await self._change(zone, name, lambda held: tuple(each for each in held if each not in values), 0)

    async def check(self) -> None:
        """See `Checkable`."""
        await self._api.call("GET", "/zones")

    async def _change(
        self, zone: Zone, name: str, wanted: Callable[[tuple[str, ...]], tuple[str, ...]], ttl: int
    ) -> None:
        path = f"/zones/{quoted(zone.name)}/txt/{quoted(name)}"

        async def step() -> None:
            # Begins by looking, so that it may be done again after a lost answer or a lost race.
            answer = await self._api.call("GET", path, accept={404})
            held = msgspec.json.decode(answer.body, type=RecordSet) if answer.ok else RecordSet()
            values = wanted(held.values)
            if values != held.values:
                # An existing set keeps its TTL.
                written = {"values": values, "ttl": held.ttl or ttl, "revision": held.revision}
                await self._api.call("PUT", path, json=written)

        await self._api.repeated(step)


def error_from(answer: HttpAnswer) -> ProviderError | None:
    """A 409 is a lost race; the status says the rest."""
    if answer.status == 409:
        return Conflict("another writer changed the record set")
    return None


@asynccontextmanager
async def open_provider(settings: OwnSettings, context: PluginContext) -> AsyncIterator[DnsProvider]:
    """One provider with a connection pool of its own."""

    authorize = bearer(context.secrets, settings.token_path)
    async with open_api(settings.api_base, settings, context, authorize=authorize, error_from=error_from) as api:
        yield Provider(api)


@hookimpl
def scaivaultd_dns_providers() -> Iterable[DnsProviderKind]:
    """The one kind of this plugin."""
    return [
        DnsProviderKind(
            name="@KIND@",
            title="@TITLE@",
            settings=OwnSettings,
            open=open_provider,
            example={"api_base": "https://dns.example.net/v1", "token_path": "dns/@KIND@/token"},
            capabilities=Capabilities(min_ttl=30),
            summary="What the service is, in a sentence.",
            rights="A token that may write TXT records of the zone.",
            limits="None.",
            troubleshooting="`409`: other programs write the same name all the time.",
        )
    ]
'''

DNS_TEST = r'''"""The provider passes the conformance kit against a server that behaves like the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
from aiohttp import web
from @PACKAGE@.dns import scaivaultd_dns_providers

from scaivaultd.plugin import DnsProviderKind
from scaivaultd.plugin.testing import DnsProviderContract, FaultKind, Rig

TOKEN = "the-right-token-of-a-test"


class Server:
    """The service, and the rig around it."""

    zone = "zone.example.test"
    secrets: Mapping[str, str] = {"dns/@KIND@/token": TOKEN}
    wrong_secrets: Mapping[str, str] | None = {"dns/@KIND@/token": "a-wrong-token-of-a-test"}

    def __init__(self) -> None:
        self.sets: dict[str, dict[str, Any]] = {}
        self.faults: list[tuple[FaultKind, bool]] = []
        self.objections: list[str] = []
        self.root = ""

    @property
    def kind(self) -> DnsProviderKind:
        (kind,) = scaivaultd_dns_providers()
        return kind

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"api_base": self.root, "token_path": "dns/@KIND@/token"}

    async def values(self, name: str) -> Sequence[str]:
        return tuple(self.sets.get(name, {}).get("values", ()))

    async def put_foreign(self, name: str, value: str) -> None:
        self._write(name, [*await self.values(name), value], 300)

    async def fail(self, fault: FaultKind, times: int) -> None:
        self.faults += [(fault, False)] * times

    async def fail_writes(self, fault: FaultKind, times: int) -> None:
        self.faults += [(fault, True)] * times

    def complaints(self) -> Sequence[str]:
        return self.objections

    def _write(self, name: str, values: list[str], ttl: int) -> None:
        revision = self.sets.get(name, {}).get("revision", 0)
        self.sets[name] = {"values": values, "ttl": ttl, "revision": revision + 1}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        fault = self._fault(request.method == "PUT")
        if fault == "rate_limit":
            return web.Response(status=429, headers={"Retry-After": "1"})
        if fault == "server_error":
            return web.Response(status=503, text="<html>Service Unavailable</html>", content_type="text/html")
        answer = await self._answer(request) if fault != "drop_before" else web.Response()
        if fault == "hang":
            await asyncio.Event().wait()
        if fault in ("drop_before", "drop_after"):
            assert request.transport is not None
            request.transport.abort()
        return answer

    def _fault(self, writes: bool) -> FaultKind | None:
        for place, (fault, only_writes) in enumerate(self.faults):
            if writes or not only_writes:
                del self.faults[place]
                return fault
        return None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({"error": "unauthorized"}, status=401)
        zones = ["example.test", self.zone]
        if request.path == "/zones":
            return web.json_response({"zones": zones})
        _, _, zone, kind, name = request.path.split("/")
        if kind != "txt" or not name.endswith(zone):
            self.objections.append(f"{request.method} {request.path}")
        if zone not in zones:
            return web.json_response({"error": "no such zone"}, status=404)
        if request.method == "PUT":
            body = await request.json()
            if body["revision"] != self.sets.get(name, {}).get("revision", 0):
                return web.json_response({"error": "changed meanwhile"}, status=409)
            self._write(name, body["values"], body["ttl"])
        return web.json_response(self.sets[name]) if name in self.sets else web.json_response({}, status=404)


class TestProvider(DnsProviderContract):
    """All of the kit, without an exemption."""

    @pytest.fixture
    async def rig(self) -> AsyncIterator[Rig]:
        server = Server()
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", server.handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.root = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield server
        finally:
            await runner.cleanup()
'''

SOLVER_MODULE = r'''"""A solver that puts http-01 tokens into a folder that another web server serves."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from scaivaultd.plugin import (
    ChallengeResponse,
    ChallengeSolver,
    SolverContext,
    SolverError,
    SolverKind,
    hookimpl,
)

SCAIVAULTD_PLUGIN_API = "@API@"


class SolverSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[solvers.@KIND@]` of the daemon's configuration."""

    webroot: Annotated[str, Meta(description="The folder that the web server serves.")]


class Solver:
    """One file for each token below `.well-known/acme-challenge` (RFC 8555 section 8.3)."""

    def __init__(self, webroot: Path) -> None:
        self._folder = webroot / ".well-known" / "acme-challenge"

    async def present(self, response: ChallengeResponse) -> None:
        """Write the file; writing it again is no error."""
        try:
            await asyncio.to_thread(_write, self._file(response), response.key_authorization)
        except OSError as error:
            raise SolverError(f"the web root cannot be written: {error.strerror}", retryable=True) from error

    async def clean_up(self, response: ChallengeResponse) -> None:
        """Remove the file; one that is gone is no error."""
        await asyncio.to_thread(self._file(response).unlink, missing_ok=True)

    def _file(self, response: ChallengeResponse) -> Path:
        # The token comes from the CA and becomes a file name here.
        if not re.fullmatch(r"[A-Za-z0-9_-]+", response.token):
            raise SolverError("the token is no file name")
        return self._folder / response.token


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name(f".{file.name}.new")
    half.write_text(text)
    half.replace(file)


@asynccontextmanager
async def open_solver(context: SolverContext) -> AsyncIterator[ChallengeSolver]:
    """Nothing is kept open."""
    settings: SolverSettings = context.settings
    yield Solver(Path(settings.webroot))


@hookimpl
def scaivaultd_challenge_solvers() -> Iterable[SolverKind]:
    """Chosen by `solver` = `@KIND@` in a request."""
    return [
        SolverKind(
            name="@KIND@",
            challenge_type="http-01",
            open=open_solver,
            settings=SolverSettings,
            present_seconds=30,
        )
    ]
'''

SOLVER_TEST = r'''"""Tokens come and go as files."""

from __future__ import annotations

from pathlib import Path

import pytest
from @PACKAGE@.solver import Solver

from scaivaultd.plugin import ChallengeResponse, SolverError


def response(token: str) -> ChallengeResponse:
    return ChallengeResponse(identifier="a.test", type="http-01", token=token, key_authorization=f"{token}.print")


async def test_a_token_is_there_until_it_is_cleaned_up(tmp_path: Path) -> None:
    """Both may be repeated: the daemon does so after a restart."""
    solver = Solver(tmp_path)
    file = tmp_path / ".well-known/acme-challenge/abc"
    for _ in range(2):
        await solver.present(response("abc"))
        assert file.read_text() == "abc.print"
    for _ in range(2):
        await solver.clean_up(response("abc"))
        assert not file.exists()


async def test_a_token_cannot_name_another_folder(tmp_path: Path) -> None:
    """It comes from outside."""
    with pytest.raises(SolverError):
        await Solver(tmp_path).present(response("../../index"))
'''
