"""Single values: which spellings are taken, how they are kept, and what is said about the others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaivaultd.settings_values import (
    HostPort,
    HttpsUrl,
    ListenAddress,
    MasterKeySource,
    NatsUrl,
    Resolver,
    SecretPrefix,
    SubjectRoot,
    read_value,
)

URL_FORM = (
    "must have the form nats://HOST:PORT, tls://HOST:PORT or nats://USER:PASSWORD@HOST:PORT; "
    "percent-encode special characters in the credentials"
)
RESOLVER_FORM = "needs the IP address of a nameserver, such as 192.0.2.53 or [2001:db8::53]:53"
KEY_FORM = "must be file:PATH, credential:NAME, env:NAME or passphrase, never the key itself"
DIRECTORY_FORM = "must name an absolute directory other than '/', as in file:/etc/scaivaultd/secrets/"


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (ListenAddress, "80", "'80' needs a port, as in 0.0.0.0:80"),
        (ListenAddress, "[::]", "'[::]' needs a port, as in 0.0.0.0:80"),
        (ListenAddress, ":80", "':80' needs an address: write 0.0.0.0:80 for all of IPv4, [::]:80 for IPv6"),
        (ListenAddress, "*:80", "'*:80' needs an address: write 0.0.0.0:80 for all of IPv4, [::]:80 for IPv6"),
        (ListenAddress, ":::80", "':::80': an IPv6 address stands in brackets, as in [2001:db8::1]:443"),
        (ListenAddress, "[127.0.0.1]:80", "'[127.0.0.1]:80' needs an IP address to listen on, not a name"),
        (ListenAddress, "localhost:80", "'localhost:80' needs an IP address to listen on, not a name"),
        (ListenAddress, "[fe80::1%eth0]:80",
         "'[fe80::1%eth0]:80' has a zone: no CA reaches an address that is valid on one link only"),
        (ListenAddress, "0.0.0.0:65536", "'0.0.0.0:65536' needs a port from 0 to 65535"),
        (ListenAddress, "0.0.0.0:", "'0.0.0.0:' needs a port from 0 to 65535"),
        (ListenAddress, "0.0.0.0:-1", "'0.0.0.0:-1' needs a port from 0 to 65535"),
        (ListenAddress, "0.0.0.0:\u0664", "'0.0.0.0:\u0664' needs a port from 0 to 65535"),
        (ListenAddress, "0.0.0.0:80\n", "'0.0.0.0:80\\n' needs a port from 0 to 65535"),
        (HostPort, "ca.example.org", "'ca.example.org' needs a port, as in ca.example.org:443"),
        (HostPort, "ca.example.org:0", "'ca.example.org:0' needs a port from 1 to 65535"),
        (HostPort, "https://ca.example.org:443",
         "'https://ca.example.org:443' is a URL: write only its host and port, such as ca.example.org:443"),
        (HostPort, "ca..org:443", "'ca..org:443' has no valid host name or IP address before the port"),
        (HostPort, "10.0.0.256:443", "'10.0.0.256:443' has no valid host name or IP address before the port"),
        (HostPort, "*.org:443", "'*.org:443' has no valid host name or IP address before the port"),
        (HttpsUrl, "http://ca.example.org", "'http://ca.example.org' must begin with https://"),
        (HttpsUrl, "ca.example.org/directory", "'ca.example.org/directory' must begin with https://"),
        (HttpsUrl, "https://", "'https://' has no valid host name or IP address"),
        (HttpsUrl, "https://10.0.0.256/", "'https://10.0.0.256/' has no valid host name or IP address"),
        (HttpsUrl, "https://[::1/", "'https://[::1/' is no URL"),
        (HttpsUrl, "https://a:99999/", "'https://a:99999/' is no URL"),
        *(
            (HttpsUrl, text, f"{shown} must be a plain URL, without credentials, fragment or spaces")
            for text, shown in [
                ("https://u:hunter2@ca.test/", "'***@ca.test/'"),
                ("https://ca.test/#a", "'https://ca.test/#a'"),
                ("https://ca.test/a b", "'https://ca.test/a b'"),
                ("https://ca.test/\n", "'https://ca.test/\\n'"),
                ("https://ca.test:0/", "'https://ca.test:0/'"),
                ("https://c\u00e4.test/", "'https://c\u00e4.test/'"),
            ]
        ),
        (Resolver, "dns.example.org:53", f"'dns.example.org:53' {RESOLVER_FORM}"),
        (Resolver, "dns", "'dns' needs a port, as in 192.0.2.53:53"),
        (Resolver, "192.0.2.1:0", "'192.0.2.1:0' needs a port from 1 to 65535"),
        (SubjectRoot, "", "'' must be words of A-Z a-z 0-9 _ - joined by dots, without wildcards"),
        (SubjectRoot, "a..b", "'a..b' must be words of A-Z a-z 0-9 _ - joined by dots, without wildcards"),
        (SubjectRoot, "a.*", "'a.*' must be words of A-Z a-z 0-9 _ - joined by dots, without wildcards"),
        (SubjectRoot, "a.>", "'a.>' must be words of A-Z a-z 0-9 _ - joined by dots, without wildcards"),
        (SubjectRoot, "$SYS.a", "'$SYS.a' must not begin with '$' or '_INBOX': NATS keeps those for itself"),
        (SubjectRoot, "_INBOX.a", "'_INBOX.a' must not begin with '$' or '_INBOX': NATS keeps those for itself"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_form_is_quoted_with_the_right_one(kind: type, text: str, message: str) -> None:
    """An address that only fails when it is bound fails in the night after the change."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read_value(kind, text)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (NatsUrl, "ws://u:hunter2@h:80", "NATS over WebSocket is not supported: use nats:// or tls://"),
        (NatsUrl, "WSS://u:hunter2@h:80", "NATS over WebSocket is not supported: use nats:// or tls://"),
        (NatsUrl, "u:hunter2@h:4222", "must begin with nats:// or tls://"),
        (NatsUrl, "http://u:hunter2@h", "must begin with nats:// or tls://"),
        (NatsUrl, "nats", "must begin with nats:// or tls://"),
        (NatsUrl, "nats://u:hunter2@:4222", URL_FORM),
        (NatsUrl, "nats://u:hunter2", URL_FORM),
        (NatsUrl, "nats://u:hun#hunter2@h:4222", URL_FORM),
        (NatsUrl, "nats://u:hun/hunter2@h:4222", URL_FORM),
        (NatsUrl, "nats://u:hunter2@h:70000", URL_FORM),
        (NatsUrl, "nats://u:hunter2@h:0", URL_FORM),
        (NatsUrl, "nats://u:hunter2@[::1:4222", URL_FORM),
        (NatsUrl, "nats://u:hunter2@h/path", URL_FORM),
        (NatsUrl, "nats://u:hunter2@h?x=1", URL_FORM),
        (NatsUrl, "nats://u:hunter2@h i:4222", URL_FORM),
        (MasterKeySource, "hunter2hunter2hunter2", KEY_FORM),
        (MasterKeySource, "file:hunter2", "the path behind 'file:' must be absolute and without '..'"),
        (MasterKeySource, "file:/a/../hunter2", "the path behind 'file:' must be absolute and without '..'"),
        (MasterKeySource, "credential:hunter2/x", "what stands behind 'credential:' must be a name, not a path"),
        (MasterKeySource, "credential:", "what stands behind 'credential:' must be a name, not a path"),
        (MasterKeySource, "env:hunter2=", "what stands behind 'env:' must be the name of an environment variable"),
        (SecretPrefix, "hunter2", "must begin with cred:, file: or env:"),
        (SecretPrefix, "cred", "must be 'cred:' alone or with the beginning of a credential's name"),
        (SecretPrefix, "cred:a/hunter2", "must be 'cred:' alone or with the beginning of a credential's name"),
        (SecretPrefix, "file:", DIRECTORY_FORM),
        (SecretPrefix, "file:/", DIRECTORY_FORM),
        (SecretPrefix, "file:/etc/../hunter2", DIRECTORY_FORM),
        (SecretPrefix, "env:", "must name how the variables begin, as in env:SCAIVAULT_SECRET_"),
    ],
)  # fmt: skip
def test_a_value_that_may_hold_a_secret_is_refused_without_repeating_it(kind: type, text: str, message: str) -> None:
    """Messages end up in journals and tickets; a password that stood in the wrong place must not."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$") as caught:
        read_value(kind, text)
    # The traceback of an uncaught error prints what it was raised from.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_credentials_in_a_text_that_should_have_none_are_masked() -> None:
    """Whoever pastes a whole URL as a CA's host pastes its password too."""
    with pytest.raises(ValueError, match=re.escape("'***@ca:443' is a URL")):
        read_value(HostPort, "https://user:hunter2@ca:443")


