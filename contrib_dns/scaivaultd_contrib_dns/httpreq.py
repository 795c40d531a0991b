"""httpreq: any HTTP service that takes lego's `present` and `cleanup` requests, such as the many small DNS bridges."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

from msgspec import Meta

from scaivaultd.plugin import (
    Capabilities,
    DnsProvider,
    DnsProviderKind,
    Handle,
    PluginContext,
    ProviderError,
    ProviderSettings,
    Zone,
    hookimpl,
    normal_name,
)
from scaivaultd.plugin.http import Authorize, HttpAnswer, HttpApi, HttpRequest, no_authorization, open_api

SCAIVAULTD_PLUGIN_API = "1.1"

Reference = Annotated[str, Meta(min_length=1, max_length=512)]


class HttpreqSettings(ProviderSettings, frozen=True, kw_only=True):
    """Where the service is, and how it knows us: by password, by token, or not at all."""

    endpoint: Annotated[
        str, Meta(min_length=1, description="URL of the service; `/present` and `/cleanup` are put behind it.")
    ]
    username_path: Annotated[Reference | None, Meta(description="Reference to the user name (Basic).")] = None
    password_path: Annotated[Reference | None, Meta(description="Reference to the password (Basic).")] = None
    bearer_token_path: Annotated[Reference | None, Meta(description="Reference to a token (Bearer).")] = None

    def __post_init__(self) -> None:
        """One way to log in, or none."""
        if (self.username_path is None) != (self.password_path is None):
            raise ValueError("username_path and password_path are needed both, or neither")
        if self.username_path is not None and self.bearer_token_path is not None:
            raise ValueError("username_path or bearer_token_path, not both")


class Httpreq:
    """The provider."""

    def __init__(self, api: HttpApi) -> None:
        """Use `open_httpreq`."""
        self._api = api

    async def find_zone(self, name: str) -> Zone:
        """See `DnsProvider`. The service is not asked, since it cannot tell: every name is a zone."""
        return Zone(name=normal_name(name))

    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        """See `DnsProvider`. One request for each value; the service chooses the TTL."""
        for value in values:
            await self._tell("/present", name, value)
        return {}

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        """See `DnsProvider`."""
        for value in values:
            # Some services answer so when there is nothing to remove; a wrong URL shows when values are added.
            await self._tell("/cleanup", name, value, accept=frozenset({404}))

    async def _tell(self, path: str, name: str, value: str, accept: frozenset[int] = frozenset()) -> None:
        body = {"fqdn": f"{normal_name(name)}.", "value": value}
        await self._api.call("POST", path, json=body, accept=accept)


def _authorize_by(settings: HttpreqSettings, context: PluginContext) -> Authorize:
    references = [
        each
        for each in (settings.username_path, settings.password_path, settings.bearer_token_path)
        if each is not None
    ]
    if not references:
        return no_authorization

    async def authorize(request: HttpRequest, refused: bool) -> Mapping[str, str]:
        if refused:
            for reference in references:
                context.secrets.forget(reference)
        texts = [(await context.secrets.read(reference)).reveal() for reference in references]
        if settings.bearer_token_path is not None:
            return {"Authorization": f"Bearer {texts[0]}"}
        return {"Authorization": f"Basic {base64.b64encode(':'.join(texts).encode()).decode()}"}

    return authorize


def _by_status(answer: HttpAnswer) -> ProviderError | None:
    # The body is whatever somebody's bridge prints, perhaps our own headers: not shown.
    return None


@asynccontextmanager
async def open_httpreq(settings: HttpreqSettings, context: PluginContext) -> AsyncIterator[DnsProvider]:
    """Open a provider.

    Raises:
        PermanentError: `endpoint` is not safe.
    """
    authorize = _authorize_by(settings, context)
    async with open_api(settings.endpoint, settings, context, authorize=authorize, error_from=_by_status) as api:
        yield Httpreq(api)


LIMITS = """\
- Only the default mode of lego's convention is spoken; its RAW mode hands out the key authorization.
- A request is repeated when its answer is lost, so the service must take the same `present` or `cleanup` twice.
- `present` must add the value beside those already there, not replace them: a name and its wildcard share one name.
- The service cannot say which zones it has, so the provider is used where it is named, or by its `zones`.
- It may be configured only in the daemon's configuration file, since it makes the daemon call any host."""

TROUBLESHOOTING = """\
- *HTTP 401* or *403*: the service refuses user name, password or token.
- *HTTP 404*: `endpoint` is not what `/present` is to be put behind. A 404 for `cleanup` counts as done.
- The order waits and then says that the value is absent: the service answers before it has written, or writes
  elsewhere; its own log tells. A request looks like this:

      POST {endpoint}/present
      {"fqdn": "_acme-challenge.www.example.com.", "value": "..."}"""


@hookimpl
def scaivaultd_dns_providers() -> Iterable[DnsProviderKind]:
    """The one kind of this plugin."""
    return [
        DnsProviderKind(
            name="httpreq",
            title="HTTP request (httpreq)",
            settings=HttpreqSettings,
            open=open_httpreq,
            example={"endpoint": "https://dns-bridge.example.org/acme", "bearer_token_path": "infra/dns-bridge/token"},
            capabilities=Capabilities(any_zone=True),
            configuration_file_only=True,
            summary="Tells an HTTP service of yours to add and remove TXT values, in the form that lego's provider of "
            "the same name uses.",
            rights="Whatever the service grants: let the user or token do nothing but TXT values below "
            "`_acme-challenge`.",
            limits=LIMITS,
            troubleshooting=TROUBLESHOOTING,
        )
    ]
