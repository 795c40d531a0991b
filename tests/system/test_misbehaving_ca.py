"""The real daemon against CAs with every kind of bad manners: what the caller sees, how soon, at what cost to the CA.

Most cases run side by side, each against a CA of its own, all in one daemon: many take their time
(a CA that misbehaves gets four more tries, a CA that hangs gets 30 s), and none may disturb another.
They run once for the module; each test then judges the outcome of one case.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import itertools
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from scaivaultd.demo.ca import (
    DevelopmentCa,
    Endless,
    Fault,
    Hang,
    LoseAnswer,
    Malformed,
    Misbehaviour,
    NoNonce,
    Nulls,
    Redirect,
    Reset,
    Status,
)
from scaivaultd.demo.process import free_port, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(200)]

UNFINISHED = ("pending", "ready", "processing")
CASE_SECONDS = 50.0
RESOURCES = (
    "directory",
    "newNonce",
    "newAccount",
    "newOrder",
    "authorization",
    "challenge",
    "order",
    "finalize",
    "certificate",
)
SERVER_ERROR = Status(code=500)
GARBAGE = Malformed(body=b'{"status": "valid", ')


class SeededRandomness:
    """Chance that falls the same way each time."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def token_bytes(self, length: int) -> bytes:
        return self._random.randbytes(length)

    def fraction(self) -> float:
        return self._random.random()


class Addresses:
    """Names become 127.0.0.1, but only from their nth look-up on."""

    def __init__(self, *, fails: int) -> None:
        self._fails = fails

    def __call__(self, name: str) -> str:
        if name.startswith("lost") and self._fails > 0:
            self._fails -= 1
            raise LookupError(name)
        return "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A CA's bad manners and what is ordered there. `is_impatient`: by the daemon that gives up after 10 s."""

    id: str
    wrong: Mapping[str, Any] = field(default_factory=dict)
    orders: tuple[tuple[str, ...], ...] = ()
    resolve: Callable[[str], str] | None = None
    is_impatient: bool = False
    until_set_back: bool = False

    @property
    def requests(self) -> tuple[tuple[str, ...], ...]:
        return self.orders or ((f"{self.id}.example.test",),)


@dataclass
class Outcome:
    """What the caller saw, and what the CA did.

    `seconds` count from the first order; `times` are the moments of requests, by resource.
    """

    account: dict[str, Any]
    orders: list[dict[str, Any]]
    seconds: float
    requests: Counter[str]
    times: dict[str, list[float]]
    accounts: int
    ca_orders: int
    ca_certificates: int
    certificates: list[str] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def order(self) -> dict[str, Any]:
        (only,) = self.orders
        return only

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.order["error"]
        return error

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [body for each, body in self.events if each == kind]


class Trial:
    """One case under way."""

    def __init__(self, case: Case, http01_port: int) -> None:
        self.case = case
        self._times: dict[str, list[float]] = {}
        self.ca = DevelopmentCa(
            http01_port=http01_port,
            misbehaviour=Misbehaviour(**copy.deepcopy(dict(case.wrong))),
            resolve=case.resolve,
            randomness=SeededRandomness(case.id),
        )
        self.ca.on_request = self._note

    async def _note(self, resource: str, phase: str) -> None:
        if phase == "received":
            self._times.setdefault(resource, []).append(time.monotonic())

    async def run(self, daemon: Any) -> Outcome:
        account, orders = await self._account(daemon), []
        started = time.monotonic()
        if "id" in account:
            orders = [await self._issue(daemon, account["id"], names) for names in self.case.requests]
            orders = list(await asyncio.gather(*(self._ended(daemon, each["order_id"]) for each in orders)))
            account = await daemon.ask("pki.acme.accounts.get", _timeout=90, id=account["id"])
        return Outcome(
            account=account,
            orders=orders,
            seconds=time.monotonic() - started,
            requests=self.ca.requests,
            times=self._times,
            accounts=len(self.ca.accounts),
            ca_orders=len(self.ca.orders),
            ca_certificates=len(self.ca.issued),
        )

    async def _account(self, daemon: Any) -> dict[str, Any]:
        account: dict[str, Any] = await daemon.ask(
            "pki.acme.accounts.create",
            _timeout=90,
            name=self.case.id,
            provider="custom",
            directory_url=self.ca.directory_url,
            ca_certificates_pem=self.ca.root_pem,
            wait_seconds=10,
        )
        return account

    async def _issue(self, daemon: Any, account_id: str, names: Sequence[str]) -> dict[str, Any]:
        order: dict[str, Any] = await daemon.ask(
            "pki.acme.issue",
            _timeout=90,
            account_id=account_id,
            domains=list(names),
            challenge_type="http-01",
            wait_seconds=0,
        )
        assert "order_id" in order, order
        return order

    async def _ended(self, daemon: Any, order_id: str) -> dict[str, Any]:
        """Poll as a patient caller of many orders does: less often the longer it takes."""
        found: list[dict[str, Any]] = []
        pause = 0.1

        async def has_ended() -> bool:
            nonlocal pause
            found[:] = [await daemon.ask("pki.acme.orders.get", _timeout=90, order_id=order_id)]
            is_over = found[0]["status"] not in UNFINISHED
            if not (is_over or (self.case.until_set_back and found[0]["error"])):
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, 1.0)
                return False
            return True

        # Where it stands in the end is in the outcome, and its test says what should be.
        with contextlib.suppress(TimeoutError):
            await until(has_ended, f"order of {self.case.id}", CASE_SECONDS)
        return found[0]


# --- the cases -----------------------------------------------------------------------------------------------------


def always(**faults: Fault) -> dict[str, Any]:
    return {"script": {resource: [fault] * 1000 for resource, fault in faults.items()}}


def once(resource: str, fault: Fault) -> dict[str, Any]:
    return {"script": {resource: [fault]}}


def crowd(name: str) -> tuple[tuple[str, ...], ...]:
    return tuple((f"{name}-{number}.example.test",) for number in range(20))


ONCE: Mapping[str, Fault] = {
    "error": SERVER_ERROR,
    "late-error": Status(code=502, processed=True),
    "reset": Reset(),
    "lost": LoseAnswer(),
    "garbage": GARBAGE,
    "nothing": Malformed(body=b""),
    "endless": Endless(),
    "redirect": Redirect(url="https://127.0.0.1:1/"),
    "no-nonce": NoNonce(),
    "nulls": Nulls(),
}
STRIKES = [(name, resource) for name in ONCE for resource in RESOURCES]

