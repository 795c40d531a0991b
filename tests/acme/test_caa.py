"""What CAA records permit, by the examples of RFC 8659 and RFC 8657 and by what people write into zones."""

from __future__ import annotations

import pytest

from scaivaultd.acme.caa import VALUE_SHOWN_MAX, verdict
from scaivaultd.model.dns import CaaRecord, CaaSet
from scaivaultd.model.names import Identifier

ACCOUNT_URL = "https://example.net/account/1234"
HTTP, DNS, TLS_ALPN = "http-01", "dns-01", "tls-alpn-01"
OWNER = "certs.example.com"

Records = tuple[tuple[int, str, str], ...]


def caa(*records: tuple[int, str, str]) -> CaaSet:
    return CaaSet(owner=OWNER, records=tuple(CaaRecord(flags=f, tag=tag, value=value) for f, tag, value in records))


def judged(
    records: Records,
    name: str = OWNER,
    challenge_type: str = HTTP,
    *,
    ca_identities: tuple[str, ...] = ("ca1.example.net",),
    account_url: str | None = ACCOUNT_URL,
) -> tuple[bool | None, str]:
    found = verdict(
        caa(*records),
        Identifier("dns", name),
        ca_identities=ca_identities,
        account_url=account_url,
        challenge_type=challenge_type,
    )
    return found.allowed, found.reason


def issue(value: str) -> tuple[int, str, str]:
    return 0, "issue", value


def wild(value: str) -> tuple[int, str, str]:
    return 0, "issuewild", value


CA1, CA2 = issue("ca1.example.net"), issue("ca2.example.org")
WILDCARD = f"*.{OWNER}"
URI = f"accounturi={ACCOUNT_URL}"
METHODS = "validationmethods"

ISSUERS: dict[str, tuple[Records, str, bool]] = {
    # RFC 8659 section 4.2
    "the issuer": ((CA1,), OWNER, True),
    "both issuers": ((CA2, CA1), OWNER, True),
    "another issuer": ((CA2,), OWNER, False),
    "no issuer at all": ((issue(";"),), OWNER, False),
    "an empty value": ((issue(""),), OWNER, False),
    "no issuer beside ours": ((issue(";"), CA1), OWNER, True),
    "malformed": ((issue("%%%%%"),), OWNER, False),
    "malformed beside ours": ((issue("%%%%%"), CA1), OWNER, True),
    "a parameter": ((issue("ca1.example.net; account=230123"),), OWNER, True),
    "two parameters": ((issue("ca1.example.net; account=1 ;policy=ev"),), OWNER, True),
    "no parameter after the semicolon": ((issue("ca1.example.net; "),), OWNER, True),
    "white space": ((issue(" \tca1.example.net\t "),), OWNER, True),
    "white space around a parameter": ((issue("ca1.example.net ; account\t= 23 "),), OWNER, True),
    "capitals in the issuer": ((issue("CA1.Example.Net"),), OWNER, True),
    "capitals in the tag": (((0, "ISSUE", "ca2.example.org"),), OWNER, False),
    "a parameter without a value": ((issue("ca1.example.net; account"),), OWNER, False),
    "a parameter with an empty value": ((issue("ca1.example.net; account="),), OWNER, True),
    "a space inside a value": ((issue("ca1.example.net; account=2 3"),), OWNER, False),
    "an impossible parameter tag": ((issue("ca1.example.net; acc_ount=23"),), OWNER, False),
    "a semicolon at the end": ((issue("ca1.example.net; account=23;"),), OWNER, False),
    "a dot at the end": ((issue("ca1.example.net."),), OWNER, False),
    "an issuer above ours": ((issue("example.net"),), OWNER, False),
    "a line behind the issuer": ((issue("ca1.example.net\n"),), OWNER, False),
    # RFC 8659 section 4.3
    "issue holds for a wildcard": ((CA1,), WILDCARD, True),
    "issue forbids a wildcard": ((CA2,), WILDCARD, False),
    "issuewild is not for other names": ((CA1, wild("ca2.example.org")), OWNER, True),
    "issuewild alone says nothing of other names": ((wild(";"),), OWNER, True),
    "issuewild stands in place of issue": ((CA1, wild("ca2.example.org")), WILDCARD, False),
    "issuewild permits": ((issue(";"), wild("ca1.example.net")), WILDCARD, True),
    "issuewild forbids": ((CA1, wild(";")), WILDCARD, False),
    # RFC 8659 sections 4.1 and 4.4, RFC 9495
    "iodef restricts nothing": (((0, "iodef", "mailto:security@example.com"),), OWNER, True),
    "critical iodef": (((128, "iodef", "mailto:security@example.com"),), OWNER, True),
    "issuemail restricts nothing here": (((128, "issuemail", ";"),), OWNER, True),
    "an unknown property": (((0, "tbs", "Unknown"),), OWNER, True),
    "a critical unknown property": (((128, "tbs", "Unknown"), CA1), OWNER, False),
    "a critical unknown property and other flags": (((129, "tbs", "Unknown"), CA1), OWNER, False),
    "other flags": (((1, "tbs", "Unknown"), CA1), OWNER, True),
    "a critical issue": (((128, "issue", "ca1.example.net"),), OWNER, True),
}


