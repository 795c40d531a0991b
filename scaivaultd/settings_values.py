"""How single values of the configuration are written: addresses, URLs, subjects, references.

Each kind of value has a type and one function that reads it from text. Those functions raise
ValueError with a text that completes "listen[0]: ...". What may be a secret (credentials in a URL, a key
pasted where a reference belongs) is never repeated in it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import NoReturn
from urllib.parse import SplitResult, urlsplit

import msgspec

_DNS_PORT = 53
_HIGHEST_PORT = 65535
_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_SUBJECT_TOKEN = re.compile(r"[A-Za-z0-9_-]+")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST_SHOWN = 80


class ListenAddress(str):
    """An `address:port` that a listener binds; port 0 leaves the choice to the kernel."""

    __slots__ = ()

    @property
    def port(self) -> int:
        """The number behind the last colon."""
        return int(self.rpartition(":")[2])

    def is_reached_by(self, target: HostPort) -> bool:
        """Whether who connects to `target` certainly ends here; what other names mean, this does not know."""
        host, _, port = target.rpartition(":")
        if not self.port or port != str(self.port):
            return False
        own = self.rpartition(":")[0]
        loopback = ("localhost", "127.0.0.1") if own == "0.0.0.0" else ("localhost", "[::1]")  # noqa: S104 - compared
        return host == own or (own in ("0.0.0.0", "[::]") and host in loopback)  # noqa: S104 - compared only


class RestPlace(str):
    """Where REST is served: an `address:port`, or the absolute path of a UNIX socket."""

    __slots__ = ()

    @property
    def is_path(self) -> bool:
        """Whether it is the path of a UNIX socket."""
        return self.startswith("/")


class Origin(str):
    """A web origin (RFC 6454), as browsers send it: `https://app.example.org`, in lower case, no path."""

    __slots__ = ()


class HostPort(str):
    """A `host:port` that somebody is reached at, in lower case."""

    __slots__ = ()


class HttpsUrl(str):
    """An https URL, as it was written; without credentials or fragment."""

    __slots__ = ()


class HttpUrl(str):
    """An http or https URL of an inner service, as it was written; without credentials or fragment."""

    __slots__ = ()


class Resolver(str):
    """The `address:port` of a recursive nameserver."""

    __slots__ = ()


class Label(str):
    """A name for people and commands: letters, digits, `.`, `_`, `-`."""

    __slots__ = ()


class ZoneName(str):
    """A DNS zone, in lower-case A-labels, without a trailing dot."""

    __slots__ = ()


class SubjectRoot(str):
    """A literal NATS subject below which all of ours are."""

    __slots__ = ()

    def overlaps(self, other: SubjectRoot) -> bool:
        """Whether a subject exists that is below both."""
        return f"{self}.".startswith(f"{other}.") or f"{other}.".startswith(f"{self}.")


class MasterKeySource(str):
    """`file:PATH`, `credential:NAME`, `env:NAME` or `passphrase`: where the master key is, never the key."""

    __slots__ = ()


class SecretPrefix(str):
    """How a reference to a secret must begin for callers to be allowed to name it."""

    __slots__ = ()


class NatsUrl:
    """The URL of a NATS server. It may hold a password: it prints without, and cannot be encoded."""

    __slots__ = ("_parts",)

    def __init__(self, parts: SplitResult) -> None:
        self._parts = parts

    def reveal(self) -> str:
        """The whole URL with its credentials, for the client that connects."""
        return self._parts.geturl()

    def __str__(self) -> str:
        credentials, at, place = self._parts.netloc.rpartition("@")
        return f"{self._parts.scheme}://{'***' if credentials else ''}{at}{place}"

    def __repr__(self) -> str:
        return f"NatsUrl({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NatsUrl) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)


class Syntax(msgspec.Struct, frozen=True):
    """How one kind of value is read, and what its form is called in the reference.

    `read` raises ValueError saying what is wrong.
    """

    read: Callable[[str], object]
    form: str


def clip(text: str) -> str:
    """A text to quote in a message: on one line, not longer than a line, without credentials."""
    credentials, at, rest = text.rpartition("@")
    shown = f"***@{rest}" if credentials and at else text
    return repr(shown if len(shown) <= _LONGEST_SHOWN else f"{shown[: _LONGEST_SHOWN - 3]}...")


def _path(text: str) -> Path:
    if "\0" in text or not PurePosixPath(text).is_absolute():
        raise ValueError(f"{clip(text)} must be absolute: begin with '/'")
    return Path(text)


def _listen_address(text: str) -> ListenAddress:
    host, port = _host_and_port(text, "0.0.0.0:80")
    if host in ("", "*"):
        raise ValueError(f"{clip(text)} needs an address: write 0.0.0.0:{port} for all of IPv4, [::]:{port} for IPv6")
    address = _address(host)
    if address is None:
        raise ValueError(f"{clip(text)} needs an IP address to listen on, not a name")
    if "%" in address:
        raise ValueError(f"{clip(text)} has a zone: no CA reaches an address that is valid on one link only")
    return ListenAddress(f"{address}:{_port(port, text, lowest=0)}")


def _rest_place(text: str) -> RestPlace:
    path = text.removeprefix("unix:")
    if path.startswith("/"):
        if not _is_plain_path(path):
            raise ValueError(f"{clip(text)} must be an absolute path without '..'")
        return RestPlace(path)
    return RestPlace(_listen_address(text))


def _origin(text: str) -> Origin:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"{clip(text)} is no web origin") from None
    if parts.scheme not in ("https", "http") or not host or parts.path or parts.query or parts.fragment or "@" in text:
        raise ValueError(f"{clip(text)} must be a web origin, such as https://app.example.org, without a path")
    default = {"https": 443, "http": 80}[parts.scheme]
    netloc = f"[{host}]" if ":" in host else host
    return Origin(f"{parts.scheme}://{netloc}" + ("" if port in (None, default) else f":{port}"))


def _host_port(text: str) -> HostPort:
    if "://" in text:
        raise ValueError(f"{clip(text)} is a URL: write only its host and port, such as ca.example.org:443")
    host, port = _host_and_port(text, "ca.example.org:443")
    address = _address(host)
    if address is None and not _is_host_name(host):
        raise ValueError(f"{clip(text)} has no valid host name or IP address before the port")
    return HostPort(f"{address or host.lower()}:{_port(port, text, lowest=1)}")


def _https_url(text: str) -> HttpsUrl:
    _check_url(text, "https")
    return HttpsUrl(text)


def _http_url(text: str) -> HttpUrl:
    _check_url(text, "http", "https")
    return HttpUrl(text)


def _check_url(text: str, *schemes: str) -> None:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"{clip(text)} is no URL") from None
    if parts.scheme not in schemes:
        raise ValueError(f"{clip(text)} must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    is_plain = text.isascii() and text.isprintable() and " " not in text
    if not is_plain or parts.username is not None or parts.fragment or port == 0:
        raise ValueError(f"{clip(text)} must be a plain URL, without credentials, fragment or spaces")
    if not host or (not _is_host_name(host) and _address(host) is None):
        raise ValueError(f"{clip(text)} has no valid host name or IP address")


def _resolver(text: str) -> Resolver:
    alone = _address(text)
    if alone is not None:
        return Resolver(f"{alone}:{_DNS_PORT}")
    host, port = _host_and_port(text, "192.0.2.53:53")
    address = _address(host)
    if address is None:
        raise ValueError(f"{clip(text)} needs the IP address of a nameserver, such as 192.0.2.53 or [2001:db8::53]:53")
    return Resolver(f"{address}:{_port(port, text, lowest=1)}")


def _host_and_port(text: str, example: str) -> tuple[str, str]:
    """Split at the colon before the port; the brackets of an IPv6 address stay on."""
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port:
        raise ValueError(f"{clip(text)} needs a port, as in {example}")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"{clip(text)}: an IPv6 address stands in brackets, as in [2001:db8::1]:443")
    return host, port


def _address(host: str) -> str | None:
    """The one spelling of an IP address, IPv6 in brackets; None when `host` is no address."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return None
    if address.version == 4:
        return None if host.startswith("[") else str(address)
    return f"[{address}]"


