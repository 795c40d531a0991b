"""From bytes to a handler and back: every mistake points at its place, and nothing unforeseen gets out."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import structlog
from structlog.testing import LogCapture

from scaivaultd.api import commands
from scaivaultd.api import messages as m
from scaivaultd.api.dispatch import BODY_MAX, Dispatcher, Incoming, decode, problem
from scaivaultd.api.gate import OpenGate
from scaivaultd.model import errors as e
from scaivaultd.model.clock import SystemClock, SystemRandomness
from scaivaultd.model.ids import IdMaker
from scaivaultd.model.principals import SYSTEM

if TYPE_CHECKING:
    from scaivaultd.api.commands import RequestContext

ISSUE = {"account_id": "acme_1", "domains": ["a.test"], "challenge_type": "http-01"}
ACCOUNT = {"name": "n", "provider": "custom"}
MAY_BE_ABSENT = ("profile", "preferred_chain", "solver", "dns_provider")

EXTRA: dict[str, tuple[Any, ...]] = {
    "rate_limited": (1,),
    "dns_error": ("no_zone",),
    "dns_propagation_timeout": ((),),
}


def refused(body: bytes, request: type[m.Request]) -> e.InvalidRequest:
    with pytest.raises(e.InvalidRequest) as caught:
        decode(body, request)
    return caught.value


def issue_with(**changes: Any) -> bytes:
    return msgspec.json.encode({**ISSUE, **changes})


class TestDecoding:
    @pytest.mark.parametrize(
        ("body", "request_type", "pointer", "code"),
        [
            (issue_with(domain="x"), m.Issue, "/domain", "unknown_field"),
            (issue_with(domains="a.test"), m.Issue, "/domains", "invalid_value"),
            (issue_with(domains=["a.test", 5]), m.Issue, "/domains/1", "invalid_value"),
            (issue_with(domains=["a.test"] * 1001), m.Issue, "/domains", "invalid_value"),
            (issue_with(domains=["x" * 1001]), m.Issue, "/domains/0", "invalid_value"),
            (issue_with(challenge_type="http-02"), m.Issue, "/challenge_type", "invalid_value"),
            (issue_with(wait_seconds=61), m.Issue, "/wait_seconds", "invalid_value"),
            (issue_with(wait_seconds=-1), m.Issue, "/wait_seconds", "invalid_value"),
            (issue_with(auto_renew="yes"), m.Issue, "/auto_renew", "invalid_value"),
            (issue_with(account_id=None), m.Issue, "/account_id", "invalid_value"),
            *((issue_with(**{each: ""}), m.Issue, f"/{each}", "invalid_value") for each in MAY_BE_ABSENT),
            *(
                (msgspec.json.encode({"id": "cert_1", each: ""}), m.UpdateCertificate, f"/{each}", "invalid_value")
                for each in MAY_BE_ABSENT
            ),
            (b'{"account_id":"x"}', m.Issue, "/challenge_type", "missing_field"),
            (b"{}", m.OrderById, "/order_id", "missing_field"),
            (b"", m.OrderById, "/order_id", "missing_field"),
            (b"[]", m.Issue, "", "invalid_value"),
            (b"null", m.Issue, "", "invalid_value"),
            (b'"text"', m.Issue, "", "invalid_value"),
            (
                msgspec.json.encode({**ACCOUNT, "eab": {"key_id": "k", "hmac": "x"}}),
                m.CreateAccount,
                "/eab/hmac",
                "unknown_field",
            ),
            (msgspec.json.encode({**ACCOUNT, "eab": {}}), m.CreateAccount, "/eab/key_id", "missing_field"),
            (msgspec.json.encode({**ACCOUNT, "name": "a\nb"}), m.CreateAccount, "/name", "invalid_value"),
            (msgspec.json.encode({**ACCOUNT, "name": ""}), m.CreateAccount, "/name", "invalid_value"),
        ],
    )
    def test_a_mistake_is_pointed_at(self, body: bytes, request_type: type[m.Request], pointer: str, code: str) -> None:
        """A caller with fifty members in its request should not have to search."""
        error = refused(body, request_type)
        assert [(each.pointer, each.code) for each in error.fields] == [(pointer, code)]
        assert error.fields[0].detail

    @pytest.mark.parametrize(
        "body",
        [
            b"not json",
            b'{"account_id":',
            b'{"a":1}{"b":2}',
            b"\xff\xfe",
            b'{"account_id":"\xff"}',
            b"\x00" * 100,
            b"[" * 100_000,
            b'{"a":' * 40_000,
            b"{'account_id':'x'}",
        ],
    )
    def test_what_is_no_json_is_said_so_briefly(self, body: bytes) -> None:
        """Rubbish must neither break the daemon nor come back as rubbish."""
        error = refused(body, m.Issue)
        assert len(error.detail) < 400
        assert error.__cause__ is None or "account_id" not in str(error.__cause__)

    def test_too_much_is_refused_before_it_is_read(self) -> None:
        """A megabyte of rubbish costs nothing."""
        assert str(BODY_MAX) in refused(b"x" * (BODY_MAX + 1), m.Issue).detail
        padding = b" " * (BODY_MAX - len(issue_with()))
        assert isinstance(decode(issue_with() + padding, m.Issue), m.Issue)

    def test_no_body_is_an_empty_request(self) -> None:
        """`nats request scaivault.v1.sys.info ''` is what people type."""
        assert decode(b"", m.Nothing) == decode(b"{}", m.Nothing)

    def test_a_near_miss_is_met_with_the_right_word(self) -> None:
        """Most unknown members are typing mistakes."""
        assert "'account_id'" in refused(issue_with(acount_id="x"), m.Issue).fields[0].detail
        assert "did you mean" not in refused(issue_with(zzz="x"), m.Issue).fields[0].detail

    @pytest.mark.parametrize(("name", "pointer"), [("a/b", "/a~1b"), ("a~b", "/a~0b")])
    def test_a_pointer_is_a_json_pointer_whatever_the_name(self, name: str, pointer: str) -> None:
        """RFC 6901 section 3: otherwise it points at a member of a member."""
        assert refused(issue_with(**{name: 1}), m.Issue).fields[0].pointer == pointer

    @pytest.mark.parametrize(
        ("body", "request_type", "detail"),
        [
            (
                issue_with(challenge_type="http-02"),
                m.Issue,
                "/challenge_type: Invalid enum value 'http-02'; it takes 'dns-01', 'http-01', 'tls-alpn-01'",
            ),
            (
                issue_with(propagation={"on_failure": "retry"}),
                m.Issue,
                "/propagation/on_failure: Invalid enum value 'retry'; it takes 'continue', 'fail'",
            ),
            (
                issue_with(renew_before="30 days"),
                m.Issue,
                "/renew_before: not of the form it takes: A number and its unit: `90m`, `36h`, `30d`.",
            ),
        ],
    )
    def test_a_wrong_value_is_met_with_the_right_ones(
        self, body: bytes, request_type: type[m.Request], detail: str
    ) -> None:
        """Neither a guess at other values nor a regular expression helps who has to mend the request."""
        assert refused(body, request_type).fields[0].detail == detail

    def test_a_huge_unknown_name_does_not_come_back_whole(self) -> None:
        """The answer to a bad request must fit into a message however bad it was."""
        error = refused(issue_with(**{"x" * 200_000: 1}), m.Issue)
        assert len(msgspec.json.encode(problem(error, "req_1"))) < 1 << 20

    @pytest.mark.parametrize("command", commands.COMMANDS, ids=lambda each: each.name)
    def test_every_example_in_the_table_decodes(self, command: Any) -> None:
        """Examples are what people copy."""
        decode(msgspec.json.encode(command.example), command.request)


def dispatcher(handler: Any, command: Any = commands.GET_ORDER) -> tuple[Dispatcher, LogCapture]:
    capture = LogCapture()
    log = structlog.wrap_logger(
        None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG)
    )
    ids = IdMaker(SystemClock(), SystemRandomness())
    return Dispatcher([command.bind(handler)], gate=OpenGate(), ids=ids, log=log), capture


BODY = b'{"order_id":"acme_order_1"}'


class TestAnswering:
    async def test_a_reply_goes_out_with_the_status_of_its_row(self) -> None:
        """201 and 202 mean something to REST callers."""

        async def handler(request: m.CreateAccount, context: RequestContext) -> Any:
            return m.Nothing()

        answering, _ = dispatcher(handler, commands.CREATE_ACCOUNT)
        outgoing = await answering.answer(
            "pki.acme.accounts.create", Incoming(principal=SYSTEM, body=msgspec.json.encode(ACCOUNT))
        )
        assert (outgoing.status, outgoing.body, outgoing.error_code) == (201, b"{}", None)
        assert outgoing.request_id.startswith("req_")

    async def test_the_unforeseen_is_internal_with_a_request_id_and_none_of_its_text(self) -> None:
        """Exceptions quote what they were handed, secrets too."""

        async def handler(request: m.OrderById, context: RequestContext) -> Any:
            raise RuntimeError("hunter2")

        answering, capture = dispatcher(handler)
        outgoing = await answering.answer("pki.acme.orders.get", Incoming(principal=SYSTEM, body=BODY))
        assert b"hunter2" not in outgoing.body
        document = json.loads(outgoing.body)
        assert (document["code"], document["status"]) == ("internal", 500)
        (entry,) = capture.entries
        assert entry["event"] == "request.failed"
        assert entry["request_id"] == document["request_id"] == outgoing.request_id
        assert entry["exc_info"]

    async def test_a_known_fault_of_ours_keeps_its_text_in_the_log_too(self) -> None:
        """`Internal` says so itself: what key was sealed under what is nobody's business outside."""

        async def handler(request: m.OrderById, context: RequestContext) -> Any:
            raise e.Internal("private_key at key/key_1 is sealed under master key 0badc0de")

        answering, capture = dispatcher(handler)
        outgoing = await answering.answer("pki.acme.orders.get", Incoming(principal=SYSTEM, body=BODY))
        assert b"0badc0de" not in outgoing.body
        assert "0badc0de" in repr(capture.entries)

    async def test_a_reply_that_cannot_be_encoded_is_internal_too(self) -> None:
        """Encoding is the last place where something can go wrong."""

        async def handler(request: m.OrderById, context: RequestContext) -> Any:
            return object()

        answering, _ = dispatcher(handler)
        outgoing = await answering.answer("pki.acme.orders.get", Incoming(principal=SYSTEM, body=BODY))
        assert outgoing.error_code == "internal"

    async def test_cancellation_is_not_swallowed(self) -> None:
        """A daemon that stops must be able to."""

        async def handler(request: m.OrderById, context: RequestContext) -> Any:
            raise asyncio.CancelledError

        answering, _ = dispatcher(handler)
        with pytest.raises(asyncio.CancelledError):
            await answering.answer("pki.acme.orders.get", Incoming(principal=SYSTEM, body=BODY))

    async def test_a_bad_request_does_not_reach_the_handler(self) -> None:
        """Handlers get what the table promises."""
        called = []

        async def handler(request: m.OrderById, context: RequestContext) -> Any:
            called.append(request)

        answering, _ = dispatcher(handler)
        outgoing = await answering.answer("pki.acme.orders.get", Incoming(principal=SYSTEM, body=b"{}"))
        assert (outgoing.status, outgoing.error_code, called) == (400, "invalid_request", [])
        assert outgoing.error_title == e.InvalidRequest.title

    @pytest.mark.parametrize("key", ["a", "!~", "x" * 255, "550e8400-e29b-41d4-a716-446655440000"])
    async def test_a_good_idempotency_key_reaches_the_handler(self, key: str) -> None:
        """Byte for byte: it is compared later."""
        seen = []

        async def handler(request: m.OrderById, context: RequestContext) -> Any:
            seen.append(context.idempotency_key)
            return m.Nothing()

        answering, _ = dispatcher(handler)
        await answering.answer("pki.acme.orders.get", Incoming(principal=SYSTEM, body=BODY, idempotency_key=key))
        assert seen == [key]

    @pytest.mark.parametrize("key", ["", "x" * 256, "a b", "a\n", "\u00e4", "\x7f"])
    async def test_a_bad_idempotency_key_is_refused_and_not_ignored(self, key: str) -> None:
        """Ignoring it would make the second request a second order."""

        async def handler(request: m.OrderById, context: RequestContext) -> Any:
            raise AssertionError("not to be called")

        answering, _ = dispatcher(handler)
        outgoing = await answering.answer(
            "pki.acme.orders.get", Incoming(principal=SYSTEM, body=BODY, idempotency_key=key)
        )
        assert outgoing.error_code == "invalid_request"

    def test_a_refusal_without_a_look_has_a_request_id_too(self) -> None:
        """Whoever complains can be found in the log."""
        answering, _ = dispatcher(None)
        outgoing = answering.refusal(e.Standby("stopping"))
        assert (outgoing.status, outgoing.error_code) == (503, "standby")
        assert json.loads(outgoing.body)["request_id"] == outgoing.request_id


