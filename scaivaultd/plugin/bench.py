"""A host in small, for tests of plugins: a context whose clock does not wait, a log that remembers, secrets that
rotate, and `Host`, which calls a provider as the daemon does.

What `testing` builds its contract on; it needs no pytest.
"""

from __future__ import annotations

import asyncio
import base64
import traceback
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol, runtime_checkable
from urllib.parse import quote

import msgspec

from scaivaultd.model.clock import SystemClock
from scaivaultd.plugin.context import PluginContext
from scaivaultd.plugin.dns import (
    Capabilities,
    DnsProvider,
    DnsProviderKind,
    Handle,
    Zone,
)
from scaivaultd.plugin.secrets import Secret, SecretMissing, SecretReader

FaultKind = Literal["rate_limit", "server_error", "drop_before", "drop_after", "hang"]
"""What goes wrong with a request.

`rate_limit`: the service asks to slow down, in its own way. `server_error`: it answers 503 in HTML, or what comes
nearest. `drop_before`, `drop_after`: the connection breaks before or after the request is carried out. `hang`: it is
carried out, and never answered.
"""

CALL_SECONDS = 60.0
SHORTEST_SECRET = 4


class Rig(Protocol):
    """A provider's kind and a server for it: real, or one that behaves like it at the socket."""

    @property
    def kind(self) -> DnsProviderKind:
        """What is tested."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that work with the server, as they stand in a request's `config`.

        The kit sets `request_timeout` and `max_retries` itself.
        """
        ...

    @property
    def secrets(self) -> Mapping[str, str]:
        """The secrets by reference. Their values are searched for in logs and exceptions."""
        ...

    @property
    def wrong_secrets(self) -> Mapping[str, str] | None:
        """The same references with values that the server refuses; None when it has no credentials."""
        ...

    @property
    def zone(self) -> str:
        """A zone that the provider can write; it proves most if the server has its parent, too."""
        ...

    async def values(self, name: str) -> Sequence[str]:
        """The TXT values of a name as the server has them, bare, twice when it has one twice."""
        ...

    async def put_foreign(self, name: str, value: str) -> None:
        """Another program adds a value, not through the provider."""
        ...

    async def fail(self, fault: FaultKind, times: int) -> None:
        """Let the next `times` requests fail: see `FaultKind`; `drop_after` and `hang` carry them out first."""
        ...

    def complaints(self) -> Sequence[str]:
        """What the server objects to in the requests so far; looked at after every test."""
        ...


@runtime_checkable
class AimsAtWrites(Protocol):
    """A rig that can let requests fail that change something, while those that only read pass."""

    async def fail_writes(self, fault: FaultKind, times: int) -> None:
        """As `Rig.fail`, for the next `times` requests that change something."""
        ...


class JumpingClock:
    """A clock that does not wait: `sleep` moves it on at once. `pauses` are the seconds that were asked for."""

    def __init__(self) -> None:
        self._system = SystemClock()
        self._slept = 0.0
        self.pauses: list[float] = []

    def now(self) -> datetime:
        """The machine's time, and all the time slept away."""
        return self._system.now() + timedelta(seconds=self._slept)

    def monotonic(self) -> float:
        """As `now`."""
        return self._system.monotonic() + self._slept

    async def sleep(self, seconds: float) -> None:
        """Jump, and let others run once."""
        self.pauses.append(seconds)
        self._slept += max(0.0, seconds)
        await asyncio.sleep(0)


class RecordingLog:
    """A log that keeps its lines as text, with all their fields."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def debug(self, event: str, **fields: Any) -> None:
        """See `Log`."""
        self.lines.append(f"debug {event} {fields!r}")

    def info(self, event: str, **fields: Any) -> None:
        """See `Log`."""
        self.lines.append(f"info {event} {fields!r}")

    def warning(self, event: str, **fields: Any) -> None:
        """See `Log`."""
        self.lines.append(f"warning {event} {fields!r}")


class FixedSecrets:
    """A `SecretReader` over a mapping; `forgotten` are the references that were dropped."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        self.forgotten: list[str] = []

    async def read(self, reference: str) -> Secret:
        """See `SecretReader`."""
        if reference not in self._texts:
            raise SecretMissing(reference, "there is no such secret")
        return Secret(self._texts[reference].strip())

    def forget(self, reference: str) -> None:
        """See `SecretReader`."""
        self.forgotten.append(reference)


