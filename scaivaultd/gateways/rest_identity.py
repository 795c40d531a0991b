"""Who is asking: what a connection and a head tell of it, and the Protocol of whoever judges that."""

from __future__ import annotations

import re
import socket
import struct
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from scaivaultd.model.principals import Principal
from scaivaultd.plugin.secrets import Secret

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9\-._~+/]+=*)")
_UCRED = struct.Struct("iII")
_SO_PEERGROUPS = 59
# Python asks the kernel for no more. Of somebody in more groups only the first is known, which allows less.
_OPTION_BYTES_MAX = 1024

ListenerKind = Literal["unix", "tcp", "tls"]


class PeerCredentials(msgspec.Struct, frozen=True):
    """Who opened the other end of a UNIX socket, as the kernel says (SO_PEERCRED, SO_PEERGROUPS)."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    @property
    def gids(self) -> frozenset[int]:
        """Every group it is in."""
        return frozenset({self.gid, *self.groups})


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where a connection comes from: `address` for TCP, `peer` for a UNIX socket."""

    listener: ListenerKind
    address: str | None = None
    peer: PeerCredentials | None = None

    def __str__(self) -> str:
        return self.address or (f"uid {self.peer.uid}" if self.peer else "nobody")


class Authenticator(Protocol):
    """Judges who is asking."""

    async def identify(
        self, *, token: Secret | None, address: str | None, uid: int | None, gids: Collection[int]
    ) -> Principal | None:
        """The principal; None: unknown, and refused. `uid` and `gids` are those behind a UNIX socket.

        Raises:
            RateLimited: this source has failed too often.
        """
        ...


class OwnUserOnly:
    """What holds where no authenticator is given: the daemon's own user, over a UNIX socket."""

    def __init__(self, uid: int) -> None:
        self._uid = uid

    async def identify(
        self, *, token: Secret | None, address: str | None, uid: int | None, gids: Collection[int]
    ) -> Principal | None:
        """`unix:<uid>` for the daemon's own uid."""
        return Principal(kind="unix", id=str(uid)) if uid == self._uid else None


def peer_credentials(connected: socket.socket) -> PeerCredentials:
    """Those of the process that connected, at the moment it did."""
    pid, uid, gid = _UCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    try:
        groups = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _OPTION_BYTES_MAX)
    except OSError:
        groups = b""
    return PeerCredentials(pid, uid, gid, tuple(each for (each,) in struct.iter_unpack("I", groups)))


def bearer_token(fields: Sequence[str]) -> Secret | None:
    """The token of the `Authorization` fields (RFC 6750 section 2.1); None if there is not exactly one."""
    found = _BEARER.fullmatch(fields[0]) if len(fields) == 1 else None
    return Secret(found[1]) if found else None
