"""acme-dns: a small DNS server that holds the two latest TXT values of each account, and nothing else.

It has no reading and no deleting, and each update takes the place of the older of the two values, dated in whole
seconds. So the only safe way to add a value is to send all values that are still wanted, in their order, more than a
second apart: whatever the server held before, it then holds those.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
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
    ProviderError,
    ProviderSettings,
    Secret,
    Zone,
    ZoneNotFound,
    hookimpl,
    normal_name,
)
from scaivaultd.plugin.http import HttpAnswer, HttpApi, error_by_status, no_authorization, open_api

SCAIVAULTD_PLUGIN_API = "1.1"

VALUES = 2
VALUE_LENGTH = 43
# Two updates within one second may be taken for equally old, and the wrong one replaced.
DISTANCE_SECONDS = 1.1

Reference = Annotated[str, Meta(min_length=1, max_length=512)]
Label = Annotated[str, Meta(min_length=1, max_length=63)]
HostName = Annotated[str, Meta(min_length=1, max_length=254)]


class AcmeDnsSettings(ProviderSettings, frozen=True, kw_only=True):
    """Where the server is, and the accounts there: either all in one secret, or one account in parts."""

    api_base: Annotated[str, Meta(min_length=1, description="Root URL of the acme-dns server's API.")]
    account_path: Annotated[
        Reference | None,
        Meta(
            description="Reference to one account as `/register` returned it (JSON), or to a map from domains to "
            "accounts, as in lego's storage file."
        ),
    ] = None
    username_path: Annotated[Reference | None, Meta(description="Reference to the account's user name.")] = None
    password_path: Annotated[Reference | None, Meta(description="Reference to the account's password.")] = None
    subdomain: Annotated[Label | None, Meta(description="The account's subdomain.")] = None
    fulldomain: Annotated[HostName | None, Meta(description="The account's full name, where the CNAME leads.")] = None

    def __post_init__(self) -> None:
        """One way or the other, and no half of it."""
        parts = (self.username_path, self.password_path, self.subdomain, self.fulldomain)
        if self.account_path is not None and any(parts):
            raise ValueError("account_path holds everything: leave the other members of the account out")
        if self.account_path is None and not all(parts):
            raise ValueError("account_path is needed, or all of username_path, password_path, subdomain, fulldomain")


class _Account(msgspec.Struct, frozen=True):
    """An account as `/register` returns it and lego stores it; other members are skipped."""

    username: str
    password: str
    subdomain: str
    fulldomain: str


class _KnownAccount(msgspec.Struct, frozen=True, kw_only=True):
    """An account, fit to be shown; `domain` is whom it is for, if the secret says so."""

    username: Secret
    password: Secret
    subdomain: str
    fulldomain: str
    domain: str | None


class _Held(msgspec.Struct):
    """What we know of one account's two places."""

    lock: asyncio.Lock
    wanted: list[str] = msgspec.field(default_factory=list)
    free_at: float = 0.0


class AcmeDns:
    """The provider."""

    def __init__(self, api: HttpApi, settings: AcmeDnsSettings, context: PluginContext) -> None:
        """Use `open_acme_dns`."""
        self._api = api
        self._settings = settings
        self._context = context
        self._held: dict[str, _Held] = {}

    async def find_zone(self, name: str) -> Zone:
        """See `DnsProvider`. The zone is the server's own, which is the parent of every account's name."""
        name = normal_name(name)
        accounts = await self._accounts()
        for account in accounts:
            if account.fulldomain == name:
                return Zone(name=name.partition(".")[2], id=account.subdomain)
        raise ZoneNotFound(_advice(name, accounts))

    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        """See `DnsProvider`. The TTL is the server's."""
        name = normal_name(name)
        if any(len(value) != VALUE_LENGTH for value in values):
            raise PermanentError(f"acme-dns takes only values of {VALUE_LENGTH} characters", "bad_txt")
        if len(set(values)) > VALUES:
            raise PermanentError(f"acme-dns holds {VALUES} values, not {len(set(values))}")
        held = self._held.setdefault(name, _Held(lock=asyncio.Lock()))
        async with held.lock:
            held.wanted = [*(each for each in held.wanted if each not in values), *dict.fromkeys(values)][-VALUES:]
            await self._api.repeated(lambda: self._send(name, held))
        return {}

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        """See `DnsProvider`. The server cannot delete: the place of the value is free for the next one."""
        held = self._held.get(normal_name(name))
        if held is not None:
            held.wanted = [each for each in held.wanted if each not in values]

    async def _send(self, name: str, held: _Held) -> None:
        for value in tuple(held.wanted):
            await self._context.clock.sleep(max(0.0, held.free_at - self._context.clock.monotonic()))
            try:
                await self._update(name, value)
            finally:
                # Also after a lost answer: it may have been carried out a moment ago.
                held.free_at = self._context.clock.monotonic() + DISTANCE_SECONDS

    async def _update(self, name: str, value: str) -> None:
        refused = False
        while True:
            account = await self._account(name)
            answer = await self._api.call(
                "POST",
                "/update",
                json={"subdomain": account.subdomain, "txt": value},
                headers={"X-Api-User": account.username.reveal(), "X-Api-Key": account.password.reveal()},
                accept={401},
                # Sent twice, a value can push the other one out.
                repeatable=False,
            )
            if answer.ok:
                return
            if refused:
                raise error_by_status(answer, _code(answer))
            refused = True
            self._forget()

    async def _account(self, name: str) -> _KnownAccount:
        for account in await self._accounts():
            if account.fulldomain == name:
                return account
        raise ZoneNotFound(f"the secret has no acme-dns account {name} any more")

    async def _accounts(self) -> list[_KnownAccount]:
        settings, secrets = self._settings, self._context.secrets
        if settings.account_path is not None:
            return _accounts_in((await secrets.read(settings.account_path)).reveal(), settings.account_path)
        assert settings.username_path is not None and settings.password_path is not None
        assert settings.subdomain is not None and settings.fulldomain is not None
        return [
            _KnownAccount(
                username=await secrets.read(settings.username_path),
                password=await secrets.read(settings.password_path),
                subdomain=settings.subdomain,
                fulldomain=normal_name(settings.fulldomain),
                domain=None,
            )
        ]

    def _forget(self) -> None:
        for reference in (self._settings.account_path, self._settings.username_path, self._settings.password_path):
            if reference is not None:
                self._context.secrets.forget(reference)


