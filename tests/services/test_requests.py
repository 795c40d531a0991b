"""From members of a request to terms: what cannot be meant is refused at once, at the member that is wrong."""

from __future__ import annotations

import base64
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from scaivaultd.acme import csr, x509
from scaivaultd.api import messages as m
from scaivaultd.model.dns import PropagationOverride
from scaivaultd.model.errors import (
    AccountUnusable,
    AtFields,
    Conflict,
    InvalidRequest,
    NotFound,
    ScaivaultError,
    UnsupportedChallenge,
)
from scaivaultd.model.ids import AccountId, CertificateId
from scaivaultd.model.names import Identifier
from scaivaultd.model.resources import CompromisedKey
from scaivaultd.services import requests
from scaivaultd.services.documents import ACCOUNTS, COMPROMISED_KEYS

if TYPE_CHECKING:
    from scaivaultd.model.resources import KeyType, Terms


def names(*texts: str) -> tuple[Identifier, ...]:
    return tuple(Identifier("dns", each) for each in texts)


def csr_pem(*texts: str, key_type: KeyType = "ec-p256", key: bytes | None = None) -> str:

    der = x509.csr_der(key or x509.make_key(key_type), names(*texts))
    return base64.b64encode(der).decode()


@pytest.mark.parametrize(
    ("duration", "seconds"), [("45s", 45), ("90m", 5400), ("36h", 129600), ("30d", 2592000), (12, 12), (0.5, 0.5)]
)
def test_a_duration_is_a_number_of_seconds(duration: float | str, seconds: float) -> None:
    """People write 30d, programs 2592000."""
    assert requests.seconds_of(duration) == seconds


@pytest.mark.parametrize("duration", ["0d", "999999999d", 4e9])
def test_a_duration_that_no_calendar_holds_is_refused(duration: float | str) -> None:
    """It would break the arithmetic of dates much later, in a job."""
    with pytest.raises(InvalidRequest) as caught:
        requests.seconds_of(duration)
    assert caught.value.fields[0].pointer == "/renew_before"


def test_accounts_keep_their_order_and_come_once() -> None:
    """The first is the preferred one, also where it is named again among the others."""
    assert requests.accounts_of("a", ["b", "a", "c", "b"]) == ("a", "b", "c")


def test_what_is_said_of_propagation_is_kept_and_nothing_else() -> None:
    """Absent members are the provider's to decide, later too."""
    assert requests.override_of(None) is None
    asked = m.PropagationRequest(visibility="resolvers", resolvers=["192.0.2.1"], timeout=9)
    assert requests.override_of(asked) == PropagationOverride(
        visibility="resolvers", resolvers=("192.0.2.1",), timeout=9
    )


async def terms_for(world: Any, account_id: AccountId, **members: Any) -> Terms:
    lookups = requests.Lookups(
        store=world.store, accounts=world.accounts, solvers=world.tools.solvers, providers=world.providers
    )
    request = m.Issue(**{"account_id": account_id, "challenge_type": "http-01", **members})
    return await requests.terms_from(request, lookups, world.clock.now())


async def change_account(world: Any, account_id: AccountId, **changes: Any) -> None:
    held = await world.read(ACCOUNTS, account_id)
    await world.sqlite.commit([ACCOUNTS.put(msgspec.structs.replace(held.value, **changes), held.revision)])


async def refusal(world: Any, account_id: AccountId, **members: Any) -> ScaivaultError:
    with pytest.raises(ScaivaultError) as caught:
        await terms_for(world, account_id, **members)
    return caught.value


def pointer_of(error: ScaivaultError) -> str:
    assert isinstance(error, AtFields)
    return error.fields[0].pointer


async def test_every_member_reaches_the_terms(world: Any) -> None:
    """What is lost here is not asked for at any renewal either."""
    first, second = await world.account(), await world.account(name="other")
    terms = await terms_for(
        world,
        first,
        account_ids=[second, first],
        domains=["B.example.test", "a.example.test"],
        key_type="rsa-2048",
        reuse_key=True,
        profile="short",
        profile_policy="preferred",
        preferred_chain="Root",
        not_after=world.clock.now() + timedelta(days=3),
        solver="http-01",
    )
    assert terms.accounts == (first, second)
    assert terms.identifiers == names("b.example.test", "a.example.test")
    assert (terms.key_type, terms.reuse_key, terms.solver) == ("rsa-2048", True, "http-01")
    assert (terms.profile, terms.profile_is_required, terms.preferred_chain) == ("short", False, "Root")
    assert terms.lifetime_seconds == 3 * 86400
    assert terms.csr_der is None


async def test_one_account_stands_alone(world: Any) -> None:
    """A list of one says the same twice, and would have to be kept in step."""
    account_id = await world.account()
    terms = await terms_for(world, account_id, account_ids=[account_id], domains=["a.test"])
    assert (terms.account_id, terms.account_ids) == (account_id, ())


@pytest.mark.parametrize("domains", [[], ["B.test", "a.test"]])
async def test_a_csr_says_names_and_key_type(world: Any, domains: list[str]) -> None:
    """Names may be said beside it, in any order, if they are the same."""
    text = csr_pem("a.test", "b.test", key_type="ec-p384")
    terms = await terms_for(world, await world.account(), domains=domains, csr=text)
    assert terms.identifiers == names("a.test", "b.test")
    assert (terms.key_type, terms.csr_der) == ("ec-p384", csr.read_csr(text).der)


