"""The benches still run: what they measure with, not what they measure."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING, Any

import structlog

from bench import bare_client
from bench.rig import many, percentile
from bench.soak import Findings, Outages
from bench.steps import Steps
from bench.stock import fill
from scaivaultd.demo.ca import DevelopmentCa
from scaivaultd.demo.process import free_port
from scaivaultd.model.clock import SystemClock
from scaivaultd.services.documents import CERTIFICATES, RENEWALS
from scaivaultd.services.renewals import due_at
from scaivaultd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from pathlib import Path


async def test_the_bare_client_gets_certificates_with_seven_requests_each(tmp_path: Path) -> None:
    """The ceiling is one only if it does the whole work, and nothing beside it."""
    port = free_port()
    async with DevelopmentCa(http01_port=port) as ca:
        (tmp_path / "root.pem").write_text(ca.root_pem)
        arguments = argparse.Namespace(
            directory=ca.directory_url,
            trust=str(tmp_path / "root.pem"),
            http01_port=port,
            count=3,
            in_flight=1,
            names=1,
        )
        outcome = await bare_client.run(arguments, label="test", first_pause_seconds=0.01)
        assert len(ca.issued) == 4
    assert len(outcome.latencies) == 3
    assert outcome.requests is not None
    assert outcome.requests >= 3 * 6


async def test_a_full_store_can_be_read_and_asks_for_nothing(tmp_path: Path) -> None:
    """A start that set off 100,000 renewals would measure something else."""
    ids = await fill(tmp_path / "store.db", 200)
    store = await SqliteStore.open(tmp_path / "store.db", clock=SystemClock(), log=structlog.get_logger())
    try:
        renewals = await RENEWALS.all(store, structlog.get_logger())
        now = SystemClock().now()
        assert len(renewals) == len(ids) == 200
        assert all((due := due_at(each.value, now)) is not None and due > now for each in renewals)
        assert await CERTIFICATES.get(store, ids[0]) is not None
    finally:
        await store.close()


async def test_work_is_done_once_each() -> None:
    """A round that did less, or some of it twice, would look fast."""
    done: list[int] = []

    async def one(number: int) -> None:
        done.append(number)

    outcome = await many(one, 20, 8)
    assert sorted(done) == list(range(20))
    assert len(outcome.latencies) == 20


def test_percentiles_are_values_that_occurred() -> None:
    """Nearest rank; of nothing there is none."""
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0], 0.99) == 2.0
    assert math.isnan(percentile([], 0.5))


def line(milliseconds: int, event: str, **fields: Any) -> str:
    return json.dumps({"ts": f"2026-01-01T00:00:00.{milliseconds:03}000Z", "event": event, **fields})


def test_the_steps_of_a_certificate_add_up_to_its_time() -> None:
    """What is no step of its own belongs to the next one; nothing is counted twice."""
    url = "https://127.0.0.1:14000"
    log = "\n".join(
        [
            "not JSON",
            line(0, "daemon.ready"),
            line(10, "order.accepted"),
            line(15, "acme.request", url=f"{url}/order-plz", duration_ms=3),
            line(16, "order.created"),
            line(30, "acme.request", url=f"{url}/my-order/1", duration_ms=2),
            line(40, "certificate.issued"),
            line(45, "event.published"),
            line(99, "event.published"),
        ]
    )
    steps = Steps.of_log(log)
    assert steps.count == 1
    assert {name: round(value) for name, value in steps.medians()} == {
        "accepted to newOrder: key, claim": 2,
        "request: newOrder": 3,
        "pauses before polls": 13,
        "request: poll": 2,
        "download to stored: checks, commit": 10,
        "stored to event acknowledged": 5,
        "all": 35,
    }


def version(start: int, end: int, issued: int) -> dict[str, Any]:
    def moment(second: int) -> str:
        return f"2026-01-01T00:{second // 60:02}:{second % 60:02}Z"

    return {"not_before": moment(start), "not_after": moment(end), "issued_at": moment(issued)}


def test_only_time_with_the_ca_there_counts_against_the_daemon() -> None:
    """An expired certificate is nobody's fault where its CA was away for its whole life."""
    midnight = 1767225600.0
    findings = Findings(None, Outages([(midnight + 100, midnight + 140)]))  # type: ignore[arg-type]  # asks nobody here
    versions = [version(0, 60, 0), version(45, 105, 45), version(90, 150, 145), version(145, 205, 145)]
    found = list(findings.expired(versions, midnight + 150))
    assert [(each["not_after"], share) for each, share in found] == [("2026-01-01T00:01:45Z", 0.75)]