WEATHER = [
    Case(id="good-manners"),
    Case(id="half-the-nonces", wrong={"nonce_reject_rate": 0.5}),
    Case(id="most-nonces", wrong={"nonce_reject_rate": 0.9}),
    Case(id="half-the-nonces-crowd", wrong={"nonce_reject_rate": 0.5}, orders=crowd("nonces")),
    Case(id="odd-nonces-and-tokens", wrong={"odd_nonces": True, "odd_tokens": True}, orders=crowd("odd")[:4]),
    Case(id="fifth-fails", wrong={"error_500_rate": 0.2}),
    Case(id="tenth-fails-crowd", wrong={"error_500_rate": 0.1}, orders=crowd("fails")),
    Case(id="fifth-reset", wrong={"reset_rate": 0.2}),
    Case(id="tenth-reset-crowd", wrong={"reset_rate": 0.1}, orders=crowd("reset")),
    Case(id="fifth-lost", wrong={"lose_answer_rate": 0.2}),
    Case(id="tenth-lost-crowd", wrong={"lose_answer_rate": 0.1}, orders=crowd("lost-answers")),
    Case(id="no-nonces-but-asked-for", wrong={"script": {each: [NoNonce()] * 99 for each in RESOURCES[2:]}}),
    Case(id="all-nulls", wrong={"script": {each: [Nulls()] * 99 for each in RESOURCES}}),
    Case(id="late-certificate", wrong={"certificate_404_times": 2}),
    Case(id="finalize-shown-once", wrong={"omit_finalize_when_polled": True}),
    Case(id="unknown-words", wrong={"unknown_challenge_types": True, "unknown_states": True}),
    Case(id="ready-at-once", wrong={"order_ready_at_once": True}),
    Case(id="processing", wrong={"processing_seconds": 2.0}),
    Case(id="date", wrong={"retry_after_form": "date", "retry_after_seconds": 3, "validation_delay_seconds": 4.0}),
    Case(id="seconds", wrong={"retry_after_seconds": 3, "validation_delay_seconds": 4.0}),
    Case(id="no-pace", wrong={"retry_after_form": "none", "validation_delay_seconds": 2.0}),
]

HANGS = [Case(id=f"hang-{each}", wrong=once(each, Hang())) for each in ("newOrder", "order", "finalize", "certificate")]

WRONG_CERTIFICATES: Mapping[str, str] = {
    "other_key": "check key:",
    "other_names": "check names:",
    "expired": "check validity: it expired",
    "not_yet_valid": "check validity: it begins",
    "is_ca": "check is_ca:",
    "broken_chain": "check chain:",
    "leaf_only": "check chain:",
    "self_signed": "check chain:",
    "no_server_auth": "check usage:",
    "with_private_key": "check format: the body holds a private key",
    "trailing_garbage": "check format:",
    "not_pem": "check format:",
    "endless": "larger than",
}

LASTING: Mapping[str, tuple[dict[str, Any], str]] = {
    "garbage-authorization": (always(authorization=GARBAGE), "authorization is not JSON"),
    "garbage-order": (always(order=GARBAGE), "order is not JSON"),
    "list-authorization": (always(authorization=Malformed(body=b"[1]")), "authorization is not a JSON object"),
    "deep-order": (always(order=Malformed(body=b"[" * 100_000)), "order is not JSON"),
    "odd-bytes-order": (always(order=Malformed(body=b'{"status":"\xff\xfe"}')), "order is not JSON"),
    "typeless-order": (always(order=Malformed(body=b'{"status":7}')), "order has no status"),
    "empty-certificate": (always(certificate=Malformed(body=b"")), "check format:"),
    "endless-authorization": (always(authorization=Endless()), "an authorization is larger than 1 MiB"),
    "endless-order": (always(order=Endless()), "the order is larger than 1 MiB"),
    "redirect-newOrder": (always(newOrder=Redirect(url="https://127.0.0.1:1/")), "redirects cannot be followed"),
    "redirect-challenge": (always(challenge=Redirect(url="https://127.0.0.1:1/")), "redirects cannot be followed"),
    "redirect-certificate": (always(certificate=Redirect(url="https://127.0.0.1:1/")), "redirects cannot be followed"),
}
"""What goes on for ever is believed after five tries."""

UNREGISTERED: Mapping[str, tuple[dict[str, Any], str]] = {
    "garbage-directory": (always(directory=GARBAGE), "directory is not JSON"),
    "poor-directory": (always(directory=Malformed(body=b'{"newNonce":"https://127.0.0.1/x"}')), "has no newAccount"),
    "endless-directory": (always(directory=Endless()), "the directory is larger than 1 MiB"),
    "redirect-directory": (always(directory=Redirect(url="https://127.0.0.1:1/")), "redirects cannot be followed"),
    "no-newNonce": (always(newNonce=NoNonce()), "no usable Replay-Nonce"),
    "redirect-newAccount": (always(newAccount=Redirect(url="https://127.0.0.1:1/")), "redirects cannot be followed"),
}
"""What keeps the account from being registered."""

AWAY: Mapping[str, Fault] = {"down": Status(code=503), "gone": Reset()}
UNAVAILABLE: Mapping[str, dict[str, Any]] = {
    f"{name}-{resource}": always(**{resource: fault})
    for name, fault in AWAY.items()
    for resource in ("newOrder", "order", "authorization", "challenge", "finalize", "certificate")
}

LIMITED_SHORTLY = ("newOrder", "authorization", "challenge", "order", "finalize", "certificate")


def limit(*, code: int = 429, kind: str = "rateLimited", **headers: str) -> Status:
    return Status(code=code, type=kind, detail="too many of example.test: 50 a week", headers=headers)


