"""Identifiers to certify: from what people type to what a CA is asked for.

Names become A-labels (IDNA2008 with UTS 46 non-transitional mapping), lower case, without a
trailing dot, and are refused here with a reason each, before any CA spends an attempt on them
(RFC 8555 section 7.1.4, RFC 8738 for addresses, RFC 5890 for labels).
"""

from __future__ import annotations

import hashlib
import ipaddress
from typing import TYPE_CHECKING, Literal

import idna
import msgspec

from scaivaultd.model.errors import FieldError, InvalidRequest, UnsupportedChallenge

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_IDENTIFIERS = 100
"""What the largest public profile takes; a CA's own, lower limit comes back as its problem."""

_LDH = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_DOTS = str.maketrans({"\u3002": ".", "\uff0e": ".", "\uff61": "."})  # UTS 46 section 4 step 3


class Identifier(msgspec.Struct, frozen=True, order=True):
    """One thing a certificate is for, in its only spelling: `*.` stays in front of a wildcard's name."""

    type: Literal["dns", "ip"]
    value: str

    @property
    def is_wildcard(self) -> bool:
        """Whether it covers every name one label below its base."""
        return self.value.startswith("*.")

    @property
    def base(self) -> str:
        """The name that is authorized: `example.org` for `*.example.org` (RFC 8555 section 7.1.3)."""
        return self.value.removeprefix("*.")

    def __str__(self) -> str:
        return self.value


class _Refused(Exception):
    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def parse_identifiers(texts: Sequence[str], *, public_ca: bool, pointer: str = "/domains") -> tuple[Identifier, ...]:
    """Normalise and deduplicate; the first spelling of each keeps its place.

    `public_ca` refuses what no public CA may certify: single labels, special-use top level
    names, private and reserved addresses. A private CA may certify them.

    Raises:
        InvalidRequest: with one `FieldError` for every text that is refused.
    """
    if not texts:
        raise InvalidRequest(
            "at least one name is needed", [FieldError(pointer=pointer, code="empty", detail="no name given")]
        )
    identifiers: dict[Identifier, None] = {}
    refused: list[FieldError] = []
    for place, text in enumerate(texts):
        try:
            identifiers.setdefault(_parse(text, public_ca=public_ca))
        except _Refused as reason:
            shown = text if len(text) <= 80 else f"{text[:77]}..."
            refused.append(
                FieldError(pointer=f"{pointer}/{place}", code=reason.code, detail=f"{shown!r}: {reason.detail}")
            )
    if refused:
        raise InvalidRequest(_summary(refused), refused)
    if len(identifiers) > MAX_IDENTIFIERS:
        detail = f"{len(identifiers)} different names; one certificate takes at most {MAX_IDENTIFIERS}"
        raise InvalidRequest(detail, [FieldError(pointer=pointer, code="too_many_names", detail=detail)])
    return tuple(identifiers)


def parse_zone(text: str, pointer: str) -> str:
    """A DNS name in A-labels, lower case, without a trailing dot; labels may begin with `_`, one label is enough.

    Raises:
        InvalidRequest: with one `FieldError` at `pointer`.
    """
    name = text.strip().translate(_DOTS).removesuffix(".")
    try:
        labels = [f"_{_label(each[1:])}" if each.startswith("_") else _label(each) for each in name.split(".")]
        if len(".".join(labels)) > 253:
            raise _Refused("name_too_long", "a DNS name has at most 253 characters")
    except _Refused as reason:
        detail = f"{text[:80]!r}: {reason.detail}"
        raise InvalidRequest(detail, [FieldError(pointer=pointer, code=reason.code, detail=detail)]) from None
    return ".".join(labels)


def require_resolver(text: str, pointer: str) -> None:
    """Refuse what is no `address` or `address:port` (`[v6]:port`) of a recursive nameserver; raises InvalidRequest."""
    host, _, port = text.rpartition(":") if text.count(":") == 1 or text.startswith("[") else (text, "", "")
    if text.startswith("[") and text.endswith("]"):
        host, port = text, ""
    is_port = port == "" or (port.isascii() and port.isdigit() and 0 < int(port) < 65536)
    if _address(host) is None or not is_port:
        detail = f"{text[:80]!r}: give an address, or address:port, of a nameserver"
        raise InvalidRequest(detail, [FieldError(pointer=pointer, code="bad_resolver", detail=detail)])


def require_provable(texts: Sequence[str], challenge_type: str, pointer: str = "/domains") -> None:
    """Refuse names that `challenge_type` can never prove; they must have passed `parse_identifiers`.

    Raises:
        UnsupportedChallenge: wildcards need dns-01 (RFC 8555 section 7.1.3); addresses cannot have it (RFC 8738).
    """
    refused = []
    # The caller's own texts: a pointer into the list without duplicates would point at another name.
    for place, identifier in enumerate(_parse(text, public_ca=False) for text in texts):
        if identifier.is_wildcard and challenge_type != "dns-01":
            detail = f"'{identifier}': a wildcard can only be proven by dns-01, not by {challenge_type}"
            refused.append(FieldError(pointer=f"{pointer}/{place}", code="wildcard_needs_dns_01", detail=detail))
        if identifier.type == "ip" and challenge_type == "dns-01":
            detail = f"'{identifier}': an IP address cannot be proven by dns-01; use http-01 or tls-alpn-01"
            refused.append(FieldError(pointer=f"{pointer}/{place}", code="address_has_no_dns_01", detail=detail))
    if refused:
        raise UnsupportedChallenge(_summary(refused), refused)