def _accounts_in(text: str, reference: str) -> list[_KnownAccount]:
    """The accounts in a secret: the only one, or those of a map."""
    try:
        found: Any = msgspec.json.decode(text)
        if isinstance(found, Mapping) and "fulldomain" in found:
            return [_known(msgspec.convert(found, _Account), None)]
        accounts = msgspec.convert(found, dict[str, _Account])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        # The decoder's text can quote what it read.
        raise PermanentError(f"the secret {reference} is neither an acme-dns account nor a map of accounts") from None
    return [_known(account, normal_name(domain)) for domain, account in accounts.items()]


def _known(account: _Account, domain: str | None) -> _KnownAccount:
    return _KnownAccount(
        username=Secret(account.username),
        password=Secret(account.password),
        subdomain=account.subdomain,
        fulldomain=normal_name(account.fulldomain),
        domain=domain,
    )


def _advice(name: str, accounts: Sequence[_KnownAccount]) -> str:
    """Which CNAME is missing, as far as we know for whom the accounts are."""
    domain = name.removeprefix("_acme-challenge.")
    for account in accounts:
        if account.domain in (domain, f"*.{domain}", name):
            return f"waiting for a CNAME record: {name}. CNAME {account.fulldomain}."
    if len(accounts) == 1 and accounts[0].domain is None:
        return f"waiting for a CNAME record, if this account is for it: {name}. CNAME {accounts[0].fulldomain}."
    return (
        f"none of {len(accounts)} acme-dns accounts is for {name}; register one, add it to the secret, and set a CNAME "
        "record from this name to its fulldomain"
    )


def _code(answer: HttpAnswer) -> str:
    found = answer.json()
    code = found.get("error") if isinstance(found, Mapping) else None
    return code[:100] if isinstance(code, str) else ""


def _error_from(answer: HttpAnswer) -> ProviderError | None:
    code = _code(answer)
    return error_by_status(answer, code, code) if code else None


@asynccontextmanager
async def open_acme_dns(settings: AcmeDnsSettings, context: PluginContext) -> AsyncIterator[DnsProvider]:
    """Open a provider.

    Raises:
        PermanentError: `api_base` is not safe.
    """
    async with open_api(
        settings.api_base, settings, context, authorize=no_authorization, error_from=_error_from
    ) as api:
        yield AcmeDns(api, settings, context)


LIMITS = """\
- One account holds two values at once: enough for a name and its wildcard. Orders for more wait their turn. Use an
  account for each domain, and do not share it with another program: a third value pushes the oldest out.
- The server cannot delete. A value stays until two others were written; that is harmless, for it proves nothing
  once its order is over.
- Two values of one account are written more than a second apart, because the server dates them in whole seconds."""

TROUBLESHOOTING = """\
Registering is done once for each domain, by hand:

1. `curl -X POST https://auth.example.org/register` answers with username, password, subdomain and fulldomain.
2. Store the whole answer as a secret, or add it to a map from domains to accounts (lego's storage file is one), and
   name the secret in `account_path`.
3. Set the record `_acme-challenge.<domain>. CNAME <fulldomain>.` in the domain's own zone; it stays for good.

- *waiting for a CNAME record*: step 3 is missing, or its record is not visible yet; the text says which record.
- *HTTP 401 forbidden*: user name or password are wrong, or the account's `allowfrom` does not hold our address.
- *HTTP 400 bad_subdomain*: `subdomain` is not the one of the account."""


@hookimpl
def scaivaultd_dns_providers() -> Iterable[DnsProviderKind]:
    """The one kind of this plugin."""
    return [
        DnsProviderKind(
            name="acme_dns",
            title="acme-dns",
            settings=AcmeDnsSettings,
            open=open_acme_dns,
            example={"api_base": "https://auth.example.org", "account_path": "infra/acme-dns/accounts"},
            capabilities=Capabilities(max_values=VALUES),
            summary="Writes to an acme-dns server, where `_acme-challenge` names lead by CNAME: the daemon then needs "
            "no rights at all in the domain's own zone.",
            rights="An account at acme-dns can write two TXT values of one name and nothing else. Register it with "
            "`allowfrom`, the addresses of the daemon, to make its password useless elsewhere.",
            limits=LIMITS,
            troubleshooting=TROUBLESHOOTING,
        )
    ]
