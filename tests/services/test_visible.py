"""Lists for those who may not see everything: what they may see, in full pages, and never a trace of the rest."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from scaivaultd.acme.limit_rules import NewOrder
from scaivaultd.api import messages as m
from scaivaultd.api.gate import UNLIMITED, Permits
from scaivaultd.model.errors import NotFound
from scaivaultd.model.ids import CertificateId, OrderId
from scaivaultd.model.names import Identifier
from scaivaultd.model.resources import Certificate, CertificateVersion, Issued, Order, Queued, terms_of
from scaivaultd.services import visible
from scaivaultd.services.budget_lines import Waiting
from scaivaultd.services.budget_report import Wanted
from scaivaultd.services.documents import CERTIFICATES, ORDERS, PAGE_BYTES, SCANS_MAX, VERSIONS
from tests.fakes.judging import SHOP, WEB, Permitted, asked_by

MINE = Permitted(".mine.test")


async def example(world: Any) -> tuple[Certificate, Order]:
    """One of each, to make many of."""
    order = await world.issue("a.mine.test")
    (certificate,) = await world.certificates()
    return certificate, order


def named(certificate: Certificate, name: str, next_name: str | None = None, **changes: Any) -> Certificate:
    """The same with another name, now and after its next renewal."""
    now, later = ((Identifier("dns", each),) for each in (name, next_name or name))
    terms = msgspec.structs.replace(terms_of(certificate), identifiers=later)
    return msgspec.structs.replace(certificate, identifiers=now, terms=terms, **changes)


async def fill(world: Any, names: list[str], **changes: Any) -> None:
    """So many certificates and orders, of those names, in that order; the example behind them is nobody's."""
    certificate, order = await example(world)
    for start in range(0, len(names), 50):
        puts: list[Any] = []
        for number, name in enumerate(names[start : start + 50], start):
            made = named(certificate, name, id=CertificateId(f"cert_{number:05}"), **changes)
            ordered = msgspec.structs.replace(
                order, id=OrderId(f"acme_order_{number:05}"), identifiers=made.identifiers, url=None
            )
            puts += [CERTIFICATES.put(made), ORDERS.put(ordered)]
        await world.sqlite.commit(puts)
    held = await world.read(CERTIFICATES, certificate.id)
    await world.sqlite.commit([CERTIFICATES.put(named(certificate, "a.example.invalid"), held.revision)])


def every(number: int, nth: int) -> list[str]:
    return [f"n{each}.mine.test" if each % nth == nth - 1 else f"n{each}.theirs.test" for each in range(number)]


async def pages(world: Any, permits: Permits = MINE, limit: int = 100, **members: Any) -> list[m.CertificateList]:
    found: list[m.CertificateList] = []
    cursor = None
    while not found or cursor is not None:
        request = m.ListCertificates(limit=limit, cursor=cursor, **members)
        found.append(await world.certificate_service.list(request, asked_by(WEB, permits)))
        cursor = found[-1].next_cursor
    return found


