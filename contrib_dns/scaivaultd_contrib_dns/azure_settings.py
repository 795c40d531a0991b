"""The settings of `azure_dns`; what does not fit together is refused when they are decoded."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from scaivaultd.plugin import ProviderSettings
from scaivaultd_contrib_dns.access_tokens import require_safe_setting

CredentialsSource = Literal[
    "client_secret", "client_certificate", "workload_identity", "managed_identity", "azure_identity"
]
Environment = Literal["public", "usgovernment", "china"]

Text = Annotated[str, Meta(min_length=1)]


class Cloud(msgspec.Struct, frozen=True):
    """One of Microsoft's clouds: these belong together."""

    authority: str
    resource_manager: str


CLOUDS: dict[Environment, Cloud] = {
    "public": Cloud("https://login.microsoftonline.com", "https://management.azure.com"),
    "usgovernment": Cloud("https://login.microsoftonline.us", "https://management.usgovcloudapi.net"),
    "china": Cloud("https://login.chinacloudapi.cn", "https://management.chinacloudapi.cn"),
}
INSTANCE_METADATA = "http://169.254.169.254"
TOKEN_PATH = "/metadata/identity/oauth2/token"  # noqa: S105 - a path

_MEMBER_OF: dict[CredentialsSource, str] = {
    "client_secret": "client_secret_path",
    "client_certificate": "client_certificate_path",
    "workload_identity": "federated_token_file",
}


