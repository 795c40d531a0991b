"""The built-in http-01 solver: an open hand to the listener."""

from __future__ import annotations

from typing import Any

import pytest
from scaivaultd_plugins import http01

from scaivaultd.plugin import PLUGIN_API, ChallengeResponse, SolverContext, SolverError

RESPONSE = ChallengeResponse(identifier="a.test", type="http-01", token="t1", key_authorization="t1.thumb")


class Responses:
    """What the listener would answer."""

    def __init__(self) -> None:
        self.now: dict[str, str] = {}
        self.error: Exception | None = None

    def put(self, token: str, key_authorization: str) -> None:
        if self.error is not None:
            raise self.error
        self.now[token] = key_authorization

    def remove(self, token: str) -> None:
        self.now.pop(token, None)


def context(listener: Responses) -> SolverContext:
    nothing: Any = None
    return SolverContext(http01=listener, tlsalpn01=nothing, dns01=nothing, host=nothing)


async def test_a_response_is_visible_until_it_is_cleaned_up() -> None:
    """The CA may look the moment `present` returns."""
    listener = Responses()
    (kind,) = http01.scaivaultd_challenge_solvers()
    async with kind.open(context(listener)) as solver:
        await solver.present(RESPONSE)
        assert listener.now == {"t1": "t1.thumb"}
        await solver.present(RESPONSE)
        await solver.clean_up(RESPONSE)
        assert listener.now == {}
        await solver.clean_up(RESPONSE)


async def test_other_responses_are_left_alone() -> None:
    """Orders side by side each take away exactly their own."""
    listener = Responses()
    listener.put("t2", "t2.thumb")
    (kind,) = http01.scaivaultd_challenge_solvers()
    async with kind.open(context(listener)) as solver:
        await solver.present(RESPONSE)
        await solver.clean_up(RESPONSE)
    assert listener.now == {"t2": "t2.thumb"}


async def test_what_the_listener_refuses_is_the_orders_error() -> None:
    """The order says why it failed, and the secret part is not in it."""
    listener = Responses()
    listener.error = ValueError("[http01] listen is empty")
    (kind,) = http01.scaivaultd_challenge_solvers()
    async with kind.open(context(listener)) as solver:
        with pytest.raises(SolverError, match="listen is empty") as caught:
            await solver.present(RESPONSE)
    assert not caught.value.retryable
    assert "thumb" not in caught.value.detail


def test_it_says_what_it_is_and_what_it_was_written_for() -> None:
    """The host finds it by the challenge type."""
    (kind,) = http01.scaivaultd_challenge_solvers()
    assert (kind.name, kind.challenge_type) == ("http-01", "http-01")
    assert http01.SCAIVAULTD_PLUGIN_API == PLUGIN_API
