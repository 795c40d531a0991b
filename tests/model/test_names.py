"""Names: what people type, what a CA is asked for, what is refused and why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaivaultd.model.errors import InvalidRequest, UnsupportedChallenge
from scaivaultd.model.names import MAX_IDENTIFIERS, Identifier, name_set_key, parse_identifiers, require_provable


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("Example.ORG.", "dns", "example.org"),
        ("  www.example.org ", "dns", "www.example.org"),
        ("bücher.example.com", "dns", "xn--bcher-kva.example.com"),
        ("faß.de", "dns", "xn--fa-hia.de"),
        ("例え。example.com", "dns", "xn--r8jz45g.example.com"),
        ("xn--bcher-kva.example.com", "dns", "xn--bcher-kva.example.com"),
        ("*.Example.org", "dns", "*.example.org"),
        ("8.8.8.8", "ip", "8.8.8.8"),
        ("[2606:4700:0::1111]", "ip", "2606:4700::1111"),
    ],
)
def test_every_spelling_has_one_form(text: str, kind: str, value: str) -> None:
    """RFC 8555 section 7.1.4 wants A-labels; RFC 8738 the text of RFC 5952."""
    (identifier,) = parse_identifiers([text], public_ca=True)
    assert (identifier.type, identifier.value) == (kind, value)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty"),
        ("a_b.example.org", "bad_character"),
        ("-a.example.org", "bad_hyphen"),
        ("ab--c.example.org", "bad_hyphen"),
        ("a..example.org", "empty_label"),
        (".example.org", "empty_label"),
        ("a" * 64 + ".example.org", "label_too_long"),
        (".".join(["a" * 60] * 5), "name_too_long"),
        ("*.*.example.org", "bad_wildcard"),
        ("www.*.example.org", "bad_wildcard"),
        ("w*.example.org", "bad_wildcard"),
        ("*.org", "single_label"),
        ("localhost", "single_label"),
        ("host.test", "special_use"),
        ("printer.local", "special_use"),
        ("xn--zz--zz.example.org", "bad_idn"),
        ("xn--bcher-kvA1.example.org", "bad_idn"),
        ("☃.example.org", "bad_idn"),
        ("https://example.org", "not_a_name"),
        ("example.org:443", "not_a_name"),
        ("10.0.0.0/8", "not_a_name"),
        ("1.2.3", "not_a_name"),
        ("999.1.1.1", "not_a_name"),
        ("10.1.2.3", "private_address"),
        ("fe80::1%eth0", "bad_address"),
    ],
)
def test_a_refused_name_has_its_reason(text: str, code: str) -> None:
    """A reason here costs nothing; the same refusal at a CA costs an attempt."""
    with pytest.raises(InvalidRequest) as caught:
        parse_identifiers([text], public_ca=True)
    assert [(each.pointer, each.code) for each in caught.value.fields] == [("/domains/0", code)]


def test_all_bad_names_are_told_at_once() -> None:
    """Nobody should have to fix a hundred names one answer at a time."""
    with pytest.raises(InvalidRequest) as caught:
        parse_identifiers(["ok.example.org", "a_b.example.org", "x..y"], public_ca=True)
    assert [each.pointer for each in caught.value.fields] == ["/domains/1", "/domains/2"]


def test_a_private_ca_may_certify_what_a_public_one_may_not() -> None:
    """`.test`, single labels and private addresses are what private CAs are for."""
    parsed = parse_identifiers(["host.test", "localhost", "10.1.2.3"], public_ca=False)
    assert [each.value for each in parsed] == ["host.test", "localhost", "10.1.2.3"]


def test_duplicates_go_after_normalising_and_the_first_keeps_its_place() -> None:
    """`Example.org.` and `example.org` are one name; asking twice would be refused or charged twice."""
    parsed = parse_identifiers(["b.example.org", "Example.org.", "example.org", "B.example.org"], public_ca=True)
    assert [each.value for each in parsed] == ["b.example.org", "example.org"]


def test_too_many_names_are_refused() -> None:
    """No public profile takes more than a hundred."""
    names = [f"h{number}.example.org" for number in range(MAX_IDENTIFIERS + 1)]
    with pytest.raises(InvalidRequest, match="101 different names"):
        parse_identifiers(names, public_ca=True)


@pytest.mark.parametrize(
    ("text", "challenge_type", "code"),
    [
        ("*.example.org", "http-01", "wildcard_needs_dns_01"),
        ("*.example.org", "tls-alpn-01", "wildcard_needs_dns_01"),
        ("8.8.8.8", "dns-01", "address_has_no_dns_01"),
    ],
)
def test_what_a_challenge_can_never_prove_is_refused(text: str, challenge_type: str, code: str) -> None:
    """RFC 8555 section 7.1.3 and RFC 8738 section 7."""
    with pytest.raises(UnsupportedChallenge) as caught:
        require_provable(["ok.example.org", text], challenge_type)
    assert [(each.pointer, each.code) for each in caught.value.fields] == [("/domains/1", code)]


def test_a_name_set_has_one_key_in_every_order() -> None:
    """The pointer to the current certificate must be found whatever order a caller names its names in."""
    one, two = Identifier("dns", "a.example.org"), Identifier("dns", "b.example.org")
    assert name_set_key([one, two]) == name_set_key([two, one]) != name_set_key([one])


@given(st.text(max_size=40))
def test_no_text_breaks_the_parser(text: str) -> None:
    """Callers send anything; the answer is identifiers or reasons. What is accepted is a fixed point."""
    try:
        parsed = parse_identifiers([text], public_ca=False)
    except InvalidRequest:
        return
    assert parse_identifiers([str(parsed[0])], public_ca=False) == parsed
