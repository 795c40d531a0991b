"""API tokens: their form, their secrecy, and who is let in."""

from __future__ import annotations

import binascii
import copy
import hashlib
import pickle
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaivaultd.api import tokens
from scaivaultd.api.tokens import (
    MalformedToken,
    TokenKind,
    TokenText,
    announcement_due,
    judge_token,
    make_token,
    parse_token,
    rotated,
)
from scaivaultd.model.access import Token, principal_of

NOW = datetime(2026, 11, 1, tzinfo=UTC)
RANDOM = bytes(range(tokens.RANDOMNESS))
OTHER = bytes(reversed(RANDOM))


def kept(of: TokenText, **changes: Any) -> Token:
    token = Token(
        id=of.id,
        name="web-ci",
        secret_sha256=of.digest(),
        created_at=NOW,
        created_by="unix:0",
        expires_at=NOW + tokens.LIFETIME,
    )
    return msgspec.structs.replace(token, **changes)


@given(st.binary(min_size=40, max_size=40))
def test_a_token_has_the_documented_form_and_reads_back(randomness: bytes) -> None:
    """Scanners for leaked secrets look for this pattern; policies and audit for an id that can be no name."""
    made = make_token(randomness)
    text = made.reveal()
    assert len(text) == 63
    assert re.fullmatch(tokens.PATTERN, text)
    again = parse_token(text)
    assert (again.kind, again.id, again.digest(), again.reveal()) == ("token", made.id, made.digest(), text)
    assert made.id[0].isupper()
    principal_of(kept(made))


def test_the_form_is_stable() -> None:
    """Tokens are out there: the same bytes must give the same token for ever, and the checksum must be CRC-32."""
    text = make_token(bytes(39) + b"\x01").reveal()
    assert text[:57] == "scvt_B0000000_" + "0" * 43
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    number = 0
    for each in text[57:]:
        number = number * 62 + digits.index(each)
    assert number == binascii.crc32(text[:57].encode())
    assert make_token(b"\xff" * 40).reveal()[14:57] == make_token(b"\xff" * 32 + bytes(8)).reveal()[14:57]


def test_all_random_bytes_of_the_secret_count() -> None:
    """256 bits in 43 characters: nothing is folded away."""
    secrets = {make_token(bytes(place) + b"\x80" + bytes(39 - place)).digest() for place in range(32)}
    assert len(secrets | {make_token(bytes(40)).digest()}) == 33


def test_what_is_kept_is_the_sha256_of_the_secret() -> None:
    """Kept digests outlive releases."""
    made = make_token(RANDOM)
    assert made.digest() == hashlib.sha256(made.reveal()[14:57].encode()).digest()


@pytest.mark.parametrize("length", [0, 32, 39, 41])
def test_a_token_is_not_made_of_too_little(length: int) -> None:
    """A short read of randomness must not become a weak token."""
    with pytest.raises(ValueError, match="40 random bytes"):
        make_token(bytes(length))


@pytest.mark.parametrize(("kind", "prefix"), [("token", "scvt_"), ("session", "scvs_"), ("bootstrap", "scvb_")])
def test_each_kind_has_its_prefix_under_the_checksum(kind: TokenKind, prefix: str) -> None:
    """A session id pasted as a token is a mistake, and must not be turned into one by its prefix."""
    text = make_token(RANDOM, kind).reveal()
    assert text.startswith(prefix)
    assert parse_token(text).kind == kind
    swapped = ("scvs_" if kind != "session" else "scvt_") + text[5:]
    with pytest.raises(MalformedToken, match="checksum"):
        parse_token(swapped)


GOOD = make_token(RANDOM).reveal()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "scvt_",
        GOOD[:-1],
        GOOD + "0",
        GOOD + "\n",
        f" {GOOD}",
        GOOD.upper(),
        "٣".join(GOOD.split("0", 1)),
        "scvx" + GOOD[4:],
    ],
)
def test_what_is_no_token_is_told_without_the_text(text: str) -> None:
    """The text may be half of a real token."""
    with pytest.raises(MalformedToken) as caught:
        parse_token(text)
    assert GOOD[14:30] not in str(caught.value)


@given(st.integers(5, 62), st.sampled_from("09AZaz_-"))
def test_one_wrong_character_is_known_without_a_look_up(place: int, character: str) -> None:
    """CRC-32 finds every burst that short."""
    wrong = GOOD[:place] + character + GOOD[place + 1 :]
    if wrong != GOOD:
        with pytest.raises(MalformedToken):
            parse_token(wrong)


def test_a_token_never_shows_its_secret() -> None:
    """Logs, exceptions, copies, JSON: none of them may hold it."""
    made = make_token(RANDOM)
    secret = made.reveal()[14:]
    for shown in (repr(made), str(made), f"{made}", str([made])):
        assert secret[:8] not in shown
        assert made.id in shown
    for leak in (pickle.dumps, copy.copy, copy.deepcopy, msgspec.json.encode, msgspec.msgpack.encode):
        with pytest.raises(TypeError):
            leak(made)
    assert not hasattr(made, "__dict__")


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "good"),
        ({"secret_sha256": bytes(32)}, "wrong"),
        ({"id": "Zz000000"}, "unknown"),
        ({"revoked_at": NOW}, "revoked"),
        ({"expires_at": NOW}, "expired"),
        ({"expires_at": NOW + timedelta(seconds=1)}, "good"),
        ({"networks": ("192.0.2.0/24",)}, "good"),
        ({"networks": ("2001:db8::/32",)}, "elsewhere"),
        ({"secret_sha256": bytes(32), "revoked_at": NOW}, "wrong"),
    ],
)
def test_a_token_is_judged(changes: dict[str, Any], verdict: str) -> None:
    """Whoever has not the secret learns nothing of the token's state."""
    presented = parse_token(GOOD)
    assert judge_token(presented, kept(presented, **changes), NOW, "192.0.2.7") == verdict


