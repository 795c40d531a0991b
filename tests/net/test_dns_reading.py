"""What DNS answers mean, as tables: messages as text, no sockets."""

from __future__ import annotations

import dns.edns
import dns.message
import pytest

from scaivaultd.net import dns_reading as reading
from scaivaultd.net.dns_reading import Alias, Finding, Referral, Served, Useless

NAME = "_acme-challenge.www.example.test"
SOA = "example.test. 60 IN SOA ns.example.test. h.example.test. 7 1 1 1 60"
PARENT_SOA = SOA.replace("example.test. 60", "test. 60", 1)
CHILD_SOA = f"www.{SOA}"
FOREIGN_SOA = "challtestsrv.invalid. 0 IN SOA ns.invalid. h.invalid. 1 1 1 1 1"


def answered(
    status: str = "NOERROR",
    *,
    flags: str = "QR AA",
    answer: tuple[str, ...] = (),
    authority: tuple[str, ...] = (),
    additional: tuple[str, ...] = (),
    explanation: str | None = None,
) -> dns.message.Message:
    lines = ["id 1", "opcode QUERY", f"rcode {status}", f"flags {flags}", ";QUESTION", f"{NAME}. IN TXT"]
    lines += [";ANSWER", *answer, ";AUTHORITY", *authority, ";ADDITIONAL", *additional]
    message = dns.message.from_text("\n".join(lines))
    if explanation:
        message.use_edns(0, options=[dns.edns.EDEOption(dns.edns.EDECode.SIGNATURE_EXPIRED, explanation)])
    return message


def txt(*strings: str) -> str:
    return f"{NAME}. 60 IN TXT " + " ".join(f'"{each}"' for each in strings)


REFERRAL = {
    "flags": "QR",
    "authority": ("www.example.test. 60 IN NS ns1.www.example.test.", "www.example.test. 60 IN NS NS.other.test."),
    "additional": ("ns1.www.example.test. 60 IN A 192.0.2.1", "ns.other.test. 60 IN A 192.0.2.66"),
}


@pytest.mark.parametrize(
    ("message", "finding"),
    [
        (answered(answer=(txt("x"),)), Served(None)),
        (answered(authority=(SOA,)), Served("example.test")),
        (answered("NXDOMAIN", authority=(SOA,)), Served("example.test")),
        (answered("NXDOMAIN", authority=(CHILD_SOA,)), Served("www.example.test")),
        (answered("NXDOMAIN", authority=(FOREIGN_SOA,)), Served(None)),
        (answered(answer=(f"{NAME}. 60 IN CNAME X.Other.test.",)), Alias("x.other.test")),
        (answered("NXDOMAIN", answer=(f"{NAME}. 60 IN CNAME x.other.test.",)), Alias("x.other.test")),
        (answered("SERVFAIL", answer=(f"{NAME}. 60 IN CNAME {NAME}.",)), Alias(NAME)),
        (answered(answer=(f"{NAME.upper()}. 60 IN CNAME x.other.test.",)), Alias("x.other.test")),
        (
            answered(**REFERRAL),  # type: ignore[arg-type]  # three keywords of two types
            Referral(
                "www.example.test",
                ("ns.other.test", "ns1.www.example.test"),
                {"ns1.www.example.test": ("192.0.2.1",)},
            ),
        ),
        (answered(flags="QR", answer=(txt("x"),)), Useless("NOERROR without authority")),
        (answered(flags="QR", answer=(f"{NAME}. 60 IN CNAME x.test.",)), Useless("NOERROR without authority")),
        (answered("NXDOMAIN", flags="QR", authority=(SOA,)), Useless("NXDOMAIN without authority")),
        (answered(flags="QR", authority=(". 60 IN NS ns.root.",)), Useless("NOERROR without authority")),
        (answered(flags="QR", authority=("test. 60 IN NS ns.test.",)), Useless("NOERROR without authority")),
        (answered(flags="QR", authority=("example.test. 60 IN NS ns.test.",)), Useless("NOERROR without authority")),
        (answered(flags="QR", authority=("a.example.test. 60 IN NS n.test.",)), Useless("NOERROR without authority")),
        (answered("REFUSED", flags="QR"), Useless("REFUSED")),
        (
            answered("SERVFAIL", explanation="late\x1b[2J"),
            Useless("SERVFAIL (signature expired (EDE 7, late?[2J))"),
        ),
    ],
)
def test_what_a_server_of_a_zone_says(message: dns.message.Message, finding: Finding) -> None:
    """Each way to be wrong has its own name; an upward or sideways referral is the mark of a lame server."""
    assert reading.finding_of(message, NAME, "example.test") == finding


