"""The files of `systemd/`, as one host needs them: for its systemd, its installation, its configuration. Only reads.

The units in the repository are whole files for /opt/scaivaultd; what differs from host to host is put into them here.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

UNIT = "scaivaultd.service"
UNITS = "etc/systemd/system"
CONFIG = "etc/scaivaultd/scaivaultd.toml"
SOCKETS = ("scaivaultd-http.socket", "scaivaultd-tls.socket", "scaivaultd-api.socket")
TIMED = ("scaivaultd-backup.service", "scaivaultd-backup.timer")
AGENT = "scaivaultd-agent.service"
OLDEST_SYSTEMD = 252
DEFAULT_PREFIX = "/opt/scaivaultd"
DEFAULT_CONFIG = f"/{CONFIG}"
AGENT_CONFIG = "/etc/scaivaultd/agent.toml"

_PATH = re.compile(r"/[A-Za-z0-9._+@/-]+")
# ProtectHome= and PrivateTmp= keep these from the service.
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - compared
_MINIMAL_CONFIG = """\
# Everything else has a default: see `scaivaultctl config example`, and check with `scaivaultd check-config`.
state_dir = "/var/lib/scaivaultd"
"""


class Unsuitable(Exception):
    """No unit can be made of that; the text says what to do."""


class Hidden(Unsuitable):
    """A path is where the service cannot see it."""


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What the units are for. `interpreter` is where the installation's Python lies, if that is known."""

    systemd: int
    prefix: str = DEFAULT_PREFIX
    config: str = DEFAULT_CONFIG
    interpreter: str | None = None
    sockets: tuple[str, ...] = SOCKETS
    has_external_nats: bool = False
    denies_metadata: bool = False


class Rendered(msgspec.Struct, frozen=True, kw_only=True):
    """Files by their path below the root; `unwanted` may be there from an earlier run, and has to go.

    `first_config` is for a host that has no configuration yet.
    """

    files: dict[str, str]
    unwanted: tuple[str, ...] = ()
    first_config: str | None = None


def source() -> Path:
    """Where the files are: beside this module in an installation, in the repository's `systemd/` in a checkout."""
    installed = Path(__file__).with_name("_systemd")
    return installed if installed.is_dir() else Path(__file__).parents[1] / "systemd"


def render(host: Host, folder: Path, *, allow_hidden: bool = False) -> Rendered:
    """The files for a host.

    Raises:
        Unsuitable: its systemd is too old, or a path cannot stand in a unit.
        Hidden: a path is where the service cannot see it; nothing that `allow_hidden` minds.
    """
    _require_suitable(host, allow_hidden=allow_hidden)
    units = {name: (folder / name).read_text() for name in (UNIT, *host.sockets, *TIMED)}
    files = {f"{UNITS}/{name}": _fitted(text, host) for name, text in units.items()}
    wanted = _drop_ins(host)
    for each in sorted((folder / "drop-ins").glob("*.conf")):
        if each.name in wanted:
            files[_drop_in(each.name)] = each.read_text()
    unwanted = [_drop_in(each.name) for each in (folder / "drop-ins").glob("*.conf") if each.name not in wanted]
    for name in set(SOCKETS) - set(host.sockets):
        unwanted += [f"{UNITS}/{name}", f"{UNITS}/sockets.target.wants/{name}"]
    files["etc/sysusers.d/scaivaultd.conf"] = (folder / "scaivaultd.sysusers").read_text()
    files["etc/tmpfiles.d/scaivaultd.conf"] = (folder / "scaivaultd.tmpfiles").read_text()
    return Rendered(files=files, unwanted=tuple(sorted(unwanted)), first_config=_MINIMAL_CONFIG)


def render_agent(host: Host, folder: Path, *, allow_hidden: bool = False) -> Rendered:
    """The file for a host that only uses certificates; `config` of the host is the agent's.

    Raises:
        Unsuitable: its systemd is too old, or a path cannot stand in a unit.
    """
    _require_suitable(host, allow_hidden=allow_hidden)
    text = (folder / AGENT).read_text()
    return Rendered(
        files={f"{UNITS}/{AGENT}": text.replace(DEFAULT_PREFIX, host.prefix).replace(AGENT_CONFIG, host.config)}
    )


def _require_suitable(host: Host, *, allow_hidden: bool) -> None:
    if host.systemd < OLDEST_SYSTEMD:
        raise Unsuitable(f"systemd is version {host.systemd}; the units need {OLDEST_SYSTEMD} or later")
    for what, path in (("--prefix", host.prefix), ("--config", host.config), ("its Python", host.interpreter)):
        if path is None:
            continue
        if not _PATH.fullmatch(path):
            raise Unsuitable(f"{what} {path}: an absolute path without blanks and special characters is needed")
        if not allow_hidden and any(path == hidden or path.startswith(f"{hidden}/") for hidden in _HIDDEN):
            raise Hidden(
                f"{what} {path}: the service does not see what is below {', '.join(_HIDDEN)}. Install into "
                f"{DEFAULT_PREFIX}: python3 -m venv {DEFAULT_PREFIX} && {DEFAULT_PREFIX}/bin/pip install scaivaultd"
            )


def _drop_ins(host: Host) -> set[str]:
    chosen = {
        "notify-reload.conf": host.systemd >= 253,
        "restart-steps.conf": host.systemd >= 254,
        "external-nats.conf": host.has_external_nats,
        "no-sockets.conf": not host.sockets,
        "deny-metadata.conf": host.denies_metadata,
    }
    return {name for name, is_wanted in chosen.items() if is_wanted}


def _drop_in(name: str) -> str:
    # Numbered: an administrator's own drop-ins, without a number, come later and have the last word.
    return f"{UNITS}/{UNIT}.d/10-{name}"


def _fitted(text: str, host: Host) -> str:
    text = text.replace(DEFAULT_PREFIX, host.prefix).replace(DEFAULT_CONFIG, host.config)
    for name in set(SOCKETS) - set(host.sockets):
        text = text.replace(f"{name} ", "").replace(f" {name}", "").replace(name, "")
    text = text.replace("Sockets=\n", "").replace("Also=\n", "")
    place = _place_of_interpreter(host)
    return text.replace(f" -{host.prefix}\n", f" -{host.prefix} -{place}\n") if place else text


def _place_of_interpreter(host: Host) -> str | None:
    """What else must be executable: a Python that is neither the system's nor the installation's own."""
    if host.interpreter is None or host.interpreter.startswith(("/usr/bin/", f"{host.prefix}/")):
        return None
    return str(Path(host.interpreter).parents[1])
