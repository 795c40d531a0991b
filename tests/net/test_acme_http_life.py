"""The requests of the whole life cycle, against a CA that may say anything: renewal, revocation, accounts, chains."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.acme.exchange import CaConflict, NotOffered
from scaivaultd.acme.signing import AccountKey
from scaivaultd.acme.x509 import make_key
from scaivaultd.model.errors import (
    BackendRateLimited,
    CaMisbehaved,
    CaRefused,
    CaUnavailable,
    CertificatePending,
    Internal,
    ScaivaultError,
)
from scaivaultd.model.names import Identifier
from scaivaultd.net.acme_client import ALTERNATES_MAX, CERTIFICATE_MAX, AcmeClient
from scaivaultd.net.acme_http import BAD_NONCE_TRIES, DIRECTORY_YOUNG_SECONDS, WEATHER_TRIES

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = [Identifier("dns", "a.example.test")]
CERTIFICATE_ID = "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"
INFO = f"/ari/{CERTIFICATE_ID}"
DER = b"\x30\x00\xff a certificate"
OFFERS = {"revokeCert": "/revoke", "keyChange": "/change", "renewalInfo": "/ari"}


@pytest.fixture
def offer(ca: Any, reply: Any) -> Callable[..., None]:
    """The directory at its next reading: keyword arguments are its optional members."""

    def script(**members: str) -> None:
        base = {name: f"{ca.base}/{name}" for name in ("newNonce", "newAccount", "newOrder")}
        urls = {name: path if "://" in path else f"{ca.base}{path}" for name, path in members.items()}
        ca.script["/directory"].append(reply(body=json.dumps(base | urls).encode(), nonce=False))

    return script


@pytest.fixture
async def connection(make_connection: Any) -> Any:
    return make_connection()


@pytest.fixture
def account_url(ca: Any) -> str:
    return f"{ca.base}/account"


@pytest.fixture
def client(connection: Any, account_key: Any, account_url: str) -> AcmeClient:
    return AcmeClient(connection, account_key, account_url)


@pytest.fixture(scope="module")
def new_key() -> AccountKey:
    return AccountKey(make_key("ec-p384"))


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def payload(request: Any) -> Any:
    """What was signed, as JSON."""
    return json.loads(unpadded(request.jws["payload"]))


async def failure(work: Any) -> ScaivaultError:
    """The error that ends it; none may take long."""
    with pytest.raises(ScaivaultError) as caught:
        async with asyncio.timeout(20):
            await work
    return caught.value


class TestRenewalInfo:
    @pytest.mark.parametrize("base", ["/ari", "/ari/"])
    async def test_it_is_asked_unsigned_below_the_base_url(
        self, ca: Any, client: AcmeClient, reply: Any, offer: Any, base: str
    ) -> None:
        """RFC 9773 section 4.1; with a slash too many or too few every CA answers 404."""
        offer(renewalInfo=base)
        ca.script[INFO].append(reply(body=b'{"suggestedWindow":{}}', headers={"Retry-After": "21600"}, nonce=False))
        fetched = await client.renewal_info(CERTIFICATE_ID)
        assert (fetched.url, fetched.body) == (f"{ca.base}{INFO}", b'{"suggestedWindow":{}}')
        assert fetched.retry_after == 21600
        (request,) = ca.asked(INFO)
        assert (request.method, request.body) == ("GET", b"")
        assert "content-type" not in request.headers
        assert ca.asked("/newNonce") == []

    async def test_a_short_storm_is_sat_out(self, ca: Any, client: AcmeClient, reply: Any, offer: Any) -> None:
        """Reading changes nothing; a reset must not cost hours until the next look."""
        offer(**OFFERS)
        ca.script[INFO].extend([reply(503, b""), ca.reset, reply(502, b"<html>"), reply()])
        await client.renewal_info(CERTIFICATE_ID)
        assert len(ca.asked(INFO)) == WEATHER_TRIES
        ca.script[INFO].extend([reply(503, b"")] * 20)
        assert isinstance(await failure(client.renewal_info(CERTIFICATE_ID)), CaUnavailable)
        assert len(ca.asked(INFO)) == 2 * WEATHER_TRIES

    async def test_a_ca_without_it_is_told_apart_and_left_alone(self, ca: Any, client: AcmeClient) -> None:
        """Renewal then goes by lifetime; nothing is guessed."""
        assert isinstance(await failure(client.renewal_info(CERTIFICATE_ID)), NotOffered)
        assert [each.path for each in ca.requests] == ["/directory"]

    async def test_an_unknown_certificate_does_not_cast_doubt_on_a_young_directory(
        self, ca: Any, client: AcmeClient, refusal: Any, offer: Any, clock: Any
    ) -> None:
        """Thousands of certificates the CA has forgotten would read it thousands of times; a moved base is found."""
        offer(**OFFERS)
        ca.script[INFO].extend([refusal("malformed", 404)] * 4)
        for _ in range(3):
            assert type(await failure(client.renewal_info(CERTIFICATE_ID))) is CaRefused
        assert len(ca.asked("/directory")) == 1
        clock.advance(DIRECTORY_YOUNG_SECONDS)
        offer(renewalInfo="/moved")
        ca.script[f"/moved/{CERTIFICATE_ID}"].append(refusal("malformed", 404))
        await failure(client.renewal_info(CERTIFICATE_ID))
        await failure(client.renewal_info(CERTIFICATE_ID))
        assert len(ca.asked("/directory")) == 2
        assert len(ca.asked(f"/moved/{CERTIFICATE_ID}")) == 1

    async def test_a_rate_limit_goes_up_at_once(self, ca: Any, client: AcmeClient, refusal: Any, offer: Any) -> None:
        """The pace of looking is the caller's."""
        offer(**OFFERS)
        ca.script[INFO].append(refusal("rateLimited", 429, **{"Retry-After": "3"}))
        assert isinstance(await failure(client.renewal_info(CERTIFICATE_ID)), BackendRateLimited)
        assert len(ca.asked(INFO)) == 1

    @pytest.mark.parametrize("url", ["http://127.0.0.1/ari", "https://10.0.0.1/ari", "nonsense:///"])
    async def test_a_base_url_is_judged_like_every_other(self, client: AcmeClient, offer: Any, url: str) -> None:
        """A CA must not make us fetch what only we can reach."""
        offer(renewalInfo=url)
        assert isinstance(await failure(client.renewal_info(CERTIFICATE_ID)), CaMisbehaved)

    async def test_a_redirect_is_not_followed(self, ca: Any, client: AcmeClient, reply: Any, offer: Any) -> None:
        """The address it leads to has not been judged."""
        offer(**OFFERS)
        ca.script[INFO].append(reply(302, b"", {"Location": f"{ca.base}/elsewhere"}))
        assert isinstance(await failure(client.renewal_info(CERTIFICATE_ID)), CaMisbehaved)
        assert ca.asked("/elsewhere") == []


