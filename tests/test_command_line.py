"""`scaivaultd` and `scaivaultctl` as a person at a shell meets them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from scaivaultd import __version__
from scaivaultd.api.commands import COMMANDS
from scaivaultd.ctl import main as ctl_main
from scaivaultd.model.errors import WIRE_ERRORS
from scaivaultd.model.explanations import ACME_PROBLEMS

if TYPE_CHECKING:
    from collections.abc import Iterator


def run(module: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], check=False, capture_output=True, text=True, timeout=60, cwd=cwd
    )


def daemon(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("scaivaultd", *arguments)


def ctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("scaivaultd.ctl", *arguments)


@pytest.mark.parametrize(("module", "name"), [("scaivaultd", "scaivaultd"), ("scaivaultd.ctl", "scaivaultctl")])
def test_the_version_is_told(module: str, name: str) -> None:
    """The first question of every report."""
    ended = run(module, "--version")
    assert (ended.returncode, ended.stdout.split()) == (0, [f"{name},", "version", __version__])


def test_both_commands_are_installed() -> None:
    """Entry points make them; `python -m` is for us."""
    for name in ("scaivaultd", "scaivaultctl"):
        program = Path(sys.executable).with_name(name)
        ended = subprocess.run([program, "--version"], check=False, capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert __version__ in ended.stdout


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_names_every_command(option: str) -> None:
    """What is not in the help does not exist."""
    assert all(verb in daemon(option).stdout for verb in ("serve", "check-config", "demo"))
    told = ctl(option).stdout
    assert all(f"\n  {verb} " in told for verb in ctl_main.commands)


def _verbs(group: click.Group, *words: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, verb in group.commands.items():
        yield (*words, name), verb
        if isinstance(verb, click.Group):
            yield from _verbs(verb, *words, name)


VERBS = [pytest.param(words, verb, id=" ".join(words)) for words, verb in _verbs(ctl_main)]


@pytest.mark.parametrize(("words", "verb"), VERBS)
def test_every_verb_is_explained_within_80_columns(words: tuple[str, ...], verb: click.Command) -> None:
    """And its line in the list is a whole sentence, not one that ends in dots."""
    told = CliRunner().invoke(ctl_main, [*words, "--help"], env={"COLUMNS": "80"}).stdout
    assert all(len(line) <= 80 for line in told.splitlines())
    assert not verb.get_short_help_str(limit=64).endswith("...")
    undescribed = [option.name for option in verb.params if isinstance(option, click.Option) and not option.help]
    assert undescribed == []


def test_a_mistyped_verb_is_met_with_the_right_one() -> None:
    """Typing mistakes are the commonest ones."""
    assert "did you mean 'policy'?" in ctl("polcy").stderr
    ended = ctl("token", "creat")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "did you mean 'create'?" in ended.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_verbs(shell: str) -> None:
    """The script is click's, with the tool's name in it."""
    script = ctl("completion", shell).stdout
    assert f"_SCAIVAULTCTL_COMPLETE={shell}_complete" in script


class TestDaemon:
    def test_an_unknown_command_is_a_usage_error(self) -> None:
        """Typing mistakes end before anything starts."""
        ended = daemon("srve")
        assert ended.returncode == 2
        assert "srve" in ended.stderr

    @pytest.mark.parametrize("verb", ["serve", "check-config"])
    def test_every_mistake_in_the_configuration_is_told_and_the_code_is_78(self, tmp_path: Path, verb: str) -> None:
        """One run, all mistakes: systemd does not restart on 78 for ever."""
        config = tmp_path / "scaivaultd.toml"
        config.write_text('state_dri = "/x"\n[log]\nlevel = "loud"\n')
        ended = daemon(verb, "--config", str(config))
        assert (ended.returncode, ended.stdout) == (78, "")
        told = ended.stderr.splitlines()
        assert all(line.startswith(f"{config}") for line in told)
        assert any(f"{config}:1" in line and "state_dir" in line for line in told)
        assert any(f"{config}:3" in line and "log.level" in line for line in told)

    @pytest.mark.parametrize("verb", ["serve", "check-config"])
    def test_a_missing_configuration_is_told_in_one_line(self, tmp_path: Path, verb: str) -> None:
        """No traceback for what everybody forgets once."""
        ended = daemon(verb, "--config", str(tmp_path / "nowhere.toml"))
        assert ended.returncode == 78
        assert "nowhere.toml" in ended.stderr
        assert "Traceback" not in ended.stderr

    def test_a_good_configuration_is_ok_and_changes_nothing(self, tmp_path: Path) -> None:
        """Configuration management runs it before every restart."""
        config = tmp_path / "scaivaultd.toml"
        config.write_text(f'state_dir = "{tmp_path}/state"\n')
        ended = daemon("check-config", "--config", str(config))
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{config}: ok\n", "")
        assert [each.name for each in tmp_path.iterdir()] == ["scaivaultd.toml"]

    def test_a_start_that_cannot_be_says_so_in_one_line(self, tmp_path: Path) -> None:
        """The state directory is a file here: 78, a sentence, no traceback."""
        (tmp_path / "state").touch()
        config = tmp_path / "scaivaultd.toml"
        config.write_text(f'state_dir = "{tmp_path}/state"\n[http01]\nlisten = []\n[tlsalpn01]\nlisten = []\n')
        ended = daemon("serve", "--config", str(config))
        assert ended.returncode == 78
        assert "Traceback" not in ended.stderr
        assert f"{tmp_path}/state" in ended.stderr


class TestExplain:
    def test_every_code_is_listed_and_explained(self) -> None:
        """The list is closed: what a caller can meet can be looked up."""
        rows = json.loads(ctl("explain", "--json").stdout)
        ours = {each["code"] for each in rows if each["of"] == "daemon"}
        assert ours == {each.code for each in WIRE_ERRORS}
        assert {each["code"] for each in rows if each["of"] == "CA"} == {each.name for each in ACME_PROBLEMS}
        listed = ctl("explain").stdout
        assert all(each["code"] in listed for each in rows)

    def test_one_code_is_explained_to_people_and_programs(self) -> None:
        """With what to do about it."""
        told = ctl("explain", "backend_rate_limited")
        assert told.returncode == 0
        assert "429" in told.stdout
        assert "retry_at" in told.stdout
        read = json.loads(ctl("explain", "backend_rate_limited", "--json").stdout)
        assert (read["status"], read["retryable"]) == (429, True)
        assert read["remedy"]

    def test_a_near_miss_is_met_with_the_right_code(self) -> None:
        """Codes are copied by hand from a screen."""
        ended = ctl("explain", "backend_rate_limit")
        assert (ended.returncode, ended.stdout) == (2, "")
        assert "did you mean 'backend_rate_limited'" in ended.stderr
        ended = ctl("explain", "zzz")
        assert ended.returncode == 2
        assert "did you mean" not in ended.stderr

    def test_a_code_of_several_classes_is_explained_by_the_one_on_the_wire(self) -> None:
        """`ca_error` is CaRefused's; a subclass must not take its place in the list."""
        assert json.loads(ctl("explain", "ca_error", "--json").stdout)["title"] == "The CA refused or misbehaved."