@pytest.mark.parametrize(
    ("address", "verdict"),
    [
        ("192.0.2.7", "good"),
        ("::ffff:192.0.2.7", "good"),
        ("192.0.3.7", "elsewhere"),
        ("::ffff:192.0.3.7", "elsewhere"),
        (None, "elsewhere"),
        ("nonsense", "elsewhere"),
    ],
)
def test_a_token_bound_to_networks_is_good_there_only(address: str | None, verdict: str) -> None:
    """An address that is not known is not one of them."""
    presented = parse_token(GOOD)
    token = kept(presented, networks=("192.0.2.0/24",))
    assert judge_token(presented, token, NOW, address) == verdict


def test_an_unknown_token_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long the answer takes must not tell which ids there are."""
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    presented = parse_token(GOOD)
    verdicts = [
        judge_token(presented, None, NOW, None),
        judge_token(presented, kept(make_token(OTHER), id=presented.id), NOW, None),
        judge_token(presented, kept(presented), NOW, None),
    ]
    assert verdicts == ["unknown", "wrong", "good"]
    assert compared == [(32, 32)] * 6


def test_after_a_rotation_both_secrets_are_good_for_a_day() -> None:
    """Whoever uses the token has a day to change it everywhere."""
    first = make_token(RANDOM)
    second = make_token(OTHER, token_id=first.id)
    token = rotated(kept(first), second, NOW)
    end = NOW + timedelta(hours=24)
    assert second.id == first.id
    assert judge_token(second, token, NOW, None) == "good"
    assert judge_token(first, token, end - timedelta(seconds=1), None) == "good"
    assert judge_token(first, token, end, None) == "expired"
    assert judge_token(second, token, end, None) == "good"


def test_a_second_rotation_ends_the_first_secret() -> None:
    """Rotating twice is how a leaked secret is got rid of at once."""
    first = make_token(RANDOM)
    second, third = (make_token(each, token_id=first.id) for each in (OTHER, bytes(40)))
    token = rotated(rotated(kept(first), second, NOW), third, NOW)
    assert judge_token(first, token, NOW, None) == "wrong"


def test_a_lifetime_does_not_grow_by_rotating() -> None:
    """It begins anew, as long as the last one was: a token for 90 days is one for 90 days for ever."""
    first = make_token(RANDOM)
    second = make_token(OTHER, token_id=first.id)
    token = kept(first)
    for _ in range(3):
        now = token.expires_at - timedelta(days=20)
        token = rotated(token, second, now)
        assert token.expires_at == now + tokens.LIFETIME
    now = token.expires_at - timedelta(days=20)
    token = rotated(token, second, now, lifetime=timedelta(days=5))
    assert token.expires_at == now + timedelta(days=5)
    assert rotated(token, second, now).expires_at == now + timedelta(days=5)


@pytest.mark.parametrize(
    ("overlap", "lifetime", "until"),
    [
        (timedelta(days=7), None, timedelta(days=7)),
        (timedelta(), None, timedelta()),
        (timedelta(days=7), timedelta(days=1), timedelta(days=1)),
        (timedelta(days=91), None, tokens.LIFETIME),
        (timedelta(days=91), timedelta(days=100), tokens.LIFETIME),
    ],
)
def test_a_secret_does_not_outlive_its_end(overlap: timedelta, lifetime: timedelta | None, until: timedelta) -> None:
    """An overlap lets two secrets live side by side; it makes neither of them older."""
    first = make_token(RANDOM)
    second = make_token(OTHER, token_id=first.id)
    assert rotated(kept(first), second, NOW, lifetime=lifetime, overlap=overlap).previous_until == NOW + until


@pytest.mark.parametrize(
    ("left", "changes", "days"),
    [
        (timedelta(days=14, seconds=1), {}, None),
        (timedelta(days=14), {}, 14),
        (timedelta(days=14), {"announced": 14}, None),
        (timedelta(days=3), {"announced": 14}, 3),
        (timedelta(days=3, seconds=1), {"announced": 14}, None),
        (timedelta(days=2), {}, 3),
        (timedelta(days=2), {"announced": 3}, None),
        (timedelta(days=14), {"announced": 1}, None),
        (timedelta(hours=1), {"announced": 3}, 1),
        (timedelta(seconds=1), {"announced": 1}, None),
        (timedelta(), {"announced": 3}, None),
        (timedelta(days=1), {"revoked_at": NOW}, None),
        (timedelta(days=14), {"rotated_at": NOW + tokens.LIFETIME - timedelta(days=14)}, None),
        (timedelta(days=3), {"rotated_at": NOW + tokens.LIFETIME - timedelta(days=14)}, 3),
    ],
)
def test_the_end_is_announced_at_three_moments(left: timedelta, changes: dict[str, Any], days: int | None) -> None:
    """Each once, none that lies before the secret, and after an outage only the nearest."""
    token = kept(make_token(RANDOM), **changes)
    assert announcement_due(token, token.expires_at - left) == days
