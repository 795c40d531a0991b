"""Whether CAA records permit a CA, an account and a challenge type (RFC 8659, RFC 8657)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from scaivaultd.model.dns import CaaRecord, CaaSet
    from scaivaultd.model.names import Identifier

VALUE_SHOWN_MAX = 200

_CRITICAL = 128
# The registry of properties. Those that are not about TLS certificates count as known, too: which of them a CA knows
# cannot be told, and only what is certain may stop an order.
_KNOWN = frozenset({"issue", "issuewild", "iodef", "issuemail", "issuevmc", "contactemail", "contactphone"})
_WSP = " \t"
_LABEL = r"[A-Za-z0-9](?:-*[A-Za-z0-9])*"
_TAG = re.compile(_LABEL)
_ISSUER = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_PARAMETER_VALUE = re.compile(r"[\x21-\x3a\x3c-\x7e]*")
_METHOD = re.compile(r"[A-Za-z0-9-]+")
_OUR_PARAMETERS = ("accounturi", "validationmethods")


class Judgement(msgspec.Struct, frozen=True):
    """What the records say; `allowed` is None where it cannot be told. `reason` quotes the record that decides."""

    allowed: bool | None
    reason: str


def verdict(
    caa: CaaSet,
    identifier: Identifier,
    *,
    ca_identities: Collection[str],
    account_url: str | None,
    challenge_type: str,
) -> Judgement:
    """Judge the relevant record set of `identifier` as a CA has to.

    Without `ca_identities` (RFC 8555 section 7.1.1) only sets that hold for every CA can be judged.
    """
    if identifier.type != "dns" or caa.owner is None or not caa.records:
        return Judgement(True, "no CAA record")
    if strange := next((each for each in caa.records if _is_critical_and_unknown(each)), None):
        return Judgement(
            False,
            f"{_quoted(caa, strange)} is critical and of a kind that CAs do not know, so none of them may issue: "
            "remove it",
        )
    relevant = _relevant(caa.records, identifier)
    if not relevant:
        return Judgement(True, f"the CAA records of {caa.owner} do not restrict who issues")
    asked = _Asked(frozenset(each.lower() for each in ca_identities), account_url, challenge_type)
    judged = [_judge(record, asked) for record in relevant]
    for place, each in enumerate(judged):
        if each.allowed:
            return Judgement(True, _quoted(caa, relevant[place]) + each.reason)
    # What comes closest tells best what is to be changed.
    place, closest = max(enumerate(judged), key=lambda each: (each[1].closeness, -each[0]))
    more = f" (and {len(relevant) - 1} more)" if len(relevant) > 1 else ""
    unknown = any(each.allowed is None for each in judged)
    return Judgement(None if unknown else False, f"{_quoted(caa, relevant[place])}{more}{closest.reason}")


class _Asked(msgspec.Struct, frozen=True):
    ca_identities: frozenset[str]
    account_url: str | None
    challenge_type: str


class _Judged(msgspec.Struct, frozen=True):
    """`closeness` grows with what fits: the record can be read, it names our CA."""

    allowed: bool | None
    closeness: int
    reason: str


class _Property(msgspec.Struct, frozen=True):
    issuer: str
    parameters: tuple[tuple[str, str], ...]

    def values(self, tag: str) -> list[str]:
        return [value for each, value in self.parameters if each == tag]


def _is_critical_and_unknown(record: CaaRecord) -> bool:
    return bool(record.flags & _CRITICAL) and record.tag.lower() not in _KNOWN


def _relevant(records: Sequence[CaaRecord], identifier: Identifier) -> list[CaaRecord]:
    """`issuewild` stands in place of `issue` for a wildcard, and says nothing of other names (section 4.3)."""
    if identifier.is_wildcard and (wild := [each for each in records if each.tag.lower() == "issuewild"]):
        return wild
    return [each for each in records if each.tag.lower() == "issue"]


def _judge(record: CaaRecord, asked: _Asked) -> _Judged:
    parsed = _parsed(record.value)
    if parsed is None:
        # Section 4.2: as if it named no issuer.
        return _Judged(False, 0, " is malformed, which permits no CA: write it as RFC 8659 section 4.2 has it")
    if not parsed.issuer:
        return _Judged(False, 0, f" permits no CA: {_instead(record, asked)}")
    if not asked.ca_identities:
        return _Judged(None, 1, ": this CA does not say by which name CAA records permit it (caaIdentities)")
    if parsed.issuer not in asked.ca_identities:
        return _Judged(False, 1, f" does not permit this CA: {_instead(record, asked)}")
    return _judge_parameters(parsed, asked)


def _judge_parameters(parsed: _Property, asked: _Asked) -> _Judged:
    """RFC 8657: sections 3 (`accounturi`) and 4 (`validationmethods`)."""
    for tag in _OUR_PARAMETERS:
        if len(parsed.values(tag)) > 1:
            return _Judged(False, 2, f" has {tag} more than once, which nobody satisfies: keep one of them")
    for methods in parsed.values("validationmethods"):
        labels = methods.split(",")
        if not all(_METHOD.fullmatch(each) for each in labels):
            return _Judged(False, 2, " has validationmethods that cannot be read: write method,method")
        if asked.challenge_type not in labels:
            return _Judged(
                False, 2, f" does not permit {asked.challenge_type}: add it to validationmethods, or use what is listed"
            )
    for uri in parsed.values("accounturi"):
        if asked.account_url is None:
            return _Judged(None, 2, ": the account has no URL yet to compare with accounturi")
        if uri != asked.account_url:
            return _Judged(False, 2, f" is for another account: write accounturi={asked.account_url}")
    strange = [tag for tag, _ in parsed.parameters if tag not in _OUR_PARAMETERS]
    return _Judged(True, 3, f"; what {strange[0][:40]} means is the CA's business" if strange else "")


def _parsed(value: str) -> _Property | None:
    """An issue-value (section 4.2); None for what is none."""
    issuer, _, rest = value.partition(";")
    issuer = issuer.strip(_WSP)
    if issuer and not _ISSUER.fullmatch(issuer):
        return None
    parameters = []
    for text in rest.split(";") if rest.strip(_WSP) else ():
        tag, equals, content = (each.strip(_WSP) for each in text.partition("="))
        if not equals or not _TAG.fullmatch(tag) or not _PARAMETER_VALUE.fullmatch(content):
            return None
        parameters.append((tag, content))
    return _Property(issuer.lower(), tuple(parameters))


def _instead(record: CaaRecord, asked: _Asked) -> str:
    tag = record.tag.lower()
    if not asked.ca_identities:
        return f"add {tag} with this CA's name"
    return f'add {tag} "{min(asked.ca_identities)}"'


def _quoted(caa: CaaSet, record: CaaRecord) -> str:
    value = record.value if len(record.value) <= VALUE_SHOWN_MAX else f"{record.value[:VALUE_SHOWN_MAX]}..."
    return f'{caa.owner} CAA {record.flags} {_printable(record.tag[:40])} "{_printable(value)}"'


def _printable(text: str) -> str:
    """Whoever owns a zone must not write control characters, or what looks like our words, into an order."""
    return "".join(each if "\x20" <= each <= "\x7e" and each not in '"\\' else "?" for each in text)
