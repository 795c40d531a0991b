"""A certificate's name in ARI, answers of every kind, one draw per window, and a polite pace."""

from __future__ import annotations

import base64
import itertools
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from scaivaultd.acme.ari import (
    RenewalInfo,
    certificate_id_for_ari,
    choose_point,
    failure_kind,
    pause_after_answer,
    pause_after_failure,
    renewal_info_from,
)
from scaivaultd.model.errors import (
    BackendRateLimited,
    CaMisbehaved,
    CaRefused,
    CaUnavailable,
    Internal,
    ScaivaultError,
    Timeout,
)
from scaivaultd.model.resources import RenewalPoint, RenewalWindow

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
KEY = ec.derive_private_key(7, ec.SECP256R1())
AUTHORITY = bytes.fromhex("69885B6B87464041E1B37B847BA0AE2CDE01C8D4")

fractions = st.floats(min_value=0, max_value=1, exclude_max=True)
moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds
lifetimes = st.timedeltas(timedelta(seconds=1), timedelta(days=4000))


def leaf(serial: int, *extensions: x509.ExtensionType) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(KEY.public_key())
        .serial_number(serial)
        .not_valid_before(NOW)
        .not_valid_after(NOW + 90 * DAY)
    )
    for each in extensions:
        builder = builder.add_extension(each, critical=False)
    return builder.sign(KEY, hashes.SHA256())


def authority(key_identifier: bytes | None) -> x509.AuthorityKeyIdentifier:
    issuer = None if key_identifier else [x509.DNSName("ca.test")]
    return x509.AuthorityKeyIdentifier(key_identifier, issuer, None if key_identifier else 1)


def answer(**members: Any) -> bytes:
    return json.dumps(members).encode()


def window(start: datetime, length: timedelta) -> RenewalWindow:
    return RenewalWindow(start=start, end=start + length)


@pytest.mark.parametrize(
    ("serial", "expected"),
    [
        (0x87654321, "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"),
        (0x7F, "aYhba4dGQEHhs3uEe6CuLN4ByNQ.fw"),
        (0x80, "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIA"),
        (0x0100, "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AQA"),
    ],
)
def test_the_certificate_id_is_that_of_the_rfc(serial: int, expected: str) -> None:
    """RFC 9773 section 4.1 gives the first line; a missing 00 octet would name another certificate."""
    assert certificate_id_for_ari(leaf(serial, authority(AUTHORITY))) == expected


@given(serial=st.integers(1, 2**159 - 1), key_identifier=st.binary(min_size=1, max_size=40))
def test_any_certificate_id_leads_back_to_its_certificate(serial: int, key_identifier: bytes) -> None:
    """Both halves are what the CA looks up: exact, minimal, positive, and without padding."""
    name = certificate_id_for_ari(leaf(serial, authority(key_identifier)))
    assert name is not None and "=" not in name
    first, second = (base64.urlsafe_b64decode(half + "=" * (-len(half) % 4)) for half in name.split("."))
    assert first == key_identifier
    assert int.from_bytes(second, "big", signed=True) == serial
    assert len(second) == 1 or second[0] != 0 or second[1] & 0x80


@pytest.mark.parametrize(
    "extensions",
    [
        (),
        (authority(None),),
        (x509.UnrecognizedExtension(x509.OID_AUTHORITY_KEY_IDENTIFIER, b"\x30\x03\x80\x05a"),),
    ],
    ids=["absent", "without_key_identifier", "unreadable"],
)
def test_without_a_key_identifier_there_is_no_ari(extensions: tuple[x509.ExtensionType, ...]) -> None:
    """Such a certificate is renewed by the local rule; it must not stop anything."""
    assert certificate_id_for_ari(leaf(1, *extensions)) is None


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2026-11-24T12:00:00Z", "2026-11-26T12:00:00Z"),
        ("2026-11-24t12:00:00z", "2026-11-26t12:00:00z"),
        ("2026-11-24T17:30:00+05:30", "2026-11-26T04:00:00-08:00"),
        ("2026-11-24T12:00:00.000Z", "2026-11-26T12:00:00.000000000Z"),
    ],
)
def test_a_window_is_read_in_every_spelling(start: str, end: str) -> None:
    """RFC 3339 has fractions and offsets; the window is kept in UTC so that the same one compares equal."""
    read = renewal_info_from(answer(suggestedWindow={"start": start, "end": end}, extra=1))
    assert read == RenewalInfo(window=window(NOW, 2 * DAY))
    assert read.window.start.tzinfo is UTC


def test_fractions_of_a_second_are_kept() -> None:
    """Cut fractions would turn a window of less than a second, as of a test CA, upside down."""
    read = renewal_info_from(
        answer(suggestedWindow={"start": "2026-11-24T12:00:00.25Z", "end": "2026-11-24T12:00:00.5Z"})
    )
    assert read.window == window(NOW + timedelta(milliseconds=250), timedelta(milliseconds=250))


