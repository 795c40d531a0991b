"""The same request again with the same `Idempotency-Key`: the first answer, and nothing is done twice."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import structlog

from scaivaultd.api import messages as m
from scaivaultd.api.commands import CREATE_BULK_RENEWAL, ISSUE, RENEW_CERTIFICATE, RequestContext
from scaivaultd.model.errors import Conflict
from scaivaultd.model.resources import terms_of
from scaivaultd.services.documents import (
    BULK_RENEWALS,
    CERTIFICATES,
    IDEMPOTENCY,
    IDEMPOTENCY_SECONDS,
    ORDERS,
    RENEWALS,
    REVOCATIONS,
)
from scaivaultd.services.idempotency import Repeatable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from scaivaultd.model.storage import Change

LOG = structlog.get_logger()


def context(key: str | None = "k") -> RequestContext:
    return RequestContext(request_id="req_1", idempotency_key=key)


def renewing(world: Any, certificate_id: str, key: str | None = "k", **members: Any) -> Awaitable[m.OrderReply]:
    request = m.RenewCertificate(**{"id": certificate_id, "wait_seconds": 0, **members})
    reply: Awaitable[m.OrderReply] = world.renewing.renew(request, context(key))
    return reply


def revoking(world: Any, certificate_id: str, key: str | None = "k", **members: Any) -> Awaitable[m.RevocationReply]:
    request = m.RevokeCertificate(certificate_id=certificate_id, **members)
    reply: Awaitable[m.RevocationReply] = world.revoking.revoke(request, context(key))
    return reply


def updating(world: Any, certificate_id: str, key: str | None = "k", **members: Any) -> Awaitable[m.CertificateReply]:
    reply: Awaitable[m.CertificateReply] = world.updating.update(
        m.UpdateCertificate(id=certificate_id, **members), context(key)
    )
    return reply


def in_bulk(world: Any, _: str = "", key: str | None = "k", **members: Any) -> Awaitable[m.BulkRenewalReply]:
    reply: Awaitable[m.BulkRenewalReply] = world.bulk_renewals.create(
        m.CreateBulkRenewal(all=True, **members), context(key)
    )
    return reply


@pytest.fixture
async def certificate_id(world: Any) -> str:
    return str((await world.issue()).certificate_id)


@pytest.fixture
def commits(world: Any) -> list[set[str]]:
    """The kinds of documents in each commit from now on."""
    seen: list[set[str]] = []

    async def look(changes: Sequence[Change]) -> None:
        seen.append({each.key.split("/")[0] for each in changes})

    world.store.before_commit = look
    return seen


def with_key(commits: list[set[str]]) -> list[set[str]]:
    return [each for each in commits if "idempotency" in each]


class TestRepeatable:
    def test_how_long_a_caller_waits_is_not_part_of_the_request(self) -> None:
        """Whoever asks again may have less time than before."""
        once, again, other = (
            Repeatable(
                RENEW_CERTIFICATE, m.RenewCertificate(id=id_, wait_seconds=seconds, wait_end_seconds=seconds), context()
            ).digest
            for id_, seconds in (("cert_1", 0), ("cert_1", 5), ("cert_2", 0))
        )
        assert once == again != other

    async def test_a_key_counts_per_command_and_for_a_day(self, world: Any, clock: Any) -> None:
        """One key for a whole run of a script is no mistake."""
        request = m.CreateBulkRenewal(all=True)
        made = Repeatable(CREATE_BULK_RENEWAL, request, context())
        assert await made.made_before(world.store) is None
        await world.store.commit(made.changes("bulk_1"))
        assert await made.made_before(world.store) == "bulk_1"
        assert await Repeatable(ISSUE, request, context()).made_before(world.store) is None
        assert await Repeatable(CREATE_BULK_RENEWAL, request, context("other")).made_before(world.store) is None
        clock.advance(IDEMPOTENCY_SECONDS + 1)
        assert await made.made_before(world.store) is None

    async def test_without_a_key_nothing_is_remembered(self, world: Any) -> None:
        """Every request is a new one then."""
        assert Repeatable(ISSUE, m.Nothing(), context(None)).changes("x") == ()
        assert await Repeatable(ISSUE, m.Nothing(), context(None)).made_before(world.store) is None


@pytest.mark.parametrize(
    ("ask", "other"),
    [
        (renewing, None),
        (updating, {"auto_renew": False}),
        (revoking, {"reason": "superseded"}),
        (in_bulk, {"note": "other"}),
    ],
)
async def test_the_same_key_with_another_request_is_a_conflict(
    world: Any, certificate_id: str, ask: Callable[..., Awaitable[Any]], other: dict[str, Any] | None
) -> None:
    """An answer to another question is worse than none."""
    await ask(world, certificate_id)
    elsewhere = certificate_id if other else str((await world.issue("b.example.test")).certificate_id)
    with pytest.raises(Conflict, match="Idempotency-Key"):
        await ask(world, elsewhere, **(other or {}))


class TestRenewing:
    async def test_the_order_is_the_answer_also_when_it_has_ended(
        self, world: Any, certificate_id: str, commits: list[set[str]]
    ) -> None:
        """The first answer may have been lost, and a second renewal costs budget."""
        first = await renewing(world, certificate_id)
        assert with_key(commits) == [{"order", "renewal", "idempotency"}]
        await world.idle()
        again = await renewing(world, certificate_id, wait_seconds=1)
        assert (again.order_id, again.status) == (first.order_id, "valid")
        assert (await world.read(CERTIFICATES, certificate_id)).value.version == 2
        assert not (await world.read(RENEWALS, certificate_id)).value.is_due
        assert (await renewing(world, certificate_id, key="other")).order_id != first.order_id

    async def test_an_order_that_was_there_already_is_remembered_too(self, world: Any, certificate_id: str) -> None:
        """It is what the first answer was."""
        first = await renewing(world, certificate_id, key=None)
        assert (await renewing(world, certificate_id)).order_id == first.order_id
        await world.idle()
        assert (await renewing(world, certificate_id)).order_id == first.order_id

    async def test_what_has_ended_is_not_hurried(self, world: Any, certificate_id: str) -> None:
        """A later order and its failures are none of the old request's business."""
        first = await renewing(world, certificate_id)
        await world.idle()
        gate = asyncio.Event()

        async def hold() -> None:
            await gate.wait()

        world.ca.script["new_order"].append(hold)
        later = await renewing(world, certificate_id, key="other")
        held = await world.read(RENEWALS, certificate_id)
        failed = msgspec.structs.replace(held.value, attempt=3)
        await world.sqlite.commit([RENEWALS.put(failed, held.revision)])
        assert (await renewing(world, certificate_id)).order_id == first.order_id
        assert (await world.read(RENEWALS, certificate_id)).value == failed
        gate.set()
        assert (await world.ended(later.order_id)).status == "valid"

    async def test_several_at_once_make_one_order(self, world: Any, certificate_id: str) -> None:
        """Retries overlap with what they retry."""
        replies = await asyncio.gather(*(renewing(world, certificate_id) for _ in range(5)))
        assert len({each.order_id for each in replies}) == 1
        await world.idle()
        assert (await world.read(CERTIFICATES, certificate_id)).value.version == 2

    async def test_another_process_with_the_same_request_wins(self, world: Any, certificate_id: str) -> None:
        """Its order has ended when ours was about to be made."""
        request = m.RenewCertificate(id=certificate_id, wait_seconds=0)
        made = Repeatable(RENEW_CERTIFICATE, request, context())
        ended = (await ORDERS.all(world.sqlite, LOG))[0].value

        async def overtake(changes: Sequence[Change]) -> None:
            if any(each.key.startswith("order/") for each in changes):
                world.store.before_commit = None
                await world.sqlite.commit(made.changes(ended.id))

        world.store.before_commit = overtake
        order = await world.issuing.renew(certificate_id, "request", repeatable=made)
        assert order.id == ended.id
        assert (await world.read(RENEWALS, certificate_id)).value.order_id is None

    async def test_an_order_found_at_the_last_moment_is_remembered_too(self, world: Any, certificate_id: str) -> None:
        """Somebody else has made it between our look and ours."""
        made = Repeatable(RENEW_CERTIFICATE, m.RenewCertificate(id=certificate_id), context())
        other = await world.issuing.renew(certificate_id, "schedule")
        assert (await world.issuing.renew(certificate_id, "request", repeatable=made)).id == other.id
        assert await made.made_before(world.store) == other.id
        assert [each["order_id"] for each in world.said("order.accepted")][1:] == [other.id]