RETRY_AFTER_LONG = {"Retry-After": "2000"}
SPECIAL = [
    Case(id="valid-at-once", wrong={"order_valid_at_once": True}),
    Case(id="invalid-order", wrong={"invalid_order": True}, orders=(("a.bad.test", "b.bad.test", "c.bad.test"),)),
    Case(id="unconvinced", orders=(("found.y.test", "lost.y.test"),), resolve=Addresses(fails=1000)),
    Case(
        id="pending-for-ever",
        wrong={"pending_with_error": True},
        orders=(("lost.z.test",),),
        resolve=Addresses(fails=1000),
    ),
    Case(
        id="second-look",
        wrong={"pending_with_error": True},
        orders=(("lost.x.test",),),
        resolve=Addresses(fails=1),
    ),
    Case(
        id="limit-almost-too-long",
        wrong={"script": {"newOrder": [Status(code=429, type="rateLimited", headers={"Retry-After": "3500"})] * 99}},
        orders=crowd("almost"),
        until_set_back=True,
    ),
    Case(
        id="limit-long",
        wrong={"script": {"newOrder": [Status(code=429, type="rateLimited", headers=RETRY_AFTER_LONG)] * 9}},
        until_set_back=True,
    ),
    Case(id="limit-unsaid", wrong=always(newOrder=limit()), until_set_back=True),
    Case(
        id="limit-by-type",
        wrong={"script": {"newOrder": [Status(code=403, type="rateLimited", headers=RETRY_AFTER_LONG)] * 9}},
        until_set_back=True,
    ),
    Case(
        id="limit-day",
        wrong={"script": {"newOrder": [Status(code=429, type="rateLimited", headers={"Retry-After": "86400"})] * 9}},
    ),
    Case(
        id="limit-minute-impatient",
        wrong={"script": {"newOrder": [Status(code=429, type="rateLimited", headers={"Retry-After": "60"})] * 9}},
        is_impatient=True,
    ),
    Case(
        id="limit-newAccount",
        wrong={"script": {"newAccount": [Status(code=429, type="rateLimited", headers={"Retry-After": "86400"})] * 9}},
    ),
    Case(id="rejected", wrong=always(newOrder=Status(code=400, type="rejectedIdentifier", detail="not this one"))),
    Case(id="odd-problem", wrong=always(newOrder=Status(code=418, type="https://ca.example/odd", detail="teapot"))),
    Case(
        id="never-validated",
        wrong={"validation_delay_seconds": 3600.0},
        is_impatient=True,
    ),
    Case(id="lost-finalize-always", wrong=always(finalize=LoseAnswer())),
    Case(id="garbage-finalize-always", wrong=always(finalize=GARBAGE)),
    Case(id="lost-challenge-always", wrong=always(challenge=LoseAnswer()), is_impatient=True),
]


def short_limit(resource: str) -> dict[str, Any]:
    return once(resource, Status(code=429, type="rateLimited", headers={"Retry-After": "2"}))


CASES = [
    *WEATHER,
    *HANGS,
    *SPECIAL,
    *(Case(id=f"once-{name}-{resource}", wrong=once(resource, ONCE[name])) for name, resource in STRIKES),
    *(Case(id=f"wrong-{kind.replace('_', '-')}", wrong={"wrong_certificate": kind}) for kind in WRONG_CERTIFICATES),
    *(Case(id=name, wrong=wrong) for name, (wrong, _) in {**LASTING, **UNREGISTERED}.items()),
    *(Case(id=name, wrong=wrong, is_impatient=True) for name, wrong in UNAVAILABLE.items()),
    *(Case(id=f"limit-short-{resource}", wrong=short_limit(resource)) for resource in LIMITED_SHORTLY),
]


# --- running them --------------------------------------------------------------------------------------------------


@dataclass
class Outcomes:
    """All outcomes, and what the daemons have written into their logs."""

    by_case: dict[str, Outcome]
    log: list[dict[str, Any]]

    def __getitem__(self, case_id: str) -> Outcome:
        return self.by_case[case_id]


