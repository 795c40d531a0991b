"""lego's store: `accounts/HOST_PORT/EMAIL/{account.json,keys/EMAIL.key}` and `certificates/NAME.{crt,key,json}`.

It keeps neither the directory's URL nor the challenge: the first follows from the host for the CAs that are known, the
second is for a person to say.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from scaivaultd.import_store import (
    ForeignAccount,
    ForeignCertificate,
    ForeignStore,
    Unreadable,
    files_in,
    folders_in,
    host_of,
    read_file,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def read_lego(folder: Path, directories: Mapping[str, str]) -> ForeignStore:
    """Everything in a folder that lego was given as `--path`; raises Unreadable if it is none.

    Args:
        folder: What lego calls its path, `.lego` unless told otherwise.
        directories: The directory URL of each CA, by its host.
    """
    if not (folder / "certificates").is_dir():
        raise Unreadable(f"{folder} is no lego folder: there is no {folder / 'certificates'}")
    accounts, warnings = _accounts(folder, directories)
    certificates = [_certificate(each, accounts) for each in files_in(folder / "certificates", ".json")]
    return ForeignStore("lego", folder, tuple(accounts), tuple(certificates), warnings=tuple(warnings))


def _accounts(folder: Path, directories: Mapping[str, str]) -> tuple[list[ForeignAccount], list[str]]:
    accounts, warnings = [], []
    for of_host in folders_in(folder / "accounts"):
        for path in folders_in(of_host):
            try:
                accounts.append(_account(of_host.name, path, directories))
            except Unreadable as error:
                warnings.append(str(error))
    return accounts, warnings


def _account(host: str, path: Path, directories: Mapping[str, str]) -> ForeignAccount:
    kept = _json(path / "account.json")
    registration = kept.get("registration")
    url = registration.get("uri") if isinstance(registration, dict) else None
    # A port stands behind an underscore, since a colon cannot be in every file name; no host has one.
    host = (host_of(url) if isinstance(url, str) else "") or host.replace("_", ":")
    if host not in directories:
        raise Unreadable(f"{path}: lego does not keep the CA's directory; give it with --server, a URL at {host}")
    email = kept.get("email") or path.name
    keys = files_in(path / "keys", ".key")
    if not keys:
        raise Unreadable(f"{path / 'keys'} holds no key")
    is_address = isinstance(email, str) and "@" in email
    return ForeignAccount(
        ref=f"{host}/{path.name}",
        directory_url=directories[host],
        path=path,
        key=read_file(keys[0]),
        email=email if is_address else None,
        url=url if isinstance(url, str) else None,
    )


def _certificate(path: Path, accounts: Sequence[ForeignAccount]) -> ForeignCertificate:
    name = path.name.removesuffix(".json")
    try:
        host = host_of(str(_json(path).get("certUrl") or ""))
        chain_pem = read_file(path.with_name(f"{name}.crt"))
        issuer = path.with_name(f"{name}.issuer.crt")
        if chain_pem.count("-----BEGIN CERTIFICATE-----") == 1 and issuer.is_file():
            chain_pem += read_file(issuer)  # as with `--no-bundle`
        key = path.with_name(f"{name}.key")
        key_pem = read_file(key) if key.is_file() else None
    except Unreadable as error:
        return ForeignCertificate(name, path, problem=str(error))
    refs = [each.ref for each in accounts if host_of(each.url or each.directory_url) == host]
    notes = () if len(refs) < 2 else (f"lego keeps {len(refs)} accounts at {host} and not which one it is of",)
    account = refs[0] if len(refs) == 1 else None
    return ForeignCertificate(name, path, chain_pem, key_pem, account=account, notes=notes)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(read_file(path))
    except ValueError:
        raise Unreadable(f"{path} is no JSON") from None
    if not isinstance(found, dict):
        raise Unreadable(f"{path} is no JSON object")
    return found
