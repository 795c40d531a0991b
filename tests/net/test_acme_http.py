"""The CA over HTTPS, against a CA that may say anything: bounded, signed, and repeated only where that is safe."""

from __future__ import annotations

import asyncio
import gzip
import json
from datetime import timedelta
from typing import Any

import aiohttp
import pytest

from scaivaultd.model.errors import BackendRateLimited, CaMisbehaved, CaRefused, CaUnavailable, ScaivaultError
from scaivaultd.model.names import Identifier
from scaivaultd.net import acme_http
from scaivaultd.net.acme_client import CERTIFICATE_MAX, ORDER_PAGES_MAX, AcmeClient
from scaivaultd.net.acme_http import (
    BAD_NONCE_TRIES,
    BODY_MAX,
    DIRECTORY_FRESH_SECONDS,
    WEATHER_TRIES,
    CaPool,
    CaSettings,
)
from scaivaultd.net.guard import AddressGuard

NAMES = [Identifier("dns", "a.example.test")]


@pytest.fixture
async def connection(make_connection: Any) -> Any:
    return make_connection()


@pytest.fixture
def client(connection: Any, account_key: Any) -> AcmeClient:
    return AcmeClient(connection, account_key, "https://ca.test/account/1")


async def failure(work: Any) -> ScaivaultError:
    """The error that ends it; none may take long."""
    with pytest.raises(ScaivaultError) as caught:
        async with asyncio.timeout(20):
            await work
    return caught.value


class TestOnTheWire:
    async def test_every_request_says_who_we_are_and_takes_nothing_compressed(
        self, ca: Any, client: AcmeClient
    ) -> None:
        """CAs ask for a User-Agent (RFC 8555 section 6.1); a compressed body could unfold without end."""
        await client.order(f"{ca.base}/order")
        assert {each.method for each in ca.requests} == {"GET", "HEAD", "POST"}
        for request in ca.requests:
            assert request.headers["user-agent"] == "scaivaultd/test"
            assert request.headers["accept-encoding"] == "identity"
            assert request.headers.get("content-type") == (
                "application/jose+json" if request.method == "POST" else None
            )

    async def test_bodies_have_a_length_and_are_signed_for_their_url(self, ca: Any, client: AcmeClient) -> None:
        """Some servers refuse chunked bodies, and every one checks `url` and `nonce`."""
        await client.order(f"{ca.base}/order")
        (request,) = ca.asked("/order")
        assert int(request.headers["content-length"]) == len(request.body)
        assert "transfer-encoding" not in request.headers
        assert request.protected["url"] == f"{ca.base}/order"
        assert request.protected["kid"] == "https://ca.test/account/1"
        assert "jwk" not in request.protected
        assert request.jws["payload"] == ""

    async def test_a_registration_is_signed_by_the_key_itself(self, ca: Any, client: AcmeClient) -> None:
        """There is no `kid` before there is an account (RFC 8555 section 6.2)."""
        fetched = await client.register(contacts=["mailto:a@b.test"], terms_of_service_agreed=True)
        (request,) = ca.asked("/newAccount")
        assert "kid" not in request.protected
        assert request.protected["jwk"]["kty"] == "EC"
        assert fetched.url == f"{ca.base}/made"

    async def test_nonces_come_from_answers_and_newnonce_is_asked_when_there_is_none(
        self, ca: Any, client: AcmeClient
    ) -> None:
        """One request more for each request would double the load on everybody."""
        for _ in range(5):
            await client.order(f"{ca.base}/order")
        assert len(ca.asked("/newNonce")) == 1
        nonces = [each.protected["nonce"] for each in ca.asked("/order")]
        assert len(set(nonces)) == 5

    async def test_no_cookie_is_kept(self, ca: Any, client: AcmeClient, reply: Any) -> None:
        """RFC 8555 knows none, and one would tie accounts together."""
        ca.script["/order"].append(reply(headers={"Set-Cookie": "a=b; Path=/"}))
        for _ in range(2):
            await client.order(f"{ca.base}/order")
        assert all("cookie" not in each.headers for each in ca.requests)

    async def test_requests_in_flight_are_bounded(
        self, ca: Any, make_connection: Any, account_key: Any, reply: Any
    ) -> None:
        """CAs lock up, or block, under a crowd."""
        client = AcmeClient(make_connection(requests_in_flight=2), account_key, "kid")
        inside, most, two = 0, 0, asyncio.Event()

        async def hold(_: Any) -> Any:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            if inside == 2:
                two.set()
            await two.wait()
            for _ in range(200):  # a third one had time to come
                await asyncio.sleep(0)
            inside -= 1
            return reply()

        ca.script["/order"].extend([hold] * 8)
        async with asyncio.timeout(20):
            await asyncio.gather(*(client.order(f"{ca.base}/order") for _ in range(8)))
        assert most == 2

    async def test_logs_name_requests_and_hold_neither_bodies_nor_signatures(
        self, ca: Any, client: AcmeClient, logged: Any
    ) -> None:
        """Debug logs travel further than one thinks."""
        await client.order(f"{ca.base}/order")
        (request,) = ca.asked("/order")
        (entry,) = [each for each in logged if each["event"] == "acme.request" and each["url"].endswith("/order")]
        assert (entry["method"], entry["status"]) == ("POST", 200)
        for secret in (request.jws["signature"], request.jws["protected"], request.protected["nonce"]):
            assert secret not in repr(logged)


