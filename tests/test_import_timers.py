"""Whatever still renews with another client is found, with the command that ends it; nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scaivaultd.import_timers import old_timers

if TYPE_CHECKING:
    from scaivaultd.import_store import Kind

ETC = Path("/etc/letsencrypt")
HOME = Path("/root/.acme.sh")
DEBIAN = (
    "SHELL=/bin/sh\n# certbot, now and then\n"
    "0 */12 * * * root test -x /usr/bin/certbot -a \\! -d /run/systemd/system && certbot -q renew\n"
)
ACME_SH = '12 0 * * * "/root/.acme.sh"/acme.sh --cron --home "/root/.acme.sh" > /dev/null\n'


@pytest.fixture(autouse=True)
def no_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This host's own timers are none of a test's."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(
    ("kind", "folder", "path", "text", "command"),
    [
        ("certbot", ETC, "etc/cron.d/certbot", DEBIAN, "mv {path} {path}.disabled"),
        ("certbot", ETC, "etc/cron.daily/renew", "#!/bin/sh\ncertbot renew\n", "chmod -x {path}"),
        ("certbot", ETC, "etc/crontab", "0 1 * * * root certbot-auto renew\n", "sed -i.bak '/certbot/s/^/#/' {real}"),
        ("lego", Path("/srv/lego"), "etc/cron.d/lego", "0 1 * * * lego --path /srv/lego renew\n", "mv "),
        ("lego", Path("/srv/lego"), "etc/cron.d/lego", "0 1 * * * cd /srv; lego renew\n", "mv "),
        ("acme.sh", HOME, "var/spool/cron/crontabs/root", ACME_SH, "crontab -u root -l | sed '/acme\\.sh/s/^/#/'"),
        ("acme.sh", HOME, "var/spool/cron/root", ACME_SH, "crontab -u root -l"),
    ],
)
def test_a_cron_job_is_found(tmp_path: Path, kind: Kind, folder: Path, path: str, text: str, command: str) -> None:
    """The command can be typed as it is shown."""
    put(tmp_path, path, text)
    (found,) = old_timers(kind, folder, tmp_path)
    assert found.disable.startswith(command.format(path=tmp_path / path, real=f"/{path}"))


@pytest.mark.parametrize(
    ("kind", "folder", "path", "text"),
    [
        ("certbot", Path("/srv/copy"), "etc/cron.d/certbot", DEBIAN),
        ("certbot", ETC, "etc/cron.d/certbot", "0 1 * * * root certbot --config-dir /srv/x renew\n"),
        ("certbot", ETC, "etc/cron.d/certbot", "# 0 1 * * * root certbot renew\n"),
        ("certbot", ETC, "etc/cron.d/certbot.disabled", DEBIAN),
        ("certbot", ETC, "etc/cron.d/backup", "0 1 * * * root rsync /etc/letsencrypt there:\n"),
        ("lego", Path("/srv/lego"), "etc/cron.d/lego", "0 1 * * * lego --path /srv/other renew\n"),
        ("lego", Path("/srv/lego"), "etc/cron.d/toys", "0 1 * * * legoland\n"),
        ("acme.sh", Path("/srv/.acme.sh"), "var/spool/cron/crontabs/root", ACME_SH),
        ("pem", ETC, "etc/cron.d/certbot", DEBIAN),
    ],
)
def test_what_renews_something_else_is_none(tmp_path: Path, kind: Kind, folder: Path, path: str, text: str) -> None:
    """Who is refused without a reason says --allow-dup for ever after."""
    put(tmp_path, path, text)
    assert old_timers(kind, folder, tmp_path) == []


def test_debians_cron_job_rests_where_systemd_runs(tmp_path: Path) -> None:
    """It says so itself; the timer counts there."""
    put(tmp_path, "etc/cron.d/certbot", DEBIAN)
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert old_timers("certbot", ETC, tmp_path) == []


SYSTEMCTL = """#!/bin/sh
case "$*" in
*ActiveState*)
    printf 'Id=certbot.timer\\nUnit=certbot.service\\nActiveState=%s\\n\\n' "$STATE"
    printf 'Id=nightly.timer\\nUnit=nightly.service\\nActiveState=active\\n\\n'
    printf 'Id=snap.certbot.renew.timer\\nUnit=snap.certbot.renew.service\\nActiveState=inactive\\n' ;;
*ExecStart*)
    printf 'Id=certbot.service\\nExecStart={ path=/usr/bin/certbot ; argv[]=/usr/bin/certbot -q renew ; }\\n\\n'
    printf 'Id=nightly.service\\nExecStart={ path=/opt/lego ; argv[]=/opt/lego --path /srv/lego renew ; }\\n' ;;
esac
"""


@pytest.mark.parametrize(
    ("state", "kind", "folder", "expected"),
    [
        ("active", "certbot", ETC, ["systemctl disable --now certbot.timer"]),
        ("inactive", "certbot", ETC, []),
        ("active", "lego", Path("/srv/lego"), ["systemctl disable --now nightly.timer"]),
        ("active", "lego", Path("/srv/other"), []),
        ("active", "acme.sh", HOME, []),
    ],
)
def test_a_timer_of_systemd_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, kind: Kind, folder: Path, expected: list[str]
) -> None:
    """By what its service runs, whatever its name is."""
    put(tmp_path, "bin/systemctl", SYSTEMCTL)
    (tmp_path / "bin/systemctl").chmod(0o755)
    monkeypatch.setenv("STATE", state)
    assert [each.disable for each in old_timers(kind, folder, tmp_path / "root")] == expected


def test_a_systemctl_that_fails_is_no_error(tmp_path: Path) -> None:
    """As in a container, where it is installed and nothing runs."""
    put(tmp_path, "bin/systemctl", "#!/bin/sh\nexit 1\n")
    (tmp_path / "bin/systemctl").chmod(0o755)
    assert old_timers("certbot", ETC, tmp_path / "root") == []