GOOD = {"start": "2026-11-24T12:00:00Z", "end": "2026-11-26T12:00:00Z"}


@pytest.mark.parametrize(
    ("explanation", "expected"),
    [
        ("https://ca.test/why", "https://ca.test/why"),
        ("https://ca.test/\x1b[2J", "https://ca.test/ [2J"),
        ("", None),
        (None, None),
        (["https://ca.test/why"], None),
    ],
)
def test_the_explanation_is_kept_and_an_odd_one_spoils_nothing(explanation: object, expected: str | None) -> None:
    """People will read it in an event; it is optional, so the window counts whatever stands there."""
    read = renewal_info_from(answer(suggestedWindow=GOOD, explanationURL=explanation))
    assert read == RenewalInfo(window=window(NOW, 2 * DAY), explanation_url=expected)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff\xfe",
        b'{"suggestedWindow": "\xff"}',
        b"[" * 10_000,
        b"[]",
        b"null",
        answer(),
        answer(suggestedWindow=None),
        answer(suggestedWindow=[GOOD]),
        answer(suggestedWindow={"start": GOOD["start"]}),
        answer(suggestedWindow={"end": GOOD["end"]}),
        answer(suggestedWindow={"start": None, "end": GOOD["end"]}),
        answer(suggestedWindow={"start": 1795521600, "end": GOOD["end"]}),
        answer(suggestedWindow={"start": GOOD["start"], "end": 1_895_521_600}),
        answer(suggestedWindow={"start": "2026-11-24T12:00:00", "end": GOOD["end"]}),
        answer(suggestedWindow={"start": GOOD["start"], "end": "2026-11-26T12:00:00"}),
        answer(suggestedWindow={"start": "yesterday", "end": GOOD["end"]}),
        answer(suggestedWindow={"start": "2026-11-24", "end": GOOD["end"]}),
        answer(suggestedWindow={"start": GOOD["end"], "end": GOOD["start"]}),
        answer(suggestedWindow={"start": GOOD["start"], "end": GOOD["start"]}),
        answer(suggestedWindow={"start": "2026-11-24T13:00:00+01:00", "end": "2026-11-24T12:00:00Z"}),
        answer(suggestedWindow={"start": GOOD["start"], "end": "9999-12-31T23:59:59-12:00"}),
    ],
)
def test_an_answer_without_a_usable_window_counts_as_none(body: bytes) -> None:
    """A window upside down or in local time would renew at once or never (RFC 9773 section 4.2)."""
    with pytest.raises(CaMisbehaved):
        renewal_info_from(body)


@given(
    start=st.text() | st.integers() | st.none() | st.datetimes().map(datetime.isoformat),
    end=st.datetimes(timezones=st.just(timezone(HOUR))).map(datetime.isoformat) | st.text(),
)
def test_whatever_stands_in_a_window_it_is_sound_or_refused(start: object, end: object) -> None:
    """What a CA sends never becomes another exception, and never a window without an inside."""
    try:
        read = renewal_info_from(answer(suggestedWindow={"start": start, "end": end}))
    except CaMisbehaved:
        return
    assert read.window.start < read.window.end


@given(body=st.binary(max_size=200))
def test_any_bytes_are_sound_or_refused(body: bytes) -> None:
    """The body comes from outside; the poller's job must outlive it."""
    with pytest.raises(CaMisbehaved):
        renewal_info_from(body)


@pytest.mark.parametrize(("fraction", "hours"), [(0.0, 0), (0.25, 12), (0.5, 24)])
def test_the_point_is_drawn_evenly_in_the_window(fraction: float, hours: int) -> None:
    """The CA spreads its load by the window; a preference for one end would undo that."""
    drawn = choose_point(window(NOW, 2 * DAY), None, now=NOW - DAY, fraction=fraction)
    assert drawn == RenewalPoint(window=window(NOW, 2 * DAY), moment=NOW + hours * HOUR)


@given(start=moments, length=st.timedeltas(timedelta(microseconds=1), 100 * DAY), now=moments, fraction=fractions)
def test_a_point_lies_in_its_window_or_is_now(
    start: datetime, length: timedelta, now: datetime, fraction: float
) -> None:
    """A window that has passed (a revocation is announced so) means now, not a time that never comes again."""
    place = window(start, length)
    drawn = choose_point(place, None, now=now, fraction=fraction)
    assert drawn.moment >= now
    assert drawn.moment == now or place.start <= drawn.moment <= place.end
    assert now < place.end or drawn.moment == now


