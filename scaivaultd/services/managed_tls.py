"""The certificate of the REST listener itself, as the daemon keeps it: found in the store, again at each change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaivaultd.acme import x509
from scaivaultd.model.errors import Internal, ScaivaultError, StartupError
from scaivaultd.services.documents import CERTIFICATES, KEYS

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock
    from scaivaultd.model.resources import Certificate
    from scaivaultd.services.ports import Sealer, Store

_RETRY_SECONDS = 5.0


class ManagedTls:
    """Hands over the newest valid certificate for a name, and each one that is newer.

    One that ends without a successor stays in use: clients then hear why they should not go on.
    """

    def __init__(
        self,
        name: str,
        *,
        use: Callable[[str, str], None],
        store: Store,
        sealer: Sealer,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        """`use` takes the chain and the private key, both PEM; it raises StartupError if it cannot use them."""
        # A wildcard covers one label (RFC 9525 section 6.3).
        self._names = (name, f"*.{name.partition('.')[2]}")
        self._use = use
        self._store = store
        self._sealer = sealer
        self._clock = clock
        self._log = log
        self._used: str | None = None
        self._trouble: str | None = None

    async def run(self) -> None:
        """Look now and at every change of a certificate; ends by cancellation."""
        while True:
            try:
                async with self._store.watch(CERTIFICATES.key("")) as changes:
                    await self.look()
                    async for _ in changes:
                        await self.look()
            except (ScaivaultError, StartupError) as error:
                # Sealed, or the disk is full: neither ends with a change of a certificate.
                if self._trouble != str(error):
                    self._trouble = str(error)
                    self._log.warning("rest.certificate_unusable", name=self._names[0], detail=self._trouble)
                await self._clock.sleep(_RETRY_SECONDS)

    async def look(self) -> None:
        """Hand over what is to be used now, unless it is in use already.

        Raises:
            ScaivaultError: it cannot be read.
            StartupError: it cannot be used.
        """
        found = await self._newest()
        if found is None or found.fingerprint_sha256 == self._used:
            return
        assert found.key_id is not None
        key = await KEYS.get(self._store, found.key_id)
        if key is None:
            raise Internal(f"the private key of certificate {found.id} is not in the store")
        private_key = self._sealer.open(key.value.sealed, KEYS.key(found.key_id), "private_key")
        self._use(found.chain_pem, x509.private_key_pem(private_key))
        self._used, self._trouble = found.fingerprint_sha256, None
        self._log.info(
            "rest.certificate_in_use", certificate_id=found.id, version=found.version, not_after=found.not_after
        )

    async def _newest(self) -> Certificate | None:
        now = self._clock.now()
        found = [
            each.value
            for name in self._names
            for each in await CERTIFICATES.all(self._store, self._log, **{f"domain:{name}": "yes"})
        ]
        usable = [each for each in found if each.key_id is not None and each.status == "valid" and now < each.not_after]
        return max(usable, key=lambda each: each.not_before, default=None)
