"""The table over HTTP: every row is reachable, and every answer has the fields that HTTP clients go by."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import msgspec
import pytest

from scaivaultd.api import messages as m
from scaivaultd.api.commands import COMMANDS, Command
from scaivaultd.api.dispatch import BODY_MAX
from scaivaultd.gateways.rest import RestGateway, RestLimits, RestPlaces
from scaivaultd.gateways.rest_answers import RequestLimits
from scaivaultd.gateways.rest_identity import OwnUserOnly
from scaivaultd.gateways.rest_sockets import UnixSocket
from scaivaultd.model import errors as e
from scaivaultd.model.clock import SystemClock
from tests.fakes.rest import SUBJECTS, TOKEN, Done, Served, listening_socket, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ISSUE = {"account_id": "acme_1", "domains": ["a.test"], "challenge_type": "http-01"}


@pytest.fixture
async def here() -> AsyncIterator[Served]:
    async with served() as running:
        yield running


def by_http(command: Command[Any, Any]) -> tuple[str, dict[str, str], dict[str, Any] | None]:
    """The example of a row as path, query and body."""
    rest = dict(command.example)
    path = command.path
    for name in list(rest):
        if f"{{{name}}}" in path:
            path = path.replace(f"{{{name}}}", quote(str(rest.pop(name)), safe="/*"))
    if command.method in ("GET", "DELETE"):
        return path, {name: str(value).lower() if value is True else str(value) for name, value in rest.items()}, None
    return path, {}, rest or None


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.name)
async def test_every_row_is_served_under_its_method_and_path(here: Served, command: Command[Any, Any]) -> None:
    """What is in the table and not on the wire is a promise not kept."""
    path, query, body = by_http(command)
    async with here.client() as session, session.request(command.method, path, params=query, json=body) as response:
        assert response.status == command.status
        assert response.content_type == "application/json"
        assert await response.json() == msgspec.to_builtins(Done())
    assert [name for name, _, _ in here.asked] == [command.name]
    assert here.asked[0][1] == msgspec.convert(command.example, command.request)


class TestRequests:
    async def test_wait_stands_for_wait_seconds(self, here: Served) -> None:
        """`?wait=5` is what people type, beside a body too."""
        async with here.client() as session:
            await session.patch("/v1/pki/acme/accounts/a?wait=5", json={})
        assert here.asked[0][1].wait_seconds == 5

    async def test_wait_is_for_the_end_where_there_is_one(self, here: Served) -> None:
        """Who waits a minute wants the certificate, not its challenges."""
        async with here.client() as session:
            await session.post("/v1/pki/acme/issue?wait=60", json=ISSUE)
            await session.get("/v1/pki/acme/orders/o?wait=60")
            await session.post("/v1/pki/certificates/c/renew?wait=60")
            await session.post("/v1/pki/acme/issue?wait_seconds=7", json=ISSUE)
        assert [each.wait_end_seconds for _, each, _ in here.asked] == [60, 60, 60, None]
        assert here.asked[3][1].wait_seconds == 7

    async def test_an_idempotency_key_reaches_the_handler(self, here: Served) -> None:
        """A repeated POST must find the first answer."""
        async with here.client() as session:
            await session.post("/v1/pki/acme/issue", json=ISSUE, headers={"Idempotency-Key": "k-1"})
        assert here.asked[0][2].idempotency_key == "k-1"

    async def test_an_unknown_query_member_is_refused_like_an_unknown_member(self, here: Served) -> None:
        """`?stauts=invalid` must not list everything."""
        async with here.client() as session, session.get("/v1/pki/acme/orders?stauts=invalid") as response:
            problem = await response.json(content_type="application/problem+json")
        assert response.status == 400
        assert problem["errors"][0]["pointer"] == "/stauts"
        assert "did you mean 'status'" in problem["detail"]

    async def test_an_expectation_is_met_before_the_body_is_sent(self, here: Served) -> None:
        """curl waits a second for it, other clients for ever."""
        async with here.client() as session:
            response = await session.post("/v1/pki/acme/issue", json=ISSUE, expect100=True)
        assert response.status == 202

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""])
    async def test_a_body_must_say_that_it_is_json(self, here: Served, kind: str) -> None:
        """A page on a foreign site can send all other kinds without asking."""
        async with here.client() as session:
            response = await session.post(
                "/v1/pki/acme/issue", data=json.dumps(ISSUE).encode(), headers={"Content-Type": kind}
            )
        assert response.status == 415
        assert here.asked == []

    async def test_a_charset_beside_the_kind_does_no_harm(self, here: Served) -> None:
        """Many libraries add it."""
        async with here.client() as session:
            kind = {"Content-Type": "application/json; charset=utf-8"}
            response = await session.post("/v1/pki/acme/issue", data=json.dumps(ISSUE).encode(), headers=kind)
        assert response.status == 202

    async def test_a_body_on_get_is_refused(self, here: Served) -> None:
        """Half of all proxies would drop it, so half of all requests would mean something else."""
        async with here.client() as session:
            response = await session.get("/v1/pki/acme/orders", json={"status": "invalid"})
        assert response.status == 400

    async def test_a_chunked_body_has_the_same_limit(self, here: Served) -> None:
        """It has no length to refuse it by."""

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(BODY_MAX // 16384 + 1):
                yield b" " * 16384

        async with here.client() as session:
            kind = {"Content-Type": "application/json"}
            response = await session.post("/v1/pki/acme/issue", data=pieces(), headers=kind)
        assert response.status == 413
        assert here.asked == []

    async def test_the_largest_body_is_taken(self, here: Served) -> None:
        """The limit is the one that NATS has."""
        body = json.dumps(ISSUE).encode()
        async with here.client() as session:
            kind = {"Content-Type": "application/json"}
            data = body + b" " * (BODY_MAX - len(body))
            assert (await session.post("/v1/pki/acme/issue", data=data, headers=kind)).status == 202
            assert (await session.post("/v1/pki/acme/issue", data=data + b" ", headers=kind)).status == 413


class TestAnswers:
    async def test_what_was_made_has_a_location(self, here: Served) -> None:
        """Who was told 202 must know where to look, and when."""
        async with here.client() as session:
            ordered = await session.post("/v1/pki/acme/issue", json=ISSUE)
            bulk = await session.post("/v1/pki/bulk-renewals", json={"issuer": "R10"})
        assert ordered.headers["Location"] == "/v1/pki/acme/orders/acme_order_1"
        assert ordered.headers["Retry-After"] == "2"
        assert bulk.headers["Location"] == "/v1/pki/bulk-renewals/a%2Fb%20c"
        assert "Retry-After" not in bulk.headers

    async def test_a_request_keeps_the_name_its_caller_gave_it(self, here: Served) -> None:
        """Callers find their own requests by it; our log ties it to our own."""
        here.answers["sys.info"] = lambda _: _raise(e.NotFound("nothing"))
        async with here.client(headers={"X-Request-Id": "web-7f.1"}) as session:
            response = await session.get("/v1/sys/info")
            problem = await response.json(content_type="application/problem+json")
        assert response.headers["X-Request-Id"] == problem["request_id"] == "web-7f.1"
        (tied,) = [each for each in here.capture.entries if each["event"] == "rest.named"]
        assert tied["named"] == "web-7f.1"
        assert tied["request_id"] == here.asked[0][2].request_id
        assert {each["request_id"] for each in here.capture.entries if "request_id" in each} == {tied["request_id"]}

    async def test_a_request_without_a_name_has_one_name_only(self, here: Served) -> None:
        """The one that stands in the log, in the header and in the problem."""
        here.answers["sys.info"] = lambda _: _raise(e.NotFound("nothing"))
        async with here.client() as session:
            response = await session.get("/v1/sys/info")
            problem = await response.json(content_type="application/problem+json")
        assert response.headers["X-Request-Id"] == problem["request_id"] == here.asked[0][2].request_id
        assert not [each for each in here.capture.entries if each["event"] == "rest.named"]

    @pytest.mark.parametrize("name", ["", "a b", "x" * 65, 'x"', "-x", "ä"])
    async def test_a_name_that_could_forge_log_lines_is_replaced(self, here: Served, name: str) -> None:
        """It stands in logs and in answers."""
        async with here.client(headers={"X-Request-Id": name}) as session:
            response = await session.get("/v1/sys/info")
        assert response.headers["X-Request-Id"].startswith("req_")

    async def test_an_error_is_a_problem_document_with_its_fields(self, here: Served) -> None:
        """Clients that know only HTTP back off by Retry-After."""
        here.answers["pki.acme.issue"] = lambda _: _raise(e.RateLimited("slowly", 1.2))
        async with here.client() as session, session.post("/v1/pki/acme/issue", json=ISSUE) as response:
            problem = await response.json(content_type="application/problem+json")
        assert (response.status, problem["code"]) == (429, "rate_limited")
        assert response.headers["Retry-After"] == "2"
        assert response.headers["Cache-Control"] == "no-store"

    async def test_an_unforeseen_error_says_nothing_of_itself(self, here: Served) -> None:
        """Its text may hold anything."""
        here.answers["sys.info"] = lambda _: _raise(RuntimeError("canary-text"))
        async with here.client() as session, session.get("/v1/sys/info") as response:
            body = await response.text()
        assert response.status == 500
        assert "canary" not in body

    async def test_private_keys_are_never_to_be_stored(self, here: Served) -> None:
        """A cache on the way, or on disk, would keep them; a tag of one is of no use."""
        async with here.client() as session:
            key = await session.get("/v1/pki/certificates/c/key")
            pem = await session.get("/v1/pki/certificates/c/pem")
            token = await session.post("/v1/tokens", json={"name": "a"})
        assert (key.headers["Cache-Control"], key.headers.get("ETag")) == ("no-store", None)
        assert token.headers["Cache-Control"] == "no-store"
        assert pem.headers["Cache-Control"] == "private, no-cache"

    async def test_nobody_is_told_what_we_are_made_of(self, here: Served) -> None:
        """Versions in headers are an index for attackers."""
        async with here.client() as session:
            answers = [await session.get("/v1/sys/info"), await session.get("/livez"), await session.get("/nowhere")]
        assert {each.headers["Server"] for each in answers} == {"scaivaultd"}
        assert {each.headers["X-Content-Type-Options"] for each in answers} == {"nosniff"}

    async def test_head_is_get_without_the_body(self, here: Served) -> None:
        """Monitoring asks so."""
        async with here.client() as session:
            shown = await session.get("/v1/sys/info")
            asked = await session.head("/v1/sys/info")
        assert (asked.status, await asked.read()) == (200, b"")
        for name in ("ETag", "Content-Length", "Content-Type", "Cache-Control"):
            assert asked.headers[name] == shown.headers[name]

    async def test_a_path_that_is_none_is_a_problem_document(self, here: Served) -> None:
        """Scripts read one kind of error only."""
        async with here.client() as session, session.get("/v1/nowhere") as response:
            problem = await response.json(content_type="application/problem+json")
        assert (response.status, problem["code"]) == (404, "not_found")

    async def test_a_method_that_is_none_is_told_which_there_are(self, here: Served) -> None:
        """RFC 9110 section 15.5.6 demands Allow."""
        async with here.client() as session, session.put("/v1/pki/certificates/c", json={}) as response:
            problem = await response.json(content_type="application/problem+json")
        assert response.headers["Allow"] == "GET, HEAD, OPTIONS, PATCH"
        assert (response.status, problem["status"]) == (405, 405)


def _raise(error: Exception) -> None:
    raise error


class TestConditions:
    async def test_what_has_not_changed_is_not_sent_again(self, here: Served) -> None:
        """Polling every certificate of a fleet must be cheap."""
        async with here.client() as session:
            etag = (await session.get("/v1/pki/certificates/c")).headers["ETag"]
            again = await session.get("/v1/pki/certificates/c", headers={"If-None-Match": f'"x", W/{etag}'})
            here.answers["pki.certificates.get"] = lambda _: Done(text="changed")
            changed = await session.get("/v1/pki/certificates/c", headers={"If-None-Match": etag})
        assert (again.status, await again.read(), again.headers["ETag"]) == (304, b"", etag)
        assert changed.status == 200
        assert changed.headers["ETag"] != etag

    async def test_a_change_assumes_what_it_says(self, here: Served) -> None:
        """Two administrators must not undo each other's work unseen."""
        async with here.client() as session:
            etag = (await session.get("/v1/pki/certificates/c")).headers["ETag"]
            fits = await session.patch("/v1/pki/certificates/c", json={}, headers={"If-Match": etag})
            here.answers["pki.certificates.get"] = lambda _: Done(text="changed")
            late = await session.patch("/v1/pki/certificates/c", json={}, headers={"If-Match": etag})
            problem = await late.json(content_type="application/problem+json")
        assert (fits.status, late.status, problem["code"]) == (200, 412, "precondition_failed")
        assert [name for name, _, _ in here.asked].count("pki.certificates.update") == 1

    @pytest.mark.parametrize("path", ["/v1/pki/dns-providers/p", "/v1/secrets/a/b"])
    async def test_what_is_not_there_matches_nothing(self, here: Served, path: str) -> None:
        """Nor does what cannot be looked at: a secret has no GET, so no condition on it can hold."""
        here.answers["pki.dns_providers.get"] = lambda _: _raise(e.NotFound("gone"))
        async with here.client() as session:
            response = await session.delete(path, headers={"If-Match": "*"})
        assert response.status == 412
        assert not any("delete" in name for name, _, _ in here.asked)

    async def test_a_change_may_assume_that_there_is_nothing_yet(self, here: Served) -> None:
        """If-None-Match: * is how HTTP says `create only`."""
        async with here.client() as session:
            response = await session.patch("/v1/pki/certificates/c", json={}, headers={"If-None-Match": "*"})
        assert response.status == 412

    async def test_what_has_no_get_is_not_overwritten_by_who_wants_to_make_it(self, here: Served) -> None:
        """Whether a secret is there cannot be seen: `create only` must not replace it."""
        async with here.client() as session:
            headers = {"If-None-Match": "*"}
            response = await session.put("/v1/secrets/a/b", json={"value": "new"}, headers=headers)
            problem = await response.json(content_type="application/problem+json")
        assert (response.status, problem["code"]) == (412, "precondition_failed")
        assert "no GET" in problem["detail"]
        assert here.asked == []

    async def test_a_look_may_assume_too(self, here: Served) -> None:
        """RFC 9110 section 13.2.2 makes no exception for GET."""
        async with here.client() as session:
            response = await session.get("/v1/pki/certificates/c", headers={"If-Match": '"other"'})
            problem = await response.json(content_type="application/problem+json")
        assert (response.status, problem["code"]) == (412, "precondition_failed")

    async def test_what_cannot_be_looked_at_is_not_changed(self, here: Served) -> None:
        """412 would say that somebody has changed it."""
        here.answers["pki.certificates.get"] = lambda _: _raise(e.StorageUnavailable("disk full"))
        async with here.client() as session:
            response = await session.patch("/v1/pki/certificates/c", json={}, headers={"If-Match": "*"})
        assert response.status == 503
        assert [name for name, _, _ in here.asked] == ["pki.certificates.get"]

    async def test_a_request_that_is_wrong_is_wrong_whatever_it_assumes(self, here: Served) -> None:
        """RFC 9110 section 13.2.1: a condition counts only where the request would succeed without it."""
        async with here.client() as session:
            response = await session.patch("/v1/pki/certificates/c", json={"nonsense": 1}, headers={"If-Match": '"x"'})
        assert response.status == 400
        assert here.asked == []

    async def test_of_two_changes_at_once_one_is_too_late(self, here: Served) -> None:
        """Between the look and the change the other one must not slip in: that is what the condition is for."""
        texts = ["before"]
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def change(_: Any) -> Done:
            begun.set()
            await may_end.wait()
            texts.append("after")
            return Done()

        here.answers["pki.certificates.get"] = lambda _: Done(text=texts[-1])
        here.answers["pki.certificates.update"] = change
        async with here.client() as session:
            headers = {"If-Match": (await session.get("/v1/pki/certificates/c")).headers["ETag"]}
            first = asyncio.create_task(session.patch("/v1/pki/certificates/c", json={}, headers=headers).__aenter__())
            await begun.wait()
            second = asyncio.create_task(session.patch("/v1/pki/certificates/c", json={}, headers=headers).__aenter__())
            await session.get("/v1/sys/info")
            may_end.set()
            assert ((await first).status, (await second).status) == (200, 412)

    async def test_a_condition_that_is_none_is_refused(self, here: Served) -> None:
        """Who forgot the quotes must not believe that it was looked at."""
        async with here.client() as session:
            response = await session.patch("/v1/pki/certificates/c", json={}, headers={"If-Match": "abc"})
        assert response.status == 400
        assert here.asked == []


