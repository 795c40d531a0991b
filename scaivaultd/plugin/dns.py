"""The contract between the daemon and a DNS provider.

The host resolves CNAMEs, chooses provider and zone, counts the users of a value, writes a journal before
anything is written, polls the authoritative servers, and cleans up, also after a crash. A provider does three things:
say which zone a name is in, make sure that values are in a TXT record set, make sure that they are not.

Names everywhere are complete, in lower-case A-labels, without a trailing dot. Values are the bare text
of one TXT record: no quotes, strings joined. Nothing but the given values may change: a name has many
values, other programs write there too, and their values, TTL and metadata stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import msgspec
from msgspec import Meta

from scaivaultd.plugin.context import PluginContext

Handle = Mapping[str, Any]
"""What a provider wants to remember of what it wrote (record ids, a change id): JSON, journalled by the host."""

Propagation = Literal["all", "quorum", "resolvers", "delay", "skip"]


class Zone(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A zone at a provider: its name and the provider's own id for it.

    `name_servers` are those the provider names, if it does: shown to people, never polled.
    """

    name: str
    id: str = ""
    name_servers: tuple[str, ...] = ()


class ProviderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings that every provider has; a kind's own settings derive from it.

    Members whose name ends in `_path` are references to secrets, those ending in `_paths` maps whose
    values are; anything else must not be secret.
    """

    ttl: Annotated[
        int, Meta(ge=0, le=86400, description="TTL of the records in seconds; raised to the provider's lowest.")
    ] = 60
    propagation: Annotated[
        Propagation,
        Meta(
            description="When a value counts as visible: on `all` authoritative servers, on a `quorum` (more than "
            "half) of them, at the given `resolvers`, after a fixed `delay`, or at once (`skip`)."
        ),
    ] = "all"
    propagation_timeout: Annotated[
        float, Meta(ge=1, le=86400, description="How long a value may take to become visible, in seconds.")
    ] = 300.0
    polling_interval: Annotated[
        float, Meta(ge=0.1, le=600, description="The longest pause between two looks, in seconds.")
    ] = 5.0
    propagation_resolvers: Annotated[
        tuple[str, ...],
        Meta(description="For `resolvers`: recursive nameservers to ask, as address or address:port."),
    ] = ()
    propagation_delay: Annotated[float, Meta(ge=0, le=86400, description="For `delay`: how many seconds to wait.")] = (
        120.0
    )
    propagation_failure: Annotated[
        Literal["fail", "continue"],
        Meta(description="What follows when a value is not visible in time: the order fails, or goes on anyway."),
    ] = "fail"
    skip_propagation_check: Annotated[bool, Meta(description="The same as `propagation` = `skip`.")] = False
    follow_cname: Annotated[bool, Meta(description="Follow CNAME records at the challenge name.")] = True
    challenge_alias: (
        Annotated[
            str,
            Meta(
                max_length=253,
                description="Write to this name instead of the challenge name: where its CNAME leads, if the daemon "
                "cannot resolve that itself.",
            ),
        ]
        | None
    ) = None
    request_timeout: Annotated[
        float, Meta(ge=1, le=300, description="How long one request to the provider may take, in seconds.")
    ] = 30.0
    max_retries: Annotated[
        int, Meta(ge=0, le=20, description="How often a request is repeated after a passing fault.")
    ] = 5


class DnsProvider(Protocol):
    """One configured provider. Calls overlap, but never for the same record name at the same time.

    Each call has a deadline set by the host and may be cancelled at any await; it must leave nothing
    but what the journal can clean up: some of the given values written, or not.
    """

    async def find_zone(self, name: str) -> Zone:
        """The closest enclosing zone that this provider can write, by the provider's word.

        Raises:
            ZoneNotFound: it has none. Every other `ProviderError` may be raised, too.
        """
        ...

    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        """Make sure that `values` are in the TXT record set of `name`; values that are there already are no error.

        An existing set keeps its TTL. Returns when the provider has taken the change, not when it is visible.

        Raises:
            ProviderError: see `scaivaultd.plugin.errors`.
        """
        ...

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        """Make sure that `values` are not in the set; gone values, a gone set and a gone zone are no error.

        `handle` is what `add_txt` returned for these values, or None when its answer was lost.
        """
        ...


@runtime_checkable
class SignalsLive(Protocol):
    """A provider whose service says when a change has reached all of its servers."""

    async def wait_live(self, handle: Handle) -> None:
        """Return when it has. The host sets the deadline, and polls the name servers afterwards all the same."""
        ...


@runtime_checkable
class Checkable(Protocol):
    """A provider that can tell whether its credentials work without writing."""

    async def check(self) -> None:
        """Ask the service something harmless.

        Raises:
            ProviderError: what is wrong.
        """
        ...


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What the host has to know of a kind of provider."""

    min_ttl: int = 0
    """The lowest TTL the service takes."""
    max_values: int | None = None
    """How many values one name holds at once; orders for it queue up when that is limited."""
    sequential: bool = False
    """Only one call at a time."""
    any_zone: bool = False
    """`find_zone` takes every name, so it says nothing about whom to ask: chosen by name only, or by `zones`."""


class DnsProviderKind(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin registers: a type of provider, its settings, and how to open one.

    `open` is called when a provider is first used; its context manager is left when the provider's settings change
    or the daemon stops. The texts are Markdown and make the provider's page in the documentation.
    """

    name: str
    """The `type` in a request, such as `aws_route53`: lower-case words joined by `_`."""
    title: str
    """What people call the service."""
    settings: type[ProviderSettings]
    open: Callable[[Any, PluginContext], AbstractAsyncContextManager[DnsProvider]]
    example: Mapping[str, Any]
    """Settings that decode, with references instead of secrets."""
    capabilities: Capabilities = Capabilities()
    configuration_file_only: bool = False
    """It runs programs or calls arbitrary hosts: only the administrator's file may configure one."""
    summary: str = ""
    rights: str = ""
    """The least rights the credentials need, as a policy to paste where the service has those."""
    limits: str = ""
    troubleshooting: str = ""


def secret_references(settings: ProviderSettings) -> Iterator[tuple[str, str]]:
    """The member and the reference of every secret that `settings` name."""
    for member in settings.__struct_fields__:
        value = getattr(settings, member)
        if member.endswith("_path") and isinstance(value, str):
            yield member, value
        elif member.endswith("_paths") and isinstance(value, Mapping):
            yield from ((f"{member}/{name}", reference) for name, reference in value.items())