class TestUpdating:
    async def test_a_change_is_made_once_and_later_ones_stand(
        self, world: Any, certificate_id: str, commits: list[set[str]]
    ) -> None:
        """A late retry must not undo what somebody has changed since."""
        await updating(world, certificate_id, profile="shortlived")
        assert with_key(commits) == [{"certificate", "renewal", "idempotency"}]
        await updating(world, certificate_id, key=None, profile="classic")
        reply = await updating(world, certificate_id, profile="shortlived")
        assert reply.terms is not None
        assert reply.terms.profile == "classic"
        assert terms_of((await world.read(CERTIFICATES, certificate_id)).value).profile == "classic"

    async def test_one_that_changes_nothing_has_had_its_turn_too(self, world: Any, certificate_id: str) -> None:
        """The same for the caller: it was answered."""
        assert (await updating(world, certificate_id, auto_renew=True)).auto_renew
        await updating(world, certificate_id, key=None, auto_renew=False)
        assert not (await updating(world, certificate_id, auto_renew=True)).auto_renew

    @pytest.mark.parametrize("members", [{"profile": "x"}, {}])
    async def test_one_that_was_overtaken_by_itself_is_answered(
        self, world: Any, certificate_id: str, members: dict[str, Any]
    ) -> None:
        """Both came at once, and the other one was faster."""
        replies = await asyncio.gather(*(updating(world, certificate_id, **members) for _ in range(3)))
        assert {each.id for each in replies} == {certificate_id}
        assert len(world.said("certificate.updated")) == bool(members)


