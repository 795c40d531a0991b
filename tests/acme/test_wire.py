"""CA documents: demanding where we must, tolerant everywhere else."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaivaultd.acme import wire
from scaivaultd.model.errors import CaMisbehaved

DIRECTORY = {"newNonce": "https://ca/n", "newAccount": "https://ca/a", "newOrder": "https://ca/o"}


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


def test_a_directory_needs_three_urls_only() -> None:
    """`meta`, keyChange, renewalInfo and the rest are absent somewhere; odd members are put in on purpose."""
    read = wire.directory_from(encoded({**DIRECTORY, "meta": None, "Xa9F": "https://community", "website": 4}))
    assert read.new_order == "https://ca/o"
    assert read.website is None


def test_what_a_directory_offers_beyond_them_is_read() -> None:
    """Renewal information, profiles, revocation and key changes are used exactly where they are advertised."""
    read = wire.directory_from(
        encoded(
            {
                **DIRECTORY,
                "revokeCert": "https://ca/r",
                "keyChange": "https://ca/k",
                "renewalInfo": "https://ca/ari/",
                "meta": {"profiles": {"classic": "90 days", "odd": 7, "short\nlived": "6\u001bdays"}},
            }
        )
    )
    assert (read.revoke_cert, read.key_change, read.renewal_info) == ("https://ca/r", "https://ca/k", "https://ca/ari/")
    assert read.profiles == {"classic": "90 days", "short lived": "6 days"}


@pytest.mark.parametrize("value", [None, "", 7, [], {}])
def test_what_a_directory_does_not_offer_is_none(value: Any) -> None:
    """Absent at several CAs, and null or empty at others."""
    members = dict.fromkeys(("revokeCert", "keyChange", "renewalInfo"), value)
    read = wire.directory_from(encoded({**DIRECTORY, **members, "meta": {"profiles": value}}))
    assert read == wire.directory_from(encoded(DIRECTORY))


def test_an_order_echoes_what_the_ca_heeds() -> None:
    """Absent means that it does not know the member; an echo of another kind than text counts as absent."""
    order = wire.order_from(encoded({"status": "pending", "profile": "short", "replaces": "aYhb.AIdl"}))
    assert (order.profile, order.replaces) == ("short", "aYhb.AIdl")
    odd = wire.order_from(encoded({"status": "pending", "profile": {}, "replaces": ["x"]}))
    assert (odd.profile, odd.replaces) == (None, None)


@pytest.mark.parametrize("missing", sorted(DIRECTORY))
def test_a_directory_without_one_of_them_is_refused(missing: str) -> None:
    """Without these nothing works; the error must name what is missing."""
    with pytest.raises(CaMisbehaved, match=missing):
        wire.directory_from(encoded({name: url for name, url in DIRECTORY.items() if name != missing}))


def test_null_counts_as_absent() -> None:
    """Several servers send null for optional members."""
    order = wire.order_from(
        encoded({"status": "pending", "expires": None, "error": None, "certificate": None, "authorizations": ["u"]})
    )
    assert order == wire.Order(status="pending", authorizations=("u",))


def test_unknown_words_survive() -> None:
    """A state or challenge type nobody knows today must not crash anything (dns-persist-01 broke clients)."""
    read = wire.authorization_from(
        encoded(
            {
                "status": "contemplating",
                "identifier": {"type": "permanent-identifier", "value": "x"},
                "challenges": [
                    {"type": "dns-persist-01", "url": "u1", "status": "pending", "issuer-domain-names": ["ca"]},
                    {"type": "http-01", "url": "u2", "status": "pending", "token": "t", "error": "text"},
                    "nonsense",
                    {"type": 5},
                    None,
                ],
            }
        ),
        "https://ca/authz/1",
    )
    assert read.status == "contemplating"
    assert [(each.type, each.token) for each in read.challenges] == [("dns-persist-01", None), ("http-01", "t")]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"status":', b"\xff\xfe", b"[" * 50_000, b"{}"])
def test_what_is_no_order_is_called_so(body: bytes) -> None:
    """HTML, truncated, empty, deeply nested: a clear error, never a crash."""
    with pytest.raises(CaMisbehaved):
        wire.order_from(body)


def test_a_problem_keeps_what_people_need() -> None:
    """Type, detail, who is blamed and the subproblems reach the caller; the rest is cut."""
    problem = wire.problem_from(
        encoded(
            {
                "type": "urn:ietf:params:acme:error:compound",
                "detail": "x" * 10_000,
                "algorithms": ["ES256"],
                "instance": "https://ca/terms",
                "subproblems": [
                    {"type": "urn:ietf:params:acme:error:dns", "identifier": {"type": "dns", "value": "a.test"}},
                    {"type": "t", "identifier": {"type": "odd"}},
                    7,
                ],
            }
        )
    )
    assert problem is not None
    assert problem.name == "compound"
    assert len(problem.detail) <= 1000
    assert problem.algorithms == ("ES256",)
    assert [each.identifier for each in problem.subproblems] == ["a.test", None]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["status", "type", "url", "token", "identifier", "challenges", "error", "subproblems", "value"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@given(JSON)
def test_no_json_crashes_a_parser(document: Any) -> None:
    """Whatever a CA sends, the answer is an object or `CaMisbehaved`."""
    body = encoded(document)
    for parse in (wire.order_from, wire.account_from, wire.directory_from, lambda b: wire.authorization_from(b, "u")):
        with contextlib.suppress(CaMisbehaved):
            parse(body)
    wire.problem_from(body)
    wire.challenge_from(body)
