"""What services count of their work: under names that people know, and however it ends."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from scaivaultd.acme.directories import ca_name, directory_url_for
from scaivaultd.model.errors import ScaivaultError
from scaivaultd.plugin import (
    PermanentError,
    ProviderAuthError,
    RateLimited,
    SecretMissing,
    TransientError,
    ZoneNotFound,
)
from tests.fakes.counted import counted

NAME = "_acme-challenge.example.test"


@pytest.mark.parametrize(
    ("directory_url", "name"),
    [
        (directory_url_for("letsencrypt", "production", None), "letsencrypt/production"),
        (directory_url_for("google", "staging", None), "google/staging"),
        ("https://CA.Example:14000/dir", "ca.example:14000"),
        ("https://ca.example/acme/tenant-1/directory", "ca.example"),
        ("https://user:password@ca.example/dir", "ca.example"),
    ],
)
def test_a_ca_has_a_short_name(directory_url: str, name: str) -> None:
    """Paths tell callers apart, not CAs; and a password in a URL is no name at all."""
    assert ca_name(directory_url) == name


@pytest.mark.parametrize(
    ("raised", "result"),
    [
        (None, "ok"),
        (ZoneNotFound("none"), "no_zone"),
        (ProviderAuthError("no"), "unauthorized"),
        (RateLimited("slowly"), "rate_limited"),
        (TransientError("503"), "unavailable"),
        (PermanentError("locked"), "refused"),
        (SecretMissing("infra/token", "gone"), "secret_not_found"),
        (ValueError("canary"), "broke"),
    ],
)
async def test_calls_of_providers_are_counted_by_what_became_of_them(
    dns_world: Any, raised: Exception | None, result: str
) -> None:
    """By the provider's type: its name may be anything. A fault of its code is the plugin's, too."""
    await dns_world.provider(token_path=None)
    provider = await dns_world.opened()
    kind = provider.kind.name
    if raised is not None:
        dns_world.service.script["find_zone"].append(raised)
    about = {"provider": kind, "operation": "find_zone"}
    calls = counted("dns_api_requests_total", **about, result=result)
    times = counted("dns_api_request_duration_seconds_count", **about)
    faults = counted("plugin_errors_total", plugin=kind, hook="dns_provider")
    with suppress(ScaivaultError):
        await provider.find_zone(NAME)
    assert counted("dns_api_requests_total", **about, result=result) == calls + 1
    assert counted("dns_api_request_duration_seconds_count", **about) == times + 1
    assert counted("plugin_errors_total", plugin=kind, hook="dns_provider") == faults + (result == "broke")


@pytest.mark.parametrize(
    ("reference", "backend"), [("infra/none", "store"), ("cred:none", "cred"), ("canary:none", "other")]
)
async def test_reads_of_secrets_are_counted_by_where_they_are_kept(
    dns_world: Any, reference: str, backend: str
) -> None:
    """A scheme that nobody reads is a word of a caller, which is no label."""
    before = counted("secret_reads_total", backend=backend, result="not_found")
    with pytest.raises(ScaivaultError):
        await dns_world.secret_store.read(reference)
    assert counted("secret_reads_total", backend=backend, result="not_found") == before + 1
    assert counted("secret_reads_total", backend="canary", result="not_found") == 0