async def test_names_beside_a_csr_must_be_those_of_the_csr(world: Any) -> None:
    """The CA would refuse the CSR at the end; which names it is about is said here."""
    error = await refusal(world, await world.account(), domains=["a.test", "c.test"], csr=csr_pem("a.test", "b.test"))
    assert pointer_of(error) == "/domains"
    assert error.detail == "missing in the CSR: c.test; in the CSR but not asked for: b.test"
    error = await refusal(world, await world.account(), domains=["a.test"], csr=csr_pem("a.test", "b.test"))
    assert error.detail == "in the CSR but not asked for: b.test"


async def test_another_kind_of_key_than_that_of_the_csr_is_refused(world: Any) -> None:
    """Whoever asks for RSA shall not find out from the certificate that it is not."""
    account_id = await world.account()
    error = await refusal(world, account_id, csr=csr_pem("a.test"), key_type="rsa-2048")
    assert pointer_of(error) == "/key_type"
    text = csr_pem("a.test", key_type="ec-p384")
    for key_type in ("ec-p256", "ec-p384"):
        assert (await terms_for(world, account_id, csr=text, key_type=key_type)).key_type == "ec-p384"


async def test_neither_names_nor_a_csr_is_a_missing_field(world: Any) -> None:
    """Each of the two may be absent, and so the schema does not say it."""
    error = await refusal(world, await world.account())
    assert isinstance(error, InvalidRequest)
    assert [(each.pointer, each.code) for each in error.fields] == [("/domains", "missing_field")]


@pytest.mark.parametrize(
    ("members", "error", "pointer"),
    [
        ({"domains": ["a.test", "a..test"]}, InvalidRequest, "/domains/1"),
        ({"domains": ["a.test", "*.a.test"]}, UnsupportedChallenge, "/domains/1"),
        ({"csr": csr_pem("a.test", "*.a.test")}, UnsupportedChallenge, "/csr"),
        ({"csr": "nonsense"}, InvalidRequest, "/csr"),
        ({"domains": ["a.test"], "solver": "none"}, UnsupportedChallenge, "/solver"),
        ({"domains": ["a.test"], "challenge_type": "dns-01"}, UnsupportedChallenge, "/challenge_type"),
        ({"domains": ["a.test"], "dns_provider": "x"}, InvalidRequest, "/dns_provider"),
        ({"domains": ["a.test"], "propagation": m.PropagationRequest()}, InvalidRequest, "/propagation"),
    ],
)
async def test_what_is_certain_to_fail_is_refused_at_its_member(
    world: Any, members: dict[str, Any], error: type[InvalidRequest], pointer: str
) -> None:
    """The caller is there now; an hour later there is only a log."""
    refused = await refusal(world, await world.account(), **members)
    assert type(refused) is error
    assert pointer_of(refused) == pointer


async def test_a_life_that_is_over_is_not_ordered(world: Any) -> None:
    """A clock or a time zone is wrong."""
    error = await refusal(world, await world.account(), domains=["a.test"], not_after=world.clock.now())
    assert pointer_of(error) == "/not_after"


@pytest.mark.parametrize(("member", "pointer"), [("domains", "/domains/0"), ("csr", "/csr")])
async def test_one_public_ca_among_the_accounts_decides_which_names_there_may_be(
    world: Any, member: str, pointer: str
) -> None:
    """It may be the one that is tried in the end."""
    private, public = await world.account(), await world.account(name="public")
    held = await world.read(ACCOUNTS, public)
    await world.sqlite.commit(
        [ACCOUNTS.put(msgspec.structs.replace(held.value, provider="letsencrypt"), held.revision)]
    )
    asked: dict[str, Any] = {"domains": ["host.internal"]} if member == "domains" else {"csr": csr_pem("host.internal")}
    assert (await terms_for(world, private, **asked)).identifiers == names("host.internal")
    assert pointer_of(await refusal(world, private, account_ids=[public], **asked)) == pointer


async def test_every_account_must_be_there_and_usable(world: Any) -> None:
    """An account to fall back on that does not work is found out on the worst of days."""
    good, bad = await world.account(), await world.account(name="bad")
    for first, further, pointer in (
        (AccountId("acme_none"), [], "/account_id"),
        (good, ["acme_none"], "/account_ids/0"),
        (good, [good, bad, "acme_none"], "/account_ids/2"),
    ):
        error = await refusal(world, first, domains=["a.test"], account_ids=further)
        assert isinstance(error, NotFound)
        assert (pointer_of(error), error.fields[0].code) == (pointer, "not_found")
    await change_account(world, bad, status="deactivated")
    for first, second in ((bad, good), (good, bad)):
        error = await refusal(world, first, domains=["a.test"], account_ids=[second])
        assert isinstance(error, AccountUnusable)
        assert bad in error.detail


async def test_a_csr_with_a_compromised_key_is_refused(world: Any) -> None:
    """Whoever has the key could use the new certificate as well as the old one."""
    key = x509.make_key("ec-p256")
    mark = CompromisedKey(
        spki_sha256=x509.spki_sha256(x509.spki_of_key(key)),
        certificate_id=CertificateId("cert_x"),
        at=world.clock.now(),
    )
    await world.sqlite.commit([COMPROMISED_KEYS.put(mark)])
    error = await refusal(world, await world.account(), csr=csr_pem("a.test", key=key))
    assert isinstance(error, Conflict)
    assert pointer_of(error) == "/csr"
