"""Retry-After in every form, links in every shape, and what a refusal means."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from scaivaultd.acme.exchange import Answer, error_from, is_bad_nonce
from scaivaultd.model.errors import BackendRateLimited, CaMisbehaved, CaRefused, CaUnavailable, ScaivaultError

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)


def answer(status: int = 200, body: bytes = b"", **headers: str) -> Answer:
    pairs = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Answer(url="https://ca.test/acme/order/1", status=status, headers=pairs, body=body)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("Tue, 24 Nov 2026 12:00:10 GMT", 10.0),
        ("Tuesday, 24-Nov-26 12:00:10 GMT", 10.0),
        ("Tue Nov 24 12:00:10 2026", 10.0),
        ("Tue, 24 Nov 2026 11:00:00 GMT", None),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("1.5", None),
        ("99999999999999999999", 100 * 365 * 86_400),
        ("99999999999999999999999999", None),
    ],
)
def test_retry_after_is_read_in_every_form(value: str, seconds: float | None) -> None:
    """RFC 9110 section 10.2.3 has two forms and three date formats; nonsense counts as absent."""
    assert answer(retry_after=value).retry_after(NOW) == seconds


def test_a_retry_after_date_counts_from_the_answers_own_date() -> None:
    """A wrong clock on this host must not turn ten seconds into five hours."""
    skewed = answer(retry_after="Tue, 24 Nov 2026 07:00:10 GMT", date="Tue, 24 Nov 2026 07:00:00 GMT")
    assert skewed.retry_after(NOW) == 10.0


def test_links_come_from_every_header_and_every_place_in_it() -> None:
    """Alternate chains are announced in several Link headers, or several in one."""
    headers = (
        ("link", '<https://ca.test/cert/1>;rel="alternate", </cert/2>; title="a, b"; rel=alternate'),
        ("link", '<https://ca.test/directory>; rel="index"'),
        ("link", '<https://ca.test/cert/3>; rel="up alternate"'),
        ("link", "not a link at all"),
    )
    found = Answer(url="https://ca.test/cert/0", status=200, headers=headers, body=b"").links("alternate")
    assert found == ("https://ca.test/cert/1", "https://ca.test/cert/2", "https://ca.test/cert/3")


@pytest.mark.parametrize(
    ("value", "nonce"),
    [
        ("abc-_DEF123", "abc-_DEF123"),
        ("AAAAAAAAAAAAAAAAAAAAAB", "AAAAAAAAAAAAAAAAAAAAAB"),
        ("a b", None),
        ("a+b/", None),
    ],
)
def test_a_malformed_nonce_counts_as_absent(value: str, nonce: str | None) -> None:
    """RFC 8555 section 6.5.1: ignore what is not base64url, and never decode what is."""
    assert answer(replay_nonce=value).nonce == nonce


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (429, b"{}", BackendRateLimited, "limits"),
        (403, b'{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many"}', BackendRateLimited, "too many"),
        (500, b"<html>", CaUnavailable, "500"),
        (503, b'{"type":"urn:ietf:params:acme:error:serverInternal"}', CaUnavailable, "serverInternal"),
        (302, b"", CaMisbehaved, "redirect"),
        (403, b'{"type":"urn:ietf:params:acme:error:unauthorized","detail":"no"}', CaRefused, "unauthorized: no"),
        (404, b"", CaRefused, "404"),
        (400, b"[" * 100_000, CaRefused, "400"),
        (400, b'{"type": 7, "detail": null, "subproblems": {"a": 1}}', CaRefused, "about:blank"),
    ],
)
def test_a_refusal_becomes_the_error_it_stands_for(
    status: int, body: bytes, kind: type[ScaivaultError], words: str
) -> None:
    """What may be tried again must be told from what may not, whatever the body looks like."""
    error = error_from(answer(status, body), "newOrder", NOW)
    assert type(error) is kind
    assert words in str(error)


def test_a_rate_limit_tells_until_when() -> None:
    """Whoever waits has to know how long; the help link leads to the CA's own page."""
    refused = answer(
        429,
        b'{"type":"urn:ietf:params:acme:error:rateLimited","detail":"5 certificates already"}',
        retry_after="60",
        link='<https://ca.test/docs/limits>;rel="help"',
    )
    error = error_from(refused, "newOrder", NOW)
    assert isinstance(error, BackendRateLimited)
    assert error.problem is not None
    assert error.problem.help_url == "https://ca.test/docs/limits"
    assert (error.retry_after, error.retry_at) == (60.0, datetime(2026, 11, 24, 12, 1, tzinfo=UTC))


def test_terminal_escapes_of_a_ca_do_not_survive() -> None:
    """CA text ends in terminals and logs; it must not move the cursor there."""
    error = error_from(answer(400, b'{"type":"x","detail":"a\\u001b[2Jb\\nc"}'), "newOrder", NOW)
    assert "\x1b" not in str(error)
    assert "\n" not in str(error)


def test_only_a_bad_nonce_is_a_bad_nonce() -> None:
    """badNonce is weather (RFC 8555 section 6.5); nothing else may be repeated for free."""
    assert is_bad_nonce(answer(400, b'{"type":"urn:ietf:params:acme:error:badNonce"}'))
    assert not is_bad_nonce(answer(400, b'{"type":"urn:ietf:params:acme:error:malformed"}'))
    assert not is_bad_nonce(answer(200, b'{"type":"urn:ietf:params:acme:error:badNonce"}'))