def with_port(make: Callable[[int], list[Trial]]) -> tuple[int, list[Trial]]:
    """A port for the daemon's listener that no CA got by chance."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port, make(port)


async def run_all(cases: Sequence[Case], daemon_for: Any, **sections: str) -> Outcomes:
    port, trials = with_port(lambda port: [Trial(case, port) for case in cases])
    async with AsyncExitStack() as stack:
        for trial in trials:
            await stack.enter_async_context(trial.ca)
        daemon = await stack.enter_async_context(daemon_for(port, [trial.ca for trial in trials], **sections))
        outcomes = await asyncio.gather(*(trial.run(daemon) for trial in trials))
        await add_records(daemon, outcomes)
        await daemon.stop()
        log = [json.loads(line) for line in daemon.process.log.splitlines() if line.startswith("{")]
    return Outcomes({trial.case.id: each for trial, each in zip(trials, outcomes, strict=True)}, log)


async def add_records(daemon: Any, outcomes: Sequence[Outcome]) -> None:
    """What the store and the event stream have of each account."""
    by_account = {each.account["id"]: each for each in outcomes if "id" in each.account}
    cursor: str | None = None
    while True:
        more = {"cursor": cursor} if cursor else {}
        page = await daemon.ask("pki.certificates.list", _timeout=90, limit=100, **more)
        for each in page["items"]:
            by_account[each["account_id"]].certificates.append(each["id"])
        if (cursor := page["next_cursor"]) is None:
            break
    ended = sum(order["status"] not in UNFINISHED for each in outcomes for order in each.orders)
    found: list[tuple[str, dict[str, str], Any]] = []

    async def are_told() -> bool:
        found[:] = await daemon.events()
        kinds = Counter(headers["ce-type"] for _, headers, _ in found)
        return kinds["certificate.issued"] + kinds["order.failed"] >= ended

    await until(are_told, f"{ended} events of ended orders")
    for _, headers, body in found:
        by_account[body["account_id"]].events.append((headers["ce-type"], body))


@pytest.fixture(scope="module")
def outcomes(daemon_for: Any) -> Outcomes:
    """All cases, side by side: the patient daemon with its defaults, the impatient one with 10 s for an order."""

    async def both() -> tuple[Outcomes, Outcomes]:
        patient = [case for case in CASES if not case.is_impatient]
        impatient = [case for case in CASES if case.is_impatient]
        return await asyncio.gather(
            run_all(patient, daemon_for),
            run_all(impatient, daemon_for, acme="order_timeout_seconds = 10"),
        )

    first, second = asyncio.run(both())
    return Outcomes({**first.by_case, **second.by_case}, [*first.log, *second.log])


# --- judging -------------------------------------------------------------------------------------------------------


def assert_issued(outcome: Outcome) -> None:
    """Every order valid, with one certificate and one event, at no more than one order, CSR and account at the CA."""
    assert [each["status"] for each in outcome.orders] == ["valid"] * len(outcome.orders), outcome.orders
    assert outcome.account["status"] == "valid"
    ours = sorted(each["certificate_id"] for each in outcome.orders)
    assert sorted(outcome.certificates) == ours
    assert sorted(each["certificate_id"] for each in outcome.told("certificate.issued")) == ours
    assert outcome.told("order.failed") == []
    assert outcome.accounts == 1
    assert outcome.ca_orders == len(ours)
    assert outcome.ca_certificates == len(ours)


def assert_failed(outcome: Outcome, code: str) -> None:
    """The order invalid with its cause, in the reply as in the event, and nothing stored."""
    assert outcome.order["status"] == "invalid", outcome.order
    assert outcome.error["code"] == code, outcome.error
    assert outcome.error["detail"]
    assert outcome.certificates == []
    assert outcome.told("certificate.issued") == []
    (event,) = outcome.told("order.failed")
    assert event["error"] == outcome.error
    assert outcome.accounts == 1
    assert outcome.order["next_try_at"] is None


@pytest.mark.parametrize("case", WEATHER, ids=lambda case: case.id)
def test_weather_never_costs_a_certificate(outcomes: Outcomes, case: Case) -> None:
    """Rejected nonces, 5xx, resets and odd but lawful answers are sat out; nothing at the CA is doubled."""
    outcome = outcomes[case.id]
    assert_issued(outcome)
    assert outcome.seconds < 40
    setbacks = sum(each["attempt"] for each in outcome.orders)
    assert outcome.requests.total() <= (25 + 5 * setbacks) * len(outcome.orders) * (4 if "nonces" in case.id else 1)


@pytest.mark.parametrize("case_id", ["half-the-nonces", "half-the-nonces-crowd", "odd-nonces-and-tokens"])
def test_a_rejected_nonce_is_no_setback(outcomes: Outcomes, case_id: str) -> None:
    """badNonce is weather (RFC 8555 section 6.5): with ten tries each, half of them rejected is nothing to report."""
    assert {each["attempt"] for each in outcomes[case_id].orders} == {0}


@pytest.mark.parametrize("case_id", ["fifth-lost", "tenth-lost-crowd"])
def test_a_lost_answer_to_finalize_is_never_followed_by_another_csr(outcomes: Outcomes, case_id: str) -> None:
    """The CA may be issuing already: the order is read, and decides."""
    outcome = outcomes[case_id]
    assert outcome.requests["finalize"] == len(outcome.orders)


@pytest.mark.parametrize("case_id", ["lost-finalize-always", "garbage-finalize-always"])
def test_no_answer_to_finalize_is_needed(outcomes: Outcomes, case_id: str) -> None:
    """A CA whose finalize never answers properly has still issued: one CSR, no setback."""
    outcome = outcomes[case_id]
    assert_issued(outcome)
    assert outcome.requests["finalize"] == 1
    assert outcome.order["attempt"] == 0


def test_a_challenge_whose_answers_are_lost_is_seen_in_the_order(outcomes: Outcomes) -> None:
    """The response reached the CA: that nobody said so must not cost the certificate."""
    assert_issued(outcomes["lost-challenge-always"])


def test_an_order_of_good_manners_costs_few_requests(outcomes: Outcomes) -> None:
    """CAs count requests: one of each, and few looks at the order."""
    requests = outcomes["good-manners"].requests
    polls, nonces = requests.pop("order"), requests.pop("newNonce")
    requests.pop("renewalInfo", None)  # asked afterwards, for the certificate that is there
    assert dict(requests) == dict.fromkeys(
        ("directory", "newAccount", "newOrder", "authorization", "challenge", "finalize", "certificate"), 1
    )
    assert polls <= 3
    assert nonces <= 2


PROCESSED = ("late-error", "lost", "garbage", "nothing", "endless", "no-nonce", "nulls")
"""Strikes after which the CA has done what it was asked for."""
HARMLESS = ("no-nonce", "nulls")
UNREAD = {("garbage", "newAccount"), ("garbage", "challenge"), ("nothing", "newAccount"), ("nothing", "challenge")}
"""Bodies that nobody needs: the Location tells, and the order tells."""


def expected_requests(name: str, resource: str) -> int:
    """How often the struck resource is asked, the strike included."""
    if name in HARMLESS or (name, resource) in UNREAD:
        return 1
    if name in PROCESSED and resource in ("newOrder", "finalize"):
        return 1
    if (name, resource) == ("endless", "challenge"):
        return 1
    return 2


def expected_setbacks(name: str, resource: str) -> int:
    """Whether the order had to begin anew: never for what may simply be asked again."""
    if name in HARMLESS or (name, resource) in UNREAD or resource in ("directory", "newNonce", "newAccount"):
        return 0
    if resource == "newOrder":
        return 1
    if resource == "finalize" or (name, resource) == ("endless", "challenge"):
        return 0
    return int(name in ("garbage", "nothing", "endless", "redirect"))


@pytest.mark.parametrize(("name", "resource"), STRIKES)
def test_one_fault_at_one_resource_is_survived(outcomes: Outcomes, name: str, resource: str) -> None:
    """Whatever goes wrong once, wherever: one account, one order, one CSR, one certificate, no needless request."""
    outcome = outcomes[f"once-{name}-{resource}"]
    assert_issued(outcome)
    assert outcome.seconds < 40
    if resource not in ("newNonce", "order"):
        assert outcome.requests[resource] == expected_requests(name, resource)
    assert outcome.requests["newOrder"] <= 2
    assert outcome.requests["finalize"] <= 2
    assert outcome.order["attempt"] == expected_setbacks(name, resource)
    assert outcome.requests.total() <= 30


@pytest.mark.parametrize("case", HANGS, ids=lambda case: case.id)
def test_a_ca_that_hangs_is_asked_again_in_time(outcomes: Outcomes, case: Case) -> None:
    """A request without an answer is given up after half a minute, and looked after like a lost answer."""
    outcome = outcomes[case.id]
    assert_issued(outcome)
    assert 25 < outcome.seconds < 60


@pytest.mark.parametrize(("kind", "detail"), WRONG_CERTIFICATES.items())
def test_a_wrong_certificate_is_refused_and_not_stored(outcomes: Outcomes, kind: str, detail: str) -> None:
    """What would not serve is never handed out: the cause names the failing check."""
    outcome = outcomes[f"wrong-{kind.replace('_', '-')}"]
    assert_failed(outcome, "ca_error")
    assert detail in outcome.error["detail"]
    assert outcome.requests["newOrder"] == outcome.requests["finalize"] == 1
    assert 1 <= outcome.requests["certificate"] <= 5
    assert outcome.seconds < 60


def test_a_certificate_for_a_key_we_do_not_have_is_refused(outcomes: Outcomes) -> None:
    """An order that is valid at once brings somebody's certificate, which is not ours."""
    outcome = outcomes["valid-at-once"]
    assert_failed(outcome, "ca_error")
    assert "check key:" in outcome.error["detail"]
    assert outcome.requests["finalize"] == 0
    assert outcome.requests["newOrder"] == 1


