"""The heap behind the scheduler: one live entry for each certificate, none lost, none doubled."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from scaivaultd.model.ids import CertificateId
from scaivaultd.services.due_heap import DueHeap

if TYPE_CHECKING:
    from collections.abc import Iterator

A, B, C = (CertificateId(each) for each in "abc")


def drained(heap: DueHeap, now: float) -> Iterator[CertificateId]:
    while (certificate_id := heap.take_due(now)) is not None:
        yield certificate_id


def test_what_is_due_comes_out_in_order_and_the_rest_stays() -> None:
    """The one that has waited longest is the most urgent."""
    heap = DueHeap()
    for certificate_id, at in ((A, 30.0), (B, 10.0), (C, 20.0)):
        heap.put(certificate_id, at)
    assert list(drained(heap, 20.0)) == [B, C]
    assert (heap.next_at(), len(heap)) == (30.0, 1)


def test_what_is_put_again_is_due_at_the_new_time_only() -> None:
    """A certificate that was renewed must not be looked at by its old dates."""
    heap = DueHeap()
    heap.put(A, 10.0)
    heap.put(A, 50.0)
    assert heap.take_due(49.0) is None
    assert list(drained(heap, 50.0)) == [A]


def test_the_same_moment_said_twice_is_one_entry() -> None:
    """Else it would be looked at twice."""
    heap = DueHeap()
    heap.put(A, 10.0)
    heap.put(A, 20.0)
    heap.put(A, 10.0)
    assert list(drained(heap, 100.0)) == [A]


def test_bringing_forward_never_puts_off() -> None:
    """A scan reads what may be older than the change that somebody has told of meanwhile."""
    heap = DueHeap()
    heap.bring_forward(A, 10.0)
    heap.bring_forward(A, 20.0)
    assert heap.next_at() == 10.0
    heap.bring_forward(A, 5.0)
    assert heap.next_at() == 5.0


def test_what_is_discarded_never_comes_up() -> None:
    """Nobody looks at what is gone."""
    heap = DueHeap()
    heap.put(A, 10.0)
    heap.discard(A)
    heap.discard(B)
    assert (heap.next_at(), heap.take_due(100.0), len(heap)) == (None, None, 0)


def test_it_agrees_with_a_plain_table_and_keeps_few_dead_entries() -> None:
    """A million changes of a hundred certificates must not need the memory of a million."""
    chance, heap, table = random.Random(1), DueHeap(), dict[CertificateId, float]()
    for _ in range(20_000):
        certificate_id, at = CertificateId(str(chance.randrange(100))), chance.random()
        match chance.randrange(10):
            case 0:
                heap.discard(certificate_id)
                table.pop(certificate_id, None)
            case 1:
                heap.bring_forward(certificate_id, at)
                table[certificate_id] = min(at, table.get(certificate_id, at))
            case 2:
                now = at / 50
                due = sorted((at, each) for each, at in table.items() if at <= now)
                taken = heap.take_due(now)
                assert taken == (due[0][1] if due else None)
                if taken is not None:
                    del table[taken]
            case _:
                heap.put(certificate_id, at)
                table[certificate_id] = at
        assert heap.next_at() == min(table.values(), default=None)
        assert len(heap) == len(table)
        assert len(heap._entries) <= 2 * len(table) + 70
    assert sorted(drained(heap, 1.0)) == sorted(table)
