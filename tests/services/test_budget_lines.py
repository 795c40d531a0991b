"""Lines before a budget: what those in front mean for an order."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from scaivaultd.acme.limit_rules import NewOrder, Refusal, Rule
from scaivaultd.acme.limits import Ledger, Wait
from scaivaultd.model.ids import OrderId
from scaivaultd.model.resources import Queued
from scaivaultd.services.budget_lines import Lines, Place, Turn, Waiting

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
TOKEN = timedelta(seconds=100)
PER_ADDRESS = Rule(kind="certificates", scope="address", amount=4, window_seconds=400, reserve_percent=25)
PER_SET = Rule(kind="certificates", scope="name_set", amount=1, window_seconds=1000)
LIMIT = "certificates_per_address"


def request(name: str = "a", *, renews: bool = False) -> NewOrder:
    cause = "renewal" if renews else "new"
    return NewOrder(account="acme_1", cause=cause, names=(name,), domains=(name,), name_set=name)  # type: ignore[arg-type]


def place(number: int, *, renews: bool = False) -> Place:
    return not renews, NOW + timedelta(seconds=number), OrderId(f"order_{number}")


def waiting(number: int, wanted: NewOrder, until: datetime) -> Waiting:
    return Waiting(place=place(number), request=wanted, queued=Queued(limit=LIMIT, subject="", until=until))


def told(ledger: Ledger, lines: Lines, now: datetime, number: int, wanted: NewOrder) -> Turn:
    return lines.turn_of(now, ledger, wanted, place(number, renews=wanted.cause == "renewal"))


@pytest.mark.parametrize("seed", range(20))
def test_what_is_remembered_of_a_line_is_what_is_found_anew(seed: int) -> None:
    """Forecasts of a line are remembered for those who come; whatever happens in it, they must stay true."""
    chance = random.Random(seed)
    per_set = Rule(kind="certificates", scope="name_set", amount=2, window_seconds=2000, reserve_percent=0)
    now, ledger, lines = NOW, Ledger(rules=(PER_ADDRESS, per_set)), Lines()
    for number in range(150):
        wanted = request(chance.choice("abcdefghijkl"), renews=chance.random() < 0.2)
        anew = Lines()
        for each in lines:
            anew.put(ledger, each)
        turn = told(ledger, lines, now, number, wanted)
        assert turn == told(ledger, anew, now, number, wanted)
        wait = turn.wait or ledger.forecast(now, wanted)
        if wait is None:
            lines.changed(ledger, wanted)
            ledger = ledger.spend(now, wanted).ledger
        else:
            assert wait.until is not None
            queued = Queued(limit=wait.limit, subject=wait.subject, until=wait.until)
            lines.put(
                ledger, Waiting(place=place(number, renews=wanted.cause == "renewal"), request=wanted, queued=queued)
            )
        if chance.random() < 0.3 and lines:
            lines.remove(chance.choice([each.order_id for each in lines]))
        if chance.random() < 0.3:
            now += timedelta(seconds=chance.randrange(120))


def test_who_is_held_up_by_something_else_is_not_overtaken() -> None:
    """It stands in front, and by now another limit holds it as well: those behind stay behind."""
    ledger = Ledger(rules=(PER_ADDRESS, PER_SET)).spend(NOW, request("a")).ledger
    lines = Lines()
    lines.put(ledger, waiting(1, request("a"), NOW))
    free = NOW + timedelta(seconds=1000)
    assert told(ledger, lines, NOW, 2, request("b")) == Turn(1, Wait(limit=LIMIT, subject="", until=free))


def test_who_is_paused_meanwhile_takes_nothing() -> None:
    """Time does not bring its turn; those behind go on without it."""
    ledger = Ledger(rules=(PER_ADDRESS,)).refused(NOW, request("a"), Refusal(is_pause=True))
    lines = Lines()
    lines.put(ledger, waiting(1, request("a"), NOW))
    assert told(ledger, lines, NOW, 2, request("b")) == Turn(1)


def test_who_stands_in_two_lines_waits_for_both() -> None:
    """An order touches several limits, and others wait for each."""
    ledger = Ledger(rules=(PER_ADDRESS, PER_SET))
    for name in ("a", "b", "c"):
        ledger = ledger.spend(NOW, request(name)).ledger
    lines = Lines()
    lines.put(ledger, waiting(1, request("x"), NOW + TOKEN))
    set_wait = Queued(limit="certificates_per_name_set", subject="a", until=NOW + 10 * TOKEN)
    lines.put(ledger, Waiting(place=place(2), request=request("a"), queued=set_wait))
    wait = Wait(limit="certificates_per_name_set", subject="a", until=NOW + 20 * TOKEN)
    assert told(ledger, lines, NOW, 3, request("a")) == Turn(2, wait)