class TestTrust:
    async def test_an_unknown_root_is_refused_with_what_to_do(self, make_connection: Any) -> None:
        """Whoever sits between us and the CA must not be believed."""
        error = await failure(make_connection(pem=None).directory())
        assert isinstance(error, CaUnavailable)
        assert "trust_files" in error.detail

    async def test_trust_files_are_trusted(self, make_connection: Any, identity: Any, tmp_path: Any) -> None:
        """A private CA for the whole daemon."""
        (tmp_path / "root.pem").write_text(identity.pem)
        await make_connection(pem=None, trust_files=(tmp_path / "root.pem",)).directory()

    async def test_an_address_that_is_not_listed_is_never_connected_to(self, ca: Any, make_connection: Any) -> None:
        """By address and by name."""
        for host in ("127.0.0.1", "localhost"):
            url = ca.base.replace("127.0.0.1", host) + "/directory"
            await failure(make_connection(listed=False, url=url).directory())
        assert ca._connections == 0

    @pytest.mark.parametrize("member", ["newNonce", "newOrder"])
    async def test_a_directory_that_points_inside_is_not_followed(
        self, ca: Any, client: AcmeClient, reply: Any, member: str
    ) -> None:
        """The listed CA is listed, not its neighbours on the same host."""
        names = {name: f"{ca.base}/{name}" for name in ("newNonce", "newAccount", "newOrder")}
        names[member] = "https://127.0.0.1:1/x"
        ca.script["/directory"].append(reply(body=json.dumps(names).encode(), nonce=False))
        assert isinstance(await failure(client.new_order(NAMES)), CaMisbehaved)

    @pytest.mark.parametrize(
        "url", ["http://127.0.0.1/x", "not a url", "/order/1", "https://10.0.0.1/x", "https://a..b/x"]
    )
    async def test_a_url_from_an_answer_is_judged_before_it_is_asked(self, client: AcmeClient, url: str) -> None:
        """`Location`, `finalize` and `authorizations` are the CA's words."""
        assert isinstance(await failure(client.order(url)), CaMisbehaved)