class TestRevocation:
    @pytest.mark.parametrize(("reason", "member"), [(None, {}), (0, {"reason": 0}), (4, {"reason": 4})])
    async def test_the_owner_signs_by_account(
        self, ca: Any, client: AcmeClient, offer: Any, account_url: str, reason: int | None, member: dict[str, int]
    ) -> None:
        """RFC 8555 section 7.6; "unspecified" is another word than none."""
        offer(**OFFERS)
        assert await client.revoke(DER, reason) is True
        (request,) = ca.asked("/revoke")
        assert request.protected["kid"] == account_url
        assert "jwk" not in request.protected
        assert unpadded(payload(request).pop("certificate")) == DER
        assert {name: value for name, value in payload(request).items() if name != "certificate"} == member

    async def test_the_certificates_key_needs_no_account(
        self, ca: Any, connection: Any, account_key: Any, offer: Any, refusal: Any, new_key: AccountKey
    ) -> None:
        """Who finds a leaked key can revoke, also after the account has ended; a rejected nonce changes no signer."""
        offer(**OFFERS)
        ca.script["/revoke"].append(refusal("badNonce"))
        assert await AcmeClient(connection, account_key).revoke(DER, 1, certificate_key=new_key) is True
        first, second = ca.asked("/revoke")
        for request in (first, second):
            assert request.protected["jwk"] == new_key.public_jwk
            assert request.protected["alg"] == "ES384"
            assert "kid" not in request.protected
        assert first.protected["nonce"] != second.protected["nonce"]

    async def test_the_account_cannot_sign_without_an_account(
        self, ca: Any, connection: Any, account_key: Any, offer: Any
    ) -> None:
        """By its `jwk` the account key would pass for the certificate's: a refusal that nobody understands."""
        offer(**OFFERS)
        assert isinstance(await failure(AcmeClient(connection, account_key).revoke(DER)), Internal)
        assert ca.asked("/revoke") == []

    @pytest.mark.parametrize("status", [400, 409])
    async def test_revoked_already_is_success_of_another_kind(
        self, ca: Any, client: AcmeClient, refusal: Any, offer: Any, status: int
    ) -> None:
        """The certificate is as it shall be; the event should still say who was first."""
        offer(**OFFERS)
        ca.script["/revoke"].append(refusal("alreadyRevoked", status))
        assert await client.revoke(DER) is False

    async def test_a_lost_answer_is_asked_for_again(
        self, ca: Any, client: AcmeClient, refusal: Any, reply: Any, offer: Any
    ) -> None:
        """A revocation is urgent, and a second one finds the first."""
        offer(**OFFERS)
        ca.script["/revoke"].extend([ca.reset, reply(502, b""), refusal("alreadyRevoked")])
        assert await client.revoke(DER) is False
        assert len(ca.asked("/revoke")) == 3

    @pytest.mark.parametrize(
        ("name", "status"), [("badRevocationReason", 400), ("unauthorized", 403), ("malformed", 404)]
    )
    async def test_a_refusal_says_why_and_nothing_else_is_tried(
        self, ca: Any, client: AcmeClient, refusal: Any, offer: Any, name: str, status: int
    ) -> None:
        """To leave a refused reason out silently would record another reason than the one meant."""
        offer(**OFFERS)
        ca.script["/revoke"].append(refusal(name, status))
        error = await failure(client.revoke(DER, 9))
        assert type(error) is CaRefused
        assert error.problem is not None
        assert error.problem.name == name
        assert len(ca.asked("/revoke")) == 1

    async def test_a_ca_that_revokes_nothing_is_told_apart(self, client: AcmeClient) -> None:
        """Then there is only our own record to mark."""
        assert isinstance(await failure(client.revoke(DER)), NotOffered)