def test_an_order_that_is_ready_at_once_needs_no_challenge(outcomes: Outcomes) -> None:
    """Nothing to prove, nothing to answer, and no authorization worth reading."""
    outcome = outcomes["ready-at-once"]
    assert outcome.order["challenges"] == []
    assert outcome.requests["challenge"] == outcome.requests["authorization"] == 0


@pytest.mark.parametrize("case_id", LASTING)
def test_a_lasting_fault_ends_the_order_with_its_cause(outcomes: Outcomes, case_id: str) -> None:
    """A CA that keeps breaking the protocol is believed after five tries; the caller learns what it sent."""
    outcome = outcomes[case_id]
    assert_failed(outcome, "ca_error")
    assert LASTING[case_id][1] in outcome.error["detail"]
    assert outcome.ca_orders <= 1
    assert outcome.requests["newOrder"] == (5 if case_id == "redirect-newOrder" else 1)
    assert outcome.requests["finalize"] <= 1
    assert outcome.requests.total() <= 60
    assert outcome.seconds < 60


@pytest.mark.parametrize("case_id", UNREGISTERED)
def test_an_account_that_cannot_be_registered_says_why(outcomes: Outcomes, case_id: str) -> None:
    """The registration ends after five tries with the cause, and so does an order that waited for it."""
    outcome = outcomes[case_id]
    assert outcome.account["status"] == "invalid"
    assert outcome.account["error"]["code"] == "ca_error"
    assert UNREGISTERED[case_id][1] in outcome.account["error"]["detail"]
    assert outcome.accounts == outcome.ca_orders == 0
    assert outcome.order["status"] == "invalid"
    assert outcome.order["error"]["code"] in ("account_unusable", "ca_unavailable")
    assert UNREGISTERED[case_id][1] in outcome.order["error"]["detail"]
    assert outcome.requests.total() <= 30


@pytest.mark.parametrize("case_id", UNAVAILABLE)
def test_a_ca_that_stays_away_ends_the_order_when_patience_ends(outcomes: Outcomes, case_id: str) -> None:
    """503 and resets are waited for as long as the order may take; then the cause is told, and nobody was hammered."""
    outcome = outcomes[case_id]
    assert_failed(outcome, "ca_unavailable")
    assert outcome.ca_orders <= 1
    assert outcome.requests["newOrder"] <= 5
    assert outcome.requests.total() <= 75
    assert outcome.seconds < 30


def test_a_challenge_never_looked_at_times_out(outcomes: Outcomes) -> None:
    """A CA that takes the response and does nothing is not asked for ever."""
    outcome = outcomes["never-validated"]
    assert_failed(outcome, "timeout")
    assert outcome.requests["newOrder"] == outcome.requests["challenge"] == 1
    assert outcome.seconds < 25


def test_a_name_the_ca_cannot_reach_is_named(outcomes: Outcomes) -> None:
    """One name of two fails: the cause stands beside it, and nothing is tried twice."""
    outcome = outcomes["unconvinced"]
    assert_failed(outcome, "challenge_failed")
    (cause,) = outcome.error["identifiers"]
    assert cause["identifier"] == "lost.y.test"
    assert cause["type"] == "urn:ietf:params:acme:error:dns"
    assert "lost.y.test has no address" in cause["detail"]
    assert outcome.requests["newOrder"] == 1
    assert outcome.requests["challenge"] == 2
    assert outcome.seconds < 20


def test_a_challenge_that_stays_pending_with_an_error_is_answered_four_times(outcomes: Outcomes) -> None:
    """A CA of that kind looks again on each response: some patience helps, endless patience does not."""
    outcome = outcomes["pending-for-ever"]
    assert_failed(outcome, "challenge_failed")
    assert [each["identifier"] for each in outcome.error["identifiers"]] == ["lost.z.test"]
    assert outcome.requests["challenge"] == 4
    assert outcome.requests["newOrder"] == 1


def test_a_challenge_that_stays_pending_with_an_error_gets_its_second_look(outcomes: Outcomes) -> None:
    """The first look found nothing, the second one would: the response is sent once more."""
    outcome = outcomes["second-look"]
    assert_issued(outcome)
    assert outcome.requests["challenge"] == 2


def test_an_order_that_fails_while_processing_names_every_name(outcomes: Outcomes) -> None:
    """A compound problem has a subproblem for each identifier (RFC 8555 section 6.7.1): all are shown."""
    outcome = outcomes["invalid-order"]
    assert_failed(outcome, outcome.error["code"])
    assert outcome.error["code"] in ("ca_error", "challenge_failed")
    causes = {each["identifier"]: each["type"] for each in outcome.error["identifiers"]}
    kind = "urn:ietf:params:acme:error:rejectedIdentifier"
    assert causes == {"a.bad.test": kind, "b.bad.test": kind, "c.bad.test": kind}
    assert outcome.error["acme"]["type"] == "urn:ietf:params:acme:error:compound"
    assert outcome.requests["finalize"] == outcome.requests["newOrder"] == 1


@pytest.mark.parametrize(
    ("case_id", "kind", "detail"),
    [
        ("rejected", "urn:ietf:params:acme:error:rejectedIdentifier", "not this one"),
        ("odd-problem", "https://ca.example/odd", "teapot"),
    ],
)
def test_a_refusal_is_final_and_in_the_cas_words(outcomes: Outcomes, case_id: str, kind: str, detail: str) -> None:
    """A no is a no: asked once, shown with type and detail."""
    outcome = outcomes[case_id]
    assert_failed(outcome, "ca_error")
    assert (outcome.error["acme"]["type"], outcome.error["acme"]["detail"]) == (kind, detail)
    assert outcome.requests["newOrder"] == 1
    assert outcome.seconds < 10


