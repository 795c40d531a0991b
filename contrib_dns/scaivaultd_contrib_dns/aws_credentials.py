"""Which AWS keys sign a request: the choice of a source, and keys kept until shortly before they expire."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Literal

from msgspec import Meta

from scaivaultd.plugin import PermanentError, PluginContext, ProviderSettings, TransientError
from scaivaultd.plugin.http import Authorize, HttpRequest
from scaivaultd_contrib_dns.aws_signing import AwsKeys, Scope, signed_headers
from scaivaultd_contrib_dns.aws_sources import (
    AssumedRoleKeys,
    BotocoreKeys,
    ContainerKeys,
    CredentialSource,
    EnvironmentKeys,
    InstanceKeys,
    StaticKeys,
    Sts,
    WebIdentityKeys,
)

RENEW_BEFORE = timedelta(minutes=5)

Reference = Annotated[str, Meta(min_length=1, max_length=512)]
Source = Literal["static", "environment", "container", "imds", "web_identity", "botocore"]


class AwsSettings(ProviderSettings, frozen=True, kw_only=True):
    """Who we are to AWS."""

    access_key_id_path: Annotated[Reference | None, Meta(description="Reference to the access key id.")] = None
    secret_access_key_path: Annotated[Reference | None, Meta(description="Reference to the secret access key.")] = None
    session_token_path: Annotated[
        Reference | None, Meta(description="Reference to the session token that belongs to temporary keys.")
    ] = None
    credentials_source: Annotated[
        Source | None,
        Meta(
            description="Where the keys come from. Without it: `static` when keys are given, else what the environment "
            "of the daemon names (`environment`, `web_identity`, `container`, in this order). `imds` (the role of an "
            "EC2 instance) and `botocore` (profiles, SSO; needs botocore) are used only when asked for."
        ),
    ] = None
    region: Annotated[
        str,
        Meta(
            pattern="^[a-z0-9-]{1,32}$",
            description="Region of STS; it also says which partition (AWS, China, GovCloud) the zones are in.",
        ),
    ] = "us-east-1"
    assume_role_arn: Annotated[
        Annotated[str, Meta(pattern="^arn:", max_length=2048)] | None,
        Meta(description="A role to take on top of the keys."),
    ] = None
    external_id: Annotated[
        Annotated[str, Meta(min_length=2, max_length=1224)] | None,
        Meta(description="External id that the role's trust policy wants."),
    ] = None
    role_session_name: Annotated[
        str, Meta(pattern="^[A-Za-z0-9_=,.@-]{2,64}$", description="What the role's sessions are called in CloudTrail.")
    ] = "scaivaultd"
    sts_endpoint_url: Annotated[str | None, Meta(description="Another root URL for STS, such as a test server's.")] = (
        None
    )
    imds_endpoint: Annotated[str | None, Meta(description="Another root URL for the instance metadata service.")] = None

    def __post_init__(self) -> None:
        """Half a key is a mistake, never a reason to look elsewhere."""
        if (self.access_key_id_path is None) != (self.secret_access_key_path is None):
            raise ValueError("access_key_id_path and secret_access_key_path are needed both, or neither")
        if self.session_token_path is not None and self.access_key_id_path is None:
            raise ValueError("session_token_path needs access_key_id_path and secret_access_key_path")
        if self.credentials_source not in (None, "static") and self.access_key_id_path is not None:
            raise ValueError(f"credentials_source is {self.credentials_source}, but keys are given")
        if self.credentials_source == "static" and self.access_key_id_path is None:
            raise ValueError("credentials_source static needs access_key_id_path and secret_access_key_path")
        if self.external_id is not None and self.assume_role_arn is None:
            raise ValueError("external_id needs assume_role_arn")


class KeyRing:
    """Keys of one source, renewed five minutes before they expire; those without an end are asked for each time."""

    def __init__(self, source: CredentialSource, context: PluginContext) -> None:
        """The source is asked by one caller at a time."""
        self._source = source
        self._context = context
        self._lock = asyncio.Lock()
        self._keys: AwsKeys | None = None

    async def current(self, refused: bool) -> AwsKeys:
        """Keys for now; `refused` says that the last ones were."""
        before = self._keys
        async with self._lock:
            # Many requests may have been refused with the same keys: the first of them renewed for all.
            refused = refused and self._keys is before
            if not refused and self._lasts(RENEW_BEFORE):
                assert self._keys is not None
                return self._keys
            return await self._renewed(refused)

    async def _renewed(self, refused: bool) -> AwsKeys:
        try:
            keys = await self._source.fetch(refused)
        except TransientError as error:
            if refused or not self._lasts(timedelta(0)):
                raise
            assert self._keys is not None
            self._context.log.warning("aws.keys_not_renewed", detail=error.detail, expires=self._keys.expires)
            return self._keys
        self._keys = keys
        return keys

    def _lasts(self, margin: timedelta) -> bool:
        expires = self._keys.expires if self._keys is not None else None
        return expires is not None and self._context.clock.now() + margin < expires

    def signing(self, scope: Scope) -> Authorize:
        """What signs requests with these keys."""

        async def authorize(request: HttpRequest, refused: bool) -> Mapping[str, str]:
            return signed_headers(request, await self.current(refused), scope, self._context.clock.now())

        return authorize


def key_ring(settings: AwsSettings, context: PluginContext, environment: Mapping[str, str]) -> KeyRing:
    """The keys that `settings` ask for.

    Raises:
        PermanentError: no keys are given, and the environment names none.
    """
    endpoint = settings.sts_endpoint_url or f"https://sts.{settings.region}.{_domain(settings.region)}"
    sts = Sts(endpoint, settings.region, settings, context)
    base = KeyRing(_source(settings, context, environment, sts), context)
    if settings.assume_role_arn is None:
        return base
    form = {"RoleArn": settings.assume_role_arn, "RoleSessionName": settings.role_session_name}
    if settings.external_id is not None:
        form["ExternalId"] = settings.external_id
    return KeyRing(AssumedRoleKeys(form, base.signing(sts.scope), sts), context)


def _source(
    settings: AwsSettings, context: PluginContext, environment: Mapping[str, str], sts: Sts
) -> CredentialSource:
    match settings.credentials_source or _found(settings, environment):
        case "static":
            assert settings.access_key_id_path is not None and settings.secret_access_key_path is not None
            return StaticKeys(
                settings.access_key_id_path, settings.secret_access_key_path, settings.session_token_path, context
            )
        case "environment":
            return EnvironmentKeys(environment)
        case "container":
            return ContainerKeys(environment, settings, context)
        case "imds":
            return InstanceKeys(settings.imds_endpoint, settings, context)
        case "web_identity":
            return WebIdentityKeys(environment, settings.role_session_name, sts)
        case "botocore":
            return BotocoreKeys(settings, context)


def _found(settings: AwsSettings, environment: Mapping[str, str]) -> Source:
    """The source that is plainly there. Never IMDS: off EC2 it hangs."""
    if settings.access_key_id_path is not None:
        return "static"
    if environment.get("AWS_ACCESS_KEY_ID"):
        return "environment"
    if environment.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return "web_identity"
    if environment.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") or environment.get(
        "AWS_CONTAINER_CREDENTIALS_FULL_URI"
    ):
        return "container"
    raise PermanentError(
        "no AWS credentials: give access_key_id_path and secret_access_key_path, or a credentials_source (on EC2: imds)"
    )


def _domain(region: str) -> str:
    return "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