class TestKeyChange:
    async def test_both_keys_sign_and_the_new_one_inside(
        self, ca: Any, client: AcmeClient, offer: Any, new_key: AccountKey, account_url: str
    ) -> None:
        """RFC 8555 section 7.3.5: outer old key and `kid`, inner new key and `jwk`, same `url`, no inner nonce."""
        offer(**OFFERS)
        await client.key_change(new_key)
        (request,) = ca.asked("/change")
        assert request.protected["kid"] == account_url
        assert request.protected["alg"] == "ES256"
        inner = payload(request)
        header = json.loads(unpadded(inner["protected"]))
        assert header == {"alg": "ES384", "jwk": new_key.public_jwk, "url": f"{ca.base}/change"}
        assert json.loads(unpadded(inner["payload"])) == {"account": account_url, "oldKey": client.key.public_jwk}

    @pytest.mark.parametrize("kind", ["reset", "503", "garbage"])
    async def test_a_doubtful_outcome_comes_up_at_once(
        self, ca: Any, client: AcmeClient, reply: Any, offer: Any, new_key: AccountKey, kind: str
    ) -> None:
        """Signed again with a key that may be the account's no more it would look like a refusal."""
        offer(**OFFERS)
        ca.script["/change"].append({"reset": ca.reset, "503": reply(503, b""), "garbage": b"garbage\r\n\r\n"}[kind])
        error = await failure(client.key_change(new_key))
        assert isinstance(error, CaUnavailable | CaMisbehaved)
        assert len(ca.asked("/change")) == 1

    async def test_a_rejected_nonce_is_no_doubt(
        self, ca: Any, client: AcmeClient, refusal: Any, offer: Any, new_key: AccountKey
    ) -> None:
        """The CA has not looked at the request."""
        offer(**OFFERS)
        ca.script["/change"].extend([refusal("badNonce")] * 3)
        await client.key_change(new_key)
        assert len({each.protected["nonce"] for each in ca.asked("/change")}) == 4

    async def test_a_key_that_is_taken_says_by_whom(
        self, ca: Any, client: AcmeClient, refusal: Any, offer: Any, new_key: AccountKey
    ) -> None:
        """409 with Location: the operator can look at that account."""
        offer(**OFFERS)
        ca.script["/change"].append(refusal("malformed", 409, Location="https://ca.test/account/7"))
        error = await failure(client.key_change(new_key))
        assert isinstance(error, CaConflict)
        assert error.location == "https://ca.test/account/7"

    async def test_a_key_taken_by_this_very_account_is_a_key_change_that_worked(
        self, ca: Any, client: AcmeClient, refusal: Any, offer: Any, new_key: AccountKey, account_url: str
    ) -> None:
        """Its first answer was lost with the process that waited for it."""
        offer(**OFFERS)
        ca.script["/change"].append(refusal("malformed", 409, Location=account_url))
        await client.key_change(new_key)

    @pytest.mark.parametrize(
        ("status", "name", "kind"),
        [
            (501, "serverInternal", NotOffered),
            (404, "malformed", NotOffered),
            (405, "malformed", NotOffered),
            (404, "accountDoesNotExist", CaRefused),
            (400, "badPublicKey", CaRefused),
            (409, "conflict", CaConflict),
            (429, "rateLimited", BackendRateLimited),
        ],
    )
    async def test_what_is_not_offered_is_told_from_what_is_refused(
        self,
        ca: Any,
        client: AcmeClient,
        refusal: Any,
        offer: Any,
        new_key: AccountKey,
        status: int,
        name: str,
        kind: type[ScaivaultError],
    ) -> None:
        """smallstep says 501 and others 404, and neither is weather to be sat out."""
        offer(**OFFERS)
        ca.script["/change"].append(refusal(name, status))
        assert type(await failure(client.key_change(new_key))) is kind
        assert len(ca.asked("/change")) == 1

    async def test_a_directory_without_it_is_believed(self, ca: Any, client: AcmeClient, new_key: AccountKey) -> None:
        """Optional, and really absent somewhere."""
        assert isinstance(await failure(client.key_change(new_key)), NotOffered)
        assert [each.path for each in ca.requests] == ["/directory"]