class RotatedSecrets(FixedSecrets):
    """Secrets that were rotated: a reference gives its old value until it is forgotten."""

    def __init__(self, old: Mapping[str, str], new: Mapping[str, str]) -> None:
        super().__init__(dict(old))
        self._new = new

    def forget(self, reference: str) -> None:
        """From now on the new value is read."""
        super().forget(reference)
        self._texts = {**self._texts, reference: self._new[reference]}


def make_context(
    secrets: SecretReader, *, clock: JumpingClock | None = None, log: RecordingLog | None = None
) -> PluginContext:
    """A context for tests; `fraction` is always a half."""
    return PluginContext(
        secrets=secrets,
        clock=clock or JumpingClock(),
        fraction=lambda: 0.5,
        log=log or RecordingLog(),
        user_agent="scaivaultd-conformance/1",
    )


@asynccontextmanager
async def open_provider(
    rig: Rig,
    *,
    secrets: SecretReader | None = None,
    clock: JumpingClock | None = None,
    log: RecordingLog | None = None,
    **settings: Any,
) -> AsyncIterator[DnsProvider]:
    """Open the rig's provider as the daemon would; `settings` win over those of the rig."""
    config = msgspec.json.encode({**rig.settings, **settings})
    decoded = msgspec.json.decode(config, type=rig.kind.settings)
    context = make_context(secrets or FixedSecrets(rig.secrets), clock=clock, log=log)
    async with rig.kind.open(decoded, context) as provider:
        yield provider


class Host:
    """Calls a provider as the daemon does: deadlines, one call at a time for a name, handles that were JSON."""

    def __init__(self, provider: DnsProvider, capabilities: Capabilities) -> None:
        self.provider = provider
        self._capabilities = capabilities
        self._zones: dict[str, Zone] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def zone(self, name: str) -> Zone:
        """The zone of `name`, asked for once."""
        if name not in self._zones:
            async with asyncio.timeout(CALL_SECONDS):
                self._zones[name] = await self.provider.find_zone(name)
        return self._zones[name]

    async def add(self, name: str, *values: str) -> Handle:
        """Find the zone, if it is not known, and add."""
        zone = await self.zone(name)
        async with self._lock(name), asyncio.timeout(CALL_SECONDS):
            handle = await self.provider.add_txt(zone, name, values, max(60, self._capabilities.min_ttl))
        return journalled(handle)

    async def remove(self, name: str, *values: str, handle: Handle | None = None) -> None:
        """Find the zone, if it is not known, and remove."""
        zone = await self.zone(name)
        async with self._lock(name), asyncio.timeout(CALL_SECONDS):
            await self.provider.remove_txt(zone, name, values, handle)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault("" if self._capabilities.sequential else name, asyncio.Lock())


def journalled(handle: Handle) -> Handle:
    """The handle as the journal gives it back.

    Raises:
        TypeError, msgspec.ValidationError: it cannot be written as a JSON object.
    """
    return msgspec.json.decode(msgspec.json.encode(handle), type=dict[str, Any])


def traces(secrets: Mapping[str, str]) -> Iterator[str]:
    """What gives a secret away when it stands in a text: it, its lines, its encodings."""
    for text in secrets.values():
        # A PEM key or a JSON key file leaks by any long line, also with its line breaks escaped.
        lines = text.strip().replace("\\n", "\n").splitlines()
        for part in {text.strip(), *(line.strip() for line in lines if len(line) > 40)}:
            if len(part) >= SHORTEST_SECRET:
                yield part
                yield quote(part, safe="")
                yield base64.b64encode(part.encode()).decode().rstrip("=")


def everything_about(error: BaseException) -> str:
    """All that a log could hold of an exception: text, attributes, causes, traceback."""
    texts = traceback.format_exception(error)
    seen: set[int] = set()
    following: list[BaseException | None] = [error]
    while following:
        each = following.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            texts += [repr(each), str(each), repr(each.args), repr(vars(each))]
            following += [each.__cause__, each.__context__]
    return "\n".join(texts)
