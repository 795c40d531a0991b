"""Where access tokens for Azure come from: an application's secret, certificate or federated token, or the machine."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from scaivaultd.plugin import PluginContext, ProviderAuthError, Secret, TransientError
from scaivaultd.plugin.http import HttpAnswer, HttpApi, quoted
from scaivaultd_contrib_dns.access_tokens import (
    REFUSALS,
    AccessToken,
    FetchToken,
    ask_token_endpoint,
    imported,
    in_thread,
    open_machine_api,
    refused_token,
    token_from,
    without_retries,
)
from scaivaultd_contrib_dns.azure_errors import token_refusal
from scaivaultd_contrib_dns.azure_settings import AzureSettings
from scaivaultd_contrib_dns.jwt import base64url, rsa_key, signed_jwt

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ASSERTION_SECONDS = 600
FILE_MAX = 64 << 10
INSTANCE_API_VERSION = "2018-02-01"
APP_SERVICE_API_VERSION = "2019-08-01"
# After boot the endpoint is not there at once, and 410 says that it is being updated.
NOT_READY = frozenset({404, 410})
METADATA_HOSTS = frozenset({"169.254.169.254"})
ARC_KEY_FOLDER = Path("/var/opt/azcmagent/tokens")
ARC_KEY_MAX = 4096


@asynccontextmanager
async def open_source(settings: AzureSettings, context: PluginContext) -> AsyncIterator[FetchToken]:
    """What fetches tokens, as the settings choose."""
    match settings.source:
        case "managed_identity":
            parts = urlsplit(settings.identity_url)
            root = f"{parts.scheme}://{parts.netloc}"
            async with open_machine_api(root, METADATA_HOSTS, without_retries(settings), context) as api:
                yield ManagedIdentity(api, settings, context).fetch
        case "azure_identity":
            yield DefaultCredential(settings, context).fetch
        case _:
            yield Application(settings, context).fetch


class Application:
    """An application of the tenant, by client credentials (RFC 6749 section 4.4)."""

    def __init__(self, settings: AzureSettings, context: PluginContext) -> None:
        assert settings.tenant_id is not None
        assert settings.client_id is not None
        self._settings = settings
        self._context = context
        self._client_id = settings.client_id
        self._url = f"{settings.authority}/{quoted(settings.tenant_id)}/oauth2/v2.0/token"

    async def fetch(self, anew: bool) -> AccessToken:
        """See `access_tokens.FetchToken`."""
        form = {
            "grant_type": "client_credentials",
            "client_id": self._client_id,
            "scope": f"{self._settings.audience}/.default",
            **await self._proof(anew),
        }
        answer = await ask_token_endpoint(self._url, form, self._settings, self._context)
        if not answer.ok:
            raise token_refusal(answer)
        return token_from(answer, self._context.clock)

    async def _proof(self, anew: bool) -> Mapping[str, str]:
        settings = self._settings
        if settings.client_secret_path is not None:
            return {"client_secret": (await self._secret(settings.client_secret_path, anew)).reveal()}
        if settings.client_certificate_path is not None:
            pem = await self._secret(settings.client_certificate_path, anew)
            return _assertion(self._signed(pem, settings.client_certificate_path))
        assert settings.federated_token_file is not None
        return _assertion(await _federated_token(Path(settings.federated_token_file), settings.request_timeout))

    async def _secret(self, reference: str, anew: bool) -> Secret:
        if anew:
            self._context.secrets.forget(reference)
        return await self._context.secrets.read(reference)

    def _signed(self, pem: Secret, reference: str) -> str:
        now = int(self._context.clock.now().timestamp())
        claims = {
            "aud": self._url,
            "iss": self._client_id,
            "sub": self._client_id,
            "jti": f"{self._context.fraction().hex()}-{now}",
            "iat": now,
            "nbf": now,
            "exp": now + ASSERTION_SECONDS,
        }
        try:
            key = rsa_key(pem.reveal())
            return signed_jwt("PS256", _thumbprints(_certificate(pem.reveal(), key)), claims, key)
        except ValueError as error:
            raise ProviderAuthError(f"the secret {reference} cannot be used: {error}") from None


def _assertion(assertion: str) -> Mapping[str, str]:
    return {"client_assertion_type": ASSERTION_TYPE, "client_assertion": assertion}


def _certificate(pem: str, key: RSAPrivateKey) -> x509.Certificate:
    """The certificate that belongs to the key; issuers may stand beside it.

    Raises:
        ValueError: there is none.
    """
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", pem, re.DOTALL)
    try:
        certificates = [x509.load_pem_x509_certificate(block.encode()) for block in blocks]
    except ValueError:
        raise ValueError("its certificate cannot be read") from None
    for certificate in certificates:
        if certificate.public_key() == key.public_key():
            return certificate
    raise ValueError("it holds no certificate that belongs to its private key" if blocks else "it holds no certificate")


def _thumbprints(certificate: x509.Certificate) -> Mapping[str, str]:
    """By which the token service finds the certificate (RFC 7515 section 4.1.7 and 4.1.8)."""
    return {
        # A name for the certificate, not a protection; older deployments know no other.
        "x5t": base64url(certificate.fingerprint(hashes.SHA1())),  # noqa: S303 - see above
        "x5t#S256": base64url(certificate.fingerprint(hashes.SHA256())),
    }


async def _federated_token(file: Path, seconds: float) -> str:
    """The token in the file as it is now: Kubernetes rotates it.

    Raises:
        ProviderAuthError: it cannot be read, or does not look like a token; nothing of it is shown.
    """
    try:
        text = await in_thread(lambda: _beginning(file, FILE_MAX), seconds)
    except OSError as error:
        raise ProviderAuthError(f"federated_token_file {file} cannot be read: {error.strerror}") from None
    # One word of a token's alphabet: no other file of this machine is sent anywhere by mistake.
    if not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", text):
        raise ProviderAuthError(f"federated_token_file {file} does not hold a token")
    return text


def _beginning(file: Path, size: int) -> str:
    with file.open("rb") as stream:
        return stream.read(size).decode("ascii", "replace").strip()


class ManagedIdentity:
    """The identity of the machine, from an endpoint that only the machine can reach."""

    def __init__(self, api: HttpApi, settings: AzureSettings, context: PluginContext) -> None:
        self._api = api
        self._settings = settings
        self._context = context

    async def fetch(self, anew: bool) -> AccessToken:
        """See `access_tokens.FetchToken`."""
        answer = await self._ask({"Metadata": "true"} if self._is_instance else await self._app_service_header(anew))
        if answer.status == 401 and (challenge := answer.headers.get("www-authenticate")):
            answer = await self._ask({"Metadata": "true", "Authorization": f"Basic {await self._arc_key(challenge)}"})
        if answer.status in NOT_READY:
            raise TransientError(f"the endpoint for managed identities is not ready (HTTP {answer.status})")
        if not answer.ok:
            raise refused_token(answer, "has this machine a managed identity, and is managed_identity_client_id right?")
        return token_from(answer, self._context.clock)

    @property
    def _is_instance(self) -> bool:
        """Whether it speaks as virtual machines and Arc do, not as App Service does."""
        return self._settings.identity_header_path is None

    async def _ask(self, headers: Mapping[str, str]) -> HttpAnswer:
        query = {
            "api-version": INSTANCE_API_VERSION if self._is_instance else APP_SERVICE_API_VERSION,
            "resource": self._settings.audience,
        }
        if self._settings.managed_identity_client_id is not None:
            query["client_id"] = self._settings.managed_identity_client_id
        url = self._settings.identity_url
        return await self._api.call("GET", url, query=query, headers=headers, accept=REFUSALS | NOT_READY)

    async def _app_service_header(self, anew: bool) -> Mapping[str, str]:
        reference = self._settings.identity_header_path
        assert reference is not None
        if anew:
            self._context.secrets.forget(reference)
        return {"X-IDENTITY-HEADER": (await self._context.secrets.read(reference)).reveal()}

    async def _arc_key(self, challenge: str) -> str:
        """What Arc wants to see: the content of a file that it names and only the privileged can read."""
        named = re.fullmatch(r'Basic realm="?([^"]+)"?', challenge.strip(), re.IGNORECASE)
        file = Path(named[1]) if named else None
        if file is None or file.parent != ARC_KEY_FOLDER or file.suffix != ".key":
            raise ProviderAuthError("the endpoint for managed identities asks for a file that is none of Arc's keys")
        try:
            return await in_thread(lambda: _beginning(file, ARC_KEY_MAX), self._settings.request_timeout)
        except OSError as error:
            raise ProviderAuthError(
                f"{file} cannot be read ({error.strerror}): the daemon has to be in the group himds"
            ) from None


class DefaultCredential:
    """The default credential of azure-identity, in a thread: it blocks."""

    def __init__(self, settings: AzureSettings, context: PluginContext) -> None:
        self._settings = settings
        self._context = context

    async def fetch(self, anew: bool) -> AccessToken:
        """See `access_tokens.FetchToken`."""
        token = await in_thread(self._get_token, self._settings.request_timeout)
        lifetime = float(token.expires_on) - self._context.clock.now().timestamp()
        return AccessToken(secret=Secret(str(token.token)), lifetime_seconds=max(0.0, lifetime))

    def _get_token(self) -> Any:
        identity = imported("azure.identity", "azure-identity", "azure_identity")
        exceptions = imported("azure.core.exceptions", "azure-core", "azure_identity")
        # Made and closed in one thread: it owns connections, and a token lasts for an hour.
        credential = identity.DefaultAzureCredential(
            authority=self._settings.authority,
            managed_identity_client_id=self._settings.managed_identity_client_id,
        )
        try:
            return credential.get_token(f"{self._settings.audience}/.default")
        except exceptions.ServiceRequestError:
            raise TransientError("azure-identity cannot reach the service that gives out tokens") from None
        except exceptions.AzureError as error:
            # Its text can hold what the token service answered; the class says enough.
            raise ProviderAuthError(
                f"azure-identity finds no usable credentials ({type(error).__name__}); what they come from "
                "(AZURE_CLIENT_ID and the like) has to be in the environment of the daemon"
            ) from None
        finally:
            credential.close()
