"""Open DNS providers: a stranger's code, with a deadline on every call and a circuit breaker before it.

Whatever a provider raises or hangs on ends here, as an error of ours that names the provider and holds no secret.
"""

from __future__ import annotations

import asyncio
import math
import re
import traceback
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

import msgspec

from scaivaultd.model import metrics
from scaivaultd.model.dns import PropagationPolicy
from scaivaultd.model.errors import DnsProviderError, ScaivaultError, SecretNotFound
from scaivaultd.plugin import (
    Checkable,
    PermanentError,
    PluginContext,
    ProviderAuthError,
    ProviderError,
    RateLimited,
    SecretMissing,
    SignalsLive,
    TransientError,
    Zone,
    ZoneNotFound,
    normal_name,
)
from scaivaultd.services.jobs import CancelledItself, Overdue, bounded

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.resources import DnsProvider as Record
    from scaivaultd.plugin import DnsProvider, DnsProviderKind, Handle, ProviderSettings

T = TypeVar("T")

CALL_SECONDS = 180.0
"""One call with all its retries."""
OPEN_SECONDS = 30.0
CLOSE_SECONDS = 5.0
CALLS_AT_ONCE = 8
ZONE_CACHE_SECONDS = 600.0
ZONE_CACHE_MAX = 1000
FAILURES_MAX = 5
"""So many failures in a row of the provider itself, and it is left alone for a while."""
REST_SECONDS = 60.0
RETRY_AFTER_MAX_SECONDS = 86400.0
TEXT_MAX = 2000
"""A stranger's words go into orders and events, which have to fit a message."""
HANDLE_MAX = 64 << 10
_KINDS: Mapping[type[Exception], str] = {
    ZoneNotFound: "no_zone",
    ProviderAuthError: "unauthorized",
    RateLimited: "rate_limited",
    TransientError: "unavailable",
    ProviderError: "refused",
    SecretMissing: "secret_not_found",
    ScaivaultError: "unavailable",
}
_PASTED = re.compile(r"Invalid enum value '.{20,}'", re.DOTALL)
"""So long a word may be a secret in the wrong member, and refusals are logged."""


