"""The development CA as a whole: rooms wired together behind one TLS socket."""

from __future__ import annotations

import socket
import ssl
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Self

from aiohttp import web

from scaivaultd.demo.ca_accounts import Accounts
from scaivaultd.demo.ca_authorizations import Authorizations
from scaivaultd.demo.ca_certificates import Certificates
from scaivaultd.demo.ca_directory import Directory, new_nonce
from scaivaultd.demo.ca_front import Front, Row
from scaivaultd.demo.ca_limits import Limits
from scaivaultd.demo.ca_misbehaviour import Misbehaviour
from scaivaultd.demo.ca_nonces import Nonces
from scaivaultd.demo.ca_orders import Orders
from scaivaultd.demo.ca_renewal import RenewalInfos, RenewalPolicy
from scaivaultd.demo.ca_revocation import Revocations
from scaivaultd.demo.ca_settings import CaSettings
from scaivaultd.demo.ca_state import Account, Authorization, Issued, Ledger, Order
from scaivaultd.demo.ca_validation import Perspective, Validator
from scaivaultd.demo.ca_wire import Wire
from scaivaultd.demo.ca_x509 import Hierarchy, https_material
from scaivaultd.model.clock import SystemClock, SystemRandomness

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

    from scaivaultd.demo.ca_exchange import Answer
    from scaivaultd.model.clock import Clock, Randomness

Phase = Literal["received", "processed"]
"""`processed`: the state has changed, the answer has not gone yet. Refused requests have no such moment."""

_SHUTDOWN_SECONDS = 0.1
"""Then answers under way are cancelled: nobody waits for a throw-away CA."""