class TestPages:
    async def test_each_is_full_and_none_is_missed_or_twice(self, world: Any) -> None:
        """One in seven is theirs, and they page as everybody else."""
        await fill(world, every(300, 7))
        found = await pages(world, limit=10)
        assert [len(each.items) for each in found[:-1]] == [10] * (len(found) - 1)
        names = [each.domains[0] for page in found for each in page.items]
        assert names == [each for each in every(300, 7) if each.endswith(".mine.test")]

    async def test_one_that_is_full_at_the_very_end_is_the_last(self, world: Any) -> None:
        """A cursor to nothing costs another request."""
        await fill(world, [f"n{each}.mine.test" for each in range(20)])
        assert [len(each.items) for each in await pages(world, Permitted(".mine.test", ".invalid"), limit=7)] == [
            7,
            7,
            7,
        ]

    async def test_the_work_of_one_request_is_bounded(self, world: Any) -> None:
        """Whoever may see one of thousands gets it in several requests, and holds nobody up with one."""
        await fill(world, every(2500, 2500))
        scans: list[int] = []
        scan = world.store.scan

        async def counted(*args: Any, **members: Any) -> Any:
            scans.append(members["limit"])
            return await scan(*args, **members)

        world.store.scan = counted
        permits = Permitted(".mine.test")
        first = await world.certificate_service.list(m.ListCertificates(limit=10), asked_by(WEB, permits))
        assert (first.items, len(scans)) == ([], SCANS_MAX)
        assert first.next_cursor is not None
        assert permits.judged <= 10 + (SCANS_MAX - 1) * 200
        world.store.scan = scan
        (mine,) = [each for page in await pages(world) for each in page.items]
        assert mine.domains == ["n2499.mine.test"]

    async def test_none_is_larger_than_a_message_may_be(self, world: Any) -> None:
        """Filled up from many pages of the store, it must not outgrow what one of them may hold."""
        await fill(world, every(30, 3), chain_pem="x" * (PAGE_BYTES // 4))
        found = await pages(world)
        assert max(len(each.items) for each in found) <= 4
        assert sum(len(each.items) for each in found) == 10

    async def test_filters_go_together(self, world: Any) -> None:
        """What is asked for, of what may be seen."""
        await fill(world, every(30, 3))
        (page,) = await pages(world, domain="n2.mine.test")
        assert [each.domains for each in page.items] == [["n2.mine.test"]]
        (page,) = await pages(world, domain="n1.theirs.test")
        assert page.items == []

    async def test_what_does_not_decode_hides_nothing_else(self, world: Any) -> None:
        """As for everybody."""
        await fill(world, every(6, 2))
        await world.sqlite.commit([msgspec.structs.replace(CERTIFICATES.put(await spoilt(world)), document=b"{")])
        assert len((await pages(world))[0].items) == 3

    def test_whoever_may_see_all_is_not_asked_for_each(self, world: Any) -> None:
        """Reading is what everybody does all day."""
        assert visible.certificates(world.store, UNLIMITED) is None
        assert visible.orders(world.store, UNLIMITED) is None
        assert visible.accounts(UNLIMITED) is None


async def spoilt(world: Any) -> Certificate:
    held: Certificate = (await world.certificates())[0]
    return msgspec.structs.replace(held, id=CertificateId("cert_00000x"))


class TestLists:
    async def test_certificates_by_every_name_they_have_or_will_have(self, world: Any) -> None:
        """The next names of another team's certificate are as much its own as the present ones."""
        certificate, _ = await example(world)
        held = await world.read(CERTIFICATES, certificate.id)
        changed = named(certificate, "a.mine.test", "a.theirs.test")
        assert [len(each.items) for each in await pages(world)] == [1]
        await world.sqlite.commit([CERTIFICATES.put(changed, held.revision)])
        assert [len(each.items) for each in await pages(world)] == [0]

    async def test_orders(self, world: Any) -> None:
        """Their challenges, too, are nobody else's business."""
        await fill(world, every(6, 2))
        reply = await world.issuing.list(m.ListOrders(), asked_by(WEB, Permitted(".theirs.test")))
        assert [each.domains for each in reply.items] == [[f"n{each}.theirs.test"] for each in (0, 2, 4)]
        reading = Permitted(".theirs.test", actions=("cert.read",))
        assert (await world.issuing.list(m.ListOrders(), asked_by(WEB, reading))).items == []

    async def test_certificates_need_their_own_action(self, world: Any) -> None:
        """Whoever may read orders may not therefore read certificates."""
        await example(world)
        assert (await pages(world, Permitted("", actions=("order.read",))))[0].items == []

    @pytest.mark.parametrize("limit", [1, 2, 100])
    async def test_earlier_versions_by_the_names_they_had(self, world: Any, limit: int) -> None:
        """What another team had before says which names it has."""
        certificate, _ = await example(world)
        names = ["a.mine.test", "b.theirs.test", "c.mine.test"]
        puts = [
            VERSIONS.put(
                CertificateVersion(
                    **{each: getattr(certificate, each) for each in Issued.__struct_fields__}
                    | {"version": number, "identifiers": (Identifier("dns", name),)},
                    certificate_id=certificate.id,
                )
            )
            for number, name in enumerate(names, 1)
        ]
        held = await world.read(CERTIFICATES, certificate.id)
        current = CERTIFICATES.put(named(certificate, "d.mine.test", version=4), held.revision)
        await world.sqlite.commit([*puts, current])
        seen: list[str] = []
        cursor: str | None = None
        while not seen or cursor is not None:
            request = m.ListVersions(id=certificate.id, limit=limit, cursor=cursor)
            page = await world.certificate_service.versions(request, asked_by(WEB, MINE))
            seen += [each.domains[0] for each in page.items]
            cursor = page.next_cursor
        assert seen == ["a.mine.test", "c.mine.test", "d.mine.test"]

    async def test_bulk_renewals_of_others_need_a_right_to_every_certificate(self, world: Any) -> None:
        """Their notes say what is planned, and for what."""
        service = world.bulk_renewals
        await service.create(m.CreateBulkRenewal(all=True, note="ours"), asked_by(WEB))
        await service.create(m.CreateBulkRenewal(all=True, note="theirs"), asked_by(SHOP))
        for permits, notes in ((MINE, ["ours"]), (UNLIMITED, ["ours", "theirs"]), (Permitted(""), ["ours", "theirs"])):
            reply = await service.list(m.ListBulkRenewals(), asked_by(WEB, permits))
            assert [each.note for each in reply.items] == notes

    async def test_an_account_that_may_not_be_read_is_no_filter(self, world: Any) -> None:
        """A count of nothing would say that there is such an account."""
        theirs = await world.account(name="theirs")
        for account_id in (theirs, "acme_none"):
            with pytest.raises(NotFound) as caught:
                await world.bulk_renewals.create(
                    m.CreateBulkRenewal(account_id=account_id, dry_run=True), asked_by(WEB, Permitted("", accounts=()))
                )
            assert caught.value.detail == f"there is no account '{account_id}'"

    async def test_accounts(self, world: Any) -> None:
        """By their names, as policies speak of them."""
        await world.account(name="ours")
        await world.account(name="theirs")
        permits = Permitted(accounts=("ours",), actions=("account.read",))
        reply = await world.accounts.list(m.ListAccounts(), asked_by(WEB, permits))
        assert [each.name for each in reply.items] == ["ours"]

    async def test_secrets(self, world: Any) -> None:
        """The path of a secret says what there is; a page is full all the same."""
        for path in ("infra/a", "web/a", "web/b", "web/c"):
            await world.secret_store.put(m.PutSecret(path=path, value="x"), asked_by(WEB))
        permits = Permitted(secrets=("web/",), actions=("secret.list",))
        reply = await world.secret_store.list(m.ListSecrets(limit=2), asked_by(WEB, permits))
        assert ([each.path for each in reply.items], reply.next_cursor) == (["web/a", "web/b"], "web/b")
        reply = await world.secret_store.list(m.ListSecrets(cursor="web/b"), asked_by(WEB, permits))
        assert ([each.path for each in reply.items], reply.next_cursor) == (["web/c"], None)


class TestLimits:
    @pytest.fixture
    async def accounts(self, world: Any) -> dict[str, str]:
        world.ca.script["new_order"].clear()
        return {name: await world.account(name=name) for name in ("ours", "theirs")}

    async def test_only_accounts_that_may_be_read(self, world: Any, accounts: dict[str, str]) -> None:
        """What others order, and what they wait for, is theirs."""
        for number, account_id in enumerate(accounts.values()):
            await world.ended(await world.order(f"n{number}.example.test", account_id=account_id))
        everything = await world.budgets.limits(m.ListLimits(), asked_by(WEB))
        permits = Permitted(accounts=("ours",))
        ours = await world.budgets.limits(m.ListLimits(), asked_by(WEB, permits))
        assert [each.directory_url for each in ours.cas] == [each.directory_url for each in everything.cas]
        assert accounts["theirs"] not in msgspec.json.encode(ours).decode()
        none = await world.budgets.limits(m.ListLimits(), asked_by(WEB, Permitted(accounts=())))
        assert none == m.LimitsReply(cas=[], items=[], waiting=[])

    @pytest.mark.parametrize(
        ("limit", "subject", "is_shown"),
        [
            ("new_orders_per_account", "acme_ours", True),
            ("new_orders_per_account", "acme_theirs", False),
            ("failed_authorizations_per_name", "acme_ours/a.example.test", True),
            ("failed_authorizations_per_name", "acme_theirs/a.example.test", False),
            ("certificates_per_registered_domain", "example.test", True),
        ],
    )
    def test_an_accounts_budgets_and_orders_go_with_it(self, limit: str, subject: str, is_shown: bool) -> None:
        """Those of a domain are the CA's for everybody."""
        wanted = Wanted(readable=frozenset({"acme_ours"}))
        assert wanted.takes(limit, subject) is is_shown
        assert Wanted().takes(limit, subject)
        account, moment = subject.partition("/")[0], datetime(2026, 1, 1, tzinfo=UTC)
        request = NewOrder(account=account, cause="new", names=("a.example.test",), domains=(), name_set="")
        waiting = Waiting(
            place=(True, moment, OrderId("acme_order_1")),
            request=request,
            queued=Queued(limit=limit, subject=subject, until=moment),
        )
        assert wanted.takes_order(waiting) is (account == "acme_ours")
        assert Wanted().takes_order(waiting)

    async def test_one_that_may_not_be_read_is_not_there(self, world: Any, accounts: dict[str, str]) -> None:
        """The same words as for one that is not."""
        permits = Permitted(accounts=("ours",))
        with pytest.raises(NotFound, match=f"there is no account '{accounts['theirs']}'"):
            await world.budgets.limits(m.ListLimits(account_id=accounts["theirs"]), asked_by(WEB, permits))
        assert (await world.budgets.limits(m.ListLimits(account_id=accounts["ours"]), asked_by(WEB, permits))).cas
