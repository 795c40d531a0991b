"""The descriptions of the API as everybody may read them: OpenAPI, AsyncAPI, and both as a page for people."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.api.api_page import CONTENT_SECURITY_POLICY, api_page
from scaivaultd.api.asyncapi import asyncapi
from scaivaultd.api.openapi import openapi
from scaivaultd.gateways.rest_conditions import etag_of
from scaivaultd.gateways.rest_replies import JSON

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE_PATHS = frozenset({"/openapi.json", "/asyncapi.json", "/docs"})


class Subjects(msgspec.Struct, frozen=True, kw_only=True):
    """Where the daemon is on NATS, for the description of it."""

    requests: str
    events: str


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """What is served under one path."""

    body: bytes
    content_type: str
    etag: str
    headers: Mapping[str, str] = {}


class Pages:
    """All of `PAGE_PATHS`; made when the first is asked for."""

    def __init__(self, subjects: Subjects) -> None:
        self._subjects = subjects
        self._making = asyncio.Lock()
        self._made: Mapping[str, Page] | None = None

    async def get(self, path: str) -> Page:
        """One of them, by its path."""
        async with self._making:
            if self._made is None:
                # A tenth of a second of work: not while everybody else waits.
                self._made = await asyncio.to_thread(_pages, self._subjects)
        return self._made[path]


def _pages(subjects: Subjects) -> Mapping[str, Page]:
    rest = openapi()
    nats = asyncapi(subject_root=subjects.requests, events_root=subjects.events)
    docs = api_page(rest, nats).encode()
    policy = {"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Referrer-Policy": "no-referrer"}
    return {
        "/openapi.json": _page(msgspec.json.encode(rest), JSON),
        "/asyncapi.json": _page(msgspec.json.encode(nats), JSON),
        "/docs": _page(docs, "text/html; charset=utf-8", policy),
    }


def _page(body: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> Page:
    return Page(body=body, content_type=content_type, etag=etag_of(body), headers=headers or {})
