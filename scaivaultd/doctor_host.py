"""The checks of the host itself: files, keys, ports, units, other ACME clients. They do without a daemon."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import subprocess
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaivaultd.doctor_checks import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scaivaultd.doctor_checks import Host, Verdict
    from scaivaultd.import_store import Kind

STORE_NAME = "store.db"
FREE_BYTES_MIN = 500 << 20
UNIT = "scaivaultd.service"
_STORES: tuple[tuple[Kind, Path], ...] = (
    ("certbot", Path("/etc/letsencrypt")),
    ("lego", Path("/root/.lego")),
    ("lego", Path("/etc/lego")),
    ("acme.sh", Path("/root/.acme.sh")),
)
_EXPOSURE_MAX = 2.5
_COMMAND_SECONDS = 8
_PROPERTIES = ("LoadState", "ActiveState", "SubState", "UnitFileState", "NRestarts", "DropInPaths", "Result")


def configuration(host: Host) -> Finding:
    """D01."""
    if not host.has_config:
        return _no_config(host)
    if host.mistakes:
        return Finding(
            "error", host.mistakes, f"Mend them; `scaivaultctl config check --config {host.config}` looks again."
        )
    from scaivaultd.settings_layers import DROP_INS

    drop_ins = sorted((host.config.parent / DROP_INS).glob("*.toml"))
    more = f", with {len(drop_ins)} drop-ins" if drop_ins else ""
    evidence = [f"{host.config}{more}: no mistake"]
    health = host.answers.get("sys.health") or {}
    for part in health.get("components", ()):
        if part["name"] == "configuration" and part["status"] != "ok":
            return Finding("warning", [*evidence, f"the daemon says: {part['detail']}"], "`scaivaultctl reload`")
    return Finding("ok", evidence)


def master_key(host: Host) -> Finding:
    """D02."""
    if host.settings is None:
        return _no_settings(host)
    source = str(host.settings.secrets.master_key or f"file:{host.settings.state_dir / 'master.key'}")
    for part in (host.answers.get("sys.health") or {}).get("components", ()):
        if part["name"] == "master_key" and part["status"] == "ok":
            return Finding("ok", [f"{source}: the daemon has it, key id {part.get('detail', '')}"])
        if part["name"] == "master_key":
            return Finding(
                "error", [f"{source}: {part.get('detail', '')}"], "docs/how-to/master-key.md: bring it back."
            )
    if source == "passphrase":
        return Finding("skipped", ["it is made from a passphrase, which only `scaivaultctl unseal` can try"])
    if source.startswith("credential:") and "CREDENTIALS_DIRECTORY" not in host.environment:
        return Finding("skipped", [f"{source}: only the service itself is given it by systemd"])
    try:
        document = _document(host.settings.state_dir / STORE_NAME, "meta/sealing")
    except (OSError, sqlite3.Error) as error:
        return Finding("skipped", [f"the store cannot be read: {error}"], "Run it as root, or as the daemon's user.")
    if document is None:
        return Finding("ok", [f"{source}: the store is new, any key will do"])
    return _fits(host, source, document)


def _fits(host: Host, source: str, document: bytes) -> Finding:
    from scaivaultd.model.errors import StartupError
    from scaivaultd.store.master_key import NoMasterKey, load_master_key
    from scaivaultd.store.sealing import EnvelopeSealer

    credentials = host.environment.get("CREDENTIALS_DIRECTORY")
    try:
        key = load_master_key(
            source, environment=dict(host.environment), credentials_directory=Path(credentials) if credentials else None
        )
        sealer = EnvelopeSealer.unlock(key, document)
    except (NoMasterKey, StartupError) as error:
        return Finding(
            "error",
            [f"{source}: {error}"],
            "Put the right key there, or restore it from its recovery copy: master-key.md",
        )
    return Finding("ok", [f"{source}: opens the store, key id {sealer.kid}"])


def store(host: Host) -> Finding:
    """D03."""
    if host.settings is None:
        return _no_settings(host)
    from scaivaultd.store.sqlite_schema import MIGRATIONS

    path = host.settings.state_dir / STORE_NAME
    try:
        free = shutil.disk_usage(host.settings.state_dir).free
    except FileNotFoundError:
        return Finding(
            "skipped", [f"{host.settings.state_dir} is not there yet: the daemon makes it at its first start"]
        )
    except OSError as error:
        return Finding("skipped", [f"{host.settings.state_dir}: {error.strerror}"], "Run it as root, or as its user.")
    evidence = [f"{free >> 20} MiB free at {host.settings.state_dir}"]
    if not path.exists():
        return Finding("ok", [*evidence, "no store yet"])
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            problems = [str(row[0]) for row in connection.execute("PRAGMA quick_check(5)")]
    except sqlite3.Error as error:
        if "unable to open" in str(error) or "readonly" in str(error):
            return Finding("skipped", [*evidence, f"{path}: {error}"], "Run it as root, or as the daemon's user.")
        return Finding("error", [*evidence, f"{path}: {error}"], "Restore a backup: docs/how-to/back-up-and-restore.md")
    evidence.append(f"{path}: {path.stat().st_size >> 10} KiB, schema version {version} of {len(MIGRATIONS)}")
    if problems != ["ok"]:
        return Finding("error", [*evidence, *problems], "Restore a backup: docs/how-to/back-up-and-restore.md")
    if version > len(MIGRATIONS):
        return Finding("error", evidence, "It is of a later version: install that version again.")
    if free < FREE_BYTES_MIN:
        return Finding("warning", evidence, "Make room: without it the daemon cannot write down what it does.")
    return Finding("ok", evidence)


def _document(path: Path, key: str) -> bytes | None:
    if not path.exists():
        return None
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as connection:
        row = connection.execute("SELECT document FROM documents WHERE key = ?", (key,)).fetchone()
    return None if row is None else bytes(row[0])


def ports(host: Host) -> Finding:
    """D07."""
    settings = host.settings
    if settings is None:
        return _no_settings(host)
    wanted = [
        *(("http01", each.port) for each in settings.http01.listen),
        *(("tlsalpn01", each.port) for each in settings.tlsalpn01.listen),
        *(("rest", int(str(each).rpartition(":")[2])) for each in settings.rest.listen if not each.is_path),
        *(("metrics", each.port) for each in settings.metrics.listen),
    ]
    holders = _holders(Path("/proc"))
    evidence: list[str] = []
    worst: Verdict = "ok"
    for section, port in dict.fromkeys(wanted):
        held = holders.get(port, [])
        if not held:
            evidence.append(f"[{section}] {port}: nobody listens")
            worst = worst if host.away else "error"
        elif any(_is_ours(each) for each in held):
            evidence.append(f"[{section}] {port}: {', '.join(held)}")
        elif held == ["?"]:
            evidence.append(f"[{section}] {port}: somebody listens; only root sees who")
        else:
            evidence.append(f"[{section}] {port}: held by {', '.join(held)}")
            worst = "error"
    if not evidence:
        return Finding("ok", ["no listener is configured"])
    if worst == "error":
        return Finding(
            "error",
            evidence,
            "Stop the other one or give it another port; docs/how-to/share-ports.md shows how to share.",
        )
    return Finding(worst, evidence)


def _is_ours(holder: str) -> bool:
    """Whether it is the daemon, or systemd, which passes it its sockets."""
    return holder.startswith(("scaivaultd (", "systemd ("))


def _holders(proc: Path) -> dict[int, list[str]]:
    """Who listens at each TCP port: `NAME (pid N)`, or `?` for those whom one may not see."""
    inodes: dict[str, int] = {}
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            parts = line.split()
            if parts[3] == "0A":
                inodes[parts[9]] = int(parts[1].rpartition(":")[2], 16)
    found: dict[int, set[str]] = {port: set() for port in inodes.values()}
    for process in proc.glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            is_daemon = any(word.rpartition(b"/")[2] == b"scaivaultd" for word in words[:3])
            name = "scaivaultd" if is_daemon else (process / "comm").read_text().strip()
            descriptors = list((process / "fd").iterdir())
        except OSError:
            continue
        for target in filter(None, map(_target, descriptors)):
            if target.startswith("socket:[") and (port := inodes.get(target[8:-1])) is not None:
                found[port].add(f"{name} (pid {process.name})")
    return {port: sorted(names) or ["?"] for port, names in found.items()}


def _target(descriptor: Path) -> str | None:
    try:
        return str(descriptor.readlink())
    except OSError:
        return None  # it was closed since


def systemd(host: Host) -> Finding:
    """D12."""
    if not (host.root / "run/systemd/system").is_dir():
        return Finding("skipped", ["systemd does not run here"])
    version = _said("systemctl", "--version").partition("\n")[0]
    unit = _properties(
        UNIT, "LoadState", "ActiveState", "SubState", "UnitFileState", "NRestarts", "DropInPaths", "Result"
    )
    if unit.get("LoadState") != "loaded":
        return Finding("warning", [version, f"there is no {UNIT}"], "`scaivaultctl setup systemd` installs the units.")
    evidence = [version, f"{UNIT}: {unit.get('ActiveState')} ({unit.get('SubState')}), {unit.get('UnitFileState')}"]
    if drop_ins := unit.get("DropInPaths"):
        evidence.append(f"drop-ins: {drop_ins}")
    verdict: Verdict = "ok"
    remedy = ""
    if unit.get("ActiveState") == "failed":
        verdict = "error"
        remedy = f"`systemctl status {UNIT}` and `journalctl -u {UNIT} -n 50` tell why."
        evidence.append(f"result: {unit.get('Result')}")
    elif unit.get("ActiveState") != "active":
        verdict, remedy = "warning", f"`systemctl enable --now {UNIT}` starts it."
    if int(unit.get("NRestarts") or 0) > 0:
        evidence.append(f"started again {unit['NRestarts']} times since its last start by hand")
    for socket in ("scaivaultd-http.socket", "scaivaultd-tls.socket", "scaivaultd-api.socket"):
        shown = _properties(socket, "LoadState", "ActiveState")
        if shown.get("LoadState") == "loaded":
            evidence.append(f"{socket}: {shown.get('ActiveState')}")
    score = _said("systemd-analyze", "security", "--no-pager", UNIT).strip().rpartition("\n")[2]
    if "exposure level" in score:
        evidence.append(score.strip("→ ").strip())
    return Finding(verdict, evidence, remedy)


def _properties(unit: str, *names: str) -> dict[str, str]:
    lines = _said("systemctl", "show", unit, f"--property={','.join(names)}").splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def _said(*command: str) -> str:
    try:
        ended = subprocess.run(  # noqa: S603 - our own words, no shell
            command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout


def files(host: Host) -> Finding:
    """D13."""
    if host.settings is None:
        return _no_settings(host)
    looked: list[str] = []
    wrong: list[str] = []
    remedies: list[str] = []
    for path, forbidden in _guarded(host):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        except OSError as error:
            looked.append(f"{path}: {error.strerror}")
            continue
        looked.append(f"{path}: {stat.filemode(status.st_mode)} uid {status.st_uid}")
        if bad := status.st_mode & forbidden:
            wrong.append(f"{path}: {stat.filemode(status.st_mode)} lets others in")
            remedies.append(f"chmod {stat.S_IMODE(status.st_mode) & ~bad:04o} {path}")
    if wrong:
        return Finding("error", wrong, "; ".join(remedies))
    return Finding("ok", looked or ["there is nothing yet"])


def _guarded(host: Host) -> Iterator[tuple[Path, int]]:
    """Files and folders, each with the bits that it must not have."""
    assert host.settings is not None
    state_dir, writing = host.settings.state_dir, stat.S_IWGRP | stat.S_IWOTH
    yield host.config, stat.S_IWOTH
    yield host.config.parent, stat.S_IWOTH
    yield state_dir, stat.S_IRWXO | stat.S_IWGRP
    yield state_dir / STORE_NAME, stat.S_IRWXO | stat.S_IRWXG
    yield state_dir / "master.key", stat.S_IRWXO | stat.S_IRWXG
    source = str(host.settings.secrets.master_key or "")
    if source.startswith("file:"):
        yield Path(source.removeprefix("file:")), stat.S_IRWXO | writing
    for path in host.settings.access.policy_files:
        yield path, writing
    if (tls_key := host.settings.rest.tls_key_file) is not None:
        yield tls_key, stat.S_IRWXO | writing
    if (credentials := host.settings.nats.credentials_file) is not None:
        yield credentials, stat.S_IRWXO | writing
    yield state_dir / "api.sock", stat.S_IRWXO
    yield Path("/run/scaivaultd/api.sock"), stat.S_IRWXO


def plugins(host: Host) -> Finding:
    """D16."""
    info = host.answers.get("sys.info")
    if info is None:
        return host.without("sys.info")
    refused = [
        f"{each['name']} {each['version']}: {each['refused']}" for each in info["plugins"] if each.get("refused")
    ]
    if refused:
        return Finding(
            "warning", refused, "`pip install --upgrade` the plugin, or take it out; `scaivaultctl plugin check`"
        )
    return Finding("ok", [f"{len(info['plugins'])} plugins, all in use; daemon {info['version']}"])


def other_clients(host: Host) -> Finding:
    """D17."""
    from scaivaultd.import_timers import old_timers

    ours = {name for each in host.all("pki.certificates.list") or () for name in each["domains"]}
    evidence: list[str] = []
    remedies: list[str] = []
    is_same = False
    for kind, folder in _STORES:
        timers = old_timers(kind, folder, host.root)
        if not timers:
            continue
        both = sorted(ours & _names(kind, host.root / folder.relative_to("/")))
        is_same = is_same or bool(both)
        evidence += [f"{kind}: {each.what} renews what is in {folder}" for each in timers]
        remedies += [each.disable for each in timers]
        if both:
            evidence.append(f"names that both renew: {', '.join(both[:5])}{', ...' if both[5:] else ''}")
    if not evidence:
        return Finding("ok", ["no timer or cron job of certbot, lego or acme.sh was found"])
    advice = f"Import what it has (docs/how-to/move-in.md), then: {'; '.join(dict.fromkeys(remedies))}"
    return Finding("error" if is_same else "warning", evidence, advice)


def _names(kind: str, folder: Path) -> set[str]:
    from scaivaultd.import_acmesh import read_acmesh
    from scaivaultd.import_certbot import read_certbot
    from scaivaultd.import_lego import read_lego

    try:
        if kind == "certbot":
            found = read_certbot(folder)
        else:
            found = read_lego(folder, {}) if kind == "lego" else read_acmesh(folder)
    except Exception:  # noqa: BLE001 - whatever a stranger's folder holds: no names are known then
        return set()
    return {name for each in found.certificates for name in _names_in(each)}


def _names_in(certificate: Any) -> Sequence[str]:
    from cryptography import x509

    try:
        leaf = x509.load_pem_x509_certificates(certificate.chain_pem.encode())[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, IndexError, x509.ExtensionNotFound):
        return []
    return names.get_values_for_type(x509.DNSName)


def _no_config(host: Host) -> Finding:
    return Finding(
        "skipped", [f"there is no {host.config} on this host"], "Name the daemon's configuration with --config FILE."
    )


def _no_settings(host: Host) -> Finding:
    return (
        _no_config(host) if not host.has_config else Finding("skipped", ["the configuration cannot be used, see D01"])
    )
