"""Revocation at the CA (RFC 8555 section 7.6): who signs, and with which reason."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

from cryptography import x509 as cryptography_x509
from cryptography.hazmat.primitives.serialization import Encoding

from scaivaultd.acme import x509
from scaivaultd.acme.exchange import NotOffered
from scaivaultd.acme.signing import AccountKey
from scaivaultd.model.errors import AccountUnusable, BackendRateLimited, CaMisbehaved, CaRefused
from scaivaultd.services.documents import KEYS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scaivaultd.model.resources import Account, Issued, RevocationReason, SealedKey
    from scaivaultd.services.pursuit import Tools

AT_ONCE = 4
"""Revocations under way at one CA: thousands may be asked for in one minute, or go on after one start."""

CRL_REASONS: Mapping[RevocationReason, int | None] = {
    "unspecified": None,
    "key_compromise": 1,
    "affiliation_changed": 3,
    "superseded": 4,
    "cessation_of_operation": 5,
}
"""RFC 5280 section 5.3.1, which wants `unspecified` to be left out."""

_ACCOUNT_TROUBLE = ("unauthorized", "accountDoesNotExist", "userActionRequired")


class RevocationAtCa:
    """Asks CAs to revoke, a few at a time."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._places: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(AT_ONCE))

    async def revoke(self, version: Issued, reason: RevocationReason) -> bool:
        """Have a version revoked; False if it was already. May be repeated.

        A compromised key signs itself, where it is here: that proves it to the CA, whoever asks. Everything else is
        signed by the account, and by the certificate's key if the account has no say any more.

        Raises:
            AccountUnusable: neither of the two can sign.
            CaRefused: the CA does not want to, and who signs makes no difference.
        """
        accounts = self._tools.accounts
        directory_url = (await accounts.load(version.account_id)).value.directory_url
        async with self._places[directory_url], accounts.using(version.account_id):
            account = (await accounts.load(version.account_id)).value
            signers = await self._signers(account, version, reason)
            try:
                return await self._signed_by_one_of(signers, account, version, CRL_REASONS[reason])
            except NotOffered as refusal:
                raise NotOffered(
                    f"{refusal.detail}; `use_acme: false` marks the version as revoked in our store only",
                    refusal.problem,
                ) from refusal
            except CaRefused as refusal:
                if _name_of(refusal) != "badRevocationReason":
                    raise
                raise CaRefused(
                    f"{refusal.detail}; this CA does not take the reason {reason}: ask again with one that it takes "
                    "(Let's Encrypt: unspecified, key_compromise, superseded, cessation_of_operation)",
                    refusal.problem,
                ) from refusal

    async def _signers(self, account: Account, version: Issued, reason: RevocationReason) -> Sequence[SealedKey | None]:
        """The certificate's key and the account (None), as far as they can sign, the better one first."""
        key = None if version.key_id is None else await KEYS.get(self._tools.store, version.key_id)
        by_key = () if key is None else (key.value,)
        by_account = (None,) if account.status == "valid" else ()
        signers = (*by_key, *by_account) if reason == "key_compromise" else (*by_account, *by_key)
        if not signers:
            raise AccountUnusable(
                f"account {account.id} is {account.status}, and the certificate's private key is not here: only "
                "who has that key can ask the CA"
            )
        return signers

    async def _signed_by_one_of(
        self, signers: Sequence[SealedKey | None], account: Account, version: Issued, reason: int | None
    ) -> bool:
        client = await self._tools.accounts.client(account)
        leaf_der = cryptography_x509.load_pem_x509_certificate(
            x509.split_chain(version.chain_pem)[0].encode()
        ).public_bytes(Encoding.DER)
        *preferred, last = signers
        for signer in preferred:
            try:
                return await client.revoke(leaf_der, reason, certificate_key=self._opened(signer))
            except CaRefused as refusal:
                if not _is_about_signer(refusal, is_account=signer is None):
                    raise
                self._tools.log.info(
                    "revocation.signer_refused",
                    signer="account" if signer is None else "certificate_key",
                    serial_number=version.serial_number,
                    detail=refusal.detail,
                )
        return await client.revoke(leaf_der, reason, certificate_key=self._opened(last))

    def _opened(self, key: SealedKey | None) -> AccountKey | None:
        return None if key is None else AccountKey(self._tools.sealer.open(key.sealed, KEYS.key(key.id), "private_key"))


def _is_about_signer(refusal: CaRefused, *, is_account: bool) -> bool:
    """Whether the CA may say yes to somebody else."""
    if isinstance(refusal, CaMisbehaved | BackendRateLimited | NotOffered):
        return False
    if is_account:
        return _name_of(refusal) in _ACCOUNT_TROUBLE
    # smallstep's CA and others take no certificate keys, and say so in many ways.
    return _name_of(refusal) != "badRevocationReason"


def _name_of(refusal: CaRefused) -> str | None:
    return None if refusal.problem is None else refusal.problem.name
