"""What `sys.health` asks of each part of the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaivaultd.api.messages import ComponentHealth
from scaivaultd.model.errors import StorageUnavailable
from scaivaultd.model.storage import Put

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from scaivaultd.gateways.nats_bus import NatsBus
    from scaivaultd.gateways.publisher import Publisher
    from scaivaultd.listeners.http01 import Http01Listener
    from scaivaultd.services.ports import Store

_HEARTBEAT = Put(key="meta/heartbeat", document=b"{}")


def shown_addresses(listener: Http01Listener) -> list[str]:
    """Where the listener really listens, as an administrator writes it."""
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in listener.addresses]


def probes(
    store: Store, bus: NatsBus, publisher: Publisher, listener: Http01Listener
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

    async def of_listener() -> ComponentHealth:
        addresses = ", ".join(shown_addresses(listener))
        if not addresses:
            return ComponentHealth(name="http01", status="degraded", detail="[http01] listen is empty")
        return ComponentHealth(name="http01", status="ok", detail=addresses)

    return (of_store, of_nats, of_events, of_listener)
