"""Presets: where CAs are, and what is refused rather than guessed."""

from __future__ import annotations

import pytest

from scaivaultd.acme.directories import directory_url_for
from scaivaultd.model.errors import InvalidRequest
from scaivaultd.model.resources import Environment, Provider


@pytest.mark.parametrize(
    ("provider", "environment", "host"),
    [
        ("letsencrypt", "production", "acme-v02.api.letsencrypt.org"),
        ("letsencrypt", "staging", "acme-staging-v02.api.letsencrypt.org"),
        ("zerossl", "production", "acme.zerossl.com"),
        ("google", "production", "dv.acme-v02.api.pki.goog"),
        ("google", "staging", "dv.acme-v02.test-api.pki.goog"),
    ],
)
def test_presets_know_their_directories(provider: Provider, environment: Environment, host: str) -> None:
    """The addresses the CAs document."""
    assert directory_url_for(provider, environment, None).startswith(f"https://{host}/")


@pytest.mark.parametrize(
    ("provider", "environment", "url", "code", "words"),
    [
        ("buypass", "production", None, "provider_discontinued", "October 2025"),
        ("buypass", "staging", None, "provider_discontinued", "letsencrypt, google or zerossl"),
        ("zerossl", "staging", None, "no_such_environment", "never asked in production"),
        ("custom", "production", None, "missing", "directory_url"),
        ("custom", "production", "http://ca.test/dir", "not_https", "https"),
        ("custom", "production", "https://user@ca.test/dir", "bad_url", "https URL"),
        ("custom", "production", "https:///dir", "bad_url", "host"),
        ("custom", "production", "https://ca.test:99999/dir", "bad_url", "not a URL"),
        ("letsencrypt", "production", "https://ca.test/dir", "not_custom", "leave it out"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    provider: Provider, environment: Environment, url: str | None, code: str, words: str
) -> None:
    """A trial that silently goes to production costs rate limits; a dead CA costs an evening."""
    with pytest.raises(InvalidRequest, match=words) as caught:
        directory_url_for(provider, environment, url)
    assert caught.value.fields[0].code == code
