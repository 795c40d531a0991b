"""Secrets by reference: `[scheme:]path`, read at the moment of use and forgotten soon.

Without a scheme a reference is a path of the built-in store, whose values are sealed like private keys
and can never be read back by a caller. One reference, one place: a missing secret is an error, never a
look elsewhere.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from scaivaultd.api import messages as m
from scaivaultd.model import metrics
from scaivaultd.model.errors import FieldError, InvalidRequest, NotFound, RevisionConflict, SecretNotFound
from scaivaultd.model.resources import StoredSecret
from scaivaultd.model.storage import Delete
from scaivaultd.plugin import Secret, SecretMissing
from scaivaultd.services.documents import SECRETS, digest
from scaivaultd.services.jobs import bounded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.clock import Clock
    from scaivaultd.plugin import SecretBackend
    from scaivaultd.services.ports import Sealer, SecretSource, Store

CACHE_SECONDS = 60.0
CACHE_MAX = 1000
BACKEND_SECONDS = 30.0
_SCHEME = re.compile(r"([a-z][a-z0-9+-]*):(.+)", re.DOTALL)
_PATH = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*){0,9}")
_OUTSIDE = ("cred", "file", "env")
_LONG = 20


class Secrets:
    """Handlers of `secrets.*`, and the reader behind every reference."""

    def __init__(
        self,
        *,
        store: Store,
        sealer: Sealer,
        outside: SecretSource,
        backends: Mapping[str, SecretBackend],
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        """`outside` reads `cred:`, `file:` and `env:`; `backends` are those of plugins, by scheme."""
        self._store = store
        self._sealer = sealer
        self._outside = outside
        self._backends = backends
        self._clock = clock
        self._log = log
        self._cache: dict[str, tuple[float, Secret]] = {}
        self._forgotten = 0
        self.referrers: Callable[[], Awaitable[Mapping[str, Sequence[str]]]] = _nobody
        """Who refers to which reference; set by whoever knows."""

    async def put(self, request: m.PutSecret, context: RequestContext) -> m.SecretReply:
        """Handle `secrets.put`."""
        _require_path(request.path)
        while True:
            current = await SECRETS.get(self._store, digest(request.path))
            now = self._clock.now()
            version = 1 if current is None else current.value.version + 1
            secret = StoredSecret(
                path=request.path,
                sealed=self._sealer.seal(request.value.encode(), _place(request.path), f"value.{version}"),
                version=version,
                created_at=now if current is None else current.value.created_at,
                updated_at=now,
            )
            put = SECRETS.put(secret) if current is None else SECRETS.put(secret, current.revision)
            try:
                await self._store.commit([put])
            except RevisionConflict:
                continue  # two puts at once: the later one wins, with the next version
            self.forget(request.path)
            self._log.info("secret.put", path=request.path, version=version, request_id=context.request_id)
            return _reply(secret, await self.referrers())

    async def list(self, request: m.ListSecrets, context: RequestContext) -> m.SecretList:
        """Handle `secrets.list`."""
        users = await self.referrers()
        found = sorted(
            (each.value for each in await SECRETS.all(self._store, self._log)), key=lambda secret: secret.path
        )
        fitting = [
            each
            for each in found
            if each.path.startswith(request.prefix)
            and each.path > (request.cursor or "")
            and context.permits.allows("secret.list", secret=each.path)
        ]
        page = fitting[: request.limit]
        more = len(fitting) > len(page)
        return m.SecretList(
            items=[_reply(each, users) for each in page], next_cursor=page[-1].path if more and page else None
        )

    async def delete(self, request: m.SecretByPath, context: RequestContext) -> m.SecretDeleted:
        """Handle `secrets.delete`."""
        _require_path(request.path)
        while True:
            current = await SECRETS.get(self._store, digest(request.path))
            if current is None:
                raise NotFound(f"there is no secret {request.path}")
            try:
                await self._store.commit(
                    [Delete(key=SECRETS.key(digest(request.path)), expect_revision=current.revision)]
                )
            except RevisionConflict:
                continue
            break
        self.forget(request.path)
        users = (await self.referrers()).get(request.path, ())
        self._log.info("secret.deleted", path=request.path, used_by=list(users), request_id=context.request_id)
        return m.SecretDeleted(path=request.path, used_by=list(users))

    def check(self, reference: str, pointer: str) -> None:
        """Refuse a reference that cannot be one, or is not open to callers.

        Raises:
            InvalidRequest: naming `pointer`. A text that may be the secret itself is not repeated.
        """
        scheme, rest = _parts(reference)
        if scheme in _OUTSIDE:
            self._outside.check(reference, pointer)
        elif scheme is not None and scheme not in self._backends:
            known = ", ".join(sorted({*_OUTSIDE, *self._backends}))
            raise _refused(
                pointer, f"no installed plugin reads secrets of the scheme {_shortened(scheme)!r}; known: {known}"
            )
        elif scheme is None and not _is_path(rest):
            raise _refused(
                pointer,
                "this is no secret reference; put the value with secrets.put and name its path here, such as "
                "infra/dns/token (lower case), or write cred:NAME, file:/PATH or env:NAME where those are allowed",
            )

    async def read(self, reference: str) -> Secret:
        """The secret, at most `CACHE_SECONDS` old.

        Raises:
            SecretNotFound: naming the reference only.
        """
        now = self._clock.monotonic()
        if (cached := self._cache.get(reference)) and cached[0] > now:
            return cached[1]
        forgotten = self._forgotten
        secret = Secret((await self._counted(reference)).strip())
        if forgotten != self._forgotten:
            # It may have been put anew between our read and this line, and the old one would be kept for a minute.
            return secret
        if len(self._cache) >= CACHE_MAX:
            self._cache.clear()
        self._cache[reference] = (now + CACHE_SECONDS, secret)
        return secret

    def forget(self, reference: str) -> None:
        """Read it anew next time."""
        self._forgotten += 1
        self._cache.pop(reference, None)

    def shown(self, reference: str) -> str:
        """The reference for a text or a log; what may be the secret itself, pasted by mistake, is not repeated."""
        scheme, rest = _parts(reference)
        if scheme in _OUTSIDE or scheme in self._backends:
            return reference
        if scheme is not None:
            return f"{_shortened(scheme)}:..."
        if not _is_path(rest):
            return f"a text of {len(rest)} letters that is no reference"
        # A long word without any `/` is more likely a token than the path of one.
        return reference if "/" in reference else _shortened(reference)

    async def _counted(self, reference: str) -> str:
        scheme = _parts(reference)[0] or "store"
        backend = scheme if scheme in {"store", *_OUTSIDE, *self._backends} else metrics.OTHER
        try:
            value = await self._fetch(reference)
        except SecretNotFound:
            metrics.SECRET_READS.labels(backend=backend, result="not_found").inc()
            raise
        metrics.SECRET_READS.labels(backend=backend, result="ok").inc()
        return value

    async def _fetch(self, reference: str) -> str:
        scheme, rest = _parts(reference)
        if scheme in _OUTSIDE:
            return await self._read_outside(reference)
        if scheme is not None:
            return await self._read_backend(scheme, rest, reference)
        stored = await SECRETS.get(self._store, digest(rest)) if _is_path(rest) else None
        if stored is None:
            raise SecretNotFound(f"{self.shown(reference)}: there is no such secret; secrets.put stores it")
        secret = stored.value
        return self._sealer.open(secret.sealed, _place(secret.path), f"value.{secret.version}").decode()

    async def _read_outside(self, reference: str) -> str:
        try:
            # Again, at the moment of use: the allow list may have become shorter since somebody named it.
            self._outside.check(reference, "")
        except InvalidRequest as refused:
            raise SecretNotFound(refused.detail) from None
        return await self._outside.read(reference)

    async def _read_backend(self, scheme: str, path: str, reference: str) -> str:
        backend = self._backends.get(scheme)
        if backend is None:
            shown = self.shown(reference)
            raise SecretNotFound(
                f"{shown}: no plugin reads secrets of the scheme {_shortened(scheme)!r}, or it did not open"
            )
        try:
            return await bounded(backend.read(path), BACKEND_SECONDS)
        except SecretMissing as missing:
            raise SecretNotFound(f"{reference}: {missing.detail}") from None
        except TimeoutError:
            raise SecretNotFound(f"{reference}: the backend did not answer within {BACKEND_SECONDS:.0f} s") from None
        except Exception as error:  # noqa: BLE001 - a stranger's backend; its text may hold anything
            metrics.PLUGIN_ERRORS.labels(plugin=scheme, hook="secret_backend").inc()
            self._log.warning("secret.backend_failed", scheme=scheme, error_type=type(error).__name__)
            raise SecretNotFound(f"{reference}: the backend failed ({type(error).__name__})") from None


class LentSecrets:
    """The reader as plugins see it."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    async def read(self, reference: str) -> Secret:
        """See `SecretReader`."""
        try:
            return await self._secrets.read(reference)
        except SecretNotFound as missing:
            shown = self._secrets.shown(reference)
            raise SecretMissing(shown, missing.detail.removeprefix(f"{shown}: ")) from None

    def forget(self, reference: str) -> None:
        """See `SecretReader`."""
        self._secrets.forget(reference)


async def _nobody() -> Mapping[str, Sequence[str]]:
    return {}


def _parts(reference: str) -> tuple[str | None, str]:
    match = _SCHEME.fullmatch(reference)
    return (match[1], match[2]) if match else (None, reference)


def _is_path(text: str) -> bool:
    return len(text) <= 255 and ".." not in text and bool(_PATH.fullmatch(text))


def _shortened(word: str) -> str:
    return word if len(word) < _LONG else f"{word[:4]}... ({len(word)} letters)"


def _require_path(path: str) -> None:
    if not _is_path(path):
        detail = "a path has up to ten words of a-z, 0-9, '.', '_', '-', joined by '/', such as infra/dns/token"
        raise InvalidRequest(detail, [FieldError(pointer="/path", code="bad_path", detail=detail)])


def _place(path: str) -> str:
    return SECRETS.key(digest(path))


def _refused(pointer: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, [FieldError(pointer=pointer, code="bad_reference", detail=detail)])


def _reply(secret: StoredSecret, users: Mapping[str, Sequence[str]]) -> m.SecretReply:
    return m.SecretReply(
        path=secret.path,
        version=secret.version,
        created_at=secret.created_at,
        updated_at=secret.updated_at,
        used_by=list(users.get(secret.path, ())),
    )