def _port(digits: str, text: str, *, lowest: int) -> int:
    # Five digits are enough; int() itself would take white space, signs and other scripts' digits.
    if re.fullmatch(r"[0-9]{1,5}", digits) and lowest <= int(digits) <= _HIGHEST_PORT:
        return int(digits)
    raise ValueError(f"{clip(text)} needs a port from {lowest} to {_HIGHEST_PORT}")


def _is_host_name(host: str) -> bool:
    labels = host.split(".")
    # A name that ends in a number is a mistyped IPv4 address (RFC 1123 section 2.1).
    return len(host) <= 253 and all(map(_HOST_LABEL.fullmatch, labels)) and not labels[-1].isdigit()


def _nats_url(text: str) -> NatsUrl:
    scheme = text.partition("://")[0].lower()
    if scheme in ("ws", "wss"):
        raise ValueError("NATS over WebSocket is not supported: use nats:// or tls://")
    if scheme not in ("nats", "tls") or "://" not in text:
        raise ValueError("must begin with nats:// or tls://")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        _refuse_url()
    if not host or port == 0 or parts.path not in ("", "/") or parts.query or parts.fragment:
        _refuse_url()
    if not _is_host_name(host) and _address(host) is None:
        _refuse_url()
    return NatsUrl(parts._replace(path=""))


