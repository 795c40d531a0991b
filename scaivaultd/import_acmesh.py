"""acme.sh's store: `ca/HOST/PATH/account.{key,json}`, `NAME[_ecc]/{NAME.key,fullchain.cer,NAME.conf}`, `account.conf`.

Its `.conf` files are shell assignments. They are read, never run.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from scaivaultd.import_store import (
    ForeignAccount,
    ForeignCertificate,
    ForeignStore,
    Unreadable,
    folders_in,
    read_file,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)")
_BASE64 = re.compile(r"__ACME_BASE64__START_(.*)__ACME_BASE64__END_")
_NOT_DNS = {"no": "http-01", "stateless": "http-01", "apache": "http-01", "alpn": "tls-alpn-01", "tls": "tls-alpn-01"}


def read_acmesh(folder: Path) -> ForeignStore:
    """Everything in an acme.sh home; raises Unreadable if it is none."""
    if not (folder / "account.conf").is_file() and not (folder / "ca").is_dir():
        raise Unreadable(f"{folder} is no acme.sh folder: there is no {folder / 'account.conf'}")
    accounts: dict[str, ForeignAccount] = {}
    certificates: list[ForeignCertificate] = []
    warnings: list[str] = []
    for path in folders_in(folder):
        name = path.name.removesuffix("_ecc")
        conf = path / f"{name}.conf"
        if not conf.is_file():
            continue
        certificate, api = _certificate(folder, path, name)
        certificates.append(certificate)
        if certificate.account is not None and certificate.account not in accounts:
            try:
                accounts[certificate.account] = _account(folder / certificate.account, certificate.account, api)
            except Unreadable as error:
                warnings.append(str(error))
    credentials, further = _credentials(folder / "account.conf")
    return ForeignStore(
        "acme.sh",
        folder,
        tuple(accounts.values()),
        tuple(certificates),
        credentials,
        tuple(dict.fromkeys((*warnings, *further))),
    )


def _certificate(folder: Path, path: Path, name: str) -> tuple[ForeignCertificate, str]:
    conf = path / f"{name}.conf"
    try:
        settings = assignments(read_file(conf))
        chain_pem = read_file(path / "fullchain.cer")
        key = path / f"{name}.key"
        key_pem = read_file(key) if key.is_file() else None
    except Unreadable as error:
        return ForeignCertificate(path.name, conf, problem=str(error)), ""
    api = settings.get("Le_API", "")
    challenge_type, dns, notes = _challenge(settings.get("Le_Webroot", ""))
    if any(settings.get(each) for each in ("Le_ReloadCmd", "Le_RealFullChainPath", "Le_RealKeyPath")):
        notes = (*notes, "what --install-cert did is not taken over: see `scaivaultctl agent`, or `cert export`")
    certificate = ForeignCertificate(
        name=path.name,
        path=conf,
        chain_pem=chain_pem,
        key_pem=key_pem,
        account=_account_ref(folder, api),
        challenge_type=challenge_type,
        dns=dns,
        notes=notes,
    )
    return certificate, api


def assignments(text: str) -> dict[str, str]:
    """`NAME='value'` lines; a value that acme.sh has written in base64 is as it was."""
    found = {}
    for line in text.splitlines():
        if (pair := _LINE.fullmatch(line.strip())) is None:
            continue
        value = pair[2].strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[pair[1]] = _plain(value)
    return found


def _plain(value: str) -> str:
    if (coded := _BASE64.fullmatch(value)) is None:
        return value
    try:
        return base64.b64decode(coded[1], validate=True).decode()
    except (binascii.Error, ValueError):
        return value


def _challenge(webroot: str) -> tuple[str | None, str | None, tuple[str, ...]]:
    """One word for each name, or one for all of them; one way for all is taken here."""
    words = [each for each in webroot.split(",") if each]
    if not words:
        return None, None, ()
    ways = list(dict.fromkeys(_way(each) for each in words))
    notes: tuple[str, ...] = ()
    if len(ways) > 1:
        # A wildcard is proven by DNS only, and so can every other name be.
        ways.sort(key=lambda way: way[0] != "dns-01")
        notes = (f"its names were proven in different ways; now all are by {ways[0][0]}",)
    return *ways[0], notes


def _way(word: str) -> tuple[str, str | None]:
    if word == "dns":
        return "dns-01", None
    if word.startswith("dns_"):
        return "dns-01", word
    return _NOT_DNS.get(word, "http-01"), None


def _account_ref(folder: Path, api: str) -> str | None:
    """The account's folder: with the directory's path in newer versions, without it in older ones."""
    url = urlsplit(api)
    if not url.netloc or ".." in url.path.split("/"):
        return None
    newer = f"ca/{url.netloc}/{url.path.strip('/')}".rstrip("/")
    return newer if (folder / newer / "account.key").is_file() else f"ca/{url.netloc}"


def _account(path: Path, ref: str, api: str) -> ForeignAccount:
    key = read_file(path / "account.key")
    settings: Mapping[str, str] = {}
    email = None
    try:
        settings = assignments(read_file(path / "ca.conf"))
        contacts = json.loads(read_file(path / "account.json")).get("contact") or ()
        email = next((each[7:] for each in contacts if each.startswith("mailto:")), None)
    except (Unreadable, ValueError, AttributeError, TypeError):
        pass  # the key alone finds the account
    return ForeignAccount(ref, api, path, key, email or settings.get("CA_EMAIL") or None, settings.get("ACCOUNT_URL"))


def _credentials(path: Path) -> tuple[dict[str, str], list[str]]:
    """What acme.sh has kept for its DNS plugins."""
    try:
        settings = assignments(read_file(path))
    except Unreadable as error:
        return {}, [str(error)]
    return {
        name.removeprefix("SAVED_"): value for name, value in settings.items() if name.startswith("SAVED_") and value
    }, []
