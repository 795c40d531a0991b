"""A failed order as it is told: whose words, what was seen, and the one remedy."""

from __future__ import annotations

from typing import Any

import pytest

from scaivaultd import ctl_failure
from scaivaultd.ctl_failure import Case

ACME = "urn:ietf:params:acme:error:"
V4, V6 = "192.0.2.7:80", "[2001:db8::7]:80"


def sight(saw: str, where: str = V4, check: str = "http-01", *, ok: bool | None = False) -> dict[str, Any]:
    return {"identifier": "www.example.org", "check": check, "where": where, "saw": saw, "ok": ok}


def case(*seen: dict[str, Any], challenge: str = "http-01", problem: str = "unauthorized", words: str = "no") -> Case:
    return Case("www.example.org", challenge, problem, words, seen)


FINE = "our answer"
NS1, NS2 = "ns1.example.org (192.0.2.1)", "ns2.example.org (192.0.2.2)"


@pytest.mark.parametrize(
    ("of", "begins"),
    [
        (case(sight("it has no address", "")), "Give www.example.org an A or AAAA record"),
        (case(problem="dns"), "Give www.example.org an A or AAAA record"),
        (case(sight("no name server gave an answer", "")), "Look after DNS"),
        (case(sight("connection refused")), f"Have something listen at {V4}"),
        (case(sight("no answer in time")), f"Open port 80 to the world at {V4}"),
        (case(sight("status 404")), "Forward /.well-known/acme-challenge/ to this daemon"),
        (case(sight("another answer than ours")), "Forward /.well-known/acme-challenge/ to this daemon"),
        (case(sight("a redirect to https://other.example/")), "Leave /.well-known/acme-challenge/ out of the redirect"),
        (case(sight("status 403")), "Let everybody read"),
        (case(sight("status 502")), "Look at the log of the web server"),
        (case(sight("the connection was closed")), "Look at the log of the web server"),
        (case(sight("status 404", V6), sight(FINE, ok=True)), "Take the AAAA record away"),
        (case(sight("status 404", "192.0.2.8:80"), sight(FINE, ok=True)), "Take 192.0.2.8:80 out of DNS"),
        (case(sight(FINE, ok=True), words="198.51.100.1: Fetching http://..."), "Make DNS say the same inside"),
        (case(sight(FINE, ok=True), words="192.0.2.7: Fetching http://..."), "Look for what treats the CA otherwise"),
        (case(), "See that port 80"),
        (case(sight("?", "", ok=None)), "See that port 80"),
        (
            case(sight("it does not speak acme-tls/1", check="tls-alpn-01"), challenge="tls-alpn-01"),
            "Pass connections that ask for acme-tls/1",
        ),
        (
            case(sight("connection refused", "192.0.2.7:443", "tls-alpn-01"), challenge="tls-alpn-01"),
            "Have something listen at 192.0.2.7:443",
        ),
        (case(challenge="tls-alpn-01"), "See that port 443"),
        (
            case(sight("absent", NS2, "dns-01"), sight("complete", NS1, "dns-01", ok=True), challenge="dns-01"),
            f"Wait for, or mend, the transfer of the zone: {NS2}",
        ),
        (case(sight("absent", NS1, "dns-01"), challenge="dns-01"), "See that the DNS provider writes to the zone"),
        (case(sight("complete", NS1, "dns-01", ok=True), challenge="dns-01"), "Order again in a few minutes"),
        (case(sight("no zone", "", "dns-01"), challenge="dns-01"), "Mend the delegation: no zone"),
        (
            case(
                sight("the CA looks here; the value was written at _acme-challenge.b.example", "x", "dns-01"),
                challenge="dns-01",
            ),
            "Let the DNS provider follow CNAMEs",
        ),
        (case(challenge="dns-01"), "See with `scaivaultctl dns trace`"),
        (case(problem="caa"), "Change the CAA record"),
        (case(sight('0 issue "other.example"', "example.org", "caa")), "Change the CAA record"),
        (case(sight("signature expired", "example.org", "dnssec"), problem="dns"), "Mend DNSSEC of example.org"),
        (case(problem="dns", words="DNSSEC: Bogus"), "Mend DNSSEC of www.example.org"),
        (case(problem="rateLimited"), "Wait: the CA's rate limit"),
        (case(problem="rejectedIdentifier"), "Take the name out"),
        (case(problem="serverInternal"), "Try again later"),
    ],
)
def test_the_remedy_follows_from_the_problem_and_what_was_seen(of: Case, begins: str) -> None:
    """One, the most likely: a list of seven is no help."""
    assert (ctl_failure.remedy(of) or "").startswith(begins)