def _refuse_url() -> NoReturn:
    raise ValueError(
        "must have the form nats://HOST:PORT, tls://HOST:PORT or nats://USER:PASSWORD@HOST:PORT; "
        "percent-encode special characters in the credentials"
    ) from None


def _label(text: str) -> Label:
    if not _LABEL.fullmatch(text):
        raise ValueError(f"{clip(text)} must begin with a letter or digit and hold letters, digits, '.', '_', '-' only")
    return Label(text)


def _zone_name(text: str) -> ZoneName:
    name = text.removesuffix(".").lower()
    if len(name) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in name.split(".")):
        raise ValueError(f"{clip(text)} is no DNS name (write international names in A-labels, xn--...)")
    return ZoneName(name)


def _subject_root(text: str) -> SubjectRoot:
    if text.startswith(("$", "_INBOX")):
        raise ValueError(f"{clip(text)} must not begin with '$' or '_INBOX': NATS keeps those for itself")
    if not all(map(_SUBJECT_TOKEN.fullmatch, text.split("."))):
        raise ValueError(f"{clip(text)} must be words of A-Z a-z 0-9 _ - joined by dots, without wildcards")
    return SubjectRoot(text)


def _master_key_source(text: str) -> MasterKeySource:
    scheme, _, place = text.partition(":")
    match scheme:
        case "file" if _is_plain_path(place):
            return MasterKeySource(text)
        case "file":
            raise ValueError("the path behind 'file:' must be absolute and without '..'")
        case "credential" if _is_credential_name(place):
            return MasterKeySource(text)
        case "credential":
            raise ValueError("what stands behind 'credential:' must be a name, not a path")
        case "env" if _VARIABLE.fullmatch(place):
            return MasterKeySource(text)
        case "env":
            raise ValueError("what stands behind 'env:' must be the name of an environment variable")
        case "passphrase" if text == "passphrase":
            return MasterKeySource(text)
        case _:
            raise ValueError("must be file:PATH, credential:NAME, env:NAME or passphrase, never the key itself")


def _secret_prefix(text: str) -> SecretPrefix:
    scheme, _, beginning = text.partition(":")
    match scheme:
        case "cred" if text.startswith("cred:") and "/" not in beginning:
            return SecretPrefix(text)
        case "cred":
            raise ValueError("must be 'cred:' alone or with the beginning of a credential's name")
        case "file" if _is_plain_path(beginning) and beginning.strip("/"):
            return SecretPrefix(text)
        case "file":
            raise ValueError("must name an absolute directory other than '/', as in file:/etc/scaivaultd/secrets/")
        case "env" if _VARIABLE.fullmatch(beginning):
            return SecretPrefix(text)
        case "env":
            raise ValueError("must name how the variables begin, as in env:SCAIVAULT_SECRET_")
        case _:
            raise ValueError("must begin with cred:, file: or env:")


def _is_plain_path(text: str) -> bool:
    path = PurePosixPath(text)
    return path.is_absolute() and ".." not in path.parts and "\0" not in text


def _is_credential_name(text: str) -> bool:
    return bool(text) and text not in (".", "..") and "/" not in text and "\0" not in text


SYNTAXES: Mapping[type, Syntax] = MappingProxyType(
    {
        Path: Syntax(_path, "absolute path"),
        ListenAddress: Syntax(_listen_address, "address:port"),
        RestPlace: Syntax(_rest_place, "address:port or path"),
        Origin: Syntax(_origin, "web origin"),
        HostPort: Syntax(_host_port, "host:port"),
        HttpsUrl: Syntax(_https_url, "https URL"),
        HttpUrl: Syntax(_http_url, "http or https URL"),
        Resolver: Syntax(_resolver, "address[:port]"),
        NatsUrl: Syntax(_nats_url, "NATS URL"),
        Label: Syntax(_label, "name"),
        ZoneName: Syntax(_zone_name, "DNS zone"),
        SubjectRoot: Syntax(_subject_root, "NATS subject"),
        MasterKeySource: Syntax(_master_key_source, "key source"),
        SecretPrefix: Syntax(_secret_prefix, "prefix"),
    }
)
"""Every type of value with a form of its own."""


def read_value(kind: type, value: object) -> object:
    """Read a value of one of `SYNTAXES`: the `dec_hook` of `msgspec.convert`.

    Raises:
        ValueError: the text has not the form of `kind`, and why.
        TypeError: not a text, or no such kind.
    """
    if not isinstance(value, str) or kind not in SYNTAXES:
        raise TypeError(f"{type(value).__name__} is no text for {kind.__name__}")
    return SYNTAXES[kind].read(value)