class DevelopmentCa:
    """An RFC 8555 server for loopback: strict, forgetful, and as ill-mannered as its `misbehaviour` says.

    Use it as an async context manager, once. Everything it knows ends with it.
    """

    def __init__(
        self,
        *,
        http01_port: int,
        host: str = "127.0.0.1",
        port: int = 0,
        tlsalpn01_port: int | None = None,
        dns_server: str | None = None,
        resolve: Callable[[str], str] | None = None,
        clock: Clock | None = None,
        randomness: Randomness | None = None,
        eab_keys: Mapping[str, bytes] | None = None,
        require_eab: bool = False,
        settings: CaSettings | None = None,
        misbehaviour: Misbehaviour | None = None,
        renewal: RenewalPolicy | None = None,
    ) -> None:
        """Bind the socket; serving starts with the context.

        Args:
            http01_port: where http-01 validations connect to.
            host: an IP address of this machine.
            port: 0 lets the kernel choose.
            tlsalpn01_port: where tls-alpn-01 validations connect to. Default: nowhere, so all of them fail.
            dns_server: `address:port` of whom dns-01 validations ask, recursion desired. Default: nobody, so all of
                them fail.
            resolve: from an identifier to the address its validation connects to; LookupError makes
                the validation fail with a `dns` problem. Default: 127.0.0.1 for everything.
            clock: dates, delays and expiry; deadlines of connections go by the event loop.
            randomness: nonces, tokens, ids, rates and sequences; keys and serials are not drawn from it.
            eab_keys: MAC keys by key identifier.
            require_eab: refuse new accounts without a binding.
            settings: how it serves.
            misbehaviour: what it does wrong; may be changed while it runs.
            renewal: what renewalInfo says; may be changed while it runs.

        Raises:
            OSError: the address cannot be bound.
            ValueError: `dns_server` is not an address and a port.
        """
        self.misbehaviour = misbehaviour or Misbehaviour()
        self.renewal = renewal or RenewalPolicy()
        self.requests: Counter[str] = Counter()
        """Requests received, by resource name, faulty and refused ones included."""
        self.on_request: Callable[[str, Phase], Awaitable[None]] | None = None
        """Awaited when a request has been received and again when it has been processed."""
        settings = settings or CaSettings()
        # Before the socket, so that nothing is left open when it refuses.
        perspective = Perspective(http01_port=http01_port, tlsalpn01_port=tlsalpn01_port, dns_server=dns_server)
        validator = Validator(perspective, resolve, settings.validation_seconds)
        clock = clock or SystemClock()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family)
        netloc = f"[{host}]" if ":" in host else host
        base_url = f"https://{netloc}:{self._socket.getsockname()[1]}"
        self._ledger = Ledger(base_url, settings, self.misbehaviour, clock, randomness or SystemRandomness())
        self._hierarchy = Hierarchy(clock.now(), settings.alternates)
        self.limits = Limits(self._ledger)
        """Rate limits; none by default."""
        self._directory = Directory(self._ledger, self.renewal, require_eab=require_eab)
        self._authorizations = Authorizations(self._ledger, self.limits, validator)
        self._certificates = Certificates(self._ledger, self._hierarchy)
        self._revocations = Revocations(self._ledger, self._authorizations)
        self._orders = Orders(self._ledger, self._authorizations, self._certificates, self.limits, self.renewal)
        self._accounts = Accounts(self._ledger, self.limits, eab_keys or {}, require_eab=require_eab)
        self.root_pem, self._https_pem = https_material(host)
        self._exits = AsyncExitStack()

    @property
    def directory_url(self) -> str:
        """Where clients begin."""
        return self._ledger.url("directory")

    @property
    def violations(self) -> list[str]:
        """What clients did that they must never do, oldest first; `ca_conduct` names the rules. May be cleared."""
        return self._ledger.conduct.violations

    @property
    def issuer_root_pem(self) -> str:
        """The root of what is issued; `root_pem` is the one to trust for HTTPS."""
        return self._hierarchy.root_pem

    @property
    def alternate_root_pems(self) -> tuple[str, ...]:
        """The roots of alternate chains."""
        return self._hierarchy.alternate_root_pems

    @property
    def accounts(self) -> Mapping[str, Account]:
        """Accounts by URL; a live, read-only view."""
        return MappingProxyType(self._ledger.accounts)

    @property
    def orders(self) -> Mapping[str, Order]:
        """Orders by URL, judged at this moment."""
        return {url: self._orders.current(url) for url in list(self._ledger.orders)}

    @property
    def authorizations(self) -> Mapping[str, Authorization]:
        """Authorizations by URL, judged at this moment."""
        return {url: self._authorizations.current(url) for url in list(self._ledger.authorizations)}

    @property
    def issued(self) -> Mapping[int, Issued]:
        """Certificates by serial number; a live, read-only view."""
        return MappingProxyType(self._ledger.issued)

    def deactivate_account(self, which: str, status: Literal["deactivated", "revoked"] = "deactivated") -> None:
        """End an account from outside, by its URL or key thumbprint.

        Raises:
            KeyError: there is no such account.
        """
        self._accounts.deactivate(self._account(which), status)

    def change_terms(self) -> None:
        """New terms of service: until an account agrees, newOrder answers userActionRequired.

        It agrees by `termsOfServiceAgreed` in an update of the account, or by a human: `agree_to_terms`.
        """
        self._ledger.terms_version += 1

    def agree_to_terms(self, which: str) -> None:
        """What a human does at the address in `instance`; by account URL or key thumbprint.

        Raises:
            KeyError: there is no such account.
        """
        self._accounts.agree(self._account(which))

    def move_endpoints(self) -> None:
        """Everything that the directory names moves; the old addresses answer 404 from now on."""
        self._ledger.generation += 1

    def revoke(self, serial: int, reason: int = 0) -> None:
        """Revoke a certificate from outside; clients learn it from its renewal window.

        Raises:
            KeyError: nothing with that serial number was issued.
        """
        self._revocations.record(self._ledger.issued[serial], reason, by_client=False)

    def _account(self, which: str) -> Account:
        return self._ledger.account_by_thumbprint(which) or self._ledger.accounts[which]

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as exits:
            exits.callback(self._socket.close)
            exits.push_async_callback(self._authorizations.close)
            front = self._front(Wire(self._ledger))
            runner = web.ServerRunner(web.Server(front.handle, access_log=None), shutdown_timeout=_SHUTDOWN_SECONDS)
            await runner.setup()
            exits.push_async_callback(runner.cleanup)
            await web.SockSite(runner, self._socket, ssl_context=_server_context(self._https_pem)).start()
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    def _front(self, wire: Wire) -> Front:
        documents: dict[str, Callable[[str, str], Answer]] = {
            "directory": self._directory.document,
            "newNonce": new_nonce,
            "renewalInfo": RenewalInfos(self._ledger, self._orders.lineage, self.renewal).document,
        }
        return Front(self._ledger, Nonces(self._ledger), wire, self._rows(), documents, self._notify)

    def _rows(self) -> dict[str, Row]:
        rows = {
            "newAccount": Row(self._accounts.new_account, "jwk"),
            "account": Row(self._accounts.account),
            "orders": Row(self._accounts.orders),
            "newOrder": Row(self._orders.new_order),
            "order": Row(self._orders.order),
            "finalize": Row(self._orders.finalize),
            "authorization": Row(self._authorizations.authorization),
            "challenge": Row(self._authorizations.challenge),
            "certificate": Row(self._certificates.certificate),
            "revokeCert": Row(self._revocations.revoke, "either"),
        }
        if self._ledger.settings.offers_key_change:
            rows["keyChange"] = Row(self._accounts.key_change)
        return rows

    async def _notify(self, resource: str, phase: Phase) -> None:
        if phase == "received":
            self.requests[resource] += 1
        if self.on_request is not None:
            await self.on_request(resource, phase)


def _server_context(https_pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # The ssl module loads keys from files only.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "https.pem"
        path.touch(mode=0o600)
        path.write_bytes(https_pem)
        context.load_cert_chain(path)
    return context