def name_set_key(identifiers: Iterable[Identifier]) -> str:
    """A short digest of a set of identifiers, whatever their order: the store's key for "the same names"."""
    text = "\n".join(f"{identifier.type}:{identifier.value}" for identifier in sorted(identifiers))
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _summary(refused: Sequence[FieldError]) -> str:
    more = f" (and {len(refused) - 1} more, see errors)" if len(refused) > 1 else ""
    return f"{refused[0].detail}{more}"


def _parse(text: str, *, public_ca: bool) -> Identifier:
    stripped = text.strip()
    if not stripped:
        raise _Refused("empty", "an empty name")
    address = _address(stripped)
    if address is not None:
        return _address_identifier(address, public_ca=public_ca)
    if "/" in stripped or ":" in stripped:
        raise _Refused("not_a_name", "give a bare host name or address, without scheme, port, path or prefix length")
    return _dns_identifier(stripped.translate(_DOTS), public_ca=public_ca)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return ipaddress.ip_address(bare)
    except ValueError:
        return None


def _address_identifier(address: ipaddress.IPv4Address | ipaddress.IPv6Address, *, public_ca: bool) -> Identifier:
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise _Refused("bad_address", "an address with a zone means something on this host only")
    if public_ca and not address.is_global:
        raise _Refused("private_address", "a private or reserved address; no public CA may certify it")
    return Identifier("ip", address.compressed)


def _dns_identifier(name: str, *, public_ca: bool) -> Identifier:
    wildcard = name.startswith("*.")
    base = name[2:] if wildcard else name
    if base.endswith("."):
        base = base[:-1]
    if "*" in base:
        raise _Refused("bad_wildcard", "'*' may only be the whole leftmost label")
    labels = [_label(label) for label in base.split(".")]
    ascii_name = ".".join(labels)
    if len(ascii_name) > 253 - (2 if wildcard else 0):
        raise _Refused("name_too_long", f"{len(ascii_name)} characters; a DNS name has at most 253")
    if labels[-1].isdigit():
        raise _Refused("not_a_name", "the last label is a number, so this is neither a name nor a valid address")
    if len(labels) < 2 and (public_ca or wildcard):
        raise _Refused("single_label", "a name needs at least two labels")
    if public_ca and _is_special_use(labels):
        raise _Refused("special_use", f".{labels[-1]} is reserved for special use; no public CA may certify it")
    return Identifier("dns", f"*.{ascii_name}" if wildcard else ascii_name)


# RFC 6761, 6762, 7686, 8375, 9476: never delegated in the public DNS. `test`, `example` and
# `invalid` included; .onion needs its own challenge (RFC 9799).
_SPECIAL_USE = frozenset({"alt", "example", "internal", "invalid", "local", "localhost", "onion", "test"})


def _is_special_use(labels: Sequence[str]) -> bool:
    return labels[-1] in _SPECIAL_USE or labels[-2:] == ["home", "arpa"]


def _label(label: str) -> str:
    if not label:
        raise _Refused("empty_label", "an empty label (two dots in a row, or a leading dot)")
    if label.isascii():
        return _ascii_label(label.lower())
    try:
        return idna.alabel(idna.uts46_remap(label, std3_rules=True, transitional=False)).decode("ascii")
    except (idna.IDNAError, UnicodeError) as error:
        raise _Refused("bad_idn", f"label {label!r} is not valid IDNA2008: {error}") from error


def _ascii_label(label: str) -> str:
    strange = sorted(set(label) - _LDH)
    if strange:
        raise _Refused("bad_character", f"label {label!r} has {strange[0]!r}; letters, digits and '-' are allowed")
    if len(label) > 63:
        raise _Refused("label_too_long", f"a label of {len(label)} characters; at most 63 are allowed")
    if label.startswith("-") or label.endswith("-"):
        raise _Refused("bad_hyphen", f"label {label!r} begins or ends with '-'")
    if label[2:4] == "--":
        _require_round_trip(label)
    return label


def _require_round_trip(label: str) -> None:
    if not label.startswith("xn--"):
        raise _Refused("bad_hyphen", f"label {label!r} has '--' in places 3 and 4, which is reserved")
    try:
        again = idna.alabel(idna.ulabel(label)).decode("ascii")
    except (idna.IDNAError, UnicodeError) as error:
        raise _Refused("bad_idn", f"label {label!r} is not a valid A-label: {error}") from error
    if again != label:
        raise _Refused("bad_idn", f"label {label!r} is not the A-label of what it stands for ({again!r} is)")
