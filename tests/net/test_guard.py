"""Which addresses a CA may be at, as tables; names are resolved by the system's resolver on loopback names only."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import pytest
from aiohttp.abc import ResolveResult

from scaivaultd.model.errors import CaMisbehaved, InvalidRequest
from scaivaultd.net.guard import AddressGuard, CaUrls, GuardedResolver

CLOSED = AddressGuard(())
PRIVATE = [
    "127.0.0.1",
    "127.255.255.254",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.127.255.255",
    "0.0.0.0",
    "198.18.0.1",
    "192.0.2.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%eth0",
    "2001:db8::1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:a9fe:a9fe",
]
PUBLIC = ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1"]


@pytest.mark.parametrize("address", PRIVATE)
def test_inner_addresses_are_closed(address: str) -> None:
    """Who may name a directory URL must not reach cloud metadata, the router or the daemon's neighbours."""
    assert not CLOSED.allows("ca.example.org", 443, address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_open(address: str) -> None:
    """Public CAs need no entry."""
    assert CLOSED.allows("ca.example.org", 443, address)


@pytest.mark.parametrize(
    "address",
    [
        "fec0::1",
        "::127.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b:1::10.0.0.1",
        "::ffff:0:10.0.0.1",
        "2002:a00:1::1",
        "224.0.0.1",
        "ff02::1",
    ],
)
def test_addresses_that_lead_inside_by_a_detour_are_closed(address: str) -> None:
    """Site-local, multicast, and IPv4 addresses dressed up as IPv6 (NAT64, 6to4, and so on) reach the same hosts."""
    assert not CLOSED.allows("ca.example.org", 443, address)


@pytest.mark.parametrize(
    ("listed", "host", "port", "address", "allowed"),
    [
        ("127.0.0.1:14000", "127.0.0.1", 14000, "127.0.0.1", True),
        ("127.0.0.1:14000", "localhost", 14000, "127.0.0.1", True),
        ("127.0.0.1:14000", "127.0.0.1", 14001, "127.0.0.1", False),
        ("127.0.0.1:14000", "127.0.0.2", 14000, "127.0.0.2", False),
        ("CA.corp:443", "ca.CORP", 443, "10.1.2.3", True),
        ("ca.corp:443", "other.corp", 443, "10.1.2.3", False),
        ("ca.corp:443", "evil.ca.corp", 443, "10.1.2.3", False),
        ("[::1]:14000", "::1", 14000, "::1", True),
        ("[FD00::1]:443", "ca.corp", 443, "fd00::1", True),
        ("[::1]:14000", "::1", 443, "::1", False),
    ],
)
def test_an_entry_opens_one_host_at_one_port(listed: str, host: str, port: int, address: str, allowed: bool) -> None:
    """The administrator opened the CA, not the whole machine it runs on."""
    assert AddressGuard([listed]).allows(host, port, address) is allowed


def ca_at(directory_url: str, *further: str, private: tuple[str, ...] = ()) -> CaUrls:
    return AddressGuard(private, further).ca_of(directory_url)


@pytest.mark.parametrize(
    "url",
    [
        "http://ca.example.org/",
        "ftp://ca.example.org/",
        "//ca.example.org/",
        "ca.example.org",
        "",
        "https://",
        "https:///path",
        "https://[::1",
        "https://ca.example.org:99999/",
        "https://ca.example.org:x/",
        "https://ca.example.org:0443/\n",
        "https://ca.example.org/\r\nX: y",
        "https://user@ca.example.org/",
        "https://user:pass@ca.example.org/",
        "https://ca.example.org\\/x",
        "https://other.test\\.ca.example.org/",
        "https://ca%2eexample.org/",
        "https://127.0.0.1\t/",
        "javascript:alert(1)",
    ],
)
def test_a_url_from_a_ca_that_is_no_plain_https_url_is_refused(url: str) -> None:
    """Two readers of URLs must not see two hosts: what was judged would not be what is visited."""
    urls = ca_at("https://ca.example.org/dir")
    urls.check("https://ca.example.org/")  # that this host is known already is no excuse
    with pytest.raises(CaMisbehaved) as caught:
        urls.check(url)
    assert len(caught.value.detail) < 400


@pytest.mark.parametrize(
    "url",
    [
        "https://other.test/x",
        "https://ca.example.org.other.test/x",
        "https://sub.ca.example.org/x",
        "https://example.org/x",
        "https://ca.example.org./x",
        "https://ca.example.org:8443/x",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[fe80::1%25eth0]/",
        "https://[::ffff:10.0.0.1]/",
        "https://169.254.169.254/latest/meta-data",
        "https://2130706433/",
        "https://8.8.8.8/",
    ],
)
def test_a_url_at_another_host_than_the_directorys_is_refused(url: str) -> None:
    """A hostile CA must not send us anywhere; the administrator learns what would allow it."""
    with pytest.raises(CaMisbehaved, match=r"further_hosts = \[\"") as caught:
        ca_at("https://ca.example.org/dir").check(url)
    assert caught.value.code == "ca_error"
    assert len(caught.value.detail) < 400


@pytest.mark.parametrize(
    ("directory", "url"),
    [
        ("https://ca.example.org/dir", "https://ca.example.org/x"),
        ("https://ca.example.org/dir", "https://ca.example.org:443/x"),
        ("https://CA.example.org:443/dir", "https://ca.EXAMPLE.org/x?y=%2f"),
        ("https://8.8.8.8/dir", "https://8.8.8.8/x"),
        ("https://[2606:4700::1]:8443/dir", "https://[2606:4700::1]:8443/x"),
        ("https://ca.example.org/dir", "https://files.example.org/x"),
        ("https://ca.example.org/dir", "https://arI.example.org:8443/x"),
    ],
)
def test_the_cas_own_urls_and_those_at_listed_hosts_pass(directory: str, url: str) -> None:
    """However its host and port are spelled."""
    urls = ca_at(directory, "Files.example.org:443", "ari.example.org:8443")
    urls.check(url)
    urls.check(url)


@pytest.mark.parametrize(
    "directory",
    [
        "https://127.0.0.1:1/dir",
        "https://[::ffff:10.0.0.1]/dir",
        "https://[::1]/dir",
        "https://2130706433/dir",
        "https://127.1/dir",
        "https://127.0.0.1./dir",
    ],
)
def test_an_inner_address_is_refused_even_where_the_directory_is_there_too(directory: str) -> None:
    """The entry that opened it may be gone since the account was made; being a further host opens nothing either."""
    for urls in (ca_at(directory), ca_at("https://ca.example.org/", directory.split("/")[2])):
        with pytest.raises(CaMisbehaved):
            urls.check(f"{directory}/x")


def test_what_one_ca_may_visit_is_nothing_to_another() -> None:
    """Judged origins are remembered, each for its own CA."""
    guard = AddressGuard(["127.0.0.1:1", "127.0.0.1:2"])
    one, other = guard.ca_of("https://127.0.0.1:1/dir"), guard.ca_of("https://127.0.0.1:2/dir")
    one.check("https://127.0.0.1:1/x")
    with pytest.raises(CaMisbehaved):
        other.check("https://127.0.0.1:1/x")


@pytest.mark.parametrize(
    "host",
    ["\uff11\uff12\uff17.0.0.1", "\u2460\u2461\u2466.0.0.1", "127\u30020\u30020\u30021"],
)
def test_an_address_in_other_digits_is_an_address(host: str) -> None:
    """The HTTP client folds full-width and circled digits to 127.0.0.1 and asks no resolver: the guard is passed by."""
    with pytest.raises(CaMisbehaved):
        ca_at(f"https://{host}/").check(f"https://{host}/")


@pytest.mark.parametrize(
    ("url", "entry"),
    [
        ("https://127.0.0.1/d", "127.0.0.1:443"),
        ("https://localhost/d", "localhost:443"),
        ("https://[::1]:1/d", "[::1]:1"),
        ("https://10.0.0.1/d", "10.0.0.1:443"),
        ("https://127.1/d", "127.1:443"),
    ],
)
async def test_a_directory_at_an_inner_address_is_refused_with_what_would_open_it(url: str, entry: str) -> None:
    """The caller learns why, the administrator what to write."""
    with pytest.raises(InvalidRequest) as caught:
        await CLOSED.check_directory(url)
    (field,) = caught.value.fields
    assert (field.pointer, field.code) == ("/directory_url", "private_address")
    assert f'private_directories = ["{entry}"]' in field.detail


async def test_a_directory_whose_host_is_no_host_is_refused_at_once() -> None:
    """Otherwise its account would be tried again and again, and blame the CA."""
    for host in ("a b", "user@ca.example.org", "ca.example.org\\", "a%2eb"):
        with pytest.raises(InvalidRequest, match="no plain host and port"):
            await CLOSED.check_directory(f"https://{host}/d")


async def test_a_listed_directory_passes_and_so_does_a_name_that_does_not_resolve_yet() -> None:
    """The registration will say that it cannot be reached; DNS may be set up a minute later."""
    await AddressGuard(["localhost:14000"]).check_directory("https://localhost:14000/d")
    await CLOSED.check_directory("https://[2606:4700::1%nowhere]/d")


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example.org"])
async def test_a_directory_whose_host_cannot_be_a_name_is_no_internal_error(host: str) -> None:
    """It is the caller's mistake, or at least the registration's to find; a traceback in our log helps nobody."""
    with contextlib.suppress(InvalidRequest):
        await CLOSED.check_directory(f"https://{host}/d")


class OneName:
    """A resolver that knows one name."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(self, host: str, port: int, family: Any) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=each, port=port, family=socket.AF_INET, proto=0, flags=0)
            for each in self.addresses
        ]


async def resolved(*addresses: str) -> list[str]:
    resolver = GuardedResolver(CLOSED, OneName(*addresses).resolve)
    return [each["host"] for each in await resolver.resolve("ca.example.org", 443)]


async def test_of_several_addresses_only_the_open_ones_are_left() -> None:
    """A name with a public and an inner address is one of the ways in."""
    assert await resolved("8.8.8.8", "10.0.0.1") == ["8.8.8.8"]


async def test_a_name_that_leads_inside_does_not_resolve() -> None:
    """Checked at every connection: the name may have pointed elsewhere when the account was made."""
    with pytest.raises(OSError, match=r"10\.0\.0\.1.*not listed"):
        await resolved("10.0.0.1")
