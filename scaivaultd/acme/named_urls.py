"""The URLs that a CA's documents name for us to visit: what must be judged before anything of a document is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scaivaultd.acme.wire import Directory


def of_directory(directory: Directory) -> Sequence[str]:
    """Every endpoint; pages for people (terms, website) are not visited and do not count."""
    endpoints = (
        directory.new_nonce,
        directory.new_account,
        directory.new_order,
        directory.revoke_cert,
        directory.key_change,
        directory.renewal_info,
    )
    return [url for url in endpoints if url is not None]


def of_resource(body: bytes) -> Sequence[str]:
    """Those in an order, an authorization or a challenge; none when it is no document, which its reader will say."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return ()
    return [url for url in _urls_in(document) if isinstance(url, str) and url]


def _urls_in(document: Any) -> Iterator[Any]:
    if not isinstance(document, dict):
        return
    yield document.get("finalize")
    yield document.get("certificate")
    yield from _items(document, "authorizations")
    for challenge in _items(document, "challenges"):
        if isinstance(challenge, dict):
            yield challenge.get("url")


def _items(document: dict[str, Any], name: str) -> Sequence[Any]:
    value = document.get(name)
    return value if isinstance(value, list) else ()
