"""The URLs in a CA's documents, as tables: one that is overlooked here is visited unjudged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scaivaultd.acme import named_urls, wire


@pytest.mark.parametrize(
    ("document", "urls"),
    [
        ({"status": "pending", "finalize": "f", "authorizations": ["a", "b"]}, {"f", "a", "b"}),
        ({"status": "valid", "certificate": "c", "finalize": None}, {"c"}),
        ({"challenges": [{"url": "1"}, {"type": "x"}, {"url": "2"}]}, {"1", "2"}),
        ({"authorizations": None, "challenges": None}, set()),
        ({"authorizations": ["a", 7, None, ""], "challenges": ["x", None, {"url": 3}]}, {"a"}),
        ({"authorizations": "a", "challenges": {"url": "x"}, "finalize": 1}, set()),
        (["a"], set()),
        ("a", set()),
        (None, set()),
    ],
)
def test_everything_that_will_be_visited_is_named(document: Any, urls: set[str]) -> None:
    """Members of a wrong kind count as absent, as for the reader of the document."""
    assert set(named_urls.of_resource(json.dumps(document).encode())) == urls


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_document_names_nothing(body: bytes) -> None:
    """Its reader says what is wrong with it."""
    assert list(named_urls.of_resource(body)) == []


def test_a_directory_names_its_endpoints_and_its_pages_do_not_count() -> None:
    """Terms of service are on the web site of most CAs, and only people go there."""
    members = ("newNonce", "newAccount", "newOrder", "revokeCert", "keyChange", "renewalInfo")
    document = {name: name for name in members} | {"meta": {"termsOfService": "t", "website": "w"}}
    directory = wire.directory_from(json.dumps(document).encode())
    assert set(named_urls.of_directory(directory)) == set(members)
    few = wire.directory_from(json.dumps({name: name for name in members[:3]}).encode())
    assert set(named_urls.of_directory(few)) == set(members[:3])
