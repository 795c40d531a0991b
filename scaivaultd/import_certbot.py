"""certbot's store: `accounts/HOST/PATH/ID`, `renewal/NAME.conf`, `live/NAME` with links into `archive/NAME`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from scaivaultd.import_store import (
    ForeignAccount,
    ForeignCertificate,
    ForeignStore,
    Unreadable,
    files_in,
    folders_in,
    read_file,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_BY_HTTP = ("webroot", "standalone", "nginx", "apache")
_LINE = re.compile(r"\s*([A-Za-z0-9_.-]+)\s*=\s*(.*?)\s*")
_SECTION = re.compile(r"\s*(\[+)\s*(.*?)\s*\]+\s*")


def read_certbot(folder: Path) -> ForeignStore:
    """Everything that is renewed from a certbot configuration folder; raises Unreadable if it is none."""
    if not (folder / "renewal").is_dir():
        raise Unreadable(f"{folder} is no certbot folder: there is no {folder / 'renewal'}")
    accounts: dict[str, ForeignAccount] = {}
    certificates, warnings = [], []
    for conf in files_in(folder / "renewal", ".conf"):
        name = conf.name.removesuffix(".conf")
        try:
            parameters = _parameters(read_file(conf))
            certificate = _certificate(folder, name, conf, parameters)
        except Unreadable as error:
            certificates.append(ForeignCertificate(name, conf, problem=str(error)))
            continue
        certificates.append(certificate)
        if certificate.account is not None and certificate.account not in accounts:
            try:
                accounts[certificate.account] = _account(folder / "accounts" / certificate.account, parameters)
            except Unreadable as error:
                warnings.append(str(error))
    return ForeignStore(
        "certbot", folder, tuple(accounts.values()), tuple(certificates), warnings=tuple(dict.fromkeys(warnings))
    )


def _parameters(text: str) -> dict[str, str]:
    """The lines of `[renewalparams]`; sections within it are about single plugins."""
    found: dict[str, str] = {}
    section = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            continue
        if (heading := _SECTION.fullmatch(line)) is not None:
            section = heading[2] if len(heading[1]) == 1 else f"{section}/{heading[2]}"
        elif section == "renewalparams" and (pair := _LINE.fullmatch(line)) is not None:
            found[pair[1]] = pair[2].strip("'\"")
    return found


def _certificate(folder: Path, name: str, conf: Path, parameters: Mapping[str, str]) -> ForeignCertificate:
    if not parameters:
        raise Unreadable(f"{conf} has no [renewalparams]: certbot does not renew it either")
    chain_pem, key_pem, notes = _pair(folder, name)
    challenge_type, dns, further = _challenge(parameters)
    if any(parameters.get(each, "None") != "None" for each in ("pre_hook", "post_hook", "renew_hook", "deploy_hook")):
        notes = (*notes, "its hooks are not taken over: what they did is for `scaivaultctl agent`, or an event")
    return ForeignCertificate(
        name=name,
        path=conf,
        chain_pem=chain_pem,
        key_pem=key_pem,
        account=_account_ref(folder, parameters),
        challenge_type=challenge_type,
        dns=dns,
        reuse_key=parameters.get("reuse_key", "").lower() == "true",
        notes=(*notes, *further),
    )


def _pair(folder: Path, name: str) -> tuple[str, str, tuple[str, ...]]:
    """The current chain and key; where the links of `live` are broken, the newest that is archived."""
    live = folder / "live" / name
    try:
        return read_file(live / "fullchain.pem"), read_file(live / "privkey.pem"), ()
    except Unreadable as error:
        archive = folder / "archive" / name
        numbers = (re.fullmatch(r"fullchain(\d+)\.pem", each.name) for each in files_in(archive, ".pem"))
        newest = max((int(each[1]) for each in numbers if each), default=None)
        if newest is None:
            raise
        chain_pem = read_file(archive / f"fullchain{newest}.pem")
        key_pem = read_file(archive / f"privkey{newest}.pem")
        return chain_pem, key_pem, (f"{error}; taken from the archive, number {newest}",)


def _challenge(parameters: Mapping[str, str]) -> tuple[str | None, str | None, tuple[str, ...]]:
    authenticator = parameters.get("authenticator", "").rpartition(":")[2]
    if authenticator in _BY_HTTP:
        return "http-01", None, ()
    if authenticator.startswith("dns-"):
        return "dns-01", authenticator, ()
    if authenticator == "manual":
        prefers_dns = parameters.get("pref_challs", "").startswith("dns")
        return "dns-01" if prefers_dns else "http-01", None, ("it was proven by hand or by a script; now it is by us",)
    return None, None, (f"certbot's plugin {authenticator!r} is not known here",)


def _account_ref(folder: Path, parameters: Mapping[str, str]) -> str | None:
    """The account's folder below `accounts`; certbot takes the only one of a server where none is named."""
    server = urlsplit(parameters.get("server", ""))
    place = f"{server.netloc}{server.path}".strip("/")
    if not place or ".." in place.split("/"):
        return None
    if "/" not in (account := parameters.get("account", "")) and account not in ("", "None"):
        return f"{place}/{account}"
    there = folders_in(folder / "accounts" / place)
    return f"{place}/{there[0].name}" if len(there) == 1 else None


def _account(path: Path, parameters: Mapping[str, str]) -> ForeignAccount:
    key = read_file(path / "private_key.json")
    try:
        registration = json.loads(read_file(path / "regr.json"))
        contacts = registration.get("body", {}).get("contact") or ()
        email = next((each[7:] for each in contacts if each.startswith("mailto:")), None)
        url = registration.get("uri")
    except (Unreadable, ValueError, AttributeError, TypeError):
        email = url = None  # the key alone finds the account
    server = parameters["server"]
    place = f"{urlsplit(server).netloc}{urlsplit(server).path}".strip("/")
    return ForeignAccount(f"{place}/{path.name}", server, path, key, email, url)