def test_what_no_name_is_to_blame_for_has_no_remedy_of_a_name() -> None:
    """The order's own is told then."""
    ours = Case("www.example.org", "dns-01", "dns_provider_error", "401", is_from_ca=False)
    assert ctl_failure.remedy(ours) is None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ({"code": "ca_error", "limit": "orders", "retry_at": "2026-11-26T00:00:00Z"}, "Wait until 2026-11-26"),
        ({"code": "ca_error", "acme": {"type": f"{ACME}rateLimited"}}, "Wait: the CA's rate limit"),
        ({"code": "ca_error", "acme": {"type": f"{ACME}accountDoesNotExist"}}, "scaivaultctl account show"),
        (
            {"code": "ca_error", "acme": {"type": f"{ACME}userActionRequired", "instance": "https://ca/terms"}},
            "Visit https://ca/terms",
        ),
        ({"code": "ca_error", "remedy": "Do this."}, "Do this."),
        ({"code": "ca_error"}, "scaivaultctl explain ca_error"),
    ],
)
def test_an_order_that_fails_as_a_whole_has_a_remedy_too(error: dict[str, Any], told: str) -> None:
    """Limits and accounts are no matter of a name."""
    assert told in ctl_failure.order_remedy(error)


def failed(**changes: Any) -> dict[str, Any]:
    trouble = {
        "identifier": "www.example.org",
        "challenge_type": "http-01",
        "type": f"{ACME}unauthorized",
        "detail": "got\x1b[2J 404\nfrom\r192.0.2.7",
        "subproblems": [{"type": f"{ACME}dns", "detail": "sub", "identifier": "www.example.org"}],
    }
    return {
        "order_id": "acme_order_01k2v7m0e8zq3c9x5w1r4t6y8b",
        "status": "invalid",
        "domains": ["www.example.org"],
        "challenge_type": "http-01",
        "error": {"code": "challenge_failed", "detail": "x", "identifiers": [trouble]},
        "evidence": [sight("status 404")],
        **changes,
    }


def test_the_report_has_the_words_the_sights_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order, in 80 columns, and without what would move the cursor."""
    monkeypatch.setenv("COLUMNS", "80")
    told = ctl_failure.lines(failed())
    assert all(each.isprintable() and len(each) <= 80 for each in told)
    text = " ".join(" ".join(told).split())
    assert "The CA says: unauthorized: got[2J 404 from 192.0.2.7" in text
    assert "www.example.org: dns: sub" in text
    assert f"What was seen from here: NO {V4}: status 404" in text
    assert "Most likely remedy: Forward" in text


def test_what_was_seen_of_other_names_is_not_told_of_this_one() -> None:
    """A wildcard and its apex are one."""
    one = failed(domains=["*.example.org"])
    one["error"]["identifiers"][0]["identifier"] = "*.example.org"
    one["evidence"] = [sight("status 404"), {**sight("refused"), "identifier": "example.org"}]
    assert [each["saw"] for each in ctl_failure.cases_of(one)[0].seen] == ["refused"]


def test_of_many_names_ten_are_told() -> None:
    """A hundred names fail for the same reason."""
    many = failed()
    (one,) = many["error"]["identifiers"]
    many["error"]["identifiers"] = [{**one, "identifier": f"{each}.example.org"} for each in range(12)]
    assert "and 2 more names; --json shows them all" in ctl_failure.lines(many)


def test_an_order_without_an_error_has_no_report() -> None:
    """Nothing went wrong."""
    assert ctl_failure.lines(failed(error=None)) == []


def test_a_long_answer_is_cut() -> None:
    """Some CAs quote a whole page."""
    assert len(ctl_failure.clean("a" * 5000)) < 1100
