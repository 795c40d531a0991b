"""Anti-replay nonces of the development CA (RFC 8555 section 6.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scaivaultd.demo.ca_state import Ledger

_MAX_OUTSTANDING = 10_000


class Nonces:
    """Each is good once; the oldest are forgotten when too many are out."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        # A dict, since it keeps its sequence and forgets from the front.
        self._outstanding: dict[str, None] = {}
        self._spent: dict[str, None] = {}

    def fresh(self) -> str:
        """A new one."""
        nonce = self._ledger.new_token(odd=self._ledger.misbehaviour.odd_nonces)
        self._outstanding[nonce] = None
        if len(self._outstanding) > _MAX_OUTSTANDING:
            del self._outstanding[next(iter(self._outstanding))]
        return nonce

    def spend(self, nonce: str) -> bool:
        """Whether it was good; it no longer is."""
        if nonce in self._spent:
            self._ledger.conduct.violate("nonce-reuse", "a nonce came a second time")
        if nonce not in self._outstanding:
            return False
        del self._outstanding[nonce]
        self._spent[nonce] = None
        if len(self._spent) > _MAX_OUTSTANDING:
            del self._spent[next(iter(self._spent))]
        return True