class TestIdentity:
    @pytest.mark.parametrize(
        ("field", "challenge"),
        [
            (None, 'Bearer realm="scaivaultd"'),
            ("Bearer wrong", 'Bearer realm="scaivaultd", error="invalid_token"'),
            (f"Basic {TOKEN}", 'Bearer realm="scaivaultd", error="invalid_token"'),
            (f"Bearer {TOKEN} more", 'Bearer realm="scaivaultd", error="invalid_token"'),
        ],
    )
    async def test_strangers_are_told_how_to_come_in(self, here: Served, field: str | None, challenge: str) -> None:
        """RFC 6750 section 3; a known path and an unknown one look the same to them."""
        async with here.client() as session:
            del session.headers["Authorization"]
            headers = {"Authorization": field} if field else {}
            for path in ("/v1/sys/info", "/v1/nowhere"):
                async with session.get(path, headers=headers) as response:
                    problem = await response.json(content_type="application/problem+json")
                assert (response.status, problem["code"]) == (401, "unauthenticated")
                assert response.headers["WWW-Authenticate"] == challenge
        assert here.asked == []

    async def test_who_is_asking_is_known_before_anything_is_decoded(self, here: Served) -> None:
        """A stranger's body is not worth a parser."""
        async with here.client() as session:
            headers = {"Authorization": "Bearer wrong", "Content-Type": "text/plain"}
            response = await session.post("/v1/pki/acme/issue?x=1", data=b"{", headers=headers)
        assert response.status == 401

    async def test_the_judge_is_told_all_that_is_known(self, here: Served) -> None:
        """Policies go by source address too; the token is in a type that does not print."""
        async with here.client() as session:
            await session.get("/v1/sys/info")
        (facts,) = here.holders.facts
        assert (facts["address"], facts["uid"], list(facts["gids"])) == ("127.0.0.1", None, [])
        assert facts["token"].reveal() == TOKEN
        assert TOKEN not in repr(facts)
        assert here.asked[0][2].source == "127.0.0.1"

    async def test_the_judge_is_told_who_is_behind_a_unix_socket(self, tmp_path: Path) -> None:
        """Administrators are known by their group there."""
        path = tmp_path / "rest.sock"
        async with served(unix=UnixSocket(path=path), tcp=False) as here:
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"GET /v1/sys/info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 200")
            writer.close()
            await writer.wait_closed()
        (facts,) = here.holders.facts
        assert (facts["token"], facts["address"], facts["uid"]) == (None, None, os.getuid())
        assert set(facts["gids"]) == {os.getgid(), *os.getgroups()}
        assert here.asked[0][2].source == f"uid {os.getuid()}"

    async def test_no_token_is_logged(self, here: Served) -> None:
        """Logs go to places that tokens must not."""
        async with here.client() as session:
            await session.get("/v1/sys/info")
            await session.get("/v1/sys/info", headers={"Authorization": f"Bearer {TOKEN}x"})
            await session.get(f"/v1/{TOKEN}")
        await here.raw(f"GET / HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n bad: x\r\n\r\n".encode())
        assert here.capture.entries
        assert "canary" not in repr([each for each in here.capture.entries if each["event"] != "rest.request"])

    async def test_too_many_failures_are_told_so(self, here: Served) -> None:
        """The judge may say more than no."""
        here.holders.error = e.RateLimited("too many failures", 60)
        async with here.client() as session:
            response = await session.get("/v1/sys/info")
        assert (response.status, response.headers["Retry-After"]) == (429, "60")

    async def test_a_judge_that_fails_lets_nobody_in(self, here: Served) -> None:
        """The one fault that must not be forgiven."""
        here.holders.error = RuntimeError("broken")
        async with here.client() as session:
            response = await session.get("/v1/sys/info")
        assert response.status == 500
        assert here.asked == []

    async def test_without_a_judge_there_is_no_tcp(self) -> None:
        """A forgotten line in the wiring must not open the daemon to everybody."""
        here = Served()
        with listening_socket() as opened:
            gateway = RestGateway(
                here.dispatcher(),
                RestPlaces(tcp=[opened]),
                authenticator=None,
                health=here.probe,
                subjects=SUBJECTS,
                ids=here.ids,
                clock=SystemClock(),
                log=here.log,
            )
            with pytest.raises(e.StartupError, match="who is asking"):
                await gateway.start()
            await gateway.close(0)
            assert opened.fileno() == -1

    @pytest.mark.parametrize(("uid", "principal"), [(7, "unix:7"), (8, None)])
    async def test_without_a_judge_the_own_user_only_is_served(self, uid: int, principal: str | None) -> None:
        """Whoever is that user can read the store anyway."""
        known = await OwnUserOnly(7).identify(token=None, address=None, uid=uid, gids=())
        assert principal == (known and str(known))


