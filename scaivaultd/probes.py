"""What `sys.health` asks of each part of the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from scaivaultd.api.messages import ComponentHealth
from scaivaultd.model.errors import StorageUnavailable
from scaivaultd.model.storage import Put

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from scaivaultd.gateways.nats_bus import NatsBus
    from scaivaultd.gateways.publisher import Publisher
    from scaivaultd.opening import Listeners
    from scaivaultd.services.auditing import Auditing
    from scaivaultd.services.master_keys import MasterKeys
    from scaivaultd.services.ports import Store


class Listening(Protocol):
    """A listener, as far as its addresses go."""

    @property
    def addresses(self) -> Sequence[tuple[str, int]]:
        """Host and port of every socket."""
        ...


_HEARTBEAT = Put(key="meta/heartbeat", document=b"{}")


def shown_addresses(listener: Listening) -> list[str]:
    """Where the listener really listens, as an administrator writes it."""
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in listener.addresses]


async def touch(store: Store) -> None:
    """Have the store do something, and come back when it is done: a write, since a full disk still reads."""
    await store.commit([_HEARTBEAT])


def probes(
    store: Store, bus: NatsBus, publisher: Publisher, listeners: Listeners, nats_trouble: Callable[[], str | None]
) -> Sequence[Callable[[], Awaitable[ComponentHealth]]]:
    """One probe for each part; none of them waits for anything outside this host.

    `nats_trouble` says what is wrong with a NATS server of our own that is there all the same.
    """

    async def of_store() -> ComponentHealth:
        try:
            await touch(store)
        except StorageUnavailable as error:
            return ComponentHealth(name="store", status="down", detail=error.detail)
        return ComponentHealth(name="store", status="ok")

    async def of_nats() -> ComponentHealth:
        trouble = nats_trouble() if bus.is_connected else bus.last_error
        if trouble is None:
            return ComponentHealth(name="nats", status="ok")
        return ComponentHealth(name="nats", status="degraded", detail=trouble)

    async def of_events() -> ComponentHealth:
        # The server's own words before what it looks like from here: that nobody answers.
        trouble = nats_trouble() or publisher.blocked_by
        if trouble is None:
            return ComponentHealth(name="events", status="ok")
        return ComponentHealth(name="events", status="degraded", detail=trouble)

    async def of_http01() -> ComponentHealth:
        return _of_listener("http01", listeners.http01)

    async def of_tlsalpn01() -> ComponentHealth:
        return _of_listener("tlsalpn01", listeners.tlsalpn01)

    return (of_store, of_nats, of_events, of_http01, of_tlsalpn01)


def of_master_key(keys: MasterKeys) -> Callable[[], Awaitable[ComponentHealth]]:
    """The probe of the key that all is sealed under: which it is, and what keeps its rotation from ending."""

    async def probe() -> ComponentHealth:
        if (trouble := keys.trouble) is not None:
            return ComponentHealth(name="master_key", status="degraded", detail=trouble)
        return ComponentHealth(name="master_key", status="ok", detail=keys.kid)

    return probe


def of_audit(auditing: Auditing) -> Callable[[], Awaitable[ComponentHealth]]:
    """The probe of the audit log: whether it can be written, and is what was written."""

    async def probe() -> ComponentHealth:
        if (trouble := auditing.trouble) is not None:
            return ComponentHealth(name="audit", status="degraded", detail=trouble)
        return ComponentHealth(name="audit", status="ok")

    return probe


def _of_listener(name: str, listener: Listening) -> ComponentHealth:
    addresses = ", ".join(shown_addresses(listener))
    # An administrator who wants no listener is well; orders of its challenge type say what they lack.
    return ComponentHealth(name=name, status="ok", detail=addresses or f"[{name}] listen is empty")
