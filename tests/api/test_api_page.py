"""The page for people: everything is on it, it needs nobody else, and it leads where it says."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from scaivaultd.api.api_page import CONTENT_SECURITY_POLICY, api_page
from scaivaultd.api.asyncapi import asyncapi
from scaivaultd.api.commands import COMMANDS
from scaivaultd.api.events import EVENTS
from scaivaultd.api.openapi import openapi
from scaivaultd.model.errors import WIRE_ERRORS

PAGE = api_page(openapi(), asyncapi(subject_root="root.v1", events_root="root.events"))
VOID = {"meta", "link", "br", "img"}


class Reader(HTMLParser):
    """Reads a page as a browser would, and remembers what matters here."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]


def read() -> Reader:
    reader = Reader()
    reader.feed(PAGE)
    reader.close()
    assert reader.open == []
    return reader


READ = read()


def section_of(command: Any) -> str:
    """The part of the page about a command."""
    return PAGE.partition(f'<h3 id="{command.name.replace(".", "_")}">')[2].partition("</section>")[0]


def members(command: Any) -> tuple[str, ...]:
    """The members of its request."""
    found: tuple[str, ...] = command.request.__struct_fields__
    return found


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.name)
def test_every_command_is_there_with_its_subject_and_members(command: Any) -> None:
    """What the page leaves out does not exist for those who read it."""
    section = section_of(command)
    assert f"<code>{command.method} {command.path}</code>" in section
    assert f"<code>root.v1.{command.name}</code>" in section
    for error in command.errors:
        assert f'href="#error-{error.code}"' in section
    assert f'href="#message-{command.reply.__name__}"' in section


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.name)
def test_each_member_of_a_request_is_there_once_and_told_where_it_travels(command: Any) -> None:
    """It is refused anywhere else."""
    rows = re.findall(r"<code>([\w-]+)</code></th><td>(path|query|header|body)</td>", section_of(command))
    elsewhere = "query" if command.method in {"GET", "DELETE"} else "body"
    expected = [(each, "path" if f"{{{each}}}" in command.path else elsewhere) for each in members(command)]
    assert sorted(row for row in rows if row[0] != "wait" and row[1] != "header") == sorted(expected)


def test_a_member_is_told_with_its_type_bounds_default_and_meaning() -> None:
    """Without a look at the schema."""
    assert ["limit", "query", "integer (from 1 to 500)", "100", "At most so many items in one reply."] in READ.rows
    assert ["issued_before", "body", "time or null", "null", "Those whose validity began earlier."] in READ.rows
    assert ["items", "list of OrderReply", "required", ""] in READ.rows
    note = "Why, for those who read it later."
    assert ["note", "body", "string (at most 500 characters)", '""', note] in READ.rows
    issuer = "Those issued by exactly this common name."
    assert ["issuer", "body", "string (at most 200 characters) or null", "null", issuer] in READ.rows


def test_messages_are_told_once() -> None:
    """What a request's body holds stands with the request."""
    told = {place.removeprefix("message-") for place in READ.attributes("id") if place.startswith("message-")}
    assert told.isdisjoint({command.request.__name__ for command in COMMANDS})
    assert {"ProblemReply", "EabRequest", "Trouble"} <= told


def test_every_event_and_every_error_is_there() -> None:
    """Errors with what to do about them."""
    for event in EVENTS:
        assert f"root.events.{event.type}." in READ.text
    told = {row[0]: row[2] for row in READ.rows if len(row) == 3}
    for error in WIRE_ERRORS:
        assert told[error.code] == f"{error.title}. {error.remedy}".replace("`", "")


def test_links_within_the_page_lead_somewhere_and_no_place_is_twice() -> None:
    """Members lead to the messages they hold."""
    places = READ.attributes("id")
    assert len(places) == len(set(places))
    assert {link[1:] for link in READ.attributes("href") if link.startswith("#")} <= set(places)
    assert set(READ.attributes("aria-labelledby")) <= set(places)


def test_the_page_needs_nobody_else_and_no_script() -> None:
    """It is read where there is no network, and under a policy that allows nothing else."""
    assert {link for link in READ.attributes("href") if not link.startswith("#")} == {"openapi.json", "asyncapi.json"}
    assert READ.attributes("src") == []
    assert READ.attributes("style") == []
    assert "script" not in {tag for tag, _ in READ.tags}
    assert not any(name.startswith("on") for _, attributes in READ.tags for name in attributes)
    assert not re.search(r"url\(|@import|https?:", PAGE.partition("</style>")[0])


def test_the_policy_allows_exactly_the_style_of_the_page() -> None:
    """A browser compares the hash of what stands between the tags."""
    style = PAGE.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in CONTENT_SECURITY_POLICY
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'none'; ")


def test_the_page_is_fit_for_light_dark_and_paper() -> None:
    """Paper is white and 80 columns wide, whatever the screen was."""
    style = PAGE.partition("<style>")[2].partition("</style>")[0]
    paper = style.partition("@media print")[2]
    assert "@media (prefers-color-scheme: dark)" in style
    assert "max-width: 80ch" in paper
    assert "color-scheme: light;" in paper
    assert "white-space: pre-wrap" in style


def test_tables_can_be_read_aloud() -> None:
    """Every table has a caption and its heads say what they are heads of."""
    tags = [tag for tag, _ in READ.tags]
    assert tags.count("caption") == tags.count("table") > len(COMMANDS)
    assert {attributes.get("scope") for tag, attributes in READ.tags if tag == "th"} == {"col", "row"}
    assert ("html", {"lang": "en"}) in READ.tags
    assert {"header", "nav", "main"} <= set(tags)


def test_what_descriptions_say_is_text_and_never_markup() -> None:
    """A summary may hold any character."""
    document = openapi()
    document["paths"]["/livez"]["get"]["summary"] = "<script>alert(1)</script> & `a<b`"
    page = api_page(document, asyncapi(subject_root="r", events_root="e"))
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; <code>a&lt;b</code>" in page
    assert "<script" not in page


def test_examples_are_requests_as_they_are_sent() -> None:
    """A slash in a path's value would end it."""
    assert "<pre>PUT /v1/secrets/infra%2Faws%2Froute53%2Faccess-key-id\n" in PAGE
    assert "<pre>GET /v1/pki/acme/orders?status=invalid&amp;limit=20</pre>" in PAGE
    assert "<pre>GET /v1/tokens?include_ended=true</pre>" in PAGE
    assert "&quot;challenge_type&quot;: &quot;http-01&quot;" in PAGE