@pytest.mark.parametrize("resource", LIMITED_SHORTLY)
def test_a_short_rate_limit_is_waited_for(outcomes: Outcomes, resource: str) -> None:
    """Retry-After of 2 s: nothing at all is asked in between, and the certificate comes."""
    outcome = outcomes[f"limit-short-{resource}"]
    assert_issued(outcome)
    limited = outcome.times[resource][0]
    after = [moment for moments in outcome.times.values() for moment in moments if moment > limited]
    assert min(after) - limited >= 2
    assert outcome.order["attempt"] == 1
    assert outcome.requests["newOrder"] == (2 if resource == "newOrder" else 1)


@pytest.mark.parametrize("case_id", ["limit-long", "limit-by-type"])
def test_a_long_rate_limit_is_shown_while_the_order_waits(outcomes: Outcomes, case_id: str) -> None:
    """The caller sees why nothing happens and when it goes on; the CA is left alone until then."""
    outcome = outcomes[case_id]
    assert outcome.order["status"] == "pending"
    assert outcome.error["code"] == "backend_rate_limited"
    assert outcome.error["retryable"] is True
    assert outcome.error["retry_after"] == 2000
    assert outcome.error["retry_at"] == outcome.order["next_try_at"]
    assert outcome.error["acme"]["type"] == "urn:ietf:params:acme:error:rateLimited"
    assert outcome.requests["newOrder"] == 1


def test_a_rate_limit_just_within_our_patience_is_waited_for(outcomes: Outcomes) -> None:
    """3500 of 3600 s: that is a wait, for each of twenty orders, whatever chance adds to it."""
    assert [each["status"] for each in outcomes["limit-almost-too-long"].orders] == ["pending"] * 20


def test_a_rate_limit_without_a_time_is_waited_for_a_minute(outcomes: Outcomes) -> None:
    """Without Retry-After nobody knows: not soon, then."""
    outcome = outcomes["limit-unsaid"]
    assert outcome.order["status"] == "pending"
    assert outcome.error["code"] == "backend_rate_limited"
    assert outcome.error["limit"] == "too many of example.test: 50 a week"
    assert outcome.error["retry_at"] == outcome.order["next_try_at"]
    moments = outcome.times["newOrder"]
    assert all(later - earlier >= 60 for earlier, later in itertools.pairwise(moments))


@pytest.mark.parametrize(("case_id", "seconds"), [("limit-day", 86400), ("limit-minute-impatient", 60)])
def test_a_rate_limit_beyond_our_patience_is_told_at_once(outcomes: Outcomes, case_id: str, seconds: int) -> None:
    """Waiting longer than the order may take is pointless: invalid now, with the time from which it may work."""
    outcome = outcomes[case_id]
    assert_failed(outcome, "backend_rate_limited")
    assert outcome.error["retry_after"] == seconds
    assert outcome.error["retry_at"]
    assert outcome.requests["newOrder"] == 1
    assert outcome.seconds < 15


def test_a_rate_limit_at_registration_keeps_its_name(outcomes: Outcomes) -> None:
    """Who registers an account is told `backend_rate_limited` and when to come back, not just that the CA said no."""
    outcome = outcomes["limit-newAccount"]
    assert outcome.account["code"] == "backend_rate_limited", outcome.account
    assert outcome.account["status"] == 429
    assert outcome.account["retry_after"] == 86400
    assert outcome.account["retry_at"]
    assert outcome.requests["newAccount"] == 1
    assert outcome.accounts == 0


@pytest.mark.parametrize("case_id", ["date", "seconds"])
def test_the_order_is_not_polled_before_the_ca_wants_it(outcomes: Outcomes, case_id: str) -> None:
    """Retry-After is the CA's pace, as seconds or as a date against its own clock."""
    polls = outcomes[case_id].times["order"]
    # A date has whole seconds, so it may come up to one second early.
    assert all(later - earlier >= (2 if case_id == "date" else 3) for earlier, later in itertools.pairwise(polls))
    assert 2 <= len(polls) <= 3


def test_without_a_pace_our_own_is_gentle(outcomes: Outcomes) -> None:
    """Two seconds of validation are worth a handful of looks, each later than the one before."""
    assert 3 <= outcomes["no-pace"].requests["order"] <= 9


def test_processing_is_waited_for_and_not_finalized_again(outcomes: Outcomes) -> None:
    """Processing takes the CA two seconds here: one CSR, few looks."""
    outcome = outcomes["processing"]
    assert outcome.requests["finalize"] == 1
    assert outcome.requests["order"] <= 6
    assert outcome.order["attempt"] == 0


def test_a_late_certificate_is_asked_for_again(outcomes: Outcomes) -> None:
    """404 shortly after `valid` means: not yet."""
    outcome = outcomes["late-certificate"]
    assert outcome.requests["certificate"] == 3
    assert outcome.order["attempt"] == 0


def test_nothing_was_unforeseen(outcomes: Outcomes) -> None:
    """No CA, however odd, may reach code that did not expect it: an `internal` error is a fault of ours."""
    logged = [
        each for each in outcomes.log if each.get("event") in ("job.attempt_failed", "job.failed", "dispatch.failed")
    ]
    assert logged == []
    codes = {order["error"]["code"] for each in outcomes.by_case.values() for order in each.orders if order["error"]}
    assert "internal" not in codes
    assert len(outcomes.log) > len(CASES)


# --- cases with a story of their own -------------------------------------------------------------------------------


def restarted(ca: DevelopmentCa, http01_port: int) -> DevelopmentCa:
    """The same CA after a restart: same port, same HTTPS root, same accounts and orders; it awaits every response."""
    port = int(ca.directory_url.split(":")[2].partition("/")[0])
    again = DevelopmentCa(http01_port=http01_port, port=port)
    again.root_pem, again._https_pem = ca.root_pem, ca._https_pem
    again._ledger.accounts.update(ca.accounts)
    for url, each in ca.authorizations.items():
        challenges = tuple(msgspec.structs.replace(challenge, status="pending") for challenge in each.challenges)
        again._ledger.authorizations[url] = msgspec.structs.replace(each, challenges=challenges)
    again._ledger.orders.update(ca.orders)
    return again


