"""What each address of each name server says about a set of TXT values, all asked at the same time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import dns.rdatatype
import msgspec

from scaivaultd.model.dns import ServerVerdict
from scaivaultd.net import dns_reading as reading
from scaivaultd.net.dns_exchange import Endpoint, NoAnswer, Question

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from scaivaultd.model.dns import Answer
    from scaivaultd.net.dns_exchange import Exchange, Patience

_WORTH_A_SERIAL = ("partial", "absent")


class Target(msgspec.Struct, frozen=True):
    """One address to be asked, and how: a resolver recurses and has no authority, a zone's server is the opposite."""

    server: str
    endpoint: Endpoint
    is_resolver: bool = False
    is_stand_in: bool = False


class Looker:
    """Asks and judges; an address that does not answer is a verdict, never an exception."""

    def __init__(self, exchange: Exchange, patience: Patience) -> None:
        self._exchange = exchange
        self._patience = patience

    async def look(
        self, targets: Sequence[Target], name: str, values: Collection[str], zone: str | None
    ) -> Sequence[ServerVerdict]:
        """One verdict for each target, in their order; those that disagree are asked for the serial of `zone`."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._verdict(each, name, values, zone)) for each in targets]
        return [task.result() for task in tasks]

    async def _verdict(self, target: Target, name: str, values: Collection[str], zone: str | None) -> ServerVerdict:
        try:
            judgement = await self._judge(target, name, values)
        except NoAnswer as error:
            return verdict_of(target, "skipped" if error.is_unroutable else "unreachable", error.detail)
        except TimeoutError:
            return verdict_of(target, "unreachable", f"no answer within {self._patience.look_seconds:g} s")
        judgement = await self._with_serial(target, judgement, zone)
        return verdict_of(target, judgement.answer, judgement.detail, judgement.serial)

    async def _judge(self, target: Target, name: str, values: Collection[str]) -> reading.Judgement:
        question = Question(name, dns.rdatatype.TXT, is_recursive=target.is_resolver)
        # Not for the wait for a place: servers that are dead must not use up the time of those that are not.
        message = await self._exchange.ask(target.endpoint, question, seconds=self._patience.look_seconds)
        needs_authority = not (target.is_resolver or target.is_stand_in)
        return reading.judgement_of(message, name, values, needs_authority=needs_authority)

    async def _with_serial(self, target: Target, judgement: reading.Judgement, zone: str | None) -> reading.Judgement:
        # The serial shows a person whether a server lags or was never told.
        if zone is None or judgement.serial is not None or judgement.answer not in _WORTH_A_SERIAL:
            return judgement
        try:
            question = Question(zone, dns.rdatatype.SOA)
            message = await self._exchange.ask(target.endpoint, question, tries=1, seconds=self._patience.udp_seconds)
        except (NoAnswer, TimeoutError):
            return judgement
        return msgspec.structs.replace(judgement, serial=reading.serial_of(message, zone))


def verdict_of(target: Target, answer: Answer, detail: str, serial: int | None = None) -> ServerVerdict:
    """A verdict on one address."""
    return ServerVerdict(
        server=target.server, address=target.endpoint.text, answer=answer, detail=detail, serial=serial
    )