@pytest.mark.parametrize(("records", "name", "allowed"), ISSUERS.values(), ids=ISSUERS.keys())
def test_records_are_read_as_a_ca_has_to(records: Records, name: str, allowed: bool) -> None:
    """Taken wrongly, a check that blocks would stop orders the CA accepts."""
    assert judged(records, name)[0] is allowed


PARAMETERS: dict[str, tuple[Records, str, bool]] = {
    # RFC 8657 section 3
    "our account": ((issue(f"ca1.example.net; {URI}"),), HTTP, True),
    "another account": ((issue(f"ca1.example.net; {URI}5"),), HTTP, False),
    "the account in capitals": ((issue(f"ca1.example.net; accounturi={ACCOUNT_URL.upper()}"),), HTTP, False),
    "no account at all": ((issue("ca1.example.net; accounturi="),), HTTP, False),
    "two accounts in one record": ((issue(f"ca1.example.net; {URI}; {URI}"),), HTTP, False),
    "two accounts in two records": ((issue(f"ca1.example.net; {URI}5"), issue(f"ca1.example.net; {URI}")), HTTP, True),
    "any account in another record": ((issue(f"ca1.example.net; {URI}5"), CA1), HTTP, True),
    "our account at another CA": ((issue(f"ca2.example.org; {URI}"),), HTTP, False),
    # RFC 8657 section 4
    "the method": ((issue(f"ca1.example.net; {METHODS}=dns-01"),), DNS, True),
    "another method": ((issue(f"ca1.example.net; {METHODS}=dns-01"),), HTTP, False),
    "one of the methods": ((issue(f"ca1.example.net; {METHODS}=dns-01,ca-foo,tls-alpn-01"),), TLS_ALPN, True),
    "no method at all": ((issue(f"ca1.example.net; {METHODS}="),), HTTP, False),
    "a method whose name goes on": ((issue(f"ca1.example.net; {METHODS}=http-012"),), HTTP, False),
    "a malformed list": ((issue(f"ca1.example.net; {METHODS}=http-01,,dns-01"),), HTTP, False),
    "malformed labels": ((issue(f"ca1.example.net; {METHODS}=http-01,dns_01"),), HTTP, False),
    "methods twice": ((issue(f"ca1.example.net; {METHODS}=http-01; {METHODS}=dns-01"),), HTTP, False),
    "method and account": ((issue(f"ca1.example.net; {METHODS}=dns-01; {URI}"),), DNS, True),
    "method without account": ((issue(f"ca1.example.net; {METHODS}=dns-01; {URI}5"),), DNS, False),
    "the method in another record": (
        (issue(f"ca1.example.net; {METHODS}=dns-01"), issue(f"ca1.example.net; {METHODS}=http-01")),
        HTTP,
        True,
    ),
    "parameters of issuewild": (
        (issue(f"ca1.example.net; {METHODS}=http-01"), wild(f"ca1.example.net; {METHODS}=dns-01")),
        HTTP,
        True,
    ),
}


@pytest.mark.parametrize(("records", "challenge_type", "allowed"), PARAMETERS.values(), ids=PARAMETERS.keys())
def test_accounts_and_methods_are_compared(records: Records, challenge_type: str, allowed: bool) -> None:
    """The records that lock a zone to one account are those that break when the account changes."""
    assert judged(records, challenge_type=challenge_type)[0] is allowed