class AzureSettings(ProviderSettings, frozen=True, kw_only=True):
    """Settings of `azure_dns`."""

    subscription_id: Annotated[Text, Meta(description="Id of the subscription that the zones are in.")]
    resource_group: Annotated[
        Text | None,
        Meta(description="Resource group of the zones: then rights on it are enough to find them."),
    ] = None
    zone_name: Annotated[
        Text | None,
        Meta(
            description="Name of the zone, where there is only one to be used: together with `resource_group` no "
            "right to list zones is needed."
        ),
    ] = None
    tenant_id: Annotated[Text | None, Meta(description="Id or domain of the tenant that the application is in.")] = None
    client_id: Annotated[Text | None, Meta(description="Id of the application (client).")] = None
    client_secret_path: Annotated[
        Text | None, Meta(description="Reference of the application's client secret (its value, not its id).")
    ] = None
    client_certificate_path: Annotated[
        Text | None,
        Meta(description="Reference of the application's certificate and RSA key, in one PEM text."),
    ] = None
    federated_token_file: Annotated[
        Text | None,
        Meta(
            description="File that holds a token of another issuer, read again for each use; on Kubernetes what "
            "AZURE_FEDERATED_TOKEN_FILE says."
        ),
    ] = None
    environment: Annotated[
        Environment, Meta(description="The cloud; it decides about authority, resource manager and scope.")
    ] = "public"
    credentials_source: Annotated[
        CredentialsSource | None,
        Meta(
            description="Where credentials come from; default: whichever of `client_secret_path`, "
            "`client_certificate_path` and `federated_token_file` is given, else `managed_identity` of the machine. "
            "`azure_identity`: the default credential of the package azure-identity, which has to be installed beside "
            "the daemon."
        ),
    ] = None
    managed_identity_client_id: Annotated[
        Text | None,
        Meta(description="Client id of a user-assigned managed identity; default: the identity of the machine itself."),
    ] = None
    keep_record_set: Annotated[
        bool,
        Meta(
            description="Leave an empty record set behind instead of deleting it: role assignments on a record set "
            "die with it."
        ),
    ] = False
    api_base: Annotated[
        str | None, Meta(description="Root of the resource manager, in place of that of the environment.")
    ] = None
    authority_url: Annotated[
        str | None, Meta(description="Root of the token service, in place of that of the environment.")
    ] = None
    identity_endpoint: Annotated[
        Text | None,
        Meta(
            description="Root, or whole URL, of the endpoint that gives managed identities their tokens; on machines "
            "connected by Azure Arc `http://localhost:40342`. Default: that of Azure's virtual machines."
        ),
    ] = None
    identity_header_path: Annotated[
        Text | None,
        Meta(
            description="Reference of the secret that App Service and Container Apps want for managed identities "
            "(their IDENTITY_HEADER); `identity_endpoint` is then the whole URL in their IDENTITY_ENDPOINT."
        ),
    ] = None

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ValueError: what is missing, or one too many.
        """
        require_safe_setting("api_base", self.api_base)
        require_safe_setting("authority_url", self.authority_url)
        self._require_whole_credentials()
        if self.federated_token_file is not None:
            self._require_trusted_reader(self.federated_token_file)
        if self.identity_header_path is not None and self.identity_endpoint is None:
            raise ValueError("identity_header_path needs identity_endpoint")
        if self.identity_endpoint is not None and self.source != "managed_identity":
            raise ValueError(f"identity_endpoint is of no use with credentials_source {self.source}")

    @property
    def source(self) -> CredentialsSource:
        """The source that is used: what is given decides where `credentials_source` does not."""
        if self.credentials_source is not None:
            return self.credentials_source
        given = (source for source, member in _MEMBER_OF.items() if getattr(self, member) is not None)
        return next(given, "managed_identity")

    @property
    def authority(self) -> str:
        """Root of the token service."""
        return (self.authority_url or CLOUDS[self.environment].authority).rstrip("/")

    @property
    def resource_manager(self) -> str:
        """Root of the resource manager."""
        return (self.api_base or CLOUDS[self.environment].resource_manager).rstrip("/")

    @property
    def audience(self) -> str:
        """What tokens are for: a name rather than an address, so it follows the environment, not `api_base`."""
        return CLOUDS[self.environment].resource_manager

    @property
    def identity_url(self) -> str:
        """Where managed identities get their tokens."""
        endpoint = (self.identity_endpoint or INSTANCE_METADATA).rstrip("/")
        return endpoint if urlsplit(endpoint).path else f"{endpoint}{TOKEN_PATH}"

    def _require_whole_credentials(self) -> None:
        given = [member for member in _MEMBER_OF.values() if getattr(self, member) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given: leave all but one out")
        needed = _MEMBER_OF.get(self.source)
        if needed is None:
            self._require_no_application(given)
            return
        missing = [name for name in ("tenant_id", "client_id", needed) if getattr(self, name) is None]
        if missing:
            raise ValueError(f"credentials_source {self.source} needs {' and '.join(missing)}")
        if given != [needed]:
            raise ValueError(f"credentials_source {self.source} does not use {given[0]}: leave one out")

    def _require_no_application(self, given: list[str]) -> None:
        """`managed_identity` and `azure_identity` find their credentials themselves."""
        if given:
            raise ValueError(f"credentials_source {self.source} does not use {given[0]}: leave one out")
        if self.client_id is not None and self.credentials_source is None:
            raise ValueError(
                "client_id is given, but none of client_secret_path, client_certificate_path, federated_token_file; "
                "for a managed identity set managed_identity_client_id instead"
            )
        if self.client_id is not None:
            raise ValueError(
                f"credentials_source {self.source} does not use client_id; a user-assigned identity is named by "
                "managed_identity_client_id"
            )

    def _require_trusted_reader(self, file: str) -> None:
        if not PurePosixPath(file).is_absolute():
            raise ValueError("federated_token_file has to be an absolute path")
        known = {urlsplit(cloud.authority).hostname for cloud in CLOUDS.values()} | {"localhost", "127.0.0.1", "::1"}
        if urlsplit(self.authority).hostname not in known:
            # Else whoever may configure a provider could have any file sent anywhere.
            raise ValueError(
                "federated_token_file is sent to Microsoft's own authorities only: leave authority_url out"
            )
