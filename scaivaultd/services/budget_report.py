"""What `pki.acme.limits` shows of ledgers and lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scaivaultd.acme.limits import PAUSED, UNNAMED
from scaivaultd.api import messages as m

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scaivaultd.acme.limit_rules import Rule
    from scaivaultd.acme.limits import Budget
    from scaivaultd.services.budget_lines import Lines, Waiting

SHOWN_MAX = 500


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller has asked for: an account's own budgets, those of a name and its registered domain, or all.

    `readable` are the accounts whose budgets and orders may be shown; None: all there are.
    """

    account_id: str | None = None
    name: str | None = None
    domain: str | None = None
    readable: frozenset[str] | None = None

    def takes(self, limit: str, subject: str) -> bool:
        """Whether a budget is to be shown."""
        scope = _scope_of(limit)
        owner, _, name = subject.partition("/") if scope == "name" else (subject, "", "")
        is_owned = scope in ("account", "name")
        if is_owned and (self.account_id not in (None, owner) or not self._may_show(owner)):
            return False
        if self.name is None:
            return is_owned or self.account_id is None
        return name == self.name if scope == "name" else scope == "registered_domain" and subject == self.domain

    def takes_order(self, waiting: Waiting) -> bool:
        """Whether an order that waits is to be shown."""
        if self.account_id not in (None, waiting.request.account) or not self._may_show(waiting.request.account):
            return False
        return self.name is None or self.name in waiting.request.names or self.takes(*waiting.subject)

    def _may_show(self, account_id: str) -> bool:
        return self.readable is None or account_id in self.readable


def ca(directory_url: str, rules: Sequence[Rule]) -> m.CaLimits:
    """What one CA limits."""
    return m.CaLimits(
        directory_url=directory_url,
        rules=[
            m.LimitRule(
                limit=rule.limit,
                amount=rule.amount,
                window_seconds=rule.window_seconds,
                reserved=rule.reserved,
                exempt=list(rule.exempt),
            )
            for rule in rules
        ],
    )


def items(budgets: Mapping[str, Sequence[Budget]], wanted: Wanted) -> list[m.LimitReply]:
    """The budgets of all directories, the scarcest first."""
    found = [
        m.LimitReply(directory_url=url, **msgspec.structs.asdict(budget))
        for url, budgets_there in budgets.items()
        for budget in budgets_there
        if wanted.takes(budget.limit, budget.subject)
    ]
    return sorted(found, key=_share_left)[:SHOWN_MAX]


def waiting(lines: Mapping[str, Lines], wanted: Wanted) -> list[m.WaitingOrder]:
    """Who waits, the next first."""
    found = [
        (each.queued.until, each.place, url, each)
        for url, lines_there in lines.items()
        for each in lines_there
        if wanted.takes_order(each)
    ]
    return [
        m.WaitingOrder(
            order_id=each.order_id,
            directory_url=url,
            limit=each.queued.limit,
            subject=each.queued.subject,
            until=each.queued.until,
            ahead=lines[url].ahead_of(each),
        )
        for *_, url, each in sorted(found, key=lambda entry: entry[:2])[:SHOWN_MAX]
    ]


def _scope_of(limit: str) -> str:
    return {PAUSED: "name", UNNAMED: "account"}.get(limit) or limit.rpartition("_per_")[2]


def _share_left(item: m.LimitReply) -> float:
    if item.needs_human:
        return -1.0
    return 0.0 if item.left is None or item.amount is None else item.left / item.amount