class TestAccount:
    @pytest.mark.parametrize("contacts", [[], ["mailto:a@b.test", "mailto:c@d.test"]])
    async def test_contacts_are_replaced_as_a_whole(
        self, ca: Any, client: AcmeClient, reply: Any, contacts: list[str]
    ) -> None:
        """RFC 8555 section 7.3.2; none clears them. The same list twice is the same list, so weather is sat out."""
        ca.script["/account"].extend([ca.reset, reply(503, b"")])
        fetched = await client.update_contacts(contacts)
        assert fetched.body == b'{"status":"valid"}'
        assert [payload(each) for each in ca.asked("/account")] == [{"contact": contacts}] * 3

    async def test_the_end_of_an_account_is_asked_for_once(self, ca: Any, client: AcmeClient, reply: Any) -> None:
        """Asked twice it is refused as unauthorized: who reads that must know that the first may have worked."""
        ca.script["/account"].extend([reply(503, b""), reply(body=b'{"status":"deactivated"}')])
        assert isinstance(await failure(client.deactivate_account()), CaUnavailable)
        assert len(ca.asked("/account")) == 1
        assert (await client.deactivate_account()).body == b'{"status":"deactivated"}'
        assert payload(ca.asked("/account")[1]) == {"status": "deactivated"}

    async def test_an_authorization_is_given_up_whatever_the_weather(
        self, ca: Any, client: AcmeClient, reply: Any
    ) -> None:
        """A pending one that is left counts against limits; giving it up twice harms nobody."""
        ca.script["/authorization"].append(reply(503, b""))
        await client.deactivate_authorization(f"{ca.base}/authorization")
        assert [payload(each) for each in ca.asked("/authorization")] == [{"status": "deactivated"}] * 2

    async def test_without_an_account_nothing_is_sent(
        self, ca: Any, connection: Any, account_key: Any, offer: Any, new_key: AccountKey
    ) -> None:
        """It could only be refused, and in words that lead astray."""
        offer(**OFFERS)
        client = AcmeClient(connection, account_key)
        for work in (client.update_contacts([]), client.deactivate_account(), client.key_change(new_key)):
            assert isinstance(await failure(work), Internal)
        assert {each.method for each in ca.requests} <= {"GET"}


