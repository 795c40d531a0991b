"""Where AWS keys come from: each source fetches them once when asked; `aws_credentials` chooses and caches.

Nothing here retries: the request that needs the keys is what is repeated, keys and all.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Protocol
from urllib.parse import urlencode, urlsplit

import aiohttp
import msgspec
from msgspec import Meta

from scaivaultd.plugin import PermanentError, PluginContext, ProviderAuthError, ProviderError, Secret, TransientError
from scaivaultd.plugin.dns import ProviderSettings
from scaivaultd.plugin.http import (
    Authorize,
    HttpAnswer,
    HttpApi,
    no_authorization,
    open_api,
    require_safe,
)
from scaivaultd_contrib_dns.aws_errors import aws_error
from scaivaultd_contrib_dns.aws_signing import AwsKeys, Scope
from scaivaultd_contrib_dns.route53_xml import element_texts

# Link-local services answer at once or are not there.
METADATA_SECONDS = 5.0
METADATA_CONNECT_SECONDS = 2.0
TOKEN_TTL_SECONDS = 21600
IMDS_ENDPOINT = "http://169.254.169.254"
ECS_ENDPOINT = "http://169.254.170.2"
# Where ECS and EKS have their agents; anything else must be https or this machine.
CONTAINER_HOSTS = frozenset({"169.254.170.2", "169.254.170.23", "fd00:ec2::23"})
# botocore renews by itself: how long we go without asking it.
BOTOCORE_LIFETIME = timedelta(minutes=15)


class CredentialSource(Protocol):
    """A place where keys come from."""

    async def fetch(self, refused: bool) -> AwsKeys:
        """Keys, fresh from the source. `refused`: the last ones were, so read everything anew.

        Raises:
            ProviderError: there are none, or not now.
        """
        ...


class _Document(msgspec.Struct, frozen=True, rename="pascal"):
    """Keys as IMDS and the container services word them."""

    access_key_id: str = ""
    secret_access_key: str = ""
    token: str | None = None
    expiration: Annotated[datetime, Meta(tz=True)] | None = None
    code: str = "Success"


class StaticKeys:
    """An access key from the secret store, read at every use."""

    def __init__(self, access_key_id: str, secret_access_key: str, session_token: str | None, context: PluginContext):
        """The three are references."""
        self._references = (access_key_id, secret_access_key, session_token)
        self._secrets = context.secrets

    async def fetch(self, refused: bool) -> AwsKeys:
        """Read the secrets."""
        access_key_id, secret_access_key, session_token = self._references
        if refused:
            for reference in filter(None, self._references):
                self._secrets.forget(reference)
        return AwsKeys(
            access_key_id=(await self._secrets.read(access_key_id)).reveal(),
            secret_access_key=await self._secrets.read(secret_access_key),
            session_token=await self._secrets.read(session_token) if session_token else None,
        )


class EnvironmentKeys:
    """The variables that every AWS tool knows."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    async def fetch(self, refused: bool) -> AwsKeys:
        """Read the variables."""
        access_key_id = self._environment.get("AWS_ACCESS_KEY_ID")
        secret_access_key = self._environment.get("AWS_SECRET_ACCESS_KEY")
        if not access_key_id or not secret_access_key:
            raise ProviderAuthError("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must both be in the environment")
        token = self._environment.get("AWS_SESSION_TOKEN")
        return AwsKeys(
            access_key_id=access_key_id,
            secret_access_key=Secret(secret_access_key),
            session_token=Secret(token) if token else None,
        )