class TestCommands:
    def test_every_command_is_listed_with_its_subject(self) -> None:
        """Below the root the daemon listens at."""
        told = ctl("commands", "--root", "my.root").stdout
        for command in COMMANDS:
            assert f"my.root.{command.name}\n" in told
            assert command.summary in told

    def test_programs_get_examples(self) -> None:
        """Copied into `nats request`."""
        rows = json.loads(ctl("commands", "--json").stdout)
        assert [each["subject"] for each in rows] == [f"scaivault.v1.{each.name}" for each in COMMANDS]
        assert [each["example"] for each in rows] == [each.example for each in COMMANDS]


def test_the_tool_starts_without_the_daemons_libraries() -> None:
    """It is run in loops by scripts, and must start at once."""
    program = (
        "import sys; sys.argv = ['scaivaultctl', 'explain']\n"
        "from scaivaultd.ctl import main\n"
        "main(standalone_mode=False)\n"
        "heavy = {'nats', 'aiohttp', 'acme', 'cryptography', 'structlog', 'josepy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


def test_the_tool_starts_at_once() -> None:
    """The best of some runs, since the machine has other things to do: what it costs is what it imports."""
    program = "from scaivaultd.ctl import main; main(['--version'], standalone_mode=False)"
    assert min(_seconds(program) for _ in range(5)) < 0.15 + _seconds("pass")


def _seconds(program: str) -> float:
    before = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL, timeout=60)
    return time.monotonic() - before
