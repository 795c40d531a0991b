"""Where access tokens for Google come from: a service account's key, the metadata server, or google-auth.

Each source makes tokens for one scope; acting as another service account needs a wider one than DNS does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from scaivaultd.plugin import (
    PermanentError,
    PluginContext,
    ProviderAuthError,
    ProviderError,
    Secret,
    TransientError,
)
from scaivaultd.plugin.http import HttpAnswer, HttpApi, open_api, quoted, require_safe
from scaivaultd_contrib_dns.access_tokens import (
    REFUSALS,
    AccessToken,
    TokenCache,
    ask_token_endpoint,
    imported,
    in_thread,
    open_machine_api,
    refused_token,
    token_from,
    without_retries,
)
from scaivaultd_contrib_dns.google_errors import google_error
from scaivaultd_contrib_dns.google_settings import GoogleSettings
from scaivaultd_contrib_dns.jwt import rsa_key, signed_jwt

DNS_SCOPE = "https://www.googleapis.com/auth/ndev.clouddns.readwrite"
IAM_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address
METADATA_HOSTS = frozenset({"metadata.google.internal", "metadata", "169.254.169.254", "fd20:ce::254"})
FLAVOR = {"Metadata-Flavor": "Google"}
LIFETIME_SECONDS = 3600


class Source(Protocol):
    """A source of access tokens."""

    async def fetch(self, anew: bool) -> AccessToken:
        """A new token; `anew` as in `access_tokens.FetchToken`."""
        ...

    async def project(self) -> str | None:
        """The project that the credentials belong to, if they say."""
        ...


@asynccontextmanager
async def open_source(settings: GoogleSettings, context: PluginContext) -> AsyncIterator[Source]:
    """The source that the settings choose."""
    scope = IAM_SCOPE if settings.impersonate_service_account else DNS_SCOPE
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(_open_base(settings, context, scope))
        if settings.impersonate_service_account:
            cache = TokenCache(source.fetch, context.clock)
            api = await stack.enter_async_context(
                open_api(
                    settings.iam_base,
                    without_retries(settings),
                    context,
                    authorize=cache.authorize,
                    error_from=google_error,
                )
            )
            source = Impersonation(settings.impersonate_service_account, source, api, context)
        yield source


@asynccontextmanager
async def _open_base(settings: GoogleSettings, context: PluginContext, scope: str) -> AsyncIterator[Source]:
    match settings.source:
        case "service_account":
            yield ServiceAccountKey(settings, context, scope)
        case "google_auth":
            yield DefaultCredentials(settings, context, scope)
        case "metadata":
            root = settings.metadata_root
            async with (
                open_machine_api(root, METADATA_HOSTS, settings, context) as patient,
                open_machine_api(root, METADATA_HOSTS, without_retries(settings), context) as brief,
            ):
                yield MetadataServer(patient, brief, context)


class KeyFile(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON key of a service account, as far as it is needed."""

    type: str = ""
    client_email: str = ""
    private_key: str = ""
    private_key_id: str | None = None
    token_uri: str | None = None
    project_id: str | None = None

    def __repr__(self) -> str:
        return f"KeyFile(client_email={self.client_email!r})"


class ServiceAccountKey:
    """Signs for a service account (RFC 7523 section 2.1)."""

    def __init__(self, settings: GoogleSettings, context: PluginContext, scope: str) -> None:
        self._settings = settings
        self._context = context
        self._scope = scope

    async def fetch(self, anew: bool) -> AccessToken:
        """See `Source`."""
        if anew:
            self._context.secrets.forget(self._reference)
        key = await self._key()
        token_uri = self._settings.token_uri or key.token_uri or TOKEN_URI
        try:
            # It comes with the secret, and the signed assertion goes there.
            require_safe(token_uri)
        except PermanentError as error:
            raise PermanentError(f"token_uri of the service account's key: {error.detail}") from None
        form = {
            "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
            "assertion": self._assertion(key, token_uri),
        }
        answer = await ask_token_endpoint(token_uri, form, self._settings, self._context)
        if not answer.ok:
            raise _throttled(answer) or refused_token(answer, self._hint(answer))
        return token_from(answer, self._context.clock)

    async def project(self) -> str | None:
        """See `Source`."""
        return (await self._key()).project_id

    @property
    def _reference(self) -> str:
        assert self._settings.service_account_json_path is not None
        return self._settings.service_account_json_path

    async def _key(self) -> KeyFile:
        text = await self._context.secrets.read(self._reference)
        try:
            key = msgspec.json.decode(text.reveal(), type=KeyFile)
        # Its text could quote the secret.
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise self._unusable("it is not the JSON that Google gives out for a key") from None
        if key.type != "service_account":
            raise self._unusable(
                "it is no key of a service account; for other kinds of credentials use credentials_source google_auth"
            )
        missing = [name for name in ("client_email", "private_key") if not getattr(key, name)]
        if missing:
            raise self._unusable(f"it lacks {' and '.join(missing)}")
        return key

    def _assertion(self, key: KeyFile, token_uri: str) -> str:
        now = int(self._context.clock.now().timestamp())
        claims = {
            "iss": key.client_email,
            "scope": self._scope,
            "aud": token_uri,
            "iat": now,
            "exp": now + LIFETIME_SECONDS,
        }
        header = {"kid": key.private_key_id} if key.private_key_id else {}
        try:
            return signed_jwt("RS256", header, claims, rsa_key(key.private_key))
        except ValueError as error:
            raise self._unusable(str(error)) from None

    def _unusable(self, why: str) -> ProviderAuthError:
        return ProviderAuthError(f"the secret {self._reference} cannot be used: {why}")

    def _hint(self, answer: HttpAnswer) -> str:
        return (
            f"the key in {self._reference} was refused: it may be deleted or disabled, or this host's clock is wrong"
            if b"invalid_grant" in answer.body
            else f"the key in {self._reference} was refused"
        )