class TestNewOrder:
    async def test_what_is_not_asked_for_is_not_sent(self, ca: Any, client: AcmeClient) -> None:
        """CAs refuse members they do not know, null ones too."""
        await client.new_order(NAMES)
        assert payload(ca.asked("/newOrder")[0]) == {"identifiers": [{"type": "dns", "value": "a.example.test"}]}

    async def test_wishes_are_sent_in_the_words_of_their_documents(self, ca: Any, client: AcmeClient) -> None:
        """RFC 9773 section 5, draft-ietf-acme-profiles, RFC 8555 section 7.1.3; some CAs read times with Z only."""
        not_after = datetime(2027, 1, 1, 1, 30, 0, 999, tzinfo=timezone(timedelta(hours=2)))
        await client.new_order(NAMES, replaces=CERTIFICATE_ID, profile="shortlived", not_after=not_after)
        sent = payload(ca.asked("/newOrder")[0])
        assert sent.pop("identifiers")
        assert sent == {"replaces": CERTIFICATE_ID, "profile": "shortlived", "notAfter": "2026-12-31T23:30:00Z"}

    async def test_a_predecessor_with_a_successor_is_a_conflict_without_a_place(
        self, ca: Any, client: AcmeClient, refusal: Any
    ) -> None:
        """Not to be confused with the 409 of a key change."""
        ca.script["/newOrder"].append(refusal("alreadyReplaced", 409))
        error = await failure(client.new_order(NAMES, replaces=CERTIFICATE_ID))
        assert isinstance(error, CaConflict)
        assert (error.location, error.problem and error.problem.name) == (None, "alreadyReplaced")
        assert len(ca.asked("/newOrder")) == 1


