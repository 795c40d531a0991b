"""Issued certificates of the development CA: issuing and download (RFC 8555 section 7.4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scaivaultd.demo.ca_accounts import require_own
from scaivaultd.demo.ca_exchange import Answer, Headers, Signed
from scaivaultd.demo.ca_problems import malformed
from scaivaultd.demo.ca_state import Issued, Ledger, Order
from scaivaultd.demo.ca_wrong import wrong_download
from scaivaultd.demo.ca_x509 import Hierarchy, leaf_plan

if TYPE_CHECKING:
    from scaivaultd.demo.ca_misbehaviour import WrongCertificate

_CHAIN_TYPE = "application/pem-certificate-chain"


class Certificates:
    """Issues and hands out."""

    def __init__(self, ledger: Ledger, hierarchy: Hierarchy) -> None:
        self._ledger = ledger
        self._hierarchy = hierarchy
        self._serials: dict[str, int] = {}

    def issue(self, order: Order) -> Issued:
        """Sign what the order asks for; its key has been judged before."""
        assert order.public_key is not None
        now = self._ledger.clock.now()
        plan = leaf_plan(order.public_key, order.identifiers, now, order.lifetime)
        not_before = order.not_before or plan.not_before
        not_after = order.not_after or not_before + order.lifetime
        plan = msgspec.structs.replace(plan, not_before=not_before, not_after=not_after)
        certificate = self._hierarchy.issue(plan)
        issued = Issued(
            serial=certificate.serial_number,
            url=self._ledger.url("certificate", self._ledger.new_id()),
            account_url=order.account_url,
            identifiers=order.identifiers,
            certificate=certificate,
            chain_pem=self._hierarchy.chain_pem(certificate),
            profile=order.profile,
        )
        self._serials[issued.url] = issued.serial
        self._ledger.issued[issued.serial] = issued
        return issued

    def certificate(self, request: Signed) -> Answer:
        """A chain: the default one, or with `/N` behind its URL the Nth alternate."""
        request.require_read()
        id_, _, alternate = request.id.partition("/")
        issued = self._find(self._ledger.url("certificate", id_))
        require_own(request, issued.account_url)
        misbehaviour = self._ledger.misbehaviour
        if misbehaviour.certificate_404_times > 0:
            misbehaviour.certificate_404_times -= 1
            raise malformed("the certificate is not here yet", status=404)
        if misbehaviour.wrong_certificate is not None:
            return self._wrong(misbehaviour.wrong_certificate, issued)
        answer = self._chain(issued, alternate)
        if issued.downloaded_at is None:
            count = len(self._ledger.orders)
            self._ledger.issued[issued.serial] = msgspec.structs.replace(issued, downloaded_at=count)
        return answer

    def _find(self, url: str) -> Issued:
        if url not in self._serials:
            raise malformed("there is no such certificate", status=404)
        return self._ledger.issued[self._serials[url]]

    def _chain(self, issued: Issued, alternate: str) -> Answer:
        count = self._ledger.settings.alternates
        if alternate and (not alternate.isdecimal() or not 1 <= int(alternate) <= count):
            raise malformed("there is no such alternate", status=404)
        chosen = int(alternate or 0)
        body = self._hierarchy.chain_pem(issued.certificate, chosen).encode()
        urls = [f"{issued.url}/{n}" if n else issued.url for n in range(count + 1) if n != chosen]
        links: Headers = tuple(("Link", f'<{url}>;rel="alternate"') for url in urls)
        return Answer(body=body, content_type=_CHAIN_TYPE, headers=links)

    def _wrong(self, kind: WrongCertificate, issued: Issued) -> Answer:
        now = self._ledger.clock.now()
        key = issued.certificate.public_key()
        plan = leaf_plan(key, issued.identifiers, now, self._ledger.settings.lifetime)  # type: ignore[arg-type]  # judge_csr let only our kinds of key in
        body = wrong_download(kind, issued.certificate, plan, self._hierarchy, now)
        return Answer(body=body, content_type=_CHAIN_TYPE, is_endless=kind == "endless")
