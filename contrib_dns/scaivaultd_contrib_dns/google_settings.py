"""The settings of `google_cloud_dns`; what does not fit together is refused when they are decoded."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from scaivaultd.plugin import ProviderSettings
from scaivaultd_contrib_dns.access_tokens import require_safe_setting

CredentialsSource = Literal["service_account", "metadata", "google_auth"]

Text = Annotated[str, Meta(min_length=1)]
Address = Annotated[str, Meta(pattern="^[^@/]+@[^@/]+$")]


class GoogleSettings(ProviderSettings, frozen=True, kw_only=True):
    """Settings of `google_cloud_dns`."""

    service_account_json_path: Annotated[
        Text | None, Meta(description="Reference of the JSON key of a service account.")
    ] = None
    project: Annotated[
        Text | None,
        Meta(description="Id of the project that the zones are in; default: the project of the credentials."),
    ] = None
    managed_zone: Annotated[
        Text | None,
        Meta(
            description="Name or id of the managed zone, where there is only one to be used: then no right to list "
            "zones is needed."
        ),
    ] = None
    impersonate_service_account: Annotated[
        Address | None,
        Meta(
            description="Email address of a service account to act as; the credentials need "
            "`iam.serviceAccounts.getAccessToken` on it."
        ),
    ] = None
    credentials_source: Annotated[
        CredentialsSource | None,
        Meta(
            description="Where credentials come from: the key in `service_account_json_path` (the default when that is "
            "given), the `metadata` server of the machine (else the default), or `google_auth`: application default "
            "credentials by the package google-auth, which has to be installed beside the daemon."
        ),
    ] = None
    api_base: Annotated[str, Meta(description="Root of the Cloud DNS API.")] = "https://dns.googleapis.com/dns/v1"
    iam_base: Annotated[str, Meta(description="Root of the IAM credentials API, for impersonation.")] = (
        "https://iamcredentials.googleapis.com/v1"
    )
    token_uri: Annotated[
        str | None, Meta(description="Token endpoint, in place of the one in the service account's key.")
    ] = None
    metadata_host: Annotated[str, Meta(description="Host, host:port or URL of the metadata server.")] = (
        "metadata.google.internal"
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ValueError: what is missing, or one too many.
        """
        for name in ("api_base", "iam_base", "token_uri"):
            require_safe_setting(name, getattr(self, name))
        path = self.service_account_json_path
        if path is not None and ("{" in path or "\n" in path):
            raise ValueError("service_account_json_path is a reference to a secret; store the key there, not here")
        if self.credentials_source == "service_account" and path is None:
            raise ValueError("credentials_source service_account needs service_account_json_path")
        if self.credentials_source in ("metadata", "google_auth") and path is not None:
            raise ValueError(
                f"credentials_source {self.credentials_source} does not use service_account_json_path: leave one out"
            )

    @property
    def source(self) -> CredentialsSource:
        """The source that is used: what is given decides where `credentials_source` does not."""
        return self.credentials_source or ("service_account" if self.service_account_json_path else "metadata")

    @property
    def metadata_root(self) -> str:
        """The URL of the metadata server."""
        return self.metadata_host if "://" in self.metadata_host else f"http://{self.metadata_host}"