@given(seen=st.lists(st.tuples(st.integers(0, 2), moments, fractions), min_size=1, max_size=12))
def test_a_window_is_drawn_from_once_until_it_changes(seen: list[tuple[int, datetime, float]]) -> None:
    """A draw at every poll would let the earliest of many win: all would renew when the window opens."""
    points: list[RenewalPoint] = []
    for place, now, fraction in seen:
        points.append(
            choose_point(window(NOW + place * DAY, DAY), points[-1] if points else None, now=now, fraction=fraction)
        )
    for earlier, later in itertools.pairwise(points):
        assert (later is earlier) == (later.window == earlier.window)
    assert [each.window.start for each in points] == [NOW + place * DAY for place, _, _ in seen]


@pytest.mark.parametrize(
    ("asked", "pause"),
    [
        (0.0, MINUTE),
        (59.0, MINUTE),
        (61.0, timedelta(seconds=61)),
        (21_600.0, 6 * HOUR),
        (86_401.0, DAY),
        (1e300, DAY),
        (None, 6 * HOUR),
    ],
)
def test_the_next_look_is_when_the_ca_says_within_reason(asked: float | None, pause: timedelta) -> None:
    """Earlier is a breach of RFC 9773 section 4.3.2; a year later would miss a revocation."""
    assert pause_after_answer(asked, lifetime=90 * DAY, fraction=0.0) == pause


@given(asked=st.floats(60, 86_400), lifetime=lifetimes, fraction=fractions)
def test_a_usable_answers_pace_is_kept_whatever_the_lifetime(
    asked: float, lifetime: timedelta, fraction: float
) -> None:
    """Retry-After is the soonest and the latest at once: no jitter, no hurry for short lives."""
    assert pause_after_answer(asked, lifetime=lifetime, fraction=fraction) == timedelta(seconds=asked)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (CaUnavailable("503"), "temporary"),
        (Timeout("too slow"), "temporary"),
        (BackendRateLimited("429"), "temporary"),
        (CaRefused("404"), "lasting"),
        (CaMisbehaved("not JSON"), "lasting"),
        (Internal("ours"), "lasting"),
    ],
)
def test_errors_that_pass_are_told_from_those_that_stay(error: ScaivaultError, kind: str) -> None:
    """RFC 9773 section 4.3.3 wants a few tries for the first and six hours of quiet for the second."""
    assert failure_kind(error) == kind


@pytest.mark.parametrize(
    ("error", "failures", "lifetime", "pause"),
    [
        (CaUnavailable("503"), 0, 90 * DAY, MINUTE),
        (CaUnavailable("503"), 1, 90 * DAY, MINUTE),
        (CaUnavailable("503"), 2, 90 * DAY, 5 * MINUTE),
        (CaUnavailable("503"), 3, 90 * DAY, 15 * MINUTE),
        (CaUnavailable("503"), 4, 90 * DAY, 6 * HOUR),
        (CaUnavailable("503"), 4_000, 90 * DAY, 6 * HOUR),
        (CaRefused("404"), 1, 90 * DAY, 6 * HOUR),
        (CaMisbehaved("not JSON"), 1, 20 * HOUR, 2 * HOUR),
        (CaUnavailable("503"), 3, 2 * HOUR, 12 * MINUTE),
        (CaRefused("404"), 1, MINUTE, MINUTE),
        (CaUnavailable("503", retry_after=1.0), 1, 90 * DAY, MINUTE),
        (CaUnavailable("503", retry_after=1.0), 3, 90 * DAY, 15 * MINUTE),
        (CaUnavailable("503", retry_after=7_200.0), 1, 90 * DAY, 2 * HOUR),
        (CaUnavailable("503", retry_after=7_200.0), 1, 2 * HOUR, 2 * HOUR),
        (BackendRateLimited("429", retry_after=1e9), 1, 90 * DAY, DAY),
    ],
)
def test_failed_looks_are_repeated_at_their_own_pace(
    error: ScaivaultError, failures: int, lifetime: timedelta, pause: timedelta
) -> None:
    """Quick while it may help, slow when it cannot, in proportion to short lives, and never before Retry-After."""
    assert pause_after_failure(error, failures=failures, lifetime=lifetime, fraction=0.0) == pause


@given(
    error=st.sampled_from([CaUnavailable("503"), CaRefused("404"), CaMisbehaved("x")]),
    failures=st.integers(0, 1000),
    lifetime=lifetimes,
    fraction=fractions,
)
def test_no_pause_after_a_failure_is_above_a_tenth_of_the_lifetime(
    error: ScaivaultError, failures: int, lifetime: timedelta, fraction: float
) -> None:
    """Six hours would be the whole life of some certificates; less than a minute is never polite."""
    pause = pause_after_failure(error, failures=failures, lifetime=lifetime, fraction=fraction)
    assert MINUTE <= pause <= max(lifetime / 10, MINUTE)
    assert pause <= 6.6 * HOUR
