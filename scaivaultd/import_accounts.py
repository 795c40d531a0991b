"""What becomes of the accounts of another client's store: found here, or taken over with their keys."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from scaivaultd.import_store import ForeignAccount, Unreadable, host_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_USABLE = ("pending", "valid")


@dataclass(frozen=True)
class AccountPlan:
    """`account_id` None: it is not here yet. `members` are what makes it. `problem`: it cannot be taken over."""

    ref: str
    directory_url: str
    name: str
    account_id: str | None = None
    problem: str | None = None
    members: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def action(self) -> str:
        """In a word."""
        if self.problem is not None:
            return "failed"
        if self.account_id is None:
            return "take over"
        return "taken over" if self.members else "here"


def known_directories() -> dict[str, str]:
    """The directory URL of each public CA, by its host."""
    return {host_of(url): url for url in _presets()}


def account_plans(
    accounts: Sequence[ForeignAccount], here: Sequence[Mapping[str, Any]], ca_certificates_pem: str | None
) -> list[AccountPlan]:
    """One plan for each account of a store.

    Args:
        accounts: Those of the store.
        here: `pki.acme.accounts.list`.
        ca_certificates_pem: What to trust for CAs that are not public.
    """
    taken = {str(each["name"]) for each in here if each["status"] in _USABLE}
    plans = []
    for account in accounts:
        try:
            plan = _plan(account, here, taken, ca_certificates_pem)
        except Unreadable as error:
            plan = AccountPlan(account.ref, account.directory_url, "", problem=str(error))
        taken.add(plan.name)
        plans.append(plan)
    return plans


def _plan(
    account: ForeignAccount, here: Sequence[Mapping[str, Any]], taken: set[str], ca_certificates_pem: str | None
) -> AccountPlan:
    key_pem, thumbprint = _key(account)
    for each in here:
        is_same = (each["key_thumbprint"], each["directory_url"]) == (thumbprint, account.directory_url)
        if is_same and each["status"] in _USABLE:
            return AccountPlan(account.ref, account.directory_url, each["name"], each["id"])
    preset = _presets().get(account.directory_url)
    provider, environment = preset or ("custom", "production")
    name = _free(_label(account, preset), taken)
    members = {
        "name": name,
        "provider": provider,
        "environment": environment,
        "email": account.email,
        "directory_url": None if preset else account.directory_url,
        "account_key_pem": key_pem,
        "ca_certificates_pem": None if preset else ca_certificates_pem,
        "wait_seconds": 10,
    }
    return AccountPlan(account.ref, account.directory_url, name, members=members)


def _presets() -> dict[str, tuple[str, str]]:
    from scaivaultd.acme.directories import directory_url_for
    from scaivaultd.model.errors import InvalidRequest
    from scaivaultd.model.resources import Environment, Provider

    found: dict[str, tuple[str, str]] = {}
    for provider in get_args(Provider):
        for environment in get_args(Environment):
            try:
                found[directory_url_for(provider, environment, None)] = (provider, environment)
            except InvalidRequest:
                continue  # `custom`, or a CA without such an environment
    return found


def _label(account: ForeignAccount, preset: tuple[str, str] | None) -> str:
    if preset is None:
        return host_of(account.directory_url)
    provider, environment = preset
    return provider if environment == "production" else f"{provider}-{environment}"


def _free(label: str, taken: set[str]) -> str:
    number = 1
    while (name := label if number == 1 else f"{label}-{number}") in taken:
        number += 1
    return name


def _key(account: ForeignAccount) -> tuple[str, str]:
    """The account's key as PEM, and its thumbprint."""
    from cryptography.hazmat.primitives import serialization
    from josepy.jwk import JWK

    from scaivaultd.acme.signing import AccountKey
    from scaivaultd.import_store import private_key_in

    try:
        if account.key.lstrip().startswith("{"):
            key = JWK.from_json(json.loads(account.key)).key  # type: ignore[attr-defined]
            key = getattr(key, "_wrapped", key)
        else:
            key = serialization.load_pem_private_key(private_key_in(account.key).encode(), password=None)
        der = key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return pem.decode(), AccountKey(der).thumbprint
    except Exception:  # noqa: BLE001 - libraries raise many kinds, and their texts may quote the key
        raise Unreadable(f"{account.path}: the account's key cannot be read, or is of a kind not used here") from None