class OpenProvider:
    """One configured provider in use. Every method raises `DnsProviderError` or `SecretNotFound`."""

    def __init__(
        self,
        record: Record,
        kind: DnsProviderKind,
        settings: ProviderSettings,
        context: PluginContext,
        log: FilteringBoundLogger,
    ) -> None:
        self.record = record
        self.kind = kind
        self.settings = settings
        self._context = context
        self._clock = context.clock
        self._log = log.bind(dns_provider=record.name)
        self._gate = asyncio.Semaphore(1 if kind.capabilities.sequential else CALLS_AT_ONCE)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._zones: dict[str, tuple[float, Zone]] = {}
        self._failures = 0
        self._resting_until = 0.0
        self._last_failure = ""
        self._provider: DnsProvider | None = None
        self._owner: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    @property
    def ttl(self) -> int:
        """The TTL to ask for."""
        return max(self.settings.ttl, self.kind.capabilities.min_ttl)

    @property
    def policy(self) -> PropagationPolicy:
        """When its values count as visible."""
        settings = self.settings
        return PropagationPolicy(
            visibility="skip" if settings.skip_propagation_check else settings.propagation,
            timeout=settings.propagation_timeout,
            interval=settings.polling_interval,
            resolvers=settings.propagation_resolvers,
            delay=settings.propagation_delay,
            on_failure=settings.propagation_failure,
        )

    async def open(self) -> None:
        """Open it; a task of its own enters the plugin's context and leaves it again."""
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owner = asyncio.create_task(self._own(opened), name=f"dns provider {self.record.name}")
        try:
            await bounded(_outcome(opened), OPEN_SECONDS)
        except Overdue:
            await self.close()
            raise NotOpened(f"DNS provider {self.record.name}: did not open within {OPEN_SECONDS:.0f} s") from None
        except CancelledItself as error:
            raise self._translated(error, "opening it") from None
        except asyncio.CancelledError:
            await self.close()
            raise

    async def _own(self, opened: asyncio.Future[None]) -> None:
        try:
            async with self.kind.open(self.settings, self._context) as provider:
                if provider is None:
                    raise TypeError("open yielded nothing")
                self._provider = provider
                if not opened.done():
                    opened.set_result(None)
                await self._closing.wait()
        except asyncio.CancelledError:
            raise
        # A stranger's context manager, on its way in or out; in a task, SystemExit would stop the event loop.
        except BaseException as error:  # noqa: BLE001 - see above
            if opened.done():
                self._log.warning("dns_provider.not_closed", error_type=type(error).__name__)
            else:
                opened.set_exception(self._translated(error, "opening it"))
        finally:
            self._provider = None
            if not opened.done():
                opened.cancel()

    async def close(self) -> None:
        """Let the plugin close what it has; calls that are under way fail."""
        self._closing.set()
        if self._owner is None:
            return
        _, pending = await asyncio.wait({self._owner}, timeout=CLOSE_SECONDS)
        if pending:
            self._owner.cancel()
            self._log.warning("dns_provider.close_timed_out")

    def lock(self, record_name: str) -> asyncio.Lock:
        """One writer at a time for each record name: some services replace whole sets.

        It lives as long as somebody has it.
        """
        return self._locks.setdefault(record_name, asyncio.Lock())

    async def find_zone(self, name: str, seconds: float | None = None) -> Zone:
        """The zone that holds `name`, as the provider said within the last minutes; asked for `seconds` at most."""
        now = self._clock.monotonic()
        if (cached := self._zones.get(name)) and cached[0] > now:
            return cached[1]
        found: Any = await self._call("find_zone", lambda provider: provider.find_zone(name), seconds)
        zone = self._judged(found, name)
        if len(self._zones) >= ZONE_CACHE_MAX:
            self._zones.clear()
        self._zones[name] = (now + ZONE_CACHE_SECONDS, zone)
        return zone

    def _judged(self, found: object, name: str) -> Zone:
        # Its types are checked when somebody decodes a Struct, not when a plugin makes one.
        try:
            zone = msgspec.convert(msgspec.to_builtins(found), Zone) if isinstance(found, Zone) else None
        except (TypeError, ValueError, RecursionError):
            zone = None
        if zone is None:
            raise self._error("find_zone returned something else than a Zone", is_final=True)
        zone = msgspec.structs.replace(zone, name=normal_name(zone.name))
        if zone.name and zone.name != name and not name.endswith(f".{zone.name}"):
            raise self._error(
                f"find_zone named the zone {_shortened(zone.name, 253)!r}, which does not hold {name}", is_final=True
            )
        return zone

    async def add_txt(self, zone: Zone, name: str, values: Sequence[str]) -> dict[str, Any]:
        """Make sure that the values are there; the handle is checked to be JSON."""
        try:
            handle: Any = await self._call("add_txt", lambda provider: provider.add_txt(zone, name, values, self.ttl))
        except NoZone:
            # It was made anew, perhaps: the next order shall not meet the old one's id for minutes.
            self._zones.clear()
            raise
        try:
            encoded = msgspec.json.encode(handle or {})
            decoded = msgspec.json.decode(encoded, type=dict[str, Any])
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
            raise self._error("add_txt returned a handle that is no JSON object", is_final=True) from None
        if len(encoded) > HANDLE_MAX:
            raise self._error(f"add_txt returned a handle of more than {HANDLE_MAX >> 10} KiB", is_final=True)
        return decoded

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        """Make sure that the values are gone."""
        try:
            await self._call("remove_txt", lambda provider: provider.remove_txt(zone, name, values, handle))
        except NoZone:
            self._log.info("dns_provider.zone_gone", zone=zone.name)

    async def wait_live(self, handle: Handle, seconds: float) -> bool:
        """Wait for the provider's own signal, if it has one; False when it did not come in time."""
        provider: object = self._provider
        if not isinstance(provider, SignalsLive) or not handle:
            return True
        try:
            await self._call("wait_live", lambda _: provider.wait_live(handle), seconds, is_patient=True)
        except DnsProviderError as error:
            # Not the last word: the name servers are looked at all the same.
            self._log.warning("dns_provider.not_live", detail=error.detail)
            return False
        return True

    @property
    def signals_live(self) -> bool:
        """Whether it says when a change is everywhere."""
        return isinstance(self._provider, SignalsLive)

    async def check(self) -> bool:
        """Try its credentials without writing; False when it cannot tell."""
        provider: object = self._provider
        if not isinstance(provider, Checkable):
            return False
        await self._call("check", lambda _: provider.check())
        return True

    async def _call(
        self,
        what: str,
        work: Callable[[DnsProvider], Coroutine[Any, Any, T]],
        seconds: float | None = None,
        *,
        is_patient: bool = False,
    ) -> T:
        """Call it. A patient call waits for minutes by its nature: it keeps no others back, and is no failure."""
        seconds = CALL_SECONDS if seconds is None else seconds
        passes = is_patient and not self.kind.capabilities.sequential
        gate: AbstractAsyncContextManager[Any] = nullcontext() if passes else self._gate
        async with gate:
            self._require_rested()
            provider = self._provider
            if provider is None or self._closing.is_set():
                raise self._error("its settings have just changed; trying anew")
            started = self._clock.monotonic()
            try:
                result = await bounded(work(provider), seconds)
            except Overdue:
                self._told(what, "timeout", started)
                failure: ScaivaultError = self._error(f"{what} did not end within {seconds:.0f} s")
                if not is_patient:
                    self._failed(failure)
                raise failure from None
            except Exception as error:  # noqa: BLE001 - a stranger's code may raise anything
                self._told(what, _kind_of(error), started)
                failure = self._translated(error, what)
                self._count(error, failure)
                raise failure from None
            self._failures = 0
            self._told(what, "ok", started)
            return result

    def _told(self, what: str, result: str, started: float) -> None:
        provider = self.kind.name
        metrics.DNS_API_REQUESTS.labels(provider=provider, operation=what, result=result).inc()
        metrics.DNS_API_REQUEST_DURATION.labels(provider=provider, operation=what).observe(
            self._clock.monotonic() - started
        )

    def _require_rested(self) -> None:
        left = self._resting_until - self._clock.monotonic()
        if left > 0:
            raise self._error(f"is left alone for {left:.0f} s more ({self._last_failure})", retry_after=left)

    def _count(self, error: Exception, failure: ScaivaultError) -> None:
        if isinstance(error, RateLimited) and (seconds := _seconds(getattr(error, "retry_after", None))):
            self._resting_until = self._clock.monotonic() + min(seconds, 3600.0)
            self._last_failure = failure.detail
        elif isinstance(error, TransientError) or not isinstance(error, ProviderError | SecretMissing):
            self._failed(failure)
        else:
            self._failures = 0

    def _failed(self, failure: ScaivaultError) -> None:
        self._failures += 1
        self._last_failure = failure.detail
        if self._failures >= FAILURES_MAX:
            self._resting_until = self._clock.monotonic() + REST_SECONDS
            self._log.warning("dns_provider.resting", seconds=REST_SECONDS, detail=failure.detail)

    def _translated(self, error: BaseException, what: str) -> ScaivaultError:
        match error:
            case SecretMissing():
                return SecretNotFound(f"DNS provider {self.record.name}: {error}")
            case ZoneNotFound():
                return NoZone(f"DNS provider {self.record.name}: {_said(error)}")
            case ProviderAuthError():
                return self._error(f"refuses the credentials: {_said(error)}", is_final=True)
            case PermanentError():
                return self._error(_said(error), is_final=True)
            case TransientError():
                return self._error(_said(error), retry_after=_seconds(getattr(error, "retry_after", None)))
            case ProviderError():
                return self._error(_said(error), is_final=True)
            case ScaivaultError():
                return error
        # Its text may hold anything, secrets too: where it happened is enough for its author.
        frames = [
            f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
        ]
        metrics.PLUGIN_ERRORS.labels(plugin=self.kind.name, hook="dns_provider").inc()
        self._log.error("dns_provider.broke", call=what, error_type=type(error).__name__, frames=frames[-8:])
        return self._error(
            f"{what} broke ({type(error).__name__}): a fault of the plugin {self.kind.name}; see the log"
        )

    def _error(self, detail: str, *, is_final: bool = False, retry_after: float | None = None) -> DnsProviderError:
        return DnsProviderError(
            f"DNS provider {self.record.name}: {detail}", is_final=is_final, retry_after=retry_after
        )