async def endless(writer: Any) -> None:
    """A body without end, in chunks."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    for _ in range(1000):
        writer.write(chunk)
        await writer.drain()


class TestRubbish:
    async def test_an_endless_body_is_cut_off(self, ca: Any, client: AcmeClient) -> None:
        """One CA must not fill the memory of all."""
        ca.script["/order"].append(endless)
        error = await failure(client.order(f"{ca.base}/order"))
        assert isinstance(error, CaMisbehaved)
        assert "larger than" in error.detail

    @pytest.mark.parametrize(("size", "taken"), [(BODY_MAX, True), (BODY_MAX + 1, False)])
    async def test_the_limit_of_a_body_is_exact(
        self, ca: Any, client: AcmeClient, reply: Any, size: int, taken: bool
    ) -> None:
        """With a length that says so, as without."""
        ca.script["/order"].append(reply(body=b"x" * size))
        if taken:
            assert len((await client.order(f"{ca.base}/order")).body) == size
        else:
            assert isinstance(await failure(client.order(f"{ca.base}/order")), CaMisbehaved)

    async def test_compressed_bytes_stay_bytes(self, ca: Any, client: AcmeClient, reply: Any) -> None:
        """A kilobyte that unfolds into a gigabyte is not unfolded."""
        bomb = gzip.compress(b"\0" * (50 << 20))
        ca.script["/order"].append(reply(body=bomb, headers={"Content-Encoding": "gzip"}))
        assert (await client.order(f"{ca.base}/order")).body == bomb

    async def test_a_chain_has_a_limit_of_its_own(self, ca: Any, client: AcmeClient, reply: Any) -> None:
        """It is stored and sent to callers."""
        ca.script["/cert"].append(reply(body=b"x" * (CERTIFICATE_MAX + 1)))
        assert isinstance(await failure(client.certificate(f"{ca.base}/cert")), CaMisbehaved)

    @pytest.mark.parametrize(
        "answer",
        [
            b"rubbish\r\n\r\n",
            b"HTTP/1.1 abc OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000 + b"\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"\x00" * 1000,
        ],
        ids=["text", "status", "length", "negative", "colon", "long", "many", "chunk", "zeros"],
    )
    async def test_what_is_no_http_is_the_cas_fault_and_nothing_worse(
        self, ca: Any, client: AcmeClient, answer: bytes
    ) -> None:
        """No exception of the HTTP library may surface as an internal error."""

        async def say(writer: Any) -> None:
            writer.write(answer)
            await writer.drain()
            writer.close()

        ca.script["/order"].extend([say] * WEATHER_TRIES)
        assert isinstance(await failure(client.order(f"{ca.base}/order")), CaMisbehaved | CaUnavailable)

    async def test_a_body_cut_short_is_not_taken_for_whole(self, ca: Any, client: AcmeClient) -> None:
        """Half a chain would be half a chain."""

        async def half(writer: Any) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            await writer.drain()
            writer.close()

        ca.script["/order"].extend([half] * WEATHER_TRIES)
        assert isinstance(await failure(client.order(f"{ca.base}/order")), CaMisbehaved | CaUnavailable)

    @pytest.mark.parametrize("location", [None, ""])
    async def test_an_order_without_an_address_is_refused(
        self, ca: Any, client: AcmeClient, reply: Any, location: str | None
    ) -> None:
        """It could never be found again."""
        headers = {} if location is None else {"Location": location}
        ca.script["/newOrder"].append(reply(201, headers=headers))
        assert isinstance(await failure(client.new_order(NAMES)), CaMisbehaved)

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_redirects_are_not_followed(self, ca: Any, client: AcmeClient, reply: Any, status: int) -> None:
        """The signature covers the URL (RFC 8555 section 6.4), and the target is anybody's."""
        ca.script["/order"].append(reply(status, headers={"Location": f"{ca.base}/elsewhere"}))
        error = await failure(client.order(f"{ca.base}/order"))
        assert isinstance(error, CaMisbehaved)
        assert ca.asked("/elsewhere") == []