class MetadataServer:
    """The metadata server of a machine at Google."""

    def __init__(self, patient: HttpApi, brief: HttpApi, context: PluginContext) -> None:
        """`brief` does not repeat: it asks inside of requests that do."""
        self._patient = patient
        self._brief = brief
        self._context = context

    async def fetch(self, anew: bool) -> AccessToken:
        """See `Source`."""
        answer = await self._ask(self._brief, "/instance/service-accounts/default/token")
        if answer.status == 404:
            raise ProviderAuthError(
                "this machine has no service account: attach one, or give service_account_json_path"
            )
        if not answer.ok:
            raise _throttled(answer) or refused_token(answer)
        return token_from(answer, self._context.clock)

    async def project(self) -> str | None:
        """See `Source`."""
        answer = await self._ask(self._patient, "/project/project-id")
        return answer.body.decode(errors="replace").strip() if answer.ok else None

    async def _ask(self, api: HttpApi, path: str) -> HttpAnswer:
        answer = await api.call("GET", f"/computeMetadata/v1{path}", headers=FLAVOR, accept=REFUSALS | {404})
        if answer.headers.get("metadata-flavor") != "Google":
            # A captive portal, or somebody who wants to be asked with what comes next.
            raise ProviderAuthError(f"what answers at {api.root} is no metadata server of Google")
        return answer


def _throttled(answer: HttpAnswer) -> ProviderError | None:
    """Google says by 403, too, that it is asked too often."""
    error = google_error(answer)
    return error if isinstance(error, TransientError) else None


class DefaultCredentials:
    """Application default credentials, by google-auth in a thread: it blocks."""

    def __init__(self, settings: GoogleSettings, context: PluginContext, scope: str) -> None:
        self._settings = settings
        self._context = context
        self._scope = scope

    async def fetch(self, anew: bool) -> AccessToken:
        """See `Source`."""
        credentials, _ = await self._load(refresh=True)
        # google-auth keeps naive times that mean UTC.
        expiry: datetime | None = credentials.expiry
        now = self._context.clock.now()
        seconds = (expiry.replace(tzinfo=UTC) - now).total_seconds() if expiry else float(LIFETIME_SECONDS)
        return AccessToken(secret=Secret(str(credentials.token)), lifetime_seconds=max(0.0, seconds))

    async def project(self) -> str | None:
        """See `Source`."""
        _, project = await self._load(refresh=False)
        return project

    async def _load(self, *, refresh: bool) -> tuple[Any, str | None]:
        return await in_thread(lambda: _default_credentials(self._scope, refresh), self._settings.request_timeout)


def _default_credentials(scope: str, refresh: bool) -> tuple[Any, str | None]:
    auth = imported("google.auth", "google-auth", "google_auth")
    exceptions = imported("google.auth.exceptions", "google-auth", "google_auth")
    try:
        credentials, project = auth.default(scopes=[scope])
        if refresh:
            transport = imported("google.auth.transport.requests", "google-auth[requests]", "google_auth")
            credentials.refresh(transport.Request())
    except exceptions.TransportError:
        raise TransientError("google-auth cannot reach the service that gives out tokens") from None
    except exceptions.GoogleAuthError as error:
        # Its text can hold what the token endpoint answered; the class says enough.
        raise ProviderAuthError(
            f"google-auth finds no usable credentials ({type(error).__name__}); GOOGLE_APPLICATION_CREDENTIALS, or "
            "whatever they come from, has to be in the environment of the daemon"
        ) from None
    return credentials, project


class GeneratedToken(msgspec.Struct, frozen=True, rename="camel"):
    """An answer of `generateAccessToken`."""

    access_token: str
    expire_time: Annotated[datetime, Meta(tz=True)]

    def __repr__(self) -> str:
        return "GeneratedToken(...)"


class Impersonation:
    """Acts as another service account (IAM credentials, `generateAccessToken`)."""

    def __init__(self, account: str, base: Source, api: HttpApi, context: PluginContext) -> None:
        self._account = account
        self._base = base
        self._api = api
        self._context = context

    async def fetch(self, anew: bool) -> AccessToken:
        """See `Source`."""
        path = f"/projects/-/serviceAccounts/{quoted(self._account)}:generateAccessToken"
        wanted = {"scope": [DNS_SCOPE], "lifetime": f"{LIFETIME_SECONDS}s"}
        answer = await self._api.call("POST", path, json=wanted, accept={403, 404})
        if not answer.ok:
            raise self._refusal(google_error(answer))
        try:
            generated = msgspec.json.decode(answer.body, type=GeneratedToken)
        except msgspec.DecodeError:
            raise TransientError("generateAccessToken answers without a usable accessToken") from None
        lifetime = (generated.expire_time - self._context.clock.now()).total_seconds()
        return AccessToken(secret=Secret(generated.access_token), lifetime_seconds=max(0.0, lifetime))

    async def project(self) -> str | None:
        """The project in the account's address; that of the base may be another one."""
        domain = self._account.partition("@")[2]
        owner, dot, rest = domain.partition(".")
        return owner if dot and rest == "iam.gserviceaccount.com" else await self._base.project()

    def _refusal(self, error: ProviderError) -> ProviderError:
        if isinstance(error, TransientError):
            return error
        return ProviderAuthError(
            f"cannot act as {self._account}; the credentials need roles/iam.serviceAccountTokenCreator on it, and it "
            f"has to exist: {error.detail}"
        )