class ContainerKeys:
    """The credential services of ECS tasks and EKS pod identity."""

    def __init__(self, environment: Mapping[str, str], settings: ProviderSettings, context: PluginContext) -> None:
        self._environment = environment
        self._settings = settings
        self._context = context

    async def fetch(self, refused: bool) -> AwsKeys:
        """Ask the service that the environment names; its token file is read each time, since it is rotated."""
        url = self._url()
        parts = urlsplit(url)
        token = await self._token()
        headers = {"Authorization": token.reveal()} if token else {}
        async with _metadata_api(f"{parts.scheme}://{parts.netloc}", self._settings, self._context) as api:
            answer = await api.call("GET", url, headers=headers)
        return _keys(answer, "the container's credential service")

    def _url(self) -> str:
        relative = self._environment.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        if relative:
            return f"{ECS_ENDPOINT}{relative}"
        full = self._environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        if not full:
            raise ProviderAuthError(
                "neither AWS_CONTAINER_CREDENTIALS_RELATIVE_URI nor AWS_CONTAINER_CREDENTIALS_FULL_URI is in the "
                "environment: this is no ECS task or EKS pod with an identity"
            )
        if urlsplit(full).hostname not in CONTAINER_HOSTS:
            require_safe(full.partition("?")[0])
        return full

    async def _token(self) -> Secret | None:
        path = self._environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
        if path:
            return await _file(path)
        token = self._environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN")
        return Secret(token) if token else None


class InstanceKeys:
    """The role of an EC2 instance, by version 2 of its metadata service only."""

    def __init__(self, endpoint: str | None, settings: ProviderSettings, context: PluginContext) -> None:
        """The endpoint is for tests and for instances that speak IPv6 only."""
        self._endpoint = (endpoint or IMDS_ENDPOINT).rstrip("/")
        self._settings = settings
        self._context = context

    async def fetch(self, refused: bool) -> AwsKeys:
        """Ask for a token, the role's name, and its keys."""
        async with _metadata_api(self._endpoint, self._settings, self._context) as api:
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_SECONDS)}
            try:
                token = await api.call("PUT", "/latest/api/token", headers=headers)
            except TransientError as error:
                raise TransientError(
                    f"the instance metadata service: {error.detail} (inside a container the instance's hop limit "
                    "must be at least 2)"
                ) from None
            headers = {"X-aws-ec2-metadata-token": token.body.decode("ascii", "replace").strip()}
            path = "/latest/meta-data/iam/security-credentials/"
            roles = await api.call("GET", path, headers=headers, accept={404})
            lines = roles.body.decode("utf-8", "replace").split() if roles.ok else []
            if not lines:
                raise ProviderAuthError("this instance has no role (instance profile)")
            return _keys(await api.call("GET", f"{path}{lines[0]}", headers=headers), "the instance metadata service")


class WebIdentityKeys:
    """A role for a token of an identity provider, as in EKS service accounts."""

    def __init__(self, environment: Mapping[str, str], session_name: str, sts: Sts) -> None:
        """`session_name` is used where the environment names none."""
        self._environment = environment
        self._session_name = session_name
        self._sts = sts

    async def fetch(self, refused: bool) -> AwsKeys:
        """Hand the token to STS; its file is read each time, since it is rotated."""
        role = self._environment.get("AWS_ROLE_ARN")
        path = self._environment.get("AWS_WEB_IDENTITY_TOKEN_FILE")
        if not role or not path:
            raise ProviderAuthError("AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE must both be in the environment")
        form = {
            "Action": "AssumeRoleWithWebIdentity",
            "RoleArn": role,
            "RoleSessionName": self._environment.get("AWS_ROLE_SESSION_NAME") or self._session_name,
            "WebIdentityToken": (await _file(path)).reveal(),
        }
        return await self._sts.ask(form, no_authorization)


class AssumedRoleKeys:
    """A role that other keys may take."""

    def __init__(self, form: Mapping[str, str], base: Authorize, sts: Sts) -> None:
        """`form` holds the parameters of AssumeRole; `base` signs for STS."""
        self._form = form
        self._base = base
        self._sts = sts

    async def fetch(self, refused: bool) -> AwsKeys:
        """Ask STS."""
        return await self._sts.ask({"Action": "AssumeRole", **self._form}, self._base)