class TestProbes:
    @pytest.mark.parametrize(("status", "code"), [("ok", 200), ("degraded", 200), ("down", 503), ("sealed", 503)])
    async def test_readiness_is_the_worst_part(self, here: Served, status: Any, code: int) -> None:
        """Degraded is still better than no daemon; strangers learn no more than the word."""
        parts = [m.ComponentHealth(name="store", status=status, detail="canary")]
        here.health = m.HealthReply(status=status, components=parts)
        async with here.client(headers={"Authorization": "none"}) as session, session.get("/readyz") as response:
            assert await response.json() == {"status": status}
        assert (response.status, response.headers["Cache-Control"]) == (code, "no-store")

    async def test_who_cannot_say_how_it_is_is_not_ready(self) -> None:
        """A store that hangs must take the daemon out of the balancer."""
        async with served(limits=RestLimits(request=RequestLimits(probe_seconds=0.05))) as here:
            here.health = asyncio.Event()
            async with here.client() as session:
                assert (await session.get("/readyz")).status == 503
                assert (await session.get("/livez")).status == 200

    async def test_probes_take_get_only(self, here: Served) -> None:
        """And say so."""
        async with here.client() as session:
            response = await session.post("/livez")
            asked = await session.head("/livez")
        assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
        assert asked.status == 200

    async def test_health_has_the_same_status_and_its_parts_beside_it(self, here: Served) -> None:
        """Monitors go by the status, people by the body; a tag of trouble is of no use."""
        parts = [m.ComponentHealth(name="master_key", status="down", detail="missing")]
        here.answers["sys.health"] = lambda _: m.HealthReply(status="sealed", components=parts)
        async with here.client() as session, session.get("/v1/sys/health", headers={"If-None-Match": "*"}) as response:
            assert (await response.json())["components"][0]["detail"] == "missing"
        assert (response.status, response.content_type, response.headers.get("ETag")) == (503, "application/json", None)


