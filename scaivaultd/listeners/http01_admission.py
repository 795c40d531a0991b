"""Who may be inside a listener, for how long, and what of it is worth a log line; opens no socket."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scaivaultd.model.clock import Clock

# How long an answered client may take to close, so that no RST overtakes its answer.
_LINGER_SECONDS = 1.0
_SAMPLE_SECONDS = 10.0

Client = TypeVar("Client")


class AdmissionLimits(Protocol):
    """What an admission goes by."""

    @property
    def connections(self) -> int:
        """How many may be inside."""
        ...

    @property
    def per_network(self) -> int:
        """How many of one network may be inside."""
        ...

    @property
    def unfinished(self) -> int:
        """How many may be inside whose time runs."""
        ...

    @property
    def patience_seconds(self) -> float:
        """How long a client's time runs."""
        ...


class Http01Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much strangers may use.

    `per_network` counts connections of one IPv4 address or one IPv6 /64, which one customer can
    fill alone. It does not hold for loopback: behind a proxy on this host everybody is loopback.
    """

    connections: int = 1024
    per_network: int = 256
    head_bytes: int = 4096
    head_lines: int = 64
    head_seconds: float = 5.0

    @property
    def unfinished(self) -> int:
        """Every client may be a slow one."""
        return self.connections

    @property
    def patience_seconds(self) -> float:
        """Until the head must be complete."""
        return self.head_seconds


class Admission(Generic[Client]):
    """Who is inside, since when, and who has to go.

    All have the same time, so insertion order is deadline order: the oldest stand in front, and
    looking for them costs nothing however many are inside.
    """

    def __init__(self, limits: AdmissionLimits) -> None:
        self._limits = limits
        self._unfinished: dict[Client, float] = {}
        self._lingering: dict[Client, float] = {}
        self._networks: dict[Client, bytes | None] = {}
        self._of_network: dict[bytes, dict[Client, None]] = {}

    def __len__(self) -> int:
        return len(self._networks)

    def enter(self, client: Client, network: bytes | None, now: float) -> Client | None:
        """Let a client in, whose network is exempt from a share when it is None.

        Who is returned has been put out for it and must be disconnected.
        """
        evicted = self._one_too_many(network)
        if evicted is not None:
            self.leave(evicted)
        self._unfinished[client] = now + self._limits.patience_seconds
        self._networks[client] = network
        if network is not None:
            self._of_network.setdefault(network, {})[client] = None
        return evicted

    def _one_too_many(self, network: bytes | None) -> Client | None:
        """Who has to go for one more client: of its own network, if that has its share already."""
        neighbours = self._of_network.get(network, {}) if network is not None else {}
        if len(neighbours) >= self._limits.per_network:
            return self._oldest_of(neighbours)
        if len(self._unfinished) >= self._limits.unfinished:
            return next(iter(self._unfinished))
        # Who has its answer loses least. Were they spared, a flood of answered clients that do not close would put
        # out everybody who comes after them before it is read.
        return next(iter(self._lingering or self._unfinished or self._networks)) if self._is_full else None

    def _oldest_of(self, neighbours: Mapping[Client, None]) -> Client:
        # Of the others just the oldest: were those spared who have said all, they could fill the whole share and put
        # out everybody who comes after them before it is read.
        oldest = next(iter(neighbours))
        return next((each for each in neighbours if each in self._lingering), oldest)

    @property
    def _is_full(self) -> bool:
        return len(self) >= self._limits.connections

    def renew(self, client: Client, now: float) -> None:
        """The client's time begins anew, and it is the youngest again."""
        if self._unfinished.pop(client, None) is None:
            return
        self._unfinished[client] = now + self._limits.patience_seconds
        if (network := self._networks[client]) is not None:
            neighbours = self._of_network[network]
            neighbours[client] = neighbours.pop(client)

    def attend(self, client: Client) -> None:
        """The client has said all it must; whoever serves it now limits its time."""
        self._unfinished.pop(client, None)

    def linger(self, client: Client, now: float) -> None:
        """The client has its answer and a short time to read it."""
        self._unfinished.pop(client, None)
        if client in self._networks:
            self._lingering.setdefault(client, now + _LINGER_SECONDS)

    def leave(self, client: Client) -> None:
        """The client is gone; repeating this is no error."""
        self._unfinished.pop(client, None)
        self._lingering.pop(client, None)
        network = self._networks.pop(client, None)
        if network is not None:
            del self._of_network[network][client]
            if not self._of_network[network]:
                del self._of_network[network]

    def next_overdue(self, now: float) -> tuple[Client, bool] | None:
        """A client whose time is up, and whether it never got an answer."""
        for waiting in (self._unfinished, self._lingering):
            client = next(iter(waiting), None)
            if client is not None and waiting[client] <= now:
                return client, waiting is self._unfinished
        return None


def network_of(address: str) -> bytes | None:
    """What `per_network` counts by: an IPv4 address or an IPv6 /64; None for loopback, which is exempt."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        # A socket passed to us may be dual-stack: all of IPv4 stands in one /64 there.
        parsed = parsed.ipv4_mapped or parsed
    if parsed.is_loopback:
        return None
    return parsed.packed[:8]


class Sampler:
    """One log line now and then, for what strangers can cause as often as they like."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next: float | None = None
        self._suppressed = 0

    def due(self) -> int | None:
        """How many lines were left out before this one; None when this one is to be left out too."""
        now = self._clock.monotonic()
        if self._next is not None and now < self._next:
            self._suppressed += 1
            return None
        suppressed, self._suppressed = self._suppressed, 0
        self._next = now + _SAMPLE_SECONDS
        return suppressed
