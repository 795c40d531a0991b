"""`scaivaultctl config` and `reload`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.fakes import ctl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PASSWORD = "hunter2"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "scaivaultd.toml"
    path.write_text(f'state_dir = "{tmp_path}"\n[nats]\nservers = ["nats://u:{PASSWORD}@host"]\n')
    return path


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[ctl.Tool]:
    with ctl.at(tmp_path) as found:
        yield found


def test_check_tells_every_mistake_and_its_exit_code(file: Path) -> None:
    """It is run before every reload, by people and by scripts."""
    assert ctl.run("config", "check", "--config", str(file)).out == f"{file}: ok\n"
    ended = ctl.run("config", "check", "--config", str(file), SCAIVAULT__LOG__LEVLE="x", SCAIVAULT__DNS="1")
    assert ended.code == 78
    assert "SCAIVAULT__LOG__LEVLE: log.levle: unknown key (did you mean 'level'?)" in ended.err
    assert "SCAIVAULT__DNS: dns: must be a table, not an integer" in ended.err
    told = ctl.run("config", "check", "--config", str(file), "--json", SCAIVAULT__DNS="1")
    assert (told.code, told.json["ok"], len(told.json["mistakes"])) == (78, False, 1)


def test_check_looks_at_files_and_plugins(file: Path) -> None:
    """A wrong path is found at night otherwise."""
    file.write_text(file.read_text() + 'tls_ca_file = "/nowhere"\n')
    ended = ctl.run("config", "check", "--config", str(file))
    assert (ended.code, f"{file}:4: nats.tls_ca_file: /nowhere cannot be read" in ended.err) == (78, True)
    file.write_text('state_dir = "/x"\n[[dns_provider]]\nname = "a"\ntype = "exce"\n')
    assert "dns_provider[0].type: no installed plugin" in ctl.run("config", "check", "--config", str(file)).err


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    """With its name, and no traceback."""
    for verb in ("check", "show"):
        ended = ctl.run("config", verb, "--config", str(tmp_path / "none.toml"))
        assert (ended.code, "none.toml: cannot be read" in ended.err) == (78, True)


def test_show_tells_values_and_where_they_come_from_but_no_password(file: Path) -> None:
    """What goes into a ticket must not hold a secret."""
    ended = ctl.run("config", "show", "--origin", "--config", str(file), SCAIVAULT__LOG__LEVEL="debug")
    assert ended.code == 0
    lines = dict(line.split("# ") for line in ended.out.splitlines())
    assert lines['nats.servers = ["nats://***@host"]    '] == f"{file}:3"
    assert any(key.startswith('log.level = "debug"') for key, at in lines.items() if at == "SCAIVAULT__LOG__LEVEL")
    everything = ctl.run("config", "show", "--effective", "--origin", "--json", "--config", str(file))
    origins = {row["key"]: row["origin"] for row in everything.json}
    assert (origins["log.level"], origins["state_dir"]) == ("built in", f"{file}:1")
    assert PASSWORD not in ended.out + everything.out
    assert ctl.run("config", "show", "--json", "--config", str(file)).json.keys() == {"state_dir", "nats.servers"}


def test_show_hides_secrets_that_stand_in_a_plugin_s_table(file: Path) -> None:
    """They should be references; where one is not, it is still nobody's business."""
    file.write_text(
        'state_dir = "/x"\n[solvers.upload]\npassword = "hunter2"\npassword_file = "/run/p"\n'
        '[[dns_provider]]\nname = "a"\ntype = "x"\nconfig = { api_token = "hunter2", api_token_path = "cred:t" }\n'
    )
    shown = ctl.run("config", "show", "--config", str(file)).out
    assert PASSWORD not in shown
    assert '"/run/p"' in shown
    assert '"cred:t"' in shown


def test_examples_are_printed_as_they_are(tmp_path: Path) -> None:
    """What is printed is put into a file, and must be a configuration."""
    annotated = ctl.run("config", "example").out
    (tmp_path / "c.toml").write_text(annotated)
    assert ctl.run("config", "show", "--config", str(tmp_path / "c.toml")).code == 0
    assert "minimal" in ctl.run("config", "example", "list").out
    assert ctl.run("config", "example", "minimal").out.endswith('state_dir = "/var/lib/scaivaultd"\n')
    assert ctl.run("config", "example", "none").code == 2


def test_the_schema_is_one_of_the_whole_file() -> None:
    """Editors complete from it."""
    schema = ctl.run("config", "schema").json
    assert schema["required"] == ["state_dir"]
    level = schema["properties"]["log"]["properties"]["level"]
    assert (level["enum"], level["default"]) == (["debug", "error", "info", "warning"], "info")
    assert schema["properties"]["dns_provider"]["items"]["required"] == ["name", "type"]


def test_reload_tells_what_is_in_force_and_what_waits(tool: ctl.Tool) -> None:
    """Whoever changed a port must not believe that it is open."""
    tool.api.replies["sys.reload"] = {
        "ok": True,
        "changed": ["log.level"],
        "needs_restart": ["http01.listen"],
        "mistakes": [],
    }
    ended = tool("reload")
    assert ended.code == 0
    assert [line.split(None, 1) for line in ended.out.splitlines()[1:]] == [
        ["log.level", "in force"],
        ["http01.listen", "needs a restart"],
    ]
    assert "Restart the daemon" in ended.err
    assert json.loads(tool("reload", "--json").out)["needs_restart"] == ["http01.listen"]


def test_reload_with_mistakes_is_a_failure(tool: ctl.Tool) -> None:
    """A script that goes on would think that its change is there."""
    tool.api.replies["sys.reload"] = {"ok": False, "changed": [], "needs_restart": [], "mistakes": ["/c:3: x: wrong"]}
    ended = tool("reload")
    assert (ended.code, ended.out) == (78, "")
    assert "/c:3: x: wrong" in ended.err


def test_reload_without_a_change_says_so(tool: ctl.Tool) -> None:
    """Silence could be either."""
    tool.api.replies["sys.reload"] = {"ok": True, "changed": [], "needs_restart": [], "mistakes": []}
    assert "Nothing has changed" in tool("reload").err
