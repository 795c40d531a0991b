"""What can be known before a CA is asked: CAA, delegation, and whether our own answer is seen.

A check that could not be made is `skipped`: only what was seen to be wrong warns or stops an order.
"""

from __future__ import annotations

import asyncio
import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from scaivaultd.acme import caa
from scaivaultd.model.errors import DnsError, PreflightFailed
from scaivaultd.model.resources import PreflightVerdict
from scaivaultd.services.jobs import side_by_side
from scaivaultd.services.look_ups import LookUps
from scaivaultd.services.txt_records import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock
    from scaivaultd.model.names import Identifier
    from scaivaultd.model.resources import Account, Order, PreflightCheck
    from scaivaultd.plugin import ChallengeResponse
    from scaivaultd.services.ports import NameServers, OwnAnswer

Mode = Literal["off", "warn", "block"]

PROBE_SHARE = 0.8
"""How much of the time of an order may go to seeing whether DNS answers at all: others that wait want to hear of it."""
DETAIL_MAX = 600
_CERTAIN = ("dnssec_bogus", "cname_loop", "cname_too_long")
"""What keeps every CA from reading CAA records, and from issuing then (RFC 8659 section 3)."""


class PreflightModes(msgspec.Struct, frozen=True, kw_only=True):
    """What is checked, and what follows; see `[preflight]` in the configuration."""

    caa: Mode = "warn"
    delegation: Mode = "warn"
    reachability: Mode = "off"
    timeout_seconds: float = 5.0


class _Finding(msgspec.Struct, frozen=True):
    """What one look showed; `is_fine` None: nobody knows."""

    is_fine: bool | None
    detail: str = ""


class _Check(msgspec.Struct, frozen=True):
    kind: PreflightCheck
    identifier: str
    mode: Mode
    look: Callable[[], Coroutine[Any, Any, _Finding]]


