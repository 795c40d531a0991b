"""Retry-After in every form, links in every shape, and what a refusal means."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from scaivaultd.acme.exchange import Answer, CaConflict, NotOffered, error_from, is_about_replaces, is_bad_nonce
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


def test_a_link_that_is_no_url_is_left_out() -> None:
    """One that cannot be parsed must not end an order, nor hide the error it came with."""
    links = '<https://[>;rel="alternate", <cert/1>;rel="alternate"'
    assert answer(link=links).links("alternate") == ("https://ca.test/acme/order/cert/1",)
    assert isinstance(error_from(answer(400, b"", link='<https://[>;rel="help"'), "newOrder", NOW), CaRefused)


@pytest.mark.parametrize(("value", "location"), [("https://x/1", "https://x/1"), ("", None), ("https://x/é", None)])
def test_a_location_is_kept_as_it_came_or_not_at_all(value: str, location: str | None) -> None:
    """It becomes the `kid` byte for byte."""
    assert answer(location=value).location == location
    assert answer().location is None


def test_what_a_ca_has_not_got_is_not_weather() -> None:
    """501 is a 5xx that does not pass: repeated, it would be asked for for ever."""
    error = error_from(answer(501, b'{"type":"urn:ietf:params:acme:error:serverInternal"}'), "the key change", NOW)
    assert isinstance(error, NotOffered)
    assert not error.retryable


@pytest.mark.parametrize("location", [None, "https://ca.test/account/7"])
def test_a_conflict_says_where_the_other_is(location: str | None) -> None:
    """RFC 8555 section 7.3.5; where a CA does not say, it is a conflict all the same."""
    headers = {} if location is None else {"location": location}
    error = error_from(answer(409, b"", **headers), "the key change", NOW)
    assert isinstance(error, CaConflict)
    assert error.location == location


def test_a_rate_limit_with_409_is_a_rate_limit() -> None:
    """The type says more than the status."""
    error = error_from(answer(409, b'{"type":"urn:ietf:params:acme:error:rateLimited"}'), "newOrder", NOW)
    assert isinstance(error, BackendRateLimited)


@pytest.mark.parametrize(
    ("status", "name", "detail", "is_about_it"),
    [
        (409, "alreadyReplaced", "", True),
        (400, "alreadyReplaced", "no", True),
        (404, "malformed", "could not find the certificate being replaced", True),
        (400, "malformed", "Parsing ARI CertID failed", True),
        (400, "malformed", "the predecessor is unknown", True),
        (403, "unauthorized", "requester account did not request the certificate being replaced by this order", True),
        (409, "conflict", "that one has a replacement already", True),
        (400, "malformed", "the variable is irreplaceable", False),
        (404, "malformed", "no such page", False),
        (403, "unauthorized", "account is deactivated", False),
        (400, "rejectedIdentifier", "replace it by another name", False),
        (400, "invalidProfile", "replaced by another profile", False),
        (429, "rateLimited", "too many replacements", False),
        (503, "malformed", "replaces cannot be looked up now", False),
    ],
)
def test_a_refusal_of_replaces_is_told_from_a_refusal_of_the_order(
    status: int, name: str, detail: str, is_about_it: bool
) -> None:
    """Without `replaces` the same order is made at once; dropped for another reason it would cost a rate limit."""
    body = json.dumps({"type": f"urn:ietf:params:acme:error:{name}", "detail": detail}).encode()
    error = error_from(answer(status, body), "newOrder", NOW)
    assert (isinstance(error, CaRefused) and is_about_replaces(error)) is is_about_it


def test_a_refusal_without_a_problem_is_not_about_replaces() -> None:
    """There is nothing that could say so."""
    assert not is_about_replaces(CaRefused("refused"))