class TestNonces:
    async def test_a_rejected_nonce_is_replaced_by_the_one_that_came_with_the_rejection(
        self, ca: Any, client: AcmeClient, refusal: Any
    ) -> None:
        """RFC 8555 section 6.5: weather, and no newNonce is needed."""
        ca.script["/order"].extend([refusal("badNonce")] * 3)
        await client.order(f"{ca.base}/order")
        assert len(ca.asked("/order")) == 4
        assert len(ca.asked("/newNonce")) == 1

    async def test_a_fail_over_costs_one_refusal_and_not_a_hundred(
        self, ca: Any, client: AcmeClient, connection: Any
    ) -> None:
        """After it every nonce in the pool is stale, also for those who ask side by side."""
        for number in range(50):
            connection._nonces.put(f"stale-{number}")
        await client.order(f"{ca.base}/order")
        await asyncio.gather(*(client.order(f"{ca.base}/order") for _ in range(5)))
        assert len(ca.asked("/order")) == 2 + 5

    async def test_newnonce_is_asked_when_a_rejection_brings_none(
        self, ca: Any, client: AcmeClient, reply: Any
    ) -> None:
        """At least one CA forgets the header on errors."""
        body = b'{"type":"urn:ietf:params:acme:error:badNonce"}'
        ca.script["/order"].append(reply(400, body, nonce=False))
        await client.order(f"{ca.base}/order")
        assert len(ca.asked("/newNonce")) == 2

    async def test_for_ever_is_not_tried(self, ca: Any, client: AcmeClient, refusal: Any) -> None:
        """A CA that rejects ten fresh ones is broken for now: unavailable, not refused."""
        ca.script["/finalize"].extend([refusal("badNonce")] * 50)
        assert isinstance(await failure(client.finalize(f"{ca.base}/finalize", b"csr")), CaUnavailable)
        assert len(ca.asked("/finalize")) == BAD_NONCE_TRIES

    async def test_rejected_nonces_repeat_even_what_may_not_be_repeated(
        self, ca: Any, client: AcmeClient, refusal: Any
    ) -> None:
        """The CA has not looked at the request, so asking again is safe."""
        ca.script["/newOrder"].extend([refusal("badNonce")] * 5)
        assert (await client.new_order(NAMES)).url == f"{ca.base}/made"

    @pytest.mark.parametrize("nonce", ["", "no good", "a+b/c=", "x" * 2000])
    async def test_an_unusable_nonce_is_not_used(self, ca: Any, client: AcmeClient, reply: Any, nonce: str) -> None:
        """It would be refused, or worse, not be refused."""
        ca.script["/newNonce"].append(reply(headers={"Replay-Nonce": nonce}, nonce=False, body=b""))
        assert isinstance(await failure(client.order(f"{ca.base}/order")), CaMisbehaved)
        assert ca.asked("/order") == []

    async def test_idle_nonces_are_not_used(self, ca: Any, client: AcmeClient, clock: Any) -> None:
        """They die at the CA after minutes."""
        await client.order(f"{ca.base}/order")
        clock.advance(3600)
        await client.order(f"{ca.base}/order")
        assert len(ca.asked("/newNonce")) == 2

    @pytest.fixture
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Real deadlines, a hundredth of their length."""
        monkeypatch.setattr(acme_http, "_TIMEOUT", aiohttp.ClientTimeout(total=0.3, sock_read=0.1))

    async def test_a_hanging_newnonce_is_an_unavailable_ca(
        self, ca: Any, make_connection: Any, account_key: Any, impatient: None
    ) -> None:
        """It may hang for an hour: then the order waits, instead of failing for an internal error."""
        client = AcmeClient(make_connection(), account_key, "kid")
        ca.script["/newNonce"].extend([ca.hang] * 100)
        assert isinstance(await failure(client.new_order(NAMES)), CaUnavailable)

    async def test_retries_do_not_multiply(
        self, ca: Any, make_connection: Any, account_key: Any, impatient: None
    ) -> None:
        """Sixteen times half a minute is no short weather."""
        client = AcmeClient(make_connection(), account_key, "kid")
        ca.script["/newNonce"].extend([ca.hang] * 100)
        await failure(client.order(f"{ca.base}/order"))
        assert len(ca.asked("/newNonce")) <= WEATHER_TRIES


class TestWeather:
    @pytest.mark.parametrize("status", [500, 502, 503, 504, 408])
    async def test_a_short_storm_is_sat_out(self, ca: Any, client: AcmeClient, reply: Any, status: int) -> None:
        """A load balancer that reloads is no reason to set an order back."""
        ca.script["/order"].extend([reply(status, b"<html>")] * (WEATHER_TRIES - 1))
        await client.order(f"{ca.base}/order")
        assert len(ca.asked("/order")) == WEATHER_TRIES

    async def test_a_longer_one_goes_up(self, ca: Any, client: AcmeClient, reply: Any) -> None:
        """The job parks; a request must not take minutes."""
        ca.script["/order"].extend([reply(503, b"")] * 50)
        assert isinstance(await failure(client.order(f"{ca.base}/order")), CaUnavailable)
        assert len(ca.asked("/order")) == WEATHER_TRIES

    async def test_resets_are_weather_too(self, ca: Any, client: AcmeClient) -> None:
        """Idle connections are dropped by every middlebox."""
        ca.script["/order"].extend([ca.reset] * (WEATHER_TRIES - 1))
        await client.order(f"{ca.base}/order")
        assert len(ca.asked("/order")) == WEATHER_TRIES

    @pytest.mark.parametrize("path", ["/newOrder", "/finalize"])
    @pytest.mark.parametrize("kind", ["reset", "503"])
    async def test_what_may_not_be_repeated_is_not(
        self, ca: Any, client: AcmeClient, reply: Any, path: str, kind: str
    ) -> None:
        """A second newOrder is a second order, a second finalize may fail a good one."""
        ca.script[path].append(ca.reset if kind == "reset" else reply(503, b""))
        work = client.new_order(NAMES) if path == "/newOrder" else client.finalize(f"{ca.base}/finalize", b"csr")
        assert isinstance(await failure(work), CaUnavailable)
        assert len(ca.asked(path)) == 1

    async def test_a_connection_dropped_between_two_requests_repeats_nothing_by_itself(
        self, ca: Any, client: AcmeClient
    ) -> None:
        """HTTP libraries like to repeat on a stale connection; newOrder must never be."""
        await client.order(f"{ca.base}/order")
        ca.script["/newOrder"].extend([ca.reset, ca.reset])
        await failure(client.new_order(NAMES))
        assert len(ca.asked("/newOrder")) == 1

    async def test_a_short_retry_after_is_kept_to_and_a_long_one_goes_up(
        self, ca: Any, client: AcmeClient, reply: Any, clock: Any
    ) -> None:
        """Never earlier than the CA says."""
        ca.script["/order"].append(reply(503, b"", {"Retry-After": "3"}))
        await client.order(f"{ca.base}/order")
        assert clock.slept == [3.0]
        ca.script["/order"].append(reply(503, b"", {"Retry-After": "60"}))
        error = await failure(client.order(f"{ca.base}/order"))
        assert isinstance(error, CaUnavailable)
        assert error.retry_after == 60
        assert clock.slept == [3.0]

    async def test_a_ca_that_hangs_is_unavailable(
        self, ca: Any, make_connection: Any, account_key: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every wait has a deadline."""
        monkeypatch.setattr(acme_http, "_TIMEOUT", aiohttp.ClientTimeout(total=0.3))
        client = AcmeClient(make_connection(), account_key, "kid")
        ca.script["/finalize"].append(ca.hang)
        assert isinstance(await failure(client.finalize(f"{ca.base}/finalize", b"csr")), CaUnavailable)

    async def test_nobody_listening_is_unavailable_and_says_where(self, make_connection: Any, ca: Any) -> None:
        """The person who reads it looks at the address first."""
        url = "https://127.0.0.1:1/directory"
        connection = acme_http.CaConnection(
            url,
            None,
            CaSettings(user_agent="x"),
            guard=AddressGuard(["127.0.0.1:1"]),
            clock=make_connection()._clock,
            randomness=make_connection()._randomness,
            log=make_connection()._log,
        )
        error = await failure(connection.directory())
        await connection.close()
        assert isinstance(error, CaUnavailable)
        assert "127.0.0.1:1" in error.detail


