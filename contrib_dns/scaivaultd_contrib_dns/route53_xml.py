"""Route 53's XML: what it says as Structs, what we ask as bytes. Namespaces are ignored, unknown elements skipped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NoReturn
from xml.etree import ElementTree

import msgspec

from scaivaultd.plugin import TransientError, normal_name

NAMESPACE = "https://route53.amazonaws.com/doc/2013-04-01/"
TEXT_MAX = 1000

Action = Literal["CREATE", "DELETE", "UPSERT"]


class HostedZone(msgspec.Struct, frozen=True, kw_only=True):
    """A hosted zone; the id without `/hostedzone/`, the name without its dot. Listings leave `name_servers` out."""

    id: str
    name: str
    is_private: bool
    name_servers: tuple[str, ...] = ()


class ZonePage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of hosted zones, and where the next begins; None when this is the last."""

    zones: tuple[HostedZone, ...]
    next_name: str | None
    next_id: str | None


class RecordSet(msgspec.Struct, frozen=True, kw_only=True):
    """A record set as the service has it: a DELETE must repeat all of it exactly, so texts stay as they came."""

    name: str
    type: str
    ttl: int | None
    values: tuple[str, ...]
    set_identifier: str | None = None
    is_multivalue: bool = False


class RecordPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of record sets, and where the next begins; None when this is the last."""

    sets: tuple[RecordSet, ...]
    next_name: str | None
    next_type: str | None
    next_identifier: str | None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One element of a change batch."""

    action: Action
    record_set: RecordSet


class AwsFault(msgspec.Struct, frozen=True, kw_only=True):
    """An error as AWS words it."""

    code: str
    message: str
    request_id: str


class _Builder(ElementTree.TreeBuilder):
    """Nothing that AWS sends has a document type; entities, the only use of one here, can be bombs."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        raise TransientError("the service answers with a document type, as gateways' pages have; not read")


def parse(body: bytes) -> ElementTree.Element:
    """The root element.

    Raises:
        TransientError: it is no XML that AWS sends, such as a gateway's page.
    """
    parser = ElementTree.XMLParser(target=_Builder())  # noqa: S314 - document types, thus entities, are refused above
    try:
        parser.feed(body)
        root = parser.close()
    # An encoding that the parser does not know is none of ParseError.
    except (ElementTree.ParseError, LookupError, ValueError):
        raise TransientError("the service answers with something that is not XML") from None
    assert isinstance(root, ElementTree.Element)
    return root


def zone_page(body: bytes) -> ZonePage:
    """A reply of ListHostedZonesByName."""
    root = _listing(body, "HostedZones")
    more = _flag(root, "IsTruncated")
    return ZonePage(
        zones=tuple(_zone(each) for each in _children(root, "HostedZones")),
        next_name=_text(root, "NextDNSName") if more else None,
        next_id=_text(root, "NextHostedZoneId") if more else None,
    )


def hosted_zone(body: bytes) -> HostedZone:
    """A reply of GetHostedZone."""
    root = parse(body)
    found = _child(root, "HostedZone")
    if found is None:
        raise TransientError("the service describes no hosted zone in its answer")
    delegation = _child(root, "DelegationSet")
    servers = _children(delegation, "NameServers") if delegation is not None else ()
    return msgspec.structs.replace(_zone(found), name_servers=tuple(plain_name(each.text or "") for each in servers))


def record_page(body: bytes) -> RecordPage:
    """A reply of ListResourceRecordSets."""
    root = _listing(body, "ResourceRecordSets")
    more = _flag(root, "IsTruncated")
    return RecordPage(
        sets=tuple(_record_set(each) for each in _children(root, "ResourceRecordSets")),
        next_name=_text(root, "NextRecordName") if more else None,
        next_type=_text(root, "NextRecordType") if more else None,
        next_identifier=_text(root, "NextRecordIdentifier") if more else None,
    )


def change_info(body: bytes) -> tuple[str, str]:
    """The id, without `/change/`, and the status in a reply of ChangeResourceRecordSets or GetChange."""
    found = _child(parse(body), "ChangeInfo")
    if found is None:
        raise TransientError("the service says nothing of the change in its answer")
    return (_text(found, "Id") or "").rpartition("/")[2], _text(found, "Status") or ""


def fault(body: bytes) -> AwsFault | None:
    """The error in an answer of Route 53 or STS; None when it holds none.

    InvalidChangeBatch comes either as an `ErrorResponse` like all others or as a list of messages.
    """
    try:
        root = parse(body)
    except TransientError:
        return None  # a gateway's page, often with a document type: its status says enough
    error = root if _local(root) in ("InvalidChangeBatch", "Error") else _child(root, "Error")
    if error is None:
        return None
    messages = [each.text or "" for each in _children(error, "Messages")] or [_text(error, "Message") or ""]
    messages = [text for text in messages if text] or [_text(error, "message") or ""]
    return AwsFault(
        code=_text(error, "Code") or _local(root),
        message="; ".join(messages)[:TEXT_MAX],
        request_id=_text(root, "RequestId") or _text(root, "RequestID") or "",
    )


def element_texts(body: bytes, parent: str) -> dict[str, str]:
    """The texts below the first element called `parent`, anywhere in a document."""
    for each in parse(body).iter():
        if _local(each) == parent:
            return {_local(child): child.text or "" for child in each}
    return {}


def change_batch(changes: Sequence[Change]) -> bytes:
    """The body of ChangeResourceRecordSets, elements in the order of the service's schema."""
    root = ElementTree.Element("ChangeResourceRecordSetsRequest", {"xmlns": NAMESPACE})
    batch = _add(_add(root, "ChangeBatch"), "Changes")
    for change in changes:
        element = _add(batch, "Change")
        _add(element, "Action", change.action)
        _add_record_set(element, change.record_set)
    encoded: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return encoded


