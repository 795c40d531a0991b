"""Timers and cron jobs that still renew what is to be renewed here: each with the command that ends it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scaivaultd.import_store import Unreadable, read_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scaivaultd.import_store import Kind

_SECONDS = 10
_WORDS: dict[Kind, re.Pattern[str]] = {
    "certbot": re.compile(r"(?<!\w)(certbot|letsencrypt-auto)(?!\w)"),
    "lego": re.compile(r"(?<!\w)lego(?!\w)"),
    "acme.sh": re.compile(r"(?<!\w)acme\.sh(?!\w)"),
}
_OPTIONS: dict[Kind, str] = {"certbot": "--config-dir", "lego": "--path", "acme.sh": "--(?:config-)?home"}


@dataclass(frozen=True)
class OldTimer:
    """What still starts the other client, and the command that ends it."""

    what: str
    disable: str


def old_timers(kind: Kind, folder: Path, root: Path = Path("/")) -> list[OldTimer]:
    """Whatever starts the client that keeps this folder, on this host; what cannot be looked at is not there.

    Args:
        kind: The client; there are none for `pem`.
        folder: Its store: jobs that name another one do not count.
        root: Where the host's files are.
    """
    if kind not in _WORDS:
        return []
    return [*_systemd(kind, folder), *_cron(kind, folder, root)]


def _systemd(kind: Kind, folder: Path) -> Iterator[OldTimer]:
    timers = [each for each in _shown("Id", "Unit", "ActiveState", of=["*.timer"]) if _is_active(each)]
    units = [each["Unit"] for each in timers if each.get("Unit")]
    commands = {each.get("Id", ""): each.get("ExecStart", "") for each in _shown("Id", "ExecStart", of=units)}
    for timer in timers:
        # Until the first command ends the unit there is what its name says, such as snap.certbot.renew.
        told = f"{timer.get('Id', '').replace('.', ' ')} {commands.get(timer.get('Unit', ''), '')}"
        if _concerns(kind, folder, told):
            name = timer["Id"]
            yield OldTimer(name, f"systemctl disable --now {shlex.quote(name)}")


def _is_active(timer: dict[str, str]) -> bool:
    return timer.get("ActiveState") == "active" and bool(timer.get("Id"))


def _shown(*properties: str, of: list[str]) -> list[dict[str, str]]:
    """What systemd says of units; nothing where it does not run."""
    systemctl = shutil.which("systemctl")
    if systemctl is None or not of:
        return []
    options = [f"--property={each}" for each in properties]
    try:
        ended = subprocess.run(  # noqa: S603 - a fixed program, no shell
            [systemctl, "show", *options, "--", *of], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return []
    if ended.returncode != 0:
        return []
    return [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in ended.stdout.split("\n\n")
    ]


def _cron(kind: Kind, folder: Path, root: Path) -> Iterator[OldTimer]:
    has_systemd = (root / "run/systemd/system").is_dir()
    for path in _files(root / "etc/cron.d"):
        # Debian's own leaves the work to the systemd timer where there is systemd.
        lines = [each for each in _jobs(path) if not (has_systemd and "/run/systemd/system" in each)]
        if any(_concerns(kind, folder, each) for each in lines):
            # Names with a dot are passed over by cron.
            shown = shlex.quote(str(path))
            yield OldTimer(str(path), f"mv {shown} {shlex.quote(f'{path}.disabled')}")
    for period in ("hourly", "daily", "weekly", "monthly"):
        for path in _files(root / "etc" / f"cron.{period}"):
            if any(_concerns(kind, folder, each) for each in _jobs(path)):
                yield OldTimer(str(path), f"chmod -x {shlex.quote(str(path))}")
    if any(_concerns(kind, folder, each) for each in _jobs(root / "etc/crontab")):
        yield OldTimer("/etc/crontab", "sed -i.bak '/{}/s/^/#/' /etc/crontab".format(kind.replace(".", r"\.")))
    for crontabs in ("var/spool/cron/crontabs", "var/spool/cron"):
        for path in _files(root / crontabs):
            if any(_concerns(kind, folder, each) for each in _jobs(path)):
                yield OldTimer(f"the crontab of {path.name}", _without(kind, path.name))


def _without(kind: Kind, user: str) -> str:
    name, word = shlex.quote(user), kind.replace(".", r"\.")
    return f"crontab -u {name} -l | sed '/{word}/s/^/#/' | crontab -u {name} -"


def _files(path: Path) -> list[Path]:
    try:
        return sorted(each for each in path.iterdir() if each.is_file() and "." not in each.name)
    except OSError:
        return []


def _jobs(path: Path) -> list[str]:
    try:
        text = read_file(path)
    except Unreadable:
        return []
    return [each for each in text.splitlines() if each.strip() and not each.lstrip().startswith("#")]


def _concerns(kind: Kind, folder: Path, text: str) -> bool:
    if _WORDS[kind].search(text) is None:
        return False
    named = re.search(rf"""{_OPTIONS[kind]}[ =]+["']?([^"'\s;]+)""", text)
    if named is not None:
        return _is_same(Path(named[1]), folder)
    match kind:
        case "certbot":
            return _is_same(Path("/etc/letsencrypt"), folder)
        case "acme.sh":
            return folder.name == ".acme.sh"
        case _:
            return True


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.expanduser().resolve() == other.expanduser().resolve()
    except (OSError, RuntimeError):
        return False
