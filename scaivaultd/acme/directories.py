"""Known CAs: where their directories are, and which presets are refused and why (state: November 2026)."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from scaivaultd.model.errors import FieldError, InvalidRequest

if TYPE_CHECKING:
    from scaivaultd.model.resources import Environment, Provider

_PRESETS: dict[tuple[Provider, Environment], str] = {
    ("letsencrypt", "production"): "https://acme-v02.api.letsencrypt.org/directory",
    ("letsencrypt", "staging"): "https://acme-staging-v02.api.letsencrypt.org/directory",
    ("zerossl", "production"): "https://acme.zerossl.com/v2/DV90",
    ("google", "production"): "https://dv.acme-v02.api.pki.goog/directory",
    ("google", "staging"): "https://dv.acme-v02.test-api.pki.goog/directory",
}

NEEDS_EAB: frozenset[Provider] = frozenset({"zerossl", "google"})
"""Presets that accept no account without an external account binding."""


def directory_url_for(provider: Provider, environment: Environment, custom_url: str | None) -> str:
    """The directory URL a new account will use.

    Raises:
        InvalidRequest: the preset is discontinued or has no such environment, or `directory_url`
            and `provider` do not go together, or it is no https URL.
    """
    if provider == "buypass":
        raise _refused(
            "/provider",
            "provider_discontinued",
            "Buypass Go SSL is discontinued: orders ended on 15 October 2025 and the last certificate was issued on "
            "31 October 2025; use provider letsencrypt, google or zerossl, or custom with a directory_url",
        )
    if provider == "custom":
        return _custom(custom_url)
    if custom_url is not None:
        raise _refused(
            "/directory_url",
            "not_custom",
            f"directory_url goes with provider custom only; {provider} has its own, so leave it out",
        )
    try:
        return _PRESETS[provider, environment]
    except KeyError:
        raise _refused(
            "/environment",
            "no_such_environment",
            f"{provider} has no {environment} environment and is never asked in production instead; for trials use "
            "letsencrypt with staging",
        ) from None


def ca_name(directory_url: str) -> str:
    """What statistics call a CA: provider and environment of a known one, else the host of its directory."""
    for (provider, environment), url in _PRESETS.items():
        if url == directory_url:
            return f"{provider}/{environment}"
    return urlsplit(directory_url).netloc.rpartition("@")[2].lower()


def _custom(url: str | None) -> str:
    if not url:
        raise _refused("/directory_url", "missing", "provider custom needs the directory_url of the CA")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise _refused("/directory_url", "bad_url", f"not a URL: {error}") from error
    if parts.scheme != "https":
        raise _refused("/directory_url", "not_https", "ACME is spoken over https only (RFC 8555 section 6.1)")
    if not host or parts.username is not None or parts.fragment or not url.isascii() or not url.isprintable():
        raise _refused("/directory_url", "bad_url", "give a plain https URL with a host, without user or fragment")
    return url


def _refused(pointer: str, code: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, [FieldError(pointer=pointer, code=code, detail=detail)])