async def order_of(daemon: Any, account_id: str, *names: str) -> str:
    order = await daemon.ask(
        "pki.acme.issue", account_id=account_id, domains=list(names), challenge_type="http-01", wait_seconds=0
    )
    assert "order_id" in order, order
    return str(order["order_id"])


async def test_a_ca_that_was_away_gets_the_order_when_it_is_back(make_ca: Any, make_daemon: Any) -> None:
    """Away before one order and in the middle of another: both end valid by themselves, on the account there was."""
    port = free_port()
    misbehaviour = Misbehaviour(validation_delay_seconds=3600.0)
    async with AsyncExitStack() as first:
        local = await make_ca(port, misbehaviour=misbehaviour, stack=first)
        daemon = await make_daemon(local)
        account_id = await daemon.account(local)
        begun = await order_of(daemon, account_id, "begun.example.test")
        await until(lambda: asked_for(local.ca, "order"), "the CA works on the first order")
    await until(lambda: shows_error(daemon, begun), "the first order has noticed")
    later = await order_of(daemon, account_id, "later.example.test")
    await until(lambda: shows_error(daemon, later), "the second order has noticed")
    orders = [await daemon.ask("pki.acme.orders.get", order_id=each) for each in (begun, later)]
    assert {each["error"]["code"] for each in orders} == {"ca_unavailable"}
    assert {each["status"] for each in orders} == {"pending"}
    async with restarted(local.ca, port) as again:
        ended = [await daemon.finished(each, 30) for each in (begun, later)]
        assert [each["status"] for each in ended] == ["valid", "valid"], ended
        assert len(again.accounts) == 1
        assert again.requests["newAccount"] == 0
        # The first order was made before, and its challenge is answered again: the CA forgot that it was to look.
        assert again.requests["newOrder"] == 1
        assert again.requests.total() < 40


async def asked_for(ca: DevelopmentCa, resource: str) -> bool:
    return ca.requests[resource] > 0


async def shows_error(daemon: Any, *order_ids: str) -> bool:
    orders = [await daemon.ask("pki.acme.orders.get", order_id=each) for each in order_ids]
    return all(each["error"] for each in orders)


async def test_an_account_deactivated_at_the_ca_stops_its_orders_at_once(make_ca: Any, make_daemon: Any) -> None:
    """Nobody can order with it any more: running and new orders say so, the event tells, the CA is left alone."""
    port = free_port()
    local = await make_ca(port, misbehaviour=Misbehaviour(validation_delay_seconds=3600.0))
    daemon = await make_daemon(local)
    account_id = await daemon.account(local)
    other_id = await daemon.account(local, name="other")
    running = [await order_of(daemon, account_id, f"r{n}.example.test") for n in range(10)]
    await until(lambda: have_challenges(daemon, running), "ten orders under way")
    account = await daemon.ask("pki.acme.accounts.get", id=account_id)
    before = local.ca.requests.copy()
    local.ca.deactivate_account(account["account_url"])
    fresh = await order_of(daemon, account_id, "fresh.example.test")
    ended = [await daemon.finished(each, 20) for each in (fresh, *running)]
    assert {each["status"] for each in ended} == {"invalid"}
    assert {each["error"]["code"] for each in ended} == {"ca_error"}
    assert ended[0]["error"]["acme"]["type"] == "urn:ietf:params:acme:error:unauthorized"
    assert "deactivated" in ended[0]["error"]["acme"]["detail"]
    assert (await daemon.ask("pki.acme.accounts.get", id=account_id))["status"] == "deactivated"
    refused = await daemon.ask("pki.acme.issue", account_id=account_id, domains=["x.test"], challenge_type="http-01")
    assert refused["code"] == "account_unusable"
    # Each order may have met the refusal once and looked once what became of the account.
    assert (local.ca.requests - before).total() <= 4 * len(ended)
    assert (local.ca.requests - before)["newOrder"] <= 1
    await until(lambda: is_told(daemon, "account.deactivated", "account_id", account_id), "the event")
    await daemon.events_of("order.failed", len(ended))
    kinds = Counter(headers["ce-type"] for _, headers, _ in await daemon.events())
    assert kinds["account.deactivated"] == 1
    assert kinds["order.failed"] == len(ended)
    local.ca.misbehaviour.validation_delay_seconds = 0.0
    assert (await daemon.issue(other_id, "other.example.test"))["status"] == "valid"


async def have_challenges(daemon: Any, order_ids: Sequence[str]) -> bool:
    orders = [await daemon.ask("pki.acme.orders.get", order_id=each) for each in order_ids]
    return all(each["challenges"] for each in orders)


async def is_told(daemon: Any, kind: str, member: str, value: str) -> bool:
    return any(headers["ce-type"] == kind and body[member] == value for _, headers, body in await daemon.events())


async def test_a_ca_that_forgot_the_account_ends_the_order_and_gets_no_new_account(
    make_ca: Any, make_daemon: Any
) -> None:
    """A CA that lost its data must not be given a second registration behind the administrator's back."""
    port = free_port()
    local = await make_ca(port)
    daemon = await make_daemon(local)
    account_id = await daemon.account(local)
    local.ca._ledger.accounts.clear()
    order = await daemon.issue(account_id, "x.example.test")
    assert order["status"] == "invalid"
    assert order["error"]["acme"]["type"] == "urn:ietf:params:acme:error:accountDoesNotExist"
    assert len(local.ca.accounts) == 0
    assert local.ca.requests["newOrder"] == 1


MAC_KEY = b"0123456789abcdef0123456789abcdef"


async def register(daemon: Any, local: Any, name: str, **changes: Any) -> dict[str, Any]:
    body = {"name": name, "provider": "custom", "directory_url": local.directory_url, **changes}
    reply: dict[str, Any] = await daemon.ask("pki.acme.accounts.create", **body)
    return reply


def eab(key: bytes, key_id: str = "kid-1") -> dict[str, str]:
    return {"key_id": key_id, "hmac_key": base64.urlsafe_b64encode(key).decode().rstrip("=")}


