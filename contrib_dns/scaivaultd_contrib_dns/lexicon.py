"""lexicon: the providers of dns-lexicon, for services that have none of their own here.

The zone must be configured: dns-lexicon's own guess is wrong for zones below a registered domain.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from scaivaultd.plugin import (
    Capabilities,
    DnsProvider,
    DnsProviderKind,
    Handle,
    PermanentError,
    PluginContext,
    ProviderAuthError,
    ProviderSettings,
    TransientError,
    Zone,
    ZoneNotFound,
    candidates,
    hookimpl,
    normal_name,
)
from scaivaultd_contrib_dns.lexicon_worker import Errand, Job, LexiconWorker

SCAIVAULTD_PLUGIN_API = "1.1"

BASE_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0

Option = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,64}$")]
ZoneName = Annotated[str, Meta(min_length=1, max_length=254)]
Reference = Annotated[str, Meta(min_length=1, max_length=512)]


class LexiconSettings(ProviderSettings, frozen=True, kw_only=True):
    """Which of dns-lexicon's providers, with what options, for which zone."""

    lexicon_provider: Annotated[
        str, Meta(pattern="^[a-z0-9]{1,64}$", description="Name of the provider in dns-lexicon, such as `gandi`.")
    ]
    zone: Annotated[ZoneName | None, Meta(description="The zone to write; nothing works without it.")] = None
    options: Annotated[
        dict[Option, str | int | bool],
        Meta(
            description="Options of the provider that are no secrets, as `lexicon PROVIDER --help` shows them, with "
            "`_` for `-`."
        ),
    ] = msgspec.field(default_factory=dict)
    option_paths: Annotated[
        dict[Option, Reference],
        Meta(description="Options of the provider that are secrets, such as `auth_token`: references to them."),
    ] = msgspec.field(default_factory=dict)
    timeout: Annotated[
        float, Meta(ge=1, le=600, description="How long one call of dns-lexicon may take, in seconds.")
    ] = 60.0

    def __post_init__(self) -> None:
        """An option comes from one place."""
        both = self.options.keys() & self.option_paths.keys()
        if both:
            raise ValueError(f"in options and in option_paths: {', '.join(sorted(both))}")


class Lexicon:
    """The provider."""

    def __init__(self, worker: LexiconWorker, settings: LexiconSettings, context: PluginContext) -> None:
        """Use `open_lexicon`."""
        self._worker = worker
        self._settings = settings
        self._context = context

    async def find_zone(self, name: str) -> Zone:
        """See `DnsProvider`. The configured zone, if it holds the name; the service is not asked."""
        if self._settings.zone is None:
            raise ZoneNotFound(f"dns-lexicon cannot tell the zone of {name}: set `zone`")
        zone = normal_name(self._settings.zone)
        if zone not in candidates(name):
            raise ZoneNotFound(f"{name} is not in {zone}, the configured `zone`")
        return Zone(name=zone)

    async def check(self) -> None:
        """Log in, which makes dns-lexicon look the zone up at most services."""
        if self._settings.zone is None:
            raise PermanentError("dns-lexicon needs to be told its zone: set `zone`")
        await self._repeated(normal_name(self._settings.zone), self._settings.ttl, lambda operations: True)

    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        """See `DnsProvider`. dns-lexicon appends, and takes a value that is there already."""
        for value in values:
            if not await self._repeated(zone.name, ttl, _creating(name, value)):
                raise PermanentError(f"dns-lexicon did not add the value at {name}; its own log may tell why")
        return {}

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        """See `DnsProvider`."""
        for value in values:
            if not await self._repeated(zone.name, self._settings.ttl, _deleting(name, value)):
                raise PermanentError(f"dns-lexicon did not remove the value at {name}; its own log may tell why")

    async def _repeated(self, zone: str, ttl: int, job: Job) -> bool:
        """Do a job again after passing faults, and once with the secrets read anew."""
        failures = 0
        refused = False
        while True:
            options = await self._options()
            errand = Errand(provider=self._settings.lexicon_provider, zone=zone, ttl=ttl, options=options, job=job)
            try:
                return await self._worker.run(errand)
            except ProviderAuthError:
                if refused:
                    raise
                refused = True
                for reference in self._settings.option_paths.values():
                    self._context.secrets.forget(reference)
            except TransientError as error:
                failures += 1
                if failures > self._settings.max_retries:
                    raise
                longest = min(BASE_PAUSE_SECONDS * 2**failures, LONGEST_PAUSE_SECONDS)
                self._context.log.debug("dns_provider.retry", detail=error.detail)
                await self._context.clock.sleep(self._context.fraction() * longest)

    async def _options(self) -> Mapping[str, Any]:
        secrets = {
            option: (await self._context.secrets.read(reference)).reveal()
            for option, reference in self._settings.option_paths.items()
        }
        return {**self._settings.options, **secrets}


