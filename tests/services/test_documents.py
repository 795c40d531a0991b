"""Documents over the real store: what is put comes back, is found by what it is indexed by, and nothing else is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
import pytest
import structlog

from scaivaultd.model.errors import RevisionConflict
from scaivaultd.model.ids import AccountId, CertificateId, KeyId, OrderId
from scaivaultd.model.names import parse_identifiers
from scaivaultd.model.resources import Certificate, IdempotentResult, KeyType, Order, OrderStatus
from scaivaultd.services.documents import (
    CERTIFICATES,
    IDEMPOTENCY,
    IDEMPOTENCY_SECONDS,
    ORDERS,
    digest,
    name_pointer_id,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def order(number: int, status: OrderStatus = "pending", account: str = "acme_1") -> Order:
    return Order(
        id=OrderId(f"acme_order_{number:03}"),
        account_id=AccountId(account),
        identifiers=parse_identifiers(["*.ex-\u00e4mple.org", "192.0.2.1"], public_ca=False),
        challenge_type="http-01",
        key_type="ec-p256",
        auto_renew=True,
        status=status,
        created_at=NOW,
        give_up_at=NOW + timedelta(hours=1),
    )


def certificate(number: int, *names: str, status: Literal["valid", "revoked"] = "valid") -> Certificate:
    return Certificate(
        id=CertificateId(f"cert_{number}"),
        order_id=OrderId("acme_order_1"),
        account_id=AccountId("acme_1"),
        identifiers=parse_identifiers(names, public_ca=False),
        challenge_type="http-01",
        key_type="ec-p256",
        key_id=KeyId("key_1"),
        version=1,
        status=status,
        auto_renew=True,
        serial_number="01",
        fingerprint_sha256="00",
        issuer="Test",
        not_before=NOW,
        not_after=NOW,
        chain_pem="",
        created_at=NOW,
    )


async def test_a_document_comes_back_as_it_was_put(sqlite: Any) -> None:
    """Whatever is lost between two lives of the daemon is lost for good."""
    put = order(1)
    revisions = await sqlite.commit([ORDERS.put(put)])
    found = await ORDERS.get(sqlite, put.id)
    assert found is not None
    assert found.value == put
    assert found.revision == revisions[ORDERS.key(put.id)]


async def test_a_new_document_never_writes_over_an_old_one(sqlite: Any) -> None:
    """Two processes that make the same id must notice."""
    await sqlite.commit([ORDERS.put(order(1))])
    with pytest.raises(RevisionConflict):
        await sqlite.commit([ORDERS.put(order(1, "valid"))])


@pytest.mark.parametrize(
    "hostile", ["", "../account/acme_1", "a/b", "/a", "a//b", "\u00e4", "a b", "a\x00", "a|b", "x" * 201, "*"]
)
async def test_an_id_from_a_caller_never_leaves_its_shelf(sqlite: Any, hostile: str) -> None:
    """Ids arrive from the wire and become keys."""
    await sqlite.commit([ORDERS.put(order(1))])
    assert await ORDERS.get(sqlite, hostile) is None


async def test_pages_filter_by_every_pair_and_join_without_gap_or_overlap(sqlite: Any) -> None:
    """A caller that pages through must see each order once."""
    orders = [order(n, "valid" if n % 2 else "pending", "acme_1" if n < 8 else "acme_2") for n in range(10)]
    await sqlite.commit([ORDERS.put(each) for each in orders])
    seen: list[Order] = []
    cursor = None
    where = {"status": "valid", "account": "acme_1", "nothing": None}
    while True:
        page = await ORDERS.page(sqlite, where=where, cursor=cursor, limit=3)
        seen += [each.value for each in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
        assert "/" not in cursor
    assert seen == [each for each in orders if each.status == "valid" and each.account_id == "acme_1"]


async def test_a_changed_state_moves_the_document_to_its_new_filter(sqlite: Any) -> None:
    """An order that has ended must not be resumed at the next start."""
    revisions = await sqlite.commit([ORDERS.put(order(1))])
    await sqlite.commit([ORDERS.put(order(1, "valid"), revisions[ORDERS.key("acme_order_001")])])
    assert await ORDERS.all(sqlite, structlog.get_logger(), status="pending") == []
    assert [each.value.id for each in await ORDERS.all(sqlite, structlog.get_logger(), status="valid")] == [
        "acme_order_001"
    ]


async def test_everything_that_matches_is_read_whatever_the_number(sqlite: Any) -> None:
    """At the start every unfinished order goes on, not only the first page of them."""
    for start in range(0, 1100, 100):
        await sqlite.commit([ORDERS.put(order(n)) for n in range(start, start + 100)])
    assert len(await ORDERS.all(sqlite, structlog.get_logger(), status="pending")) == 1100


async def test_certificates_are_found_by_each_of_their_names(sqlite: Any) -> None:
    """Who looks for one of fifty names finds the certificate that holds it."""
    await sqlite.commit(
        [CERTIFICATES.put(certificate(1, "a.test", "*.b.test")), CERTIFICATES.put(certificate(2, "c.test"))]
    )
    for name, ids in {"a.test": ["cert_1"], "*.b.test": ["cert_1"], "b.test": [], "c.test": ["cert_2"]}.items():
        page = await CERTIFICATES.page(sqlite, where={f"domain:{name}": "yes"}, cursor=None, limit=10)
        assert [each.value.id for each in page.items] == ids


async def test_an_idempotency_key_is_forgotten_after_its_day(sqlite: Any, clock: Any) -> None:
    """Kept for ever they would fill the disk; a day is what callers are promised."""
    result = IdempotentResult(resource_id="acme_order_1", request_digest="d")
    await sqlite.commit([IDEMPOTENCY.put_at("key", result, 0, IDEMPOTENCY_SECONDS)])
    clock.advance(IDEMPOTENCY_SECONDS - 1)
    assert await IDEMPOTENCY.get(sqlite, "key") is not None
    clock.advance(2)
    assert await IDEMPOTENCY.get(sqlite, "key") is None


def test_a_digest_tells_the_parts_apart() -> None:
    """`ab` + `c` and `a` + `bc` are different requests."""
    digests = {digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("abc", ""), digest("", "abc")}
    assert len(digests) == 5
    assert digest("\u00e4") == digest("\u00e4".encode())


def test_the_same_names_in_any_order_have_one_pointer_for_each_key_type() -> None:
    """A renewal finds what it replaces; an RSA twin does not take its place."""
    one = parse_identifiers(["a.test", "b.test"], public_ca=False)
    other = parse_identifiers(["B.test.", "a.test"], public_ca=False)
    key_types: tuple[KeyType, ...] = ("ec-p256", "rsa-2048")
    assert name_pointer_id(one, "ec-p256") == name_pointer_id(other, "ec-p256")
    assert len({name_pointer_id(one, each) for each in key_types}) == 2
    assert name_pointer_id(one, "ec-p256") != name_pointer_id(one[:1], "ec-p256")


async def test_documents_of_an_older_version_are_still_read(sqlite: Any) -> None:
    """Members are added with a default: an upgrade must find every order again."""
    old = msgspec.json.decode(msgspec.json.encode(order(1)))
    for added in ("epoch", "attempt", "misbehaved", "challenges", "request_id"):
        old.pop(added, None)
    put = msgspec.structs.replace(ORDERS.put(order(1)), document=msgspec.json.encode({**old, "of_the_future": 1}))
    await sqlite.commit([put])
    found = await ORDERS.get(sqlite, "acme_order_001")
    assert found is not None
    assert found.value == order(1)