class BotocoreKeys:
    """Whatever botocore finds by its own rules: profiles, SSO, programs."""

    def __init__(self, settings: ProviderSettings, context: PluginContext) -> None:
        self._settings = settings
        self._context = context
        self._credentials: Any = None

    async def fetch(self, refused: bool) -> AwsKeys:
        """Ask botocore in a thread: it blocks."""
        try:
            async with asyncio.timeout(self._settings.request_timeout):
                frozen = await asyncio.to_thread(self._ask, refused)
        except TimeoutError:
            raise TransientError("botocore found no credentials in time") from None
        return AwsKeys(
            access_key_id=frozen.access_key,
            secret_access_key=Secret(frozen.secret_key),
            session_token=Secret(frozen.token) if frozen.token else None,
            expires=self._context.clock.now() + BOTOCORE_LIFETIME,
        )

    def _ask(self, refused: bool) -> Any:
        try:
            session_module = importlib.import_module("botocore.session")
            errors = importlib.import_module("botocore.exceptions")
        except ImportError:
            raise PermanentError("credentials_source botocore needs botocore: pip install botocore") from None
        try:
            if self._credentials is None or refused:
                self._credentials = session_module.get_session().get_credentials()
            if self._credentials is None:
                raise ProviderAuthError("botocore finds no credentials for the daemon's user")
            return self._credentials.get_frozen_credentials()
        except errors.BotoCoreError as error:
            raise ProviderAuthError(f"botocore finds no credentials ({type(error).__name__})") from None


class Sts:
    """AWS's token service, asked once in an hour or so: no connection is kept."""

    def __init__(self, endpoint: str, region: str, settings: ProviderSettings, context: PluginContext) -> None:
        self.scope = Scope(service="sts", region=region)
        self._endpoint = endpoint
        self._settings = settings
        self._context = context

    async def ask(self, form: Mapping[str, str], authorize: Authorize) -> AwsKeys:
        """Temporary keys for `form`, which says what for."""
        body = urlencode({"Version": "2011-06-15", **form}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8", "Accept": "application/xml"}
        once = _without_retries(self._settings)
        async with open_api(self._endpoint, once, self._context, authorize=authorize, error_from=aws_error) as api:
            answer = await api.call("POST", "/", body=body, headers=headers)
        texts = element_texts(answer.body, "Credentials")
        renamed = {**texts, "Token": texts.get("SessionToken")}
        return _keys_of(renamed, "STS")


@asynccontextmanager
async def _metadata_api(root: str, settings: ProviderSettings, context: PluginContext) -> AsyncIterator[HttpApi]:
    # Not `open_api`: these services speak plain http at link-local addresses.
    timeout = aiohttp.ClientTimeout(total=METADATA_SECONDS, connect=METADATA_CONNECT_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False) as session:
        yield HttpApi(
            session,
            root,
            _without_retries(settings),
            context,
            authorize=no_authorization,
            error_from=_unread,
        )


def _without_retries(settings: ProviderSettings) -> ProviderSettings:
    return msgspec.structs.replace(settings, max_retries=0)


def _unread(answer: HttpAnswer) -> ProviderError | None:
    return None


def _keys(answer: HttpAnswer, where: str) -> AwsKeys:
    return _keys_of(answer.json(), where)


def _keys_of(found: Any, where: str) -> AwsKeys:
    try:
        document = msgspec.convert(found, _Document)
    except msgspec.ValidationError:
        raise TransientError(f"{where} answers with something that holds no keys") from None
    if document.code != "Success":
        raise ProviderAuthError(f"{where} has no keys: {document.code[:100]}")
    if not document.access_key_id or not document.secret_access_key:
        raise TransientError(f"{where} answers with something that holds no keys")
    return AwsKeys(
        access_key_id=document.access_key_id,
        secret_access_key=Secret(document.secret_access_key),
        session_token=Secret(document.token) if document.token else None,
        expires=document.expiration,
    )


async def _file(path: str) -> Secret:
    try:
        text = await asyncio.to_thread(Path(path).read_text, encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ProviderAuthError(f"the token file {path} cannot be read ({type(error).__name__})") from None
    return Secret(text.strip())
