"""What we see ourselves of a name whose CA has just refused it, while our answers are still in place.

A look is short, and nothing that goes wrong with it matters to the order: it is for the person who has to act.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any

from scaivaultd.acme import caa
from scaivaultd.model.errors import DnsError
from scaivaultd.model.resources import Evidence, Sighting
from scaivaultd.services.jobs import outcome_of, side_by_side
from scaivaultd.services.txt_records import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.names import Identifier
    from scaivaultd.model.resources import (
        Account,
        Challenge,
        EvidenceCheck,
        IdentifierTrouble,
        Order,
        Trouble,
    )
    from scaivaultd.services.ports import NameServers, OwnSight

    Look = Callable[[], Coroutine[Any, Any, Sequence[Sighting]]]

LOOK_SECONDS = 5.0
NAMES_MAX = 5
"""Of an order with a hundred names most fail for the same reason."""
EVIDENCE_MAX = 60
SAW_MAX = 300


class Witness:
    """Looks once at the names that a CA has refused: at what CAs look at, from here."""

    def __init__(self, *, own_sight: OwnSight, name_servers: NameServers, log: FilteringBoundLogger) -> None:
        self._own_sight = own_sight
        self._name_servers = name_servers
        self._log = log

    async def look(self, order: Order, account: Account, trouble: Trouble) -> tuple[Evidence, ...]:
        """What is seen of the names in `trouble`, within `LOOK_SECONDS`; never raises for what it finds."""
        refused: dict[Identifier, IdentifierTrouble] = {}
        for identifier in order.identifiers:
            names = (str(identifier), identifier.base)
            found = next((each for each in trouble.identifiers if each.identifier in names), None)
            if found is not None and len(refused) < NAMES_MAX:
                refused[identifier] = found
        deadline = asyncio.get_running_loop().time() + LOOK_SECONDS
        told = await side_by_side(
            [
                self._in_time(identifier, check, look, deadline)
                for identifier, found in refused.items()
                for check, look in self._looks(identifier, found, order, account).items()
            ]
        )
        # A wildcard and its apex are one challenge name, seen twice.
        return tuple(dict.fromkeys(each for look in told for each in look))[:EVIDENCE_MAX]

    def _looks(
        self, identifier: Identifier, found: IdentifierTrouble, order: Order, account: Account
    ) -> dict[EvidenceCheck, Look]:
        name = identifier.base
        challenges = [each for each in order.challenges if each.identifier == name]
        looks: dict[EvidenceCheck, Look] = {}
        problem = found.type.rpartition(":")[2]
        if challenges:
            looks[order.challenge_type] = partial(self._see, challenges, order)
        if identifier.type == "dns" and (problem == "caa" or "caa" in found.detail.lower()):
            looks["caa"] = partial(self._see_caa, identifier, order, account)
        if identifier.type == "dns" and problem == "dns":
            asked = f"{PREFIX}{name}" if order.challenge_type == "dns-01" else name
            looks["dnssec"] = partial(self._see_dnssec, asked)
        return looks

    async def _in_time(
        self,
        identifier: Identifier,
        check: EvidenceCheck,
        look: Look,
        deadline: float,
    ) -> Sequence[Evidence]:
        seen: list[Sighting] = []
        error = await outcome_of(_collected(look, seen, deadline), self._log)
        if error is not None:
            is_known = isinstance(error, DnsError) and error.reason != "unreachable"
            seen = [_sighting("", error.detail, ok=False if is_known else None)]
        return [
            Evidence(identifier=str(identifier), check=check, where=each.where, saw=each.saw[:SAW_MAX], ok=each.ok)
            for each in seen
        ]

    async def _see(self, challenges: Sequence[Challenge], order: Order) -> Sequence[Sighting]:
        one = challenges[0]
        match one.type:
            case "http-01":
                return await self._own_sight.see_http01(one.identifier, one.token, one.key_authorization)
            case "tls-alpn-01":
                return await self._own_sight.see_tlsalpn01(one.identifier, _digest(one))
            case _:
                return await self._see_txt(challenges, order)

    async def _see_txt(self, challenges: Sequence[Challenge], order: Order) -> Sequence[Sighting]:
        """At every server that is authoritative where the CNAMEs lead: CAs follow them, whatever we have written."""
        name = challenges[0].identifier
        route = await self._name_servers.route(f"{PREFIX}{name}")
        values = [base64.urlsafe_b64encode(_digest(each)).rstrip(b"=").decode() for each in challenges]
        verdicts = await self._name_servers.look(route.delegation, route.target, values)
        seen = [
            _sighting(
                f"{each.server} ({each.address})",
                each.detail or each.answer,
                ok=None if each.answer == "skipped" else each.answer == "complete",
            )
            for each in verdicts
        ]
        written = {each.record_name for each in order.dns_records if each.identifier == name}
        if written and route.target not in written:
            elsewhere = ", ".join(sorted(written))
            seen.append(_sighting(route.target, f"the CA looks here; the value was written at {elsewhere}", ok=False))
        return seen

    async def _see_caa(self, identifier: Identifier, order: Order, account: Account) -> Sequence[Sighting]:
        found = await self._name_servers.caa(identifier.base)
        judged = caa.verdict(
            found,
            identifier,
            ca_identities=account.ca.caa_identities if account.ca else (),
            account_url=account.url,
            challenge_type=order.challenge_type,
        )
        return [_sighting(found.owner or identifier.base, judged.reason, ok=judged.allowed)]

    async def _see_dnssec(self, name: str) -> Sequence[Sighting]:
        zone = (await self._name_servers.route(name)).delegation.zone
        why = await self._name_servers.bogus(zone)
        return [] if why is None else [_sighting(zone, why, ok=False)]


async def _collected(look: Look, into: list[Sighting], deadline: float) -> None:
    try:
        async with asyncio.timeout_at(deadline):
            into.extend(await look())
    except TimeoutError:
        into.append(_sighting("", f"nothing was seen within {LOOK_SECONDS:g} s", ok=None))


def _sighting(where: str, saw: str, *, ok: bool | None) -> Sighting:
    return Sighting(where=where, saw=saw, ok=ok)


def _digest(challenge: Challenge) -> bytes:
    return hashlib.sha256(challenge.key_authorization.encode()).digest()