class TestDescriptions:
    @pytest.mark.parametrize(
        ("path", "kind", "beginning"),
        [
            ("/openapi.json", "application/json", b'{"openapi":"3.1.0"'),
            ("/asyncapi.json", "application/json", b'{"asyncapi":"3.0.0"'),
            ("/docs", "text/html", b"<!doctype html>"),
        ],
    )
    async def test_strangers_may_read_what_there_is(self, here: Served, path: str, kind: str, beginning: bytes) -> None:
        """It is no secret, and who makes a client has no token yet; a second look costs nothing."""
        async with here.client(headers={"Authorization": "none"}) as session:
            shown = await session.get(path)
            again = await session.get(path, headers={"If-None-Match": shown.headers["ETag"]})
            asked = await session.head(path)
            posted = await session.post(path, json={})
            assert (await shown.read()).startswith(beginning)
            await posted.read()
        assert (shown.status, shown.content_type, again.status, asked.status) == (200, kind, 304, 200)
        assert (posted.status, posted.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
        assert here.holders.facts == []

    async def test_they_tell_of_this_daemon(self, here: Served) -> None:
        """Its subjects may be others than usual; and the page may load nothing from elsewhere."""
        async with here.client() as session:
            async with session.get("/asyncapi.json") as response:
                described = await response.json()
            async with session.get("/docs") as page:
                await page.read()
        addresses = [each["address"] or "" for each in described["channels"].values()]
        assert "test.requests.sys.info" in addresses
        assert any(each.startswith("test.events.") for each in addresses)
        assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert page.charset == "utf-8"


class TestOrigins:
    async def test_foreign_pages_may_read_nothing_unless_listed(self, here: Served) -> None:
        """Off by default: the browser then keeps the answer from the page."""
        async with here.client(headers={"Origin": "https://ui.test"}) as session:
            answers = [await session.options("/v1/sys/info"), await session.get("/v1/sys/info")]
        assert [each.status for each in answers] == [204, 200]
        assert answers[0].headers["Allow"] == "GET, HEAD, OPTIONS"
        assert not any(name.startswith("Access-Control") for each in answers for name in each.headers)

    @pytest.mark.parametrize("path", ["/livez", "/readyz", "/openapi.json", "/docs"])
    async def test_what_is_open_to_all_may_be_asked_for_by_pages_too(self, path: str) -> None:
        """A browser takes only a good status for yes; whoever shows the API sends more than a plain GET."""
        async with served(origins=("https://ui.test",)) as here, here.client() as session:
            asked = await session.options(path, headers={"Origin": "https://ui.test"})
        assert (asked.status, asked.headers["Allow"]) == (204, "GET, HEAD, OPTIONS")
        assert asked.headers["Access-Control-Allow-Origin"] == "https://ui.test"

    async def test_pages_of_listed_origins_may(self) -> None:
        """Browsers ask first, and without a token."""
        async with served(origins=("https://ui.test",)) as here, here.client() as session:
            asked = await session.options("/v1/sys/info", headers={"Origin": "https://ui.test"})
            shown = await session.get("/v1/sys/info", headers={"Origin": "https://ui.test"})
            other = await session.get("/v1/sys/info", headers={"Origin": "https://ui.test.evil"})
        assert "Authorization" in asked.headers["Access-Control-Allow-Headers"]
        assert shown.headers["Access-Control-Allow-Origin"] == "https://ui.test"
        assert "ETag" in shown.headers["Access-Control-Expose-Headers"]
        assert "Access-Control-Allow-Origin" not in other.headers
        assert shown.headers["Vary"] == other.headers["Vary"] == "Origin"


class TestLife:
    async def test_more_requests_than_allowed_are_put_off(self) -> None:
        """Each of them holds memory; probes go on."""
        async with served(limits=RestLimits(requests=1)) as here, here.client() as session:
            begun, may_end = asyncio.Event(), asyncio.Event()

            async def hang(_: Any) -> Done:
                begun.set()
                await may_end.wait()
                return Done()

            here.answers["sys.info"] = hang
            first = asyncio.create_task(session.get("/v1/sys/info").__aenter__())
            await begun.wait()
            second = await session.get("/v1/sys/health")
            assert (second.status, second.headers["Retry-After"]) == (429, "1")
            assert (await session.get("/livez")).status == 200
            may_end.set()
            assert (await first).status == 200
            assert (await session.get("/v1/sys/health")).status == 200

    async def test_a_handler_that_hangs_is_given_up(self) -> None:
        """A caller waits for its own deadline; ours comes first and says what it was."""
        async with (
            served(limits=RestLimits(request=RequestLimits(handler_seconds=0.05))) as here,
            here.client() as session,
        ):
            here.answers["sys.info"] = lambda _: asyncio.Event().wait()
            response = await session.get("/v1/sys/info")
            assert response.status == 504

    async def test_waiting_that_was_asked_for_is_not_held_against_a_request(self) -> None:
        """`?wait=60` is twice as long as anything else may take."""
        async with (
            served(limits=RestLimits(request=RequestLimits(handler_seconds=0.05))) as here,
            here.client() as session,
        ):
            done = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.2, done.set_result, Done())
            here.answers["pki.acme.issue"] = here.answers["pki.acme.orders.get"] = lambda _: _awaited(done)
            looking = asyncio.create_task(session.get("/v1/pki/acme/orders/o?wait=5").__aenter__())
            assert (await session.post("/v1/pki/acme/issue?wait=5", json=ISSUE)).status == 202
            assert (await looking).status == 200

    async def test_stopping_answers_what_was_begun(self) -> None:
        """A restart must not cost anybody an answer."""
        async with served() as here, here.client() as session:
            begun, may_end = asyncio.Event(), asyncio.Event()

            async def hang(_: Any) -> Done:
                begun.set()
                await may_end.wait()
                return Done()

            here.answers["sys.info"] = hang
            idle, writer = await asyncio.open_connection(*here.address)
            first = asyncio.create_task(session.get("/v1/sys/info").__aenter__())
            await begun.wait()
            closing = asyncio.create_task(here.gateway.close(5))
            assert await asyncio.wait_for(idle.read(), 10) == b""
            writer.close()
            with pytest.raises(OSError):
                await asyncio.open_connection(*here.address)
            may_end.set()
            response = await first
            assert (response.status, response.headers["Connection"]) == (200, "close")
            await closing

    async def test_stopping_does_not_wait_for_ever(self) -> None:
        """systemd would kill us."""
        async with served() as here, here.client() as session:
            begun = asyncio.Event()

            async def hang(_: Any) -> None:
                begun.set()
                await asyncio.Event().wait()

            here.answers["sys.info"] = hang
            asking = asyncio.create_task(session.get("/v1/sys/info").__aenter__())
            await begun.wait()
            await asyncio.wait_for(here.gateway.close(0.05), 5)
            with pytest.raises(aiohttp.ClientError):
                await asking
            assert here.gateway.connections == 0


async def _awaited(future: asyncio.Future[Done]) -> Done:
    return await future


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_speaks_to_the_unix_socket(tmp_path: Path) -> None:
    """It is the client everybody has; the kernel says who it is."""
    path = tmp_path / "rest.sock"
    async with served(unix=UnixSocket(path=path), tcp=False, identified=False) as here:
        command = ["-sS", "-i", "--max-time", "10", "--unix-socket", str(path), "http://x/v1/pki/acme/issue?wait=1"]
        command += ["-H", "Content-Type: application/json", "-d", json.dumps(ISSUE)]
        curl = await asyncio.create_subprocess_exec("curl", *command, stdout=asyncio.subprocess.PIPE)
        output, _ = await curl.communicate()
    assert output.startswith(b"HTTP/1.1 202 ")
    assert json.loads(output.split(b"\r\n\r\n", 1)[1])["order_id"] == "acme_order_1"
    assert here.asked[0][1].domains == ["a.test"]
    assert not path.exists()