async def test_an_external_account_binding_is_made_right_and_its_failures_are_told(
    make_ca: Any, make_daemon: Any
) -> None:
    """The right key registers; a wrong or missing one is refused in the CA's words, and the name is free again."""
    local = await make_ca(free_port(), eab_keys={"kid-1": MAC_KEY}, require_eab=True)
    daemon = await make_daemon(local)
    missing = await register(daemon, local, "mine")
    assert (missing["code"], missing["acme"]["type"].rpartition(":")[2]) == ("ca_error", "externalAccountRequired")
    wrong = await register(daemon, local, "mine", eab=eab(b"f" * 32))
    assert wrong["code"] == "ca_error", wrong
    assert wrong["acme"]["type"].startswith("urn:ietf:params:acme:error:")
    unknown = await register(daemon, local, "mine", eab=eab(MAC_KEY, "kid-2"))
    assert unknown["code"] == "ca_error", unknown
    # With a binding the CA is asked first whether the key has an account: the binding may be good for one use.
    assert local.ca.requests["newAccount"] == 1 + 2 + 2
    assert len(local.ca.accounts) == 0
    right = await register(daemon, local, "mine", eab=eab(MAC_KEY))
    assert right["status"] == "valid", right
    ((_, account),) = local.ca.accounts.items()
    assert account.eab_key_id == right["eab_key_id"] == "kid-1"
    assert (await daemon.issue(right["id"], "bound.example.test"))["status"] == "valid"
    assert "MDEyMzQ1Njc4OWFiY2RlZj" not in daemon.process.log


async def test_a_binding_whose_secret_is_missing_is_not_blamed_on_the_ca(make_ca: Any, make_daemon: Any) -> None:
    """The administrator has to act, not the CA: the code says so, and the CA is not asked."""
    local = await make_ca(free_port(), eab_keys={"kid-1": MAC_KEY}, require_eab=True)
    daemon = await make_daemon(local)
    reply = await register(daemon, local, "mine", eab={"key_id": "kid-1", "hmac_key_path": "cred:absent"})
    assert reply["code"] == "secret_not_found", reply
    assert local.ca.requests["newAccount"] == 0


async def test_a_ca_with_an_unknown_root_is_named_as_such(make_ca: Any, make_daemon: Any) -> None:
    """The usual mistake with a private CA: the account waits, and says what is missing and where to give it."""
    port = free_port()
    local, stranger = await make_ca(port), await make_ca(port)
    local.trust_file.write_text(stranger.ca.root_pem)
    daemon = await make_daemon(local)
    reply = await register(daemon, local, "mine", wait_seconds=2)
    assert reply["status"] == "pending", reply
    assert reply["error"]["code"] == "ca_unavailable"
    assert "TLS certificate is not trusted" in reply["error"]["detail"]
    assert "ca_certificates_pem" in reply["error"]["detail"]
    assert local.ca.requests.total() == 0
    again = await register(daemon, local, "with its root", ca_certificates_pem=local.ca.root_pem)
    assert again["status"] == "valid", again


async def test_directories_where_no_caller_may_send_us_are_refused(make_ca: Any, make_daemon: Any) -> None:
    """Whoever may register accounts must not reach the inner network: not by number, name, family or plain http."""
    port = free_port()
    listed, unlisted = await make_ca(port), await make_ca(port)
    daemon = await make_daemon(listed)
    place = unlisted.directory_url.removeprefix("https://127.0.0.1:")
    for url in (
        unlisted.directory_url,
        f"https://localhost:{place}",
        f"https://[::1]:{place}",
        f"https://[::ffff:127.0.0.1]:{place}",
        f"https://2130706433:{place}",
        "https://169.254.169.254/latest",
        "https://10.0.0.1/directory",
        "https://0.0.0.0/directory",
    ):
        reply = await register(daemon, unlisted, "mine", directory_url=url)
        assert reply["code"] == "invalid_request", (url, reply)
        assert [each["pointer"] for each in reply["errors"]] == ["/directory_url"], url
    for url in (listed.directory_url.replace("https:", "http:"), "file:///etc/passwd", "https:///x", "nonsense"):
        reply = await register(daemon, listed, "mine", directory_url=url)
        assert reply["code"] == "invalid_request", (url, reply)
        assert [each["pointer"] for each in reply["errors"]] == ["/directory_url"], url
    assert (await daemon.ask("pki.acme.accounts.list"))["items"] == []
    assert listed.ca.requests.total() == unlisted.ca.requests.total() == 0


async def test_a_ca_cannot_send_us_into_the_inner_network(make_ca: Any, make_daemon: Any) -> None:
    """URLs come from the CA too: those at addresses nobody listed, or without TLS, are never visited."""
    visits = 0

    async def visit(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        writer.close()

    async with await asyncio.start_server(visit, "127.0.0.1", 0) as inner:
        inside = f"127.0.0.1:{inner.sockets[0].getsockname()[1]}"
        local = await make_ca(free_port())
        daemon = await make_daemon(local, acme="order_timeout_seconds = 10")
        account_id = await daemon.account(local)
        answers = {
            "authorization": {"status": "pending", "authorizations": [f"https://{inside}/a"], "finalize": "https://x/"},
            "plain": {"status": "pending", "authorizations": [f"http://{inside}/a"], "finalize": "https://x/"},
            "name": {"status": "pending", "authorizations": [f"https://localhost:{inside.split(':')[1]}/a"]},
            "finalize": {"status": "ready", "authorizations": [], "finalize": f"https://{inside}/f"},
            "certificate": {"status": "valid", "authorizations": [], "certificate": f"https://{inside}/c"},
        }
        codes = {}
        # An order that was set back asks for its state a second later, and would end well if it were told the truth.
        local.ca.misbehaviour.script["order"] = [Redirect(url=f"https://{inside}/")] * 100
        for place, answer in answers.items():
            local.ca.misbehaviour.script["newOrder"] = [Malformed(body=json.dumps(answer).encode())]
            order_id = await order_of(daemon, account_id, f"{place}.example.test")
            codes[place] = await error_code(daemon, order_id)
        assert set(codes) == set(answers)
        assert set(codes.values()) <= {"ca_error", "ca_unavailable"}
        await daemon.stop()
        assert visits == 0


async def error_code(daemon: Any, order_id: str) -> str:
    """The code of the first setback of an order, once there is one."""
    seen: list[str] = []

    async def is_set_back() -> bool:
        order = await daemon.ask("pki.acme.orders.get", order_id=order_id)
        if order["error"]:
            seen.append(order["error"]["code"])
        return bool(seen)

    await until(is_set_back, f"order {order_id} is set back")
    return seen[0]