class TestRevoking:
    async def test_the_revocation_is_the_answer(self, world: Any, certificate_id: str, commits: list[set[str]]) -> None:
        """Also when the current version is another one by then: only the first was meant."""
        first = await revoking(world, certificate_id)
        assert with_key(commits) == [{"revocation", "idempotency"}]
        await renewing(world, certificate_id)
        await world.idle()
        assert (await world.read(CERTIFICATES, certificate_id)).value.version == 2
        assert await revoking(world, certificate_id) == first
        assert len(await REVOCATIONS.all(world.sqlite, LOG)) == 1

    async def test_one_that_was_under_way_is_remembered_too(self, world: Any, certificate_id: str) -> None:
        """It was the answer, and stays so."""
        gate = asyncio.Event()
        world.ca.script["revoke"].append(gate.wait)
        first = await revoking(world, certificate_id, key=None, wait_seconds=0)
        assert (await revoking(world, certificate_id, wait_seconds=0)).id == first.id
        gate.set()
        await world.idle()
        await renewing(world, certificate_id)
        await world.idle()
        assert (await revoking(world, certificate_id)).id == first.id


class TestBulkRenewals:
    async def test_it_is_the_answer_as_it_stands(self, world: Any, commits: list[set[str]]) -> None:
        """A lost answer must not renew ten thousand certificates twice."""
        first = await in_bulk(world, note="incident")
        assert commits == [{"bulk_renewal", "idempotency"}]
        await world.bulk_renewals.cancel(m.BulkRenewalById(id=str(first.id)), context(None))
        again = await in_bulk(world, note="incident")
        assert (again.id, again.status) == (first.id, "cancelled")

    async def test_several_at_once_make_one(self, world: Any) -> None:
        """Retries overlap with what they retry."""
        replies = await asyncio.gather(*(in_bulk(world) for _ in range(4)))
        assert len({each.id for each in replies}) == 1
        assert len(await BULK_RENEWALS.all(world.sqlite, LOG)) == 1

    async def test_a_dry_run_makes_nothing_to_remember(self, world: Any) -> None:
        """Whoever counts first may use the same key for the real one."""
        await in_bulk(world, dry_run=True)
        assert (await in_bulk(world)).id is not None
        stored = await world.sqlite.scan(IDEMPOTENCY.key(""), where={}, after=None, limit=10)
        assert len(stored.items) == 1