@pytest.mark.parametrize(
    "url", ["https://CA.test/Directory?a=b", "https://[2001:db8::1]:14000/dir", "https://10.0.0.1"]
)
def test_a_url_stays_as_it_is_written(url: str) -> None:
    """A directory is compared with that of an account, letter by letter."""
    assert read_value(HttpsUrl, url) == url


def test_a_long_text_is_quoted_in_part() -> None:
    """A file pasted into a value must not fill the terminal."""
    with pytest.raises(ValueError, match=r"^'x{77}\.\.\.' must be absolute"):
        read_value(Path, "x" * 100_000)


def test_nats_urls_compare_by_all_of_their_parts() -> None:
    """The same server with another password is another setting: a reload must see it."""
    one, same, other = (read_value(NatsUrl, f"nats://u:{word}@h") for word in ("a", "a", "b"))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert str(read_value(NatsUrl, "nats://h:1")) == "nats://h:1"


def test_a_value_that_is_no_text_is_refused() -> None:
    """msgspec hands over whatever stands in the document."""
    with pytest.raises(TypeError, match="int is no text for Path"):
        read_value(Path, 5)


@settings(deadline=None)  # a busy machine is no mistake of ours
@given(st.sampled_from([ListenAddress, HostPort, Resolver]), st.ip_addresses(), st.integers(1, 65535))
def test_an_address_is_read_back_from_how_it_is_kept(kind: type, address: object, port: int) -> None:
    """What is kept is the one spelling, whatever the spelling in the file."""
    text = f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"
    assert read_value(kind, text) == text


@settings(deadline=None)  # a busy machine is no mistake of ours
@given(st.text(max_size=30), st.sampled_from([ListenAddress, HostPort, Resolver, SubjectRoot, NatsUrl, Path]))
def test_no_text_makes_a_reader_fail_otherwise_than_by_refusing_it(text: str, kind: type) -> None:
    """Anything but ValueError would be a traceback at the administrator's terminal."""
    try:
        value = read_value(kind, text)
    except ValueError:
        return
    again = value.reveal() if isinstance(value, NatsUrl) else str(value)
    assert read_value(kind, again) == value


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [("a", "a", True), ("a", "a.b", True), ("a.b", "a", True), ("a", "ab", False), ("a.b", "a.c", False)],
)
def test_subject_roots_overlap_by_whole_words(one: str, other: str, overlap: bool) -> None:
    """`scaivault.v1` and `scaivault.v10` are two roots."""
    assert SubjectRoot(one).overlaps(SubjectRoot(other)) is overlap