class TestProblems:
    @pytest.mark.parametrize("kind", e.WIRE_ERRORS, ids=lambda kind: kind.__name__)
    def test_every_error_becomes_a_problem_document(self, kind: type[e.ScaivaultError]) -> None:
        """Code, status and title are what programs and people read."""
        error = kind("why", *EXTRA.get(kind.code, ()))
        document = msgspec.to_builtins(problem(error, "req_1"))
        assert document["type"] == f"urn:scaivault:error:{kind.code}"
        assert (document["code"], document["status"], document["title"]) == (kind.code, kind.status, kind.title)
        assert (document["detail"], document["request_id"]) == ("why", "req_1")

    @pytest.mark.parametrize("kind", [e.InvalidRequest, e.NotFound, e.Conflict, e.SecretNotFound])
    def test_the_members_at_fault_are_pointed_at(self, kind: type[e.AtFields]) -> None:
        """A form can show the error beside the field it is about."""
        field = e.FieldError(pointer="/account_id", code="not_found", detail="why")
        assert problem(kind("why", [field]), "req_1").errors == (field,)

    def test_the_cas_words_and_times_are_passed_on(self) -> None:
        """What the CA said is worth more than what we make of it."""
        then = datetime(2026, 1, 1, tzinfo=UTC)
        said = e.Problem(type="urn:ietf:params:acme:error:rateLimited", detail="50 a week", help_url="https://x/")
        document = problem(e.BackendRateLimited("limited", said, retry_after=60, retry_at=then), "req_1")
        assert (document.acme, document.limit, document.retry_after, document.retry_at) == (said, "50 a week", 60, then)
        unavailable = problem(e.CaUnavailable("down", 5), "req_1")
        assert (unavailable.retry_after, unavailable.limit) == (5, None)