REASONS: dict[str, tuple[Records, str, str]] = {
    "permitted": ((CA2, CA1), HTTP, 'certs.example.com CAA 0 issue "ca1.example.net"'),
    "another CA": (
        (CA2,),
        HTTP,
        'certs.example.com CAA 0 issue "ca2.example.org" does not permit this CA: add issue "ca1.example.net"',
    ),
    "no CA": ((issue(";"),), HTTP, 'certs.example.com CAA 0 issue ";" permits no CA: add issue "ca1.example.net"'),
    "the closest of several": (
        (CA2, issue(f"ca1.example.net; {METHODS}=dns-01"), issue(";")),
        HTTP,
        (
            f'certs.example.com CAA 0 issue "ca1.example.net; {METHODS}=dns-01" (and 2 more) does not permit http-01: '
            "add it to validationmethods, or use what is listed"
        ),
    ),
    "another account": (
        (issue("ca1.example.net; accounturi=https://example.net/account/1"),),
        HTTP,
        (
            'certs.example.com CAA 0 issue "ca1.example.net; accounturi=https://example.net/account/1" is for another '
            f"account: write accounturi={ACCOUNT_URL}"
        ),
    ),
    "malformed": (
        (issue("%%"),),
        HTTP,
        'certs.example.com CAA 0 issue "%%" is malformed, which permits no CA: write it as RFC 8659 section 4.2 has it',
    ),
    "critical": (
        (CA1, (128, "tbs", "x")),
        HTTP,
        (
            'certs.example.com CAA 128 tbs "x" is critical and of a kind that CAs do not know, so none of them may '
            "issue: remove it"
        ),
    ),
    "twice": (
        (issue(f"ca1.example.net; {URI}; {URI}"),),
        HTTP,
        (
            f'certs.example.com CAA 0 issue "ca1.example.net; {URI}; {URI}" has accounturi more than once, which '
            "nobody satisfies: keep one of them"
        ),
    ),
    "an unknown parameter": (
        (issue("ca1.example.net; policy=ev"),),
        HTTP,
        'certs.example.com CAA 0 issue "ca1.example.net; policy=ev"; what policy means is the CA\'s business',
    ),
    "nothing relevant": (
        ((0, "iodef", "mailto:x@example.com"),),
        HTTP,
        "the CAA records of certs.example.com do not restrict who issues",
    ),
}


@pytest.mark.parametrize(("records", "challenge_type", "reason"), REASONS.values(), ids=REASONS.keys())
def test_the_reason_quotes_the_record_and_says_what_to_change(
    records: Records, challenge_type: str, reason: str
) -> None:
    """Who reads it has a zone file in front of them."""
    assert judged(records, challenge_type=challenge_type)[1] == reason


def test_a_wildcard_is_told_to_add_what_counts_for_it() -> None:
    """Another `issue` would change nothing where `issuewild` stands in its place."""
    assert judged((CA1, wild(";")), WILDCARD)[1].endswith('permits no CA: add issuewild "ca1.example.net"')


@pytest.mark.parametrize(
    ("records", "allowed"),
    [
        ((), True),
        (((0, "iodef", "mailto:x@example.com"),), True),
        ((CA2,), None),
        ((issue(";"), CA2), None),
        ((issue(";"), issue("%%")), False),
        (((128, "tbs", "x"), CA2), False),
    ],
)
def test_a_ca_without_identities_is_judged_by_what_holds_for_all(records: Records, allowed: bool | None) -> None:
    """`caaIdentities` is optional: not knowing a CA's name must not look like being forbidden."""
    assert judged(records, ca_identities=())[0] is allowed


def test_a_ca_without_identities_is_told_apart_in_the_reason() -> None:
    """Nobody should look for a fault in the zone."""
    assert judged((CA2,), ca_identities=())[1].endswith(
        ": this CA does not say by which name CAA records permit it (caaIdentities)"
    )
    assert judged((issue(";"),), ca_identities=())[1].endswith(" permits no CA: add issue with this CA's name")


def test_every_identity_of_the_ca_counts() -> None:
    """Let's Encrypt has one, Google and Sectigo have several."""
    assert judged((CA2,), ca_identities=("ca1.example.net", "CA2.example.org"))[0] is True


def test_an_account_without_url_cannot_be_compared() -> None:
    """It is not registered yet, so nobody can have named it."""
    record = issue(f"ca1.example.net; {URI}")
    assert judged((record,), account_url=None)[0] is None
    assert judged((issue(f"ca1.example.net; {URI}; {METHODS}=dns-01"),), account_url=None)[0] is False


def test_addresses_have_no_caa() -> None:
    """RFC 8659 is about names."""
    found = verdict(
        caa(CA2),
        Identifier("ip", "192.0.2.1"),
        ca_identities=("ca1.example.net",),
        account_url=ACCOUNT_URL,
        challenge_type=HTTP,
    )
    assert found.allowed


def test_what_a_zone_says_is_cut_and_cleaned() -> None:
    """Its owner may be anybody: no control characters, no quotes, no kilobytes in an order or a log."""
    _, reason = judged((issue('a\x1b[31m\n"\\' + "x" * 5000),))
    quoted = reason.partition(" is malformed")[0]
    assert "\x1b" not in quoted
    assert quoted.startswith('certs.example.com CAA 0 issue "a?[31m???xxx')
    assert quoted.endswith('..."')
    assert len(quoted) < VALUE_SHOWN_MAX + 60
