"""The contract between the daemon and a challenge solver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, runtime_checkable

import msgspec

from scaivaultd.plugin.context import PluginContext


class ChallengeResponse(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be in place before the CA is told to look.

    `identifier` is the authorized name (without `*.`) or address, `token` and `key_authorization`
    are those of RFC 8555 section 8.1. `order_id` tells whose it is. `dns_provider` is the provider
    that the request named, for solvers that write DNS records.
    """

    identifier: str
    type: str
    token: str
    key_authorization: str
    order_id: str = ""
    dns_provider: str | None = None

    def __repr__(self) -> str:
        return f"ChallengeResponse(identifier={self.identifier!r}, type={self.type!r})"


class ChallengeSolver(Protocol):
    """Puts responses in place and takes them away again."""

    async def present(self, response: ChallengeResponse) -> None:
        """Make the response visible to the CA; returns when it is.

        Called again with the same response after a restart. Calls for different responses overlap.
        The host sets a deadline (`SolverKind.present_seconds`) and may cancel at any await; `clean_up` follows.

        Raises:
            SolverError: it cannot be put in place; the text reaches the order's error.
        """
        ...

    async def clean_up(self, response: ChallengeResponse) -> None:
        """Take away exactly what `present` put in place; what is not there is no error."""
        ...


@runtime_checkable
class ClaimingSolver(Protocol):
    """A solver that can hold only so many responses of some kind at a time."""

    async def claims(self, response: ChallengeResponse) -> Mapping[str, int]:
        """What `response` needs a share of: keys of the solver's choice, and how many responses may share each.

        The host lets no more have it, from before `present` until after `clean_up`; orders queue up. An order whose
        own responses are too many has it alone.
        """
        ...


class SolverError(Exception):
    """A response cannot be put in place. `retryable`: it may work in a moment."""

    def __init__(self, detail: str, *, retryable: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retryable = retryable


class Http01Responses(Protocol):
    """The daemon's own http-01 listener as a solver sees it (RFC 8555 section 8.3)."""

    def put(self, token: str, key_authorization: str) -> None:
        """Answer for `token` from now on.

        Raises:
            ValueError: nobody can ask for it, or the daemon does not listen; the text is fit for the order.
        """
        ...

    def remove(self, token: str) -> None:
        """Answer no more; an unknown token is no error."""
        ...


class TlsAlpn01Responses(Protocol):
    """The daemon's own tls-alpn-01 listener as a solver sees it (RFC 8737, RFC 8738)."""

    def put(self, identifier: str, key_authorization: str) -> None:
        """Show the challenge certificate for a name or address from now on, in place of any other for it.

        Raises:
            ValueError: nobody can ask for it, or the daemon does not listen; the text is fit for the order.
            OSError: no descriptors or memory are left at the moment.
        """
        ...

    def remove(self, identifier: str) -> None:
        """Show it no more; an unknown identifier is no error."""
        ...


class Dns01Records(Protocol):
    """The daemon's own way to DNS (RFC 8555 section 8.4): CNAMEs, providers, journal, propagation, clean-up."""

    async def put(self, response: ChallengeResponse, value: str) -> None:
        """Write `value` to the TXT set of the response's name, and return when the name servers show it."""
        ...

    async def remove(self, response: ChallengeResponse, value: str) -> None:
        """Give the value up; it goes when nobody else uses it."""
        ...

    async def claims(self, response: ChallengeResponse) -> Mapping[str, int]:
        """See `ClaimingSolver`: how many values a record name holds at once."""
        ...


class NoSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For solvers that need none."""


class SolverContext(msgspec.Struct, frozen=True, kw_only=True):
    """What the host lends a solver: the daemon's own ways, its settings, and what all plugins get.

    `settings` is an instance of `SolverKind.settings`.
    """

    http01: Http01Responses
    tlsalpn01: TlsAlpn01Responses
    dns01: Dns01Records
    host: PluginContext
    settings: Any = NoSettings()


class SolverKind(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin registers: which challenge type it solves and how to open the solver.

    `name` is what a request's `solver` names; the daemon's own have the name of their type, and are used when none is
    named. `settings` describes the table `[solvers.NAME]` of the configuration file. `open` is called once at start;
    the context manager it returns is left when the daemon stops. `present_seconds` is how long `present` may take,
    waiting for claims included. `is_slow`: it may wait for minutes, and the host lets other orders of the same CA go on
    meanwhile. `is_lasting`: what is in place outlives the daemon's process, so it is not put there anew at a start.
    """

    name: str
    challenge_type: str
    open: Callable[[SolverContext], AbstractAsyncContextManager[ChallengeSolver]]
    settings: type[msgspec.Struct] = NoSettings
    present_seconds: float = 300.0
    is_slow: bool = False
    is_lasting: bool = False