class TestChains:
    async def test_every_link_of_every_header_is_an_alternate(self, ca: Any, client: AcmeClient, reply: Any) -> None:
        """CAs send them in several headers, several in one, relative, twice, and with the chain itself among them."""
        headers = {
            "Link": f'<{ca.base}/cert/1>;rel="alternate", </cert/2>; rel=alternate',
            "LINK": f'<{ca.base}/directory>;rel="index"',
            "link": f'<{ca.base}/cert>;rel="alternate", </cert/1>;rel="alternate", <https://[>;rel="alternate"',
        }
        ca.script["/cert"].append(reply(body=b"PEM", headers=headers))
        chain = await client.chain(f"{ca.base}/cert")
        assert chain.body == b"PEM"
        assert chain.alternates == (f"{ca.base}/cert/1", f"{ca.base}/cert/2")

    async def test_links_without_end_are_cut_off(self, ca: Any, client: AcmeClient, reply: Any) -> None:
        """Each would be a download."""
        links = ",".join(f'</cert/{number}>;rel="alternate"' for number in range(100))
        ca.script["/cert"].append(reply(body=b"PEM", headers={"Link": links}))
        assert len((await client.chain(f"{ca.base}/cert")).alternates) == ALTERNATES_MAX

    async def test_all_chains_are_had_and_a_bad_one_costs_only_itself(
        self, ca: Any, client: AcmeClient, reply: Any, refusal: Any
    ) -> None:
        """The certificate is there; another chain for it is a wish."""
        links = ",".join(f'</cert/{number}>;rel="alternate"' for number in range(1, 6))
        links += ',<http://127.0.0.1/cert>;rel="alternate"'
        ca.script["/cert"].append(reply(body=b"default", headers={"Link": links}))
        ca.script["/cert/1"].append(refusal("malformed", 404))
        ca.script["/cert/2"].append(reply(body=b"x" * (CERTIFICATE_MAX + 1)))
        ca.script["/cert/3"].append(reply(body=b"other"))
        ca.script["/cert/4"].append(refusal("unauthorized", 403))
        ca.script["/cert/5"].extend([reply(503, b""), reply(body=b"last")])
        assert list(await client.chains(f"{ca.base}/cert")) == [b"default", b"other", b"last"]

    @pytest.mark.parametrize("kind", ["limit", "storm"])
    async def test_a_busy_ca_is_not_pressed_for_more(
        self, ca: Any, client: AcmeClient, reply: Any, refusal: Any, kind: str
    ) -> None:
        """What there is will do."""
        links = '</cert/1>;rel="alternate",</cert/2>;rel="alternate"'
        ca.script["/cert"].append(reply(body=b"default", headers={"Link": links}))
        ca.script["/cert/1"].extend([refusal("rateLimited", 429) if kind == "limit" else reply(503, b"")] * 20)
        assert list(await client.chains(f"{ca.base}/cert")) == [b"default"]
        assert len(ca.asked("/cert/1")) == (1 if kind == "limit" else WEATHER_TRIES)
        assert ca.asked("/cert/2") == []

    async def test_the_default_chain_is_no_wish(self, ca: Any, client: AcmeClient, refusal: Any) -> None:
        """Without it there is nothing to store."""
        ca.script["/cert"].append(refusal("malformed", 404))
        assert isinstance(await failure(client.chains(f"{ca.base}/cert")), CertificatePending)


async def test_no_request_of_the_life_cycle_rejects_nonces_for_ever(
    ca: Any, client: AcmeClient, refusal: Any, offer: Any, new_key: AccountKey
) -> None:
    """A CA that rejects every nonce is broken for now; each of these ends, as unavailable and not as refused."""
    offer(**OFFERS)
    for path in ("/revoke", "/change", "/account"):
        # Where a request may be repeated, each of its tries brings as many nonces.
        ca.script[path].extend([refusal("badNonce")] * (BAD_NONCE_TRIES * WEATHER_TRIES))
    for work in (client.revoke(DER), client.key_change(new_key), client.deactivate_account()):
        assert isinstance(await failure(work), CaUnavailable)


async def test_no_key_and_no_certificate_reaches_the_log(
    ca: Any, client: AcmeClient, offer: Any, logged: Any, new_key: AccountKey
) -> None:
    """Requests are logged by method, URL and status only."""
    offer(**OFFERS)
    await client.key_change(new_key)
    await client.revoke(DER, certificate_key=new_key)
    told = json.dumps(logged)
    assert f"{ca.base}/change" in told
    for secret in (new_key.public_jwk["x"], ca.asked("/change")[0].jws["signature"], payload(ca.asked("/revoke")[0])):
        assert str(secret) not in told