class TestRefusals:
    async def test_a_refusal_carries_the_problem_and_is_not_repeated(
        self, ca: Any, client: AcmeClient, refusal: Any
    ) -> None:
        """No means no."""
        ca.script["/newOrder"].append(refusal("rejectedIdentifier", 400, Link=f'<{ca.base}/help>;rel="help"'))
        error = await failure(client.new_order(NAMES))
        assert isinstance(error, CaRefused)
        assert error.problem is not None
        assert (error.problem.name, error.problem.status) == ("rejectedIdentifier", 400)
        assert error.problem.help_url == f"{ca.base}/help"
        assert len(ca.asked("/newOrder")) == 1

    @pytest.mark.parametrize("status", [429, 403, 503])
    async def test_a_rate_limit_is_known_by_its_type_whatever_the_status(
        self, ca: Any, client: AcmeClient, refusal: Any, clock: Any, status: int
    ) -> None:
        """And is not sat out like a storm: asking again prolongs some of them."""
        ca.script["/order"].append(refusal("rateLimited", status, **{"Retry-After": "600"}))
        error = await failure(client.order(f"{ca.base}/order"))
        assert isinstance(error, BackendRateLimited)
        assert error.retry_after == 600
        assert error.retry_at == clock.now() + timedelta(seconds=600)
        assert len(ca.asked("/order")) == 1

    async def test_an_unknown_account_is_no_error_of_the_look_up(
        self, ca: Any, client: AcmeClient, refusal: Any
    ) -> None:
        """It is the answer."""
        ca.script["/newAccount"].append(refusal("accountDoesNotExist"))
        assert await client.find_account() is None
        assert ca.asked("/newAccount")[0].jws["payload"] != ""

    async def test_a_certificate_that_is_not_there_yet_is_not_refused(
        self, ca: Any, client: AcmeClient, refusal: Any
    ) -> None:
        """The URL may lag behind the order's state."""
        ca.script["/cert"].append(refusal("malformed", 404))
        assert isinstance(await failure(client.certificate(f"{ca.base}/cert")), CaUnavailable)

    async def test_a_certificate_that_is_not_there_yet_keeps_the_time_the_ca_names(
        self, ca: Any, client: AcmeClient, refusal: Any
    ) -> None:
        """Asked again before, a strict CA blocks us."""
        ca.script["/cert"].append(refusal("malformed", 404, **{"Retry-After": "7"}))
        error = await failure(client.certificate(f"{ca.base}/cert"))
        assert isinstance(error, CaUnavailable)
        assert error.retry_after == 7