def _kind_of(error: Exception) -> str:
    """A failed call as metrics tell it: a closed list."""
    for kind, name in _KINDS.items():
        if isinstance(error, kind):
            return name
    return "broke"


class NoZone(DnsProviderError):
    """The provider has no zone for the name; on the wire it is `dns_provider_error`."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, is_final=True)


class NotOpened(DnsProviderError):
    """The provider hangs when it is opened; on the wire it is `dns_provider_error`."""


class ProviderPool:
    """Opens providers when they are first used, and again when their settings have changed."""

    def __init__(
        self,
        kinds: Mapping[str, DnsProviderKind],
        context: PluginContext,
        log: FilteringBoundLogger,
        *,
        by_request: PluginContext | None = None,
    ) -> None:
        """`by_request` is lent to providers that callers have configured, where that is another context."""
        self.kinds = kinds
        self._context = context
        self._by_request = by_request or context
        self._log = log
        self._open: dict[str, OpenProvider] = {}
        self._opening: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._hung: dict[str, tuple[float, Record, NotOpened]] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    def settings_of(self, kind: DnsProviderKind, config: Mapping[str, Any]) -> ProviderSettings:
        """Decode a config; raises `msgspec.ValidationError`, or ValueError of a kind's own checks."""
        try:
            return msgspec.convert(dict(config), kind.settings)
        except msgspec.ValidationError as error:
            raise msgspec.ValidationError(
                _PASTED.sub("Invalid enum value (not repeated: it is long)", str(error))
            ) from None

    def kind_of(self, record: Record) -> DnsProviderKind:
        """The kind of a provider; raises DnsProviderError when its plugin is not there."""
        kind = self.kinds.get(record.type)
        if kind is None:
            raise DnsProviderError(
                f"DNS provider {record.name}: no installed plugin brings the type {record.type!r}", is_final=True
            )
        return kind

    async def use(self, record: Record) -> OpenProvider:
        """The provider, opened; raises DnsProviderError or SecretNotFound when it does not open."""
        async with self._opening.setdefault(record.id, asyncio.Lock()):
            current = self._open.get(record.id)
            if current is not None and current.record == record:
                return current
            if current is not None:
                self._leave(self._open.pop(record.id))
            self._require_not_hung(record)
            try:
                opened = await self.try_open(record)
            except NotOpened as error:
                # Those that wait behind this one would each hang as long, one after the other.
                self._hung[record.id] = (self._context.clock.monotonic() + REST_SECONDS, record, error)
                raise
            self._open[record.id] = opened
            return opened

    def _require_not_hung(self, record: Record) -> None:
        until, hung, error = self._hung.pop(record.id, (0.0, record, None))
        left = until - self._context.clock.monotonic()
        if error is not None and hung == record and left > 0:
            self._hung[record.id] = (until, hung, error)
            raise DnsProviderError(f"{error.detail}, and is left alone for {left:.0f} s more", retry_after=left)

    async def try_open(self, record: Record) -> OpenProvider:
        """Open a provider of its own, for the caller to close."""
        kind = self.kind_of(record)
        try:
            settings = self.settings_of(kind, record.config)
        except (msgspec.ValidationError, ValueError) as error:
            raise DnsProviderError(
                f"DNS provider {record.name}: its config does not fit its type any more ({error})", is_final=True
            ) from None
        context = self._context if record.origin == "file" else self._by_request
        provider = OpenProvider(record, kind, settings, context, self._log)
        await provider.open()
        return provider

    def forget(self, provider_id: str) -> None:
        """Close it: it was deleted."""
        self._hung.pop(provider_id, None)
        if (current := self._open.pop(provider_id, None)) is not None:
            self._leave(current)

    def _leave(self, provider: OpenProvider) -> None:
        task = asyncio.create_task(provider.close())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def close(self) -> None:
        """Close all."""
        for provider_id in list(self._open):
            self.forget(provider_id)
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=CLOSE_SECONDS)


async def _outcome(opened: asyncio.Future[None]) -> None:
    await opened


def _said(error: ProviderError) -> str:
    """A stranger's words, in a size that can be passed on; its class may have an `__init__` of its own."""
    detail = str(getattr(error, "detail", "") or type(error).__name__)
    code = getattr(error, "code", None)
    return _shortened(f"{detail} [{code}]" if code and str(code) not in detail else detail, TEXT_MAX)


def _shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[:letters]}..."


def _seconds(wanted: object) -> float | None:
    """A pause as a service wants it, if it is one that can be kept."""
    if not isinstance(wanted, int | float) or not math.isfinite(wanted) or wanted <= 0:
        return None
    return float(min(wanted, RETRY_AFTER_MAX_SECONDS))