class Preflight:
    """The checks; each gives verdicts and never raises for what it finds."""

    def __init__(
        self,
        modes: PreflightModes,
        *,
        name_servers: NameServers,
        own_answer: OwnAnswer,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._name_servers = name_servers
        self._clock = clock
        self._own_answer = own_answer
        self._log = log
        self.use(modes)

    def use(self, modes: PreflightModes) -> None:
        """Check that, from the next order on."""
        probe_seconds = PROBE_SHARE * modes.timeout_seconds
        self._modes = modes
        self._look_ups = LookUps(self._name_servers, probe_seconds=probe_seconds, clock=self._clock, log=self._log)

    async def before_order(self, order: Order, account: Account) -> Sequence[PreflightVerdict]:
        """CAA and delegation of every name, before newOrder; raises PreflightFailed if one of them blocks.

        The error carries the verdicts as `verdicts`.
        """
        checks = [*self._caa_checks(order, account, self._modes.caa), *self._delegation_checks(order)]
        return self._settled(order, await self._verdicts(checks), may_pass=False)

    async def before_answer(
        self, order: Order, responses: Mapping[str, ChallengeResponse]
    ) -> Sequence[PreflightVerdict]:
        """Whether what was put in place is seen from here, before the CA is told; raises PreflightFailed."""
        checks = [
            _Check("reachability", each.identifier, self._modes.reachability, partial(self._seen, each))
            for each in responses.values()
            if each.type in ("http-01", "tls-alpn-01")
        ]
        return self._settled(order, await self._verdicts(checks), may_pass=True)

    async def caa_forbids(self, order: Order, account: Account) -> str | None:
        """Why CAA forbids this account's CA one of the names; None when it does not, or nobody knows."""
        for each in await self._verdicts(self._caa_checks(order, account, "block")):
            if each.status == "failed":
                return f"{each.identifier}: {each.detail}"
        return None

    def _caa_checks(self, order: Order, account: Account, mode: Mode) -> list[_Check]:
        return [
            _Check("caa", each.value, mode, partial(self._permitted, each, order, account)) for each in _names(order)
        ]

    def _delegation_checks(self, order: Order) -> list[_Check]:
        is_dns = order.challenge_type == "dns-01"
        return [
            _Check("delegation", each.value, self._modes.delegation, partial(self._delegated, each, is_dns))
            for each in _names(order)
        ]

    async def _permitted(self, identifier: Identifier, order: Order, account: Account) -> _Finding:
        found = await self._look_ups.caa(identifier.base)
        if isinstance(found, DnsError):
            return _Finding(False if found.reason in _CERTAIN else None, found.detail)
        judged = caa.verdict(
            found,
            identifier,
            ca_identities=account.ca.caa_identities if account.ca else (),
            account_url=account.url,
            challenge_type=order.challenge_type,
        )
        return _Finding(judged.allowed, judged.reason)

    async def _delegated(self, identifier: Identifier, is_dns: bool) -> _Finding:
        if is_dns:
            found = await self._look_ups.route(f"{PREFIX}{identifier.base}", follow_cname=True)
        else:
            found = await self._look_ups.route(identifier.base, follow_cname=False)
        if isinstance(found, DnsError):
            return _Finding(None if found.reason == "unreachable" else False, found.detail)
        return _Finding(True, f"zone {found.delegation.zone}")

    async def _seen(self, response: ChallengeResponse) -> _Finding:
        host, proof = response.identifier, response.key_authorization
        if response.type == "http-01":
            obstacle = await self._own_answer.http01(host, response.token, proof)
        else:
            obstacle = await self._own_answer.tlsalpn01(host, hashlib.sha256(proof.encode()).digest())
        return _Finding(obstacle is None, obstacle or "")

    async def _verdicts(self, checks: Sequence[_Check]) -> list[PreflightVerdict]:
        wanted = [each for each in checks if each.mode != "off"]
        deadline = asyncio.get_running_loop().time() + self._modes.timeout_seconds
        findings = await side_by_side([self._in_time(each, deadline) for each in wanted])
        return [_verdict(check, finding) for check, finding in zip(wanted, findings, strict=True)]

    async def _in_time(self, check: _Check, deadline: float) -> _Finding:
        try:
            async with asyncio.timeout_at(deadline):
                return await check.look()
        except TimeoutError:
            return _Finding(None, f"not finished within {self._modes.timeout_seconds:g} s")

    def _settled(
        self, order: Order, verdicts: Sequence[PreflightVerdict], *, may_pass: bool
    ) -> Sequence[PreflightVerdict]:
        problems = [each for each in verdicts if each.status in ("warning", "failed")]
        if problems:
            first = problems[0]
            self._log.warning(
                "preflight.problem",
                order_id=order.id,
                check=first.check,
                identifier=first.identifier,
                detail=first.detail,
                more=len(problems) - 1,
            )
        if failed := [each for each in problems if each.status == "failed"]:
            raise _failure(failed, verdicts, may_pass=may_pass)
        return verdicts


def _names(order: Order) -> list[Identifier]:
    """What DNS knows something of: addresses have neither CAA records nor a zone."""
    return [each for each in dict.fromkeys(order.identifiers) if each.type == "dns"]


def _verdict(check: _Check, finding: _Finding) -> PreflightVerdict:
    status: Literal["ok", "warning", "failed", "skipped"]
    if finding.is_fine is None:
        status = "skipped"
    elif finding.is_fine:
        status = "ok"
    else:
        status = "failed" if check.mode == "block" else "warning"
    return PreflightVerdict(
        check=check.kind, identifier=check.identifier, status=status, detail=finding.detail[:DETAIL_MAX]
    )


def _failure(
    failed: Sequence[PreflightVerdict], verdicts: Sequence[PreflightVerdict], *, may_pass: bool
) -> PreflightFailed:
    more = f" (and {len(failed) - 1} more, see preflight)" if len(failed) > 1 else ""
    error = PreflightFailed(f"{failed[0].identifier}: {failed[0].detail}{more}", verdicts, may_pass=may_pass)
    error.identifier = failed[0].identifier
    return error