class TestDirectory:
    async def test_it_is_read_once_and_again_after_hours(self, ca: Any, connection: Any, clock: Any) -> None:
        """Not for each order, and not for ever."""
        await asyncio.gather(*(connection.directory() for _ in range(5)))
        assert len(ca.asked("/directory")) == 1
        clock.advance(DIRECTORY_FRESH_SECONDS + 1)
        await connection.directory()
        assert len(ca.asked("/directory")) == 2

    async def test_the_last_good_copy_serves_while_the_ca_is_down(
        self, ca: Any, connection: Any, clock: Any, reply: Any
    ) -> None:
        """Orders under way need only the URLs they have."""
        first = await connection.directory()
        clock.advance(DIRECTORY_FRESH_SECONDS + 1)
        ca.script["/directory"].extend([reply(500, b"")] * WEATHER_TRIES)
        assert await connection.directory() == first

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"newNonce":"https://x/"}', b"\xff"])
    async def test_what_is_no_directory_is_the_cas_fault(
        self, ca: Any, connection: Any, reply: Any, body: bytes
    ) -> None:
        """A wrong URL usually brings somebody's home page."""
        ca.script["/directory"].append(reply(body=body))
        assert isinstance(await failure(connection.directory()), CaMisbehaved)

    async def test_an_endpoint_that_moved_makes_it_read_anew(self, ca: Any, client: AcmeClient, refusal: Any) -> None:
        """404 on newOrder after a migration of the CA."""
        ca.script["/newOrder"].append(refusal("malformed", 404))
        await failure(client.new_order(NAMES))
        await client.new_order(NAMES)
        assert len(ca.asked("/directory")) == 2


class TestOrdersList:
    async def test_every_page_is_read_up_to_a_bound(
        self, ca: Any, connection: Any, account_key: Any, reply: Any
    ) -> None:
        """A list that links to itself must not be followed for ever."""
        client = AcmeClient(connection, account_key, f"{ca.base}/account")
        ca.script["/account"].append(reply(body=json.dumps({"status": "valid", "orders": f"{ca.base}/list"}).encode()))
        page = reply(body=b'{"orders":["https://x/1"]}', headers={"Link": f'<{ca.base}/list>;rel="next"'})
        ca.script["/list"].extend([page] * 100)
        assert await client.order_urls() == ["https://x/1"] * ORDER_PAGES_MAX

    async def test_an_account_without_a_list_has_none(self, ca: Any, connection: Any, account_key: Any) -> None:
        """As at the largest CA."""
        assert list(await AcmeClient(connection, account_key, f"{ca.base}/account").order_urls()) == []
        assert list(await AcmeClient(connection, account_key, None).order_urls()) == []


class TestPool:
    async def test_accounts_at_one_directory_share_and_others_do_not(
        self, clock: Any, log: Any, account_key: Any, identity: Any, make_connection: Any
    ) -> None:
        """Nonces and pace belong to the CA; trust belongs to the account that brought it."""
        randomness = make_connection()._randomness
        pool = CaPool(CaSettings(user_agent="x"), guard=AddressGuard(()), clock=clock, randomness=randomness, log=log)
        one = pool.client("https://a.test/", None, account_key, "1")
        same = pool.client("https://a.test/", None, account_key, "2")
        other = pool.client("https://b.test/", None, account_key, "1")
        trusting = pool.client("https://a.test/", identity.pem, account_key, "1")
        assert one._connection is same._connection
        assert len({id(each._connection) for each in (one, other, trusting)}) == 3
        await pool.close()
