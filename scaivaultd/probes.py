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


def probes(
    store: Store, bus: NatsBus, publisher: Publisher, listeners: Listeners
) -> Sequence[Callable[[], Awaitable[ComponentHealth]]]:
    """One probe for each part; none of them waits for anything outside this host."""

    async def of_store() -> ComponentHealth:
        try:
            # A write: a full disk still reads.
            await store.commit([_HEARTBEAT])
        except StorageUnavailable as error:
            return ComponentHealth(name="store", status="down", detail=error.detail)
        return ComponentHealth(name="store", status="ok")

    async def of_nats() -> ComponentHealth:
        if bus.is_connected:
            return ComponentHealth(name="nats", status="ok")
        return ComponentHealth(name="nats", status="degraded", detail=bus.last_error)

    async def of_events() -> ComponentHealth:
        if publisher.blocked_by is None:
            return ComponentHealth(name="events", status="ok")
        return ComponentHealth(name="events", status="degraded", detail=publisher.blocked_by)

    async def of_http01() -> ComponentHealth:
        return _of_listener("http01", listeners.http01)

    async def of_tlsalpn01() -> ComponentHealth:
        return _of_listener("tlsalpn01", listeners.tlsalpn01)

    return (of_store, of_nats, of_events, of_http01, of_tlsalpn01)


def _of_listener(name: str, listener: Listening) -> ComponentHealth:
    addresses = ", ".join(shown_addresses(listener))
    # An administrator who wants no listener is well; orders of its challenge type say what they lack.
    return ComponentHealth(name=name, status="ok", detail=addresses or f"[{name}] listen is empty")