def _creating(name: str, value: str) -> Job:
    def job(operations: Any) -> bool:
        # Some modules log what went wrong, and return False.
        return bool(operations.create_record("TXT", name, value))

    return job


def _deleting(name: str, value: str) -> Callable[[Any], bool]:
    def job(operations: Any) -> bool:
        if operations.delete_record(rtype="TXT", name=name, content=value):
            return True
        # Some modules also say False when there was nothing to delete.
        return not operations.list_records("TXT", name, value)

    return job


@asynccontextmanager
async def open_lexicon(settings: LexiconSettings, context: PluginContext) -> AsyncIterator[DnsProvider]:
    """Open a provider with its thread.

    Raises:
        PermanentError: dns-lexicon is not installed.
    """
    worker = LexiconWorker(settings.timeout)
    await worker.start()
    try:
        yield Lexicon(worker, settings, context)
    finally:
        worker.stop()


LIMITS = """\
- One call at a time for each provider, and most of dns-lexicon's modules know no time limit: a call that hangs is
  given up after `timeout`, and the provider fails until it ends.
- Where a service replaces whole record sets, dns-lexicon reads, merges and writes: another program's value can be lost
  when both write the same name at once. The providers of our own do not lose it; prefer them.
- Errors tell the kind and the HTTP status only, because dns-lexicon's texts can hold tokens.
- Many of dns-lexicon's modules are untested against their services. Try the test command for providers first.
- It may be configured only in the daemon's configuration file: modules of dns-lexicon write files and call any host."""

TROUBLESHOOTING = """\
- *dns-lexicon is not installed*: `pip install 'scaivaultd[lexicon]'` into the daemon's environment.
- *does not know this provider, or lacks the packages it needs*: `lexicon --help` lists the names; some need
  `pip install 'dns-lexicon[NAME]'`. Its extra `full` is half a gigabyte and not needed.
- *AuthenticationError*: wrong credentials, or the zone is not in the account; dns-lexicon does not tell which.
- *KeyError*, *AttributeError*, *Exception*: often an option that is missing. `lexicon NAME --help` shows them; the same
  names with `_` for `-` belong into `options`, or `option_paths` for secrets."""


@hookimpl
def scaivaultd_dns_providers() -> Iterable[DnsProviderKind]:
    """The one kind of this plugin."""
    return [
        DnsProviderKind(
            name="lexicon",
            title="dns-lexicon",
            settings=LexiconSettings,
            open=open_lexicon,
            example={
                "lexicon_provider": "gandi",
                "zone": "example.org",
                "options": {"api_protocol": "rest"},
                "option_paths": {"auth_token": "infra/gandi/token"},
            },
            capabilities=Capabilities(),
            configuration_file_only=True,
            summary="A bridge to the 90 providers of dns-lexicon, for services without a provider of their own here.",
            rights="What the service needs to list, create and delete TXT records in the zone. Many services can only "
            "grant everything: then put `_acme-challenge` names into a zone of their own, by CNAME.",
            limits=LIMITS,
            troubleshooting=TROUBLESHOOTING,
        )
    ]
