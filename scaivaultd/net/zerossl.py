"""External account bindings from ZeroSSL's API (zerossl.com/documentation/acme/generate-eab-credentials)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaivaultd.model.errors import CaUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class ZeroSslEab:
    """Asks ZeroSSL for a key identifier and a MAC key, by access key or by e-mail address."""

    def __init__(self, api_url: str, *, trust_files: Sequence[Path], user_agent: str) -> None:
        self._api_url = api_url
        self._trust_files = trust_files
        self._user_agent = user_agent

    async def by_access_key(self, access_key: str) -> tuple[str, str]:
        """Key identifier and MAC key (base64url); raises CaRefused, CaUnavailable, CaMisbehaved."""
        raise CaUnavailable("not built yet")

    async def by_email(self, email: str) -> tuple[str, str]:
        """The same for an e-mail address."""
        raise CaUnavailable("not built yet")