@pytest.mark.parametrize(
    ("message", "zone"),
    [
        (answered(answer=(SOA.replace("example.test.", f"{NAME}.", 1),)), NAME),
        (answered(authority=(SOA,)), "example.test"),
        (answered("NXDOMAIN", flags="QR RA", authority=(PARENT_SOA,)), "test"),
        (answered("NXDOMAIN", authority=(". 60 IN SOA a.root. b.root. 1 1 1 1 1",)), "."),
        (answered(answer=(f"{NAME}. 60 IN CNAME x.example.test.",), authority=(SOA,)), None),
        (answered(authority=(FOREIGN_SOA,)), None),
        (answered(authority=("w.example.test. 60 IN SOA a.root. b.root. 1 1 1 1 1",)), None),
        (answered("NOTIMP", authority=(SOA,)), None),
        (answered("SERVFAIL", authority=(SOA,)), None),
        (answered(), None),
    ],
)
def test_which_zone_an_answer_tells(message: dns.message.Message, zone: str | None) -> None:
    """A SOA proves something only if it stands at or above the name, and no CNAME came in between."""
    assert reading.zone_of(message, NAME) == zone


@pytest.mark.parametrize(
    ("message", "answer", "detail", "serial"),
    [
        (answered(answer=(txt("one"), txt("two"))), "complete", "NOERROR, has 2 of 2 values", None),
        (
            answered(answer=(txt("one"), txt("two"), txt("three"))),
            "complete",
            "NOERROR, has 2 of 2 values (and 1 other)",
            None,
        ),
        (answered(answer=(txt("o", "ne"), txt("tw", "", "o"))), "complete", "NOERROR, has 2 of 2 values", None),
        (
            answered(answer=(txt("one"), txt("a"), txt("b"), txt("c"))),
            "partial",
            "NOERROR, has 1 of 2 values (and 3 others)",
            None,
        ),
        (answered(answer=(txt("One"), txt(" two"))), "absent", "NOERROR, has 0 of 2 values (and 2 others)", None),
        (answered(authority=(SOA,)), "absent", "NOERROR, no TXT records", 7),
        (answered("NXDOMAIN", authority=(SOA,)), "absent", "NXDOMAIN", 7),
        (answered(authority=(FOREIGN_SOA,)), "absent", "NOERROR, no TXT records", None),
        (
            answered(answer=(f"{NAME}. 60 IN CNAME x.test.", 'x.test. 60 IN TXT "one"')),
            "absent",
            "NOERROR, a CNAME to x.test stands there now",
            None,
        ),
        (answered("REFUSED", flags="QR"), "refused", "REFUSED", None),
        (answered("SERVFAIL"), "failed", "SERVFAIL", None),
        (
            answered(flags="QR RA", answer=(txt("one"), txt("two"))),
            "not_authoritative",
            "NOERROR without authority (lame)",
            None,
        ),
    ],
)
def test_what_an_answer_says_of_values(
    message: dns.message.Message, answer: str, detail: str, serial: int | None
) -> None:
    """A person reads the words at night; the daemon goes by the verdict."""
    judgement = reading.judgement_of(message, NAME, ["one", "two"], needs_authority=True)
    assert (judgement.answer, judgement.detail, judgement.serial) == (answer, detail, serial)


def test_a_resolver_needs_no_authority() -> None:
    """It never has any."""
    message = answered(flags="QR RA", answer=(txt("one"),))
    assert reading.judgement_of(message, NAME, ["one"], needs_authority=False).detail == "NOERROR, has 1 of 1 value"


def test_chains_are_followed_and_circles_end() -> None:
    """An answer may be made up by anyone; reading it must end."""
    chain = (f"{NAME}. 60 IN CNAME b.test.", "b.test. 60 IN CNAME c.test.", "c.test. 60 IN A 192.0.2.1")
    message = answered(answer=chain)
    assert reading.end_of_chain(message, NAME) == "c.test"
    assert reading.addresses(message, NAME, dns.rdatatype.A) == ("192.0.2.1",)
    circle = answered(answer=(f"{NAME}. 60 IN CNAME b.test.", f"b.test. 60 IN CNAME {NAME}."))
    assert reading.addresses(circle, NAME, dns.rdatatype.A) == ()
