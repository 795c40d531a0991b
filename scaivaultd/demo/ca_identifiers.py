"""Identifiers as the development CA takes them: strictly, in their only spelling."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

import msgspec

from scaivaultd.demo.ca_problems import Refused, malformed

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class Identifier(msgspec.Struct, frozen=True, order=True):
    """What is certified; `*.` stays in front of a wildcard's name."""

    type: Literal["dns", "ip"]
    value: str

    @property
    def is_wildcard(self) -> bool:
        """Whether only dns-01 proves it."""
        return self.value.startswith("*.")

    @property
    def base(self) -> str:
        """The value of its authorization (RFC 8555 section 7.1.3)."""
        return self.value.removeprefix("*.")

    def as_json(self) -> dict[str, str]:
        """As an order shows it."""
        return {"type": self.type, "value": self.value}


def parse_identifiers(value: object) -> tuple[Identifier, ...]:
    """The identifiers of a newOrder payload, each once.

    Raises:
        Refused: malformed, unsupportedIdentifier, or rejectedIdentifier with the identifier as a subproblem.
    """
    if not isinstance(value, list) or not value:
        raise malformed("identifiers is not a list with at least one member")
    if len(value) > 100:
        raise malformed("an order has at most 100 identifiers")
    return tuple(dict.fromkeys(_parse(each) for each in value))


def _parse(value: object) -> Identifier:
    if not isinstance(value, dict) or not isinstance(value.get("value"), str):
        raise malformed("an identifier has type and value, both strings")
    text = value["value"]
    match value.get("type"):
        case "dns":
            reason = _dns_fault(text)
        case "ip":
            reason = _ip_fault(text)
        case other:
            raise Refused("unsupportedIdentifier", f"identifier type {other!r} is neither dns nor ip")
    if reason:
        subproblem = {
            "type": "urn:ietf:params:acme:error:rejectedIdentifier",
            "detail": reason,
            "identifier": {"type": value["type"], "value": text},
        }
        raise Refused("rejectedIdentifier", f"{text!r}: {reason}", members={"subproblems": [subproblem]})
    return Identifier(value["type"], text)


def _dns_fault(name: str) -> str | None:
    labels = name.removeprefix("*.").split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return "not a lower-case host name of A-labels without a trailing dot"
    if len(labels) < 2:
        return "a single label"
    if labels[-1].isdecimal():
        return "an address or nonsense, not a name"
    return None


def _ip_fault(text: str) -> str | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "not an IP address"
    if str(address) != text:
        return f"not in its canonical form {address} (RFC 5952)"
    return None