def plain_name(name: str) -> str:
    r"""A name as we compare it: escapes such as `\052` are octal here, unlike in RFC 1035."""
    return normal_name(re.sub(r"\\([0-3][0-7]{2})", lambda match: chr(int(match[1], 8)), name))


def _listing(body: bytes, members: str) -> ElementTree.Element:
    # A gateway's page can be XML, too; taken for an empty list it says that there is nothing left to remove.
    root = parse(body)
    if _child(root, members) is None:
        raise TransientError(f"the service's answer has no {members}")
    return root


def _zone(element: ElementTree.Element) -> HostedZone:
    config = _child(element, "Config")
    return HostedZone(
        id=(_text(element, "Id") or "").rpartition("/")[2],
        name=plain_name(_text(element, "Name") or ""),
        is_private=config is not None and _flag(config, "PrivateZone"),
    )


def _record_set(element: ElementTree.Element) -> RecordSet:
    ttl = _text(element, "TTL")
    return RecordSet(
        name=_text(element, "Name") or "",
        type=_text(element, "Type") or "",
        ttl=int(ttl) if ttl and ttl.isdigit() else None,
        values=tuple(_text(each, "Value") or "" for each in _children(element, "ResourceRecords")),
        set_identifier=_text(element, "SetIdentifier"),
        is_multivalue=_flag(element, "MultiValueAnswer"),
    )


def _add_record_set(parent: ElementTree.Element, record_set: RecordSet) -> None:
    element = _add(parent, "ResourceRecordSet")
    _add(element, "Name", record_set.name)
    _add(element, "Type", record_set.type)
    if record_set.set_identifier is not None:
        _add(element, "SetIdentifier", record_set.set_identifier)
    if record_set.is_multivalue:
        _add(element, "MultiValueAnswer", "true")
    _add(element, "TTL", str(record_set.ttl))
    records = _add(element, "ResourceRecords")
    for value in record_set.values:
        _add(_add(records, "ResourceRecord"), "Value", value)


def _add(parent: ElementTree.Element, name: str, text: str | None = None) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, name)
    element.text = text
    return element


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _child(element: ElementTree.Element, name: str) -> ElementTree.Element | None:
    return next((each for each in element if _local(each) == name), None)


def _children(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    found = _child(element, name)
    return iter(found if found is not None else ())


def _text(element: ElementTree.Element, name: str) -> str | None:
    found = _child(element, name)
    return None if found is None else found.text or ""


def _flag(element: ElementTree.Element, name: str) -> bool:
    return (_text(element, name) or "").strip().lower() in ("true", "1")
