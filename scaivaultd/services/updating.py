"""Changing what a certificate's next orders ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaivaultd.model.errors import Internal

if TYPE_CHECKING:
    from scaivaultd.api import messages as m
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.services.certificates import Certificates
    from scaivaultd.services.issuing import Issuing
    from scaivaultd.services.pursuit import Tools
    from scaivaultd.services.renewing import Renewing


class Updating:
    """Handler of `pki.certificates.update`."""

    def __init__(self, tools: Tools, *, issuing: Issuing, renewing: Renewing, certificates: Certificates) -> None:
        self._tools = tools
        self._issuing = issuing
        self._renewing = renewing
        self._certificates = certificates

    async def update(self, request: m.UpdateCertificate, context: RequestContext) -> m.CertificateReply:
        """Handle `pki.certificates.update`."""
        raise Internal("not built yet")
