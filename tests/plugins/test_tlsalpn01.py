"""The built-in tls-alpn-01 solver: an open hand to the listener."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from typing import Any

import pytest
from scaivaultd_plugins import tlsalpn01

from scaivaultd.plugin import (
    PLUGIN_API,
    ChallengeResponse,
    ChallengeSolver,
    ClaimingSolver,
    SolverContext,
    SolverError,
)

RESPONSE = ChallengeResponse(identifier="a.test", type="tls-alpn-01", token="t1", key_authorization="t1.thumb")


class Responses:
    """What the listener would show."""

    def __init__(self) -> None:
        self.now: dict[str, str] = {}
        self.error: Exception | None = None

    def put(self, identifier: str, key_authorization: str) -> None:
        if self.error is not None:
            raise self.error
        self.now[identifier] = key_authorization

    def remove(self, identifier: str) -> None:
        self.now.pop(identifier, None)


class Unused:
    """What this solver has no business with."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


@pytest.fixture
def listener() -> Responses:
    return Responses()


@pytest.fixture
async def solver(listener: Responses) -> AsyncIterator[ChallengeSolver]:
    (kind,) = tlsalpn01.scaivaultd_challenge_solvers()
    unused: Any = Unused()
    async with kind.open(SolverContext(http01=unused, tlsalpn01=listener, dns01=unused, host=unused)) as opened:
        yield opened


async def test_a_response_is_visible_until_it_is_cleaned_up(solver: ChallengeSolver, listener: Responses) -> None:
    """The CA may look the moment `present` returns; both are repeated after a restart."""
    listener.put("b.test", "other")
    for _ in range(2):
        await solver.present(RESPONSE)
        assert listener.now == {"a.test": "t1.thumb", "b.test": "other"}
    for _ in range(2):
        await solver.clean_up(RESPONSE)
        assert listener.now == {"b.test": "other"}


async def test_one_order_at_a_time_has_an_identifier(solver: ChallengeSolver) -> None:
    """A validator names the identifier only: two orders would take each other's certificate away."""
    assert isinstance(solver, ClaimingSolver)
    assert await solver.claims(RESPONSE) == {"a.test": 1}


@pytest.mark.parametrize("identifier", ["192.0.2.1", "1.2.0.192.in-addr.arpa", "1.2.0.192.IN-ADDR.ARPA"])
async def test_an_address_and_its_reverse_name_take_turns(solver: ChallengeSolver, identifier: str) -> None:
    """A validator asks for both in the same words (RFC 8738 section 6)."""
    assert isinstance(solver, ClaimingSolver)
    response = ChallengeResponse(identifier=identifier, type="tls-alpn-01", token="t1", key_authorization="t1.thumb")
    assert await solver.claims(response) == {"1.2.0.192.in-addr.arpa": 1}


@pytest.mark.parametrize(
    ("error", "is_retryable"),
    [(ValueError("'*' is neither"), False), (OSError(errno.EMFILE, "Too many open files"), True)],
)
async def test_what_the_listener_refuses_is_the_orders_error(
    solver: ChallengeSolver, listener: Responses, error: Exception, is_retryable: bool
) -> None:
    """The order says why it failed, or is tried again, and the secret part is not in it."""
    listener.error = error
    with pytest.raises(SolverError) as caught:
        await solver.present(RESPONSE)
    assert caught.value.retryable is is_retryable
    assert "thumb" not in caught.value.detail


def test_it_says_what_it_is_and_what_it_was_written_for() -> None:
    """The host finds it by the challenge type."""
    (kind,) = tlsalpn01.scaivaultd_challenge_solvers()
    assert (kind.name, kind.challenge_type) == ("tls-alpn-01", "tls-alpn-01")
    assert tlsalpn01.SCAIVAULTD_PLUGIN_API == PLUGIN_API
