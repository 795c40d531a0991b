"""Who waits for which budget of a CA, and whose turn it is.

Orders that wait for the same subject of a limit stand in one line: renewals before new certificates, then by age.
A line is only a memory of who asked; it is right again, after whatever happened, as soon as its orders have asked
again. Invariants:

* an order stands in at most one line, that of the limit which holds it longest;
* nobody goes whose token those in front need, and nobody waits for those in front if there is enough for all;
* who does not come back long after his turn does not hold up those behind.

A refusal without a rule closes something until a moment, and then for nobody longer than for the others: there is
no line for it.
"""

from __future__ import annotations

from bisect import bisect_left
from datetime import datetime, timedelta
from operator import attrgetter
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.acme.limit_rules import LIMITS, NewOrder, limit_name, subjects_of
from scaivaultd.acme.limits import Wait
from scaivaultd.model.ids import OrderId
from scaivaultd.model.resources import Queued

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scaivaultd.acme.limits import Ledger

PATIENCE = timedelta(minutes=10)
"""How long after its turn an order still counts as being there."""
FORESEEN_MAX = 1000
"""How many in front are followed one by one."""

Place = tuple[bool, datetime, OrderId]
"""Where an order stands: renewals (False) first, then by age; the id tells two of one moment apart."""
Subject = tuple[str, str]
"""A limit, and whose budget of it."""


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """An order that was told to wait."""

    place: Place
    request: NewOrder
    queued: Queued

    @property
    def order_id(self) -> OrderId:
        """Which order."""
        return self.place[2]

    @property
    def subject(self) -> Subject:
        """What it waits for."""
        return self.queued.limit, self.queued.subject


class Turn(msgspec.Struct, frozen=True):
    """What those in front mean for an order: how many they are, and what it waits for on their account, if it does."""

    ahead: int = 0
    wait: Wait | None = None


class _Course(msgspec.Struct, frozen=True):
    """What is left when the first `count` of a line have gone, the last of them at `at`."""

    ledger: Ledger
    at: datetime
    count: int = 0

    def after(self, entries: Sequence[Waiting]) -> _Course:
        """The course of things when these have gone too, each as soon as it may."""
        ledger, at = self.ledger, self.at
        for each in entries:
            spent = ledger.spend(at, each.request)
            if spent.wait is not None:
                if spent.wait.until is None:
                    continue  # paused since it stands here: it does not go at all
                at = spent.wait.until
                spent = spent.ledger.spend(at, each.request)
            ledger = spent.ledger
        return _Course(ledger, at, self.count + len(entries))


class _Line:
    def __init__(self) -> None:
        self.entries: list[Waiting] = []
        # Where many orders come at once each would follow all in front anew; the last one's course is most of its own.
        self.course: _Course | None = None

    def put(self, waiting: Waiting) -> None:
        place = self.index(waiting.place)
        if self.course is not None and place < self.course.count:
            self.course = None
        self.entries.insert(place, waiting)

    def remove(self, waiting: Waiting) -> None:
        place = self.index(waiting.place)
        if self.course is not None and place < self.course.count:
            self.course = None
        del self.entries[place]

    def index(self, place: Place) -> int:
        return bisect_left(self.entries, place, key=_place_of)

    def course_of(self, now: datetime, ledger: Ledger, count: int) -> _Course:
        """The course of the first `count`, from the one remembered as long as nobody's turn has come since."""
        known = self.course
        if known is None or known.count > count or self.entries[0].queued.until <= now:
            known = _Course(ledger, now)
        self.course = known.after(self.entries[known.count : count])
        return self.course


class Lines:
    """All who wait at one CA."""

    def __init__(self) -> None:
        self._waiting: dict[OrderId, Waiting] = {}
        self._lines: dict[Subject, _Line] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._waiting.values())

    def put(self, ledger: Ledger, waiting: Waiting) -> None:
        """Let an order stand where its place is, and nowhere else."""
        self.remove(waiting.order_id)
        self._waiting[waiting.order_id] = waiting
        if any(rule.limit == waiting.queued.limit for rule in ledger.rules):
            self._lines.setdefault(waiting.subject, _Line()).put(waiting)

    def remove(self, order_id: OrderId) -> OrderId | None:
        """Take an order out, if it waits; who stands first now, if it stood first before."""
        waiting = self._waiting.pop(order_id, None)
        line = None if waiting is None else self._lines.get(waiting.subject)
        if waiting is None or line is None:
            return None
        stood_first = line.entries[0] is waiting
        line.remove(waiting)
        if not line.entries:
            del self._lines[waiting.subject]
            return None
        return line.entries[0].order_id if stood_first else None

    def ahead_of(self, waiting: Waiting) -> int:
        """How many stand in front of it by now."""
        line = self._lines.get(waiting.subject)
        return 0 if line is None else line.index(waiting.place)

    def changed(self, ledger: Ledger, request: NewOrder) -> None:
        """Something was spent, refused or given back by somebody who may not have stood in line."""
        for line in self._touched(ledger, request):
            line.course = None

    def turn_of(self, now: datetime, ledger: Ledger, request: NewOrder, place: Place) -> Turn:
        """What those in front of an order mean for it."""
        self._drop_absent(now, ledger, request)
        lines = list(self._touched(ledger, request))
        ahead = sum(line.index(place) for line in lines)
        if not ahead:
            return Turn()
        foreseen = min(ahead, FORESEEN_MAX)
        if len(lines) == 1:
            course = lines[0].course_of(now, ledger, foreseen)
            last = lines[0].entries[ahead - 1]
        else:
            in_front = sorted((each for line in lines for each in line.entries[: line.index(place)]), key=_place_of)
            course = _Course(ledger, now).after(in_front[:foreseen])
            last = in_front[-1]
        wait = course.ledger.forecast(course.at, request)
        if wait is None and course.at > now:
            # There is enough then, but not before those in front have gone.
            wait = Wait(limit=last.queued.limit, subject=last.queued.subject, until=course.at)
        if wait is not None and wait.until is not None:
            # Those who are not followed are taken to go at the pace of those who are.
            further = (wait.until - now) / foreseen * (ahead - foreseen)
            wait = msgspec.structs.replace(wait, until=wait.until + further)
        return Turn(ahead, wait)

    def _touched(self, ledger: Ledger, request: NewOrder) -> Iterator[_Line]:
        """The lines for what the request itself would draw on."""
        for kind, scope in LIMITS if self._lines else ():
            limit = limit_name(kind, scope)
            if any(rule.limit == limit and request.cause not in rule.exempt for rule in ledger.rules):
                for subject in subjects_of(request, kind, scope):
                    if (line := self._lines.get((limit, subject))) is not None:
                        yield line

    def _drop_absent(self, now: datetime, ledger: Ledger, request: NewOrder) -> None:
        for line in tuple(self._touched(ledger, request)):
            while line.entries and line.entries[0].queued.until + PATIENCE < now:
                self.remove(line.entries[0].order_id)


_place_of = attrgetter("place")
