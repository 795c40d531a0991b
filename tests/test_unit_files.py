"""The units as a host gets them, and what must stay in them whoever edits them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from scaivaultd import unit_files
from scaivaultd.unit_files import Hidden, Host, Unsuitable, render, render_agent

FOLDER = Path(__file__).parents[1] / "systemd"
UNITS = sorted(each for each in FOLDER.iterdir() if each.suffix in (".service", ".socket", ".timer"))
SERVICE = "etc/systemd/system/scaivaultd.service"

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def drop_ins(host: Host) -> set[str]:
    rendered = render(host, FOLDER)
    wanted = {Path(each).name for each in rendered.files if ".service.d/" in each}
    assert wanted.isdisjoint(Path(each).name for each in rendered.unwanted)
    return wanted


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.name))
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path) -> None:
    """A directive that it does not know it leaves out, with one line in a log that nobody reads."""
    done = subprocess.run(["systemd-analyze", "verify", unit], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
@pytest.mark.parametrize(("name", "tenths"), [("", 15), ("-backup", 20), ("-agent", 30)])
def test_a_service_is_confined(name: str, tenths: int) -> None:
    """By systemd's own measure; a directive that gets lost shows here."""
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={tenths}"]
    done = subprocess.run(
        [*command, FOLDER / f"scaivaultd{name}.service"], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout[-300:]


def test_the_service_never_gives_its_sockets_up() -> None:
    """One client that waits would start a failing service five times in a second, and then port 80 is closed."""
    text = (FOLDER / "scaivaultd.service").read_text()
    assert "\nStartLimitIntervalSec=0\n" in text
    assert not re.search(r"^(RestartPreventExitStatus|ExecStartPre|ExecCondition|StartLimitBurst)=", text, re.M)
    assert "\nType=notify\n" in text  # notify-reload is unknown to 252, and readiness would be lost


def test_sockets_are_named_as_the_daemon_knows_them() -> None:
    """By the name alone it tells them apart."""
    names = {}
    for each in unit_files.SOCKETS:
        found = re.search(r"^FileDescriptorName=(.*)$", (FOLDER / each).read_text(), re.M)
        assert found is not None
        names[each] = found[1]
    assert sorted(names.values()) == ["api", "http01", "tls-alpn01"]


@pytest.mark.parametrize(
    ("host", "names"),
    [
        (Host(systemd=252), set()),
        (Host(systemd=253), {"10-notify-reload.conf"}),
        (Host(systemd=257), {"10-notify-reload.conf", "10-restart-steps.conf"}),
        (Host(systemd=252, has_external_nats=True), {"10-external-nats.conf"}),
        (Host(systemd=252, sockets=()), {"10-no-sockets.conf"}),
        (Host(systemd=252, denies_metadata=True), {"10-deny-metadata.conf"}),
    ],
)
def test_drop_ins_are_those_for_the_host(host: Host, names: set[str]) -> None:
    """What an older systemd does not know it must not see; what was chosen before and is not now goes."""
    assert drop_ins(host) == names


def test_prefix_and_configuration_are_put_into_every_unit() -> None:
    """A path that was forgotten starts another installation, or none."""
    files = render(Host(systemd=252, prefix="/srv2/acme", config="/etc/acme/main.toml"), FOLDER).files
    assert all("/opt/scaivaultd" not in text for text in files.values())
    assert "serve --config /etc/acme/main.toml\n" in files[SERVICE]
    assert "PATH=/srv2/acme/bin:" in files[SERVICE]
    assert re.search(r"^ExecPaths=.* -/srv2/acme$", files[SERVICE], re.M)


def test_a_python_from_elsewhere_may_be_executed() -> None:
    """A virtual environment of another Python, such as uv's, is only links to it."""
    files = render(Host(systemd=252, interpreter="/usr/local/py/3.12/bin/python3.12"), FOLDER).files
    assert re.search(r"^ExecPaths=.* -/opt/scaivaultd -/usr/local/py/3.12$", files[SERVICE], re.M)
    for known in ("/usr/bin/python3.11", "/opt/scaivaultd/bin/python3"):
        assert render(Host(systemd=252, interpreter=known), FOLDER) == render(Host(systemd=252), FOLDER)


def test_without_sockets_nothing_speaks_of_them() -> None:
    """The service would pull units in that are not there; those of before are taken away."""
    rendered = render(Host(systemd=252, sockets=()), FOLDER)
    assert not any(path.endswith(".socket") for path in rendered.files)
    assert not re.search(r"^(Sockets|Also)=.*socket", rendered.files[SERVICE], re.M)
    assert {f"etc/systemd/system/{each}" for each in unit_files.SOCKETS} <= set(rendered.unwanted)


def test_a_socket_that_another_server_has_is_left_out_alone() -> None:
    """`Sockets=` would start it again at each start of the service, disabled or not."""
    rendered = render(Host(systemd=252, sockets=("scaivaultd-http.socket", "scaivaultd-api.socket")), FOLDER)
    service = rendered.files[SERVICE]
    assert "\nSockets=scaivaultd-http.socket scaivaultd-api.socket\n" in service
    assert "\nAlso=scaivaultd-http.socket scaivaultd-api.socket\n" in service
    assert f"{unit_files.UNITS}/scaivaultd-tls.socket" in rendered.unwanted
    assert not any("no-sockets" in path for path in rendered.files)


@pytest.mark.parametrize(
    ("host", "told"),
    [
        (Host(systemd=249), "the units need 252"),
        (Host(systemd=252, prefix="/opt/my acme"), "without blanks"),
        (Host(systemd=252, prefix="relative"), "absolute"),
        (Host(systemd=252, config="/etc/a%b.toml"), "special characters"),
        (Host(systemd=252, config="/etc/a\nUser=root"), "special characters"),
    ],
)
def test_what_cannot_stand_in_a_unit_is_refused(host: Host, told: str) -> None:
    """systemd would read something else from it."""
    for make in (render, render_agent):
        with pytest.raises(Unsuitable, match=told):
            make(host, FOLDER)


@pytest.mark.parametrize(
    "host",
    [
        Host(systemd=252, prefix="/home/me/venv"),
        Host(systemd=252, config="/root/scaivaultd.toml"),
        Host(systemd=252, interpreter="/root/.pyenv/versions/3.12.1/bin/python3.12"),
    ],
)
def test_what_the_service_would_not_see_is_refused(host: Host) -> None:
    """Its start would fail with "No such file", and the file is there for whoever looks."""
    with pytest.raises(Hidden, match="/opt/scaivaultd/bin/pip install"):
        render(host, FOLDER)
    assert SERVICE in render(host, FOLDER, allow_hidden=True).files


def test_the_agent_comes_alone() -> None:
    """A host that uses certificates runs no daemon."""
    rendered = render_agent(Host(systemd=252, prefix="/srv2/x", config="/etc/x/agent.toml"), FOLDER)
    assert list(rendered.files) == ["etc/systemd/system/scaivaultd-agent.service"]
    text = "".join(rendered.files.values())
    assert ("PATH=/srv2/x/bin:" in text, "agent --config /etc/x/agent.toml\n" in text) == (True, True)
    assert (rendered.unwanted, rendered.first_config) == ((), None)
