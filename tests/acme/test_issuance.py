"""What an order needs next, as a table of views and steps."""

from __future__ import annotations

from typing import Any

import pytest

from scaivaultd.acme.issuance import (
    RESPONSES_MAX,
    AnswerAgain,
    Download,
    Finalize,
    GiveUp,
    PollOrder,
    Prove,
    Read,
    Step,
    View,
    next_step,
)
from scaivaultd.acme.wire import Authorization, Challenge, Order
from scaivaultd.model.errors import Problem

REFUSED = Problem(type="urn:ietf:params:acme:error:unauthorized", detail="saw the wrong thing")


def challenge(status: str = "pending", **changes: Any) -> Challenge:
    return Challenge(**{"type": "http-01", "url": "c1", "token": "t", "status": status, **changes})


def authorization(status: str = "pending", *challenges: Challenge, url: str = "z1", **changes: Any) -> Authorization:
    return Authorization(
        url=url, status=status, identifier="a.test", challenges=challenges or (challenge(),), **changes
    )


def view(status: str, *authorizations: Authorization, **changes: Any) -> View:
    order_changes = {name: changes.pop(name) for name in ("certificate", "error") if name in changes}
    order = Order(status=status, authorizations=("z1",), **order_changes)
    return View(order=order, challenge_type="http-01", authorizations=authorizations, **changes)


@pytest.mark.parametrize(
    ("shown", "step"),
    [
        (view("pending"), Read(("z1",))),
        (view("pending", authorization()), Prove(((authorization(), challenge()),))),
        (view("pending", authorization(), responses={"c1": 1}), PollOrder()),
        (view("pending", authorization("valid")), PollOrder()),
        (view("pending", authorization("pending", challenge("processing")), responses={"c1": 0}), PollOrder()),
        (view("pending", authorization("mulling")), PollOrder()),
        (view("ready", authorization("valid")), Finalize()),
        (view("ready"), Finalize()),
        (view("processing"), PollOrder()),
        (view("quarantined"), PollOrder()),
        (view("valid"), PollOrder()),
        (view("valid", certificate="https://ca/cert"), Download("https://ca/cert")),
        (view("invalid"), Read(("z1",))),
    ],
)
def test_each_state_has_its_step(shown: View, step: Step) -> None:
    """RFC 8555 section 7.1.6 as a table; unknown states mean: look again later."""
    assert next_step(shown) == step


def test_a_challenge_at_work_is_presented_again_after_a_restart() -> None:
    """The CA may come and look at any moment; what it looks for must be there, answered or not."""
    at_work = authorization("pending", challenge("processing"))
    step = next_step(view("pending", at_work))
    assert step == Prove(((at_work, challenge("processing")),))


def test_exactly_one_challenge_of_the_wanted_type_is_answered() -> None:
    """RFC 8555 section 7.5.1; unknown types beside it, and types without token, do not matter."""
    offered = authorization(
        "pending",
        challenge(type="dns-persist-01", token=None, url="c0"),
        challenge(),
        challenge(type="dns-01", url="c2"),
    )
    step = next_step(view("pending", offered))
    assert isinstance(step, Prove)
    assert [each.url for _, each in step.challenges] == ["c1"]


def test_a_type_that_is_not_offered_is_an_error_that_lists_the_offered_ones() -> None:
    """The caller chose the type; only the caller can choose another."""
    step = next_step(view("pending", authorization("pending", challenge(type="dns-01"))))
    assert isinstance(step, GiveUp)
    assert step.trouble.code == "challenge_failed"
    assert "only dns-01" in step.trouble.identifiers[0].detail


def test_a_pending_challenge_with_an_error_is_answered_again_a_few_times() -> None:
    """smallstep CAs validate inside the POST and leave a failed challenge pending, for ever if one lets them."""
    stuck = authorization("pending", challenge(error=REFUSED))
    assert next_step(view("pending", stuck, responses={"c1": 1})) == AnswerAgain((challenge(error=REFUSED),))
    step = next_step(view("pending", stuck, responses={"c1": RESPONSES_MAX}))
    assert isinstance(step, GiveUp)
    assert step.trouble.identifiers[0].detail == "saw the wrong thing"


def test_an_error_from_before_our_time_does_not_count() -> None:
    """A shared pending authorization may carry an earlier client's failure."""
    inherited = authorization("pending", challenge(error=REFUSED))
    assert isinstance(next_step(view("pending", inherited)), Prove)


def test_a_failed_authorization_ends_the_order_with_its_cause() -> None:
    """Name, challenge type, problem type, the CA's words and subproblems all reach the caller."""
    subproblem = Problem(type="dns", detail="from Tokyo")
    failed = authorization(
        "invalid",
        challenge("invalid", error=Problem(type="urn:x", detail="no", subproblems=(subproblem,))),
        wildcard=True,
    )
    for shown in (view("pending", failed), view("invalid", failed, settled=True)):
        step = next_step(shown)
        assert isinstance(step, GiveUp)
        (trouble,) = step.trouble.identifiers
        assert (trouble.identifier, trouble.challenge_type, trouble.type) == ("*.a.test", "http-01", "urn:x")
        assert trouble.subproblems == (subproblem,)


def test_an_order_that_names_its_culprits_itself_is_understood() -> None:
    """Small CAs put the cause only into the order's error, with subproblems for each name."""
    error = Problem(
        type="urn:ietf:params:acme:error:compound",
        subproblems=(Problem(type="urn:ietf:params:acme:error:caa", detail="forbidden", identifier="a.test"),),
    )
    step = next_step(view("invalid", authorization("valid"), settled=True, error=error))
    assert isinstance(step, GiveUp)
    assert step.trouble.identifiers[0].type.endswith(":caa")
    assert step.trouble.acme == error


def test_an_order_without_any_reason_still_gets_an_answer() -> None:
    """Some CAs give none; the caller must not be left with an empty error."""
    step = next_step(view("invalid", authorization("valid"), settled=True))
    assert isinstance(step, GiveUp)
    assert "no reason" in step.trouble.detail
