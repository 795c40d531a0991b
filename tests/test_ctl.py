"""`scaivaultctl` as a whole: its words, what it says to mistyped ones, what it imports, how it ends."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

import scaivaultd
from scaivaultd import ctl as tool
from scaivaultd.api.commands import COMMANDS
from scaivaultd.ctl_session import EXIT_CODES, Group, is_shared
from scaivaultd.reference_ctl import walk
from tests.fakes import ctl

if TYPE_CHECKING:
    from collections.abc import Iterator

PROVIDER = {
    "name": "x",
    "type": "hetzner",
    "zones": [],
    "config": {},
    "origin": "api",
    "status": "ready",
    "created_at": "2026-11-01T00:00:00Z",
    "updated_at": "2026-11-01T00:00:00Z",
}
ENTRIES = list(walk())
HEAVY = {"nats", "aiohttp", "acme", "cryptography", "structlog"}
ROOT = Path(scaivaultd.__file__).parent
VERBS = {
    "pki.acme.accounts.create": "account create",
    "pki.acme.accounts.list": "account ls",
    "pki.acme.accounts.get": "account show",
    "pki.acme.accounts.update": "account update",
    "pki.acme.accounts.rotate_key": "account rotate-key",
    "pki.acme.accounts.deactivate": "account deactivate",
    "pki.acme.limits": "limits",
    "pki.acme.issue": "cert issue",
    "pki.acme.orders.list": "order ls",
    "pki.acme.orders.get": "order show",
    "pki.acme.orders.cancel": "order cancel",
    "pki.certificates.list": "cert ls",
    "pki.certificates.get": "cert show",
    "pki.certificates.pem": "cert pem",
    "pki.certificates.key": "cert key",
    "pki.certificates.versions": "cert history",
    "pki.certificates.renew": "cert renew",
    "pki.certificates.update": "cert update",
    "pki.certificates.import": "import pem",
    "pki.certificates.confirm": "agent",
    "pki.certificates.deployments": "cert deployments",
    "pki.certificates.forget_deployment": "cert forget-host",
    "pki.revoke": "cert revoke",
    "pki.revocations.get": "cert revoke",
    "pki.bulk_renewals.create": "bulk renew",
    "pki.bulk_renewals.list": "bulk ls",
    "pki.bulk_renewals.get": "bulk show",
    "pki.bulk_renewals.cancel": "bulk cancel",
    "pki.dns_providers.create": "dns provider add",
    "pki.dns_providers.list": "dns provider ls",
    "pki.dns_providers.get": "dns provider show",
    "pki.dns_providers.update": "dns provider update",
    "pki.dns_providers.delete": "dns provider rm",
    "pki.dns_providers.test": "dns provider test",
    "pki.dns_providers.trace": "dns trace",
    "secrets.put": "secret put",
    "secrets.list": "secret ls",
    "secrets.delete": "secret rm",
    "tokens.create": "token create",
    "tokens.list": "token ls",
    "tokens.get": "token show",
    "tokens.rotate": "token rotate",
    "tokens.revoke": "token revoke",
    "policies.put": "policy apply",
    "policies.list": "policy ls",
    "policies.get": "policy show",
    "policies.delete": "policy rm",
    "auth.can_i": "auth can-i",
    "auth.whoami": "auth whoami",
    "audit.list": "audit tail",
    "audit.verify": "audit verify",
    "events.list": "events tail",
    "sys.master_key.get": "keys status",
    "sys.master_key.rotate": "keys rotate-master",
    "sys.unseal": "unseal",
    "sys.backup": "backup create",
    "sys.resume": "resume",
    "sys.reload": "reload",
    "sys.health": "status",
    "sys.info": "info",
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.name))
def test_every_command_has_a_verb(command: Any) -> None:
    """What only programs can do, an administrator cannot do at night."""
    assert VERBS[command.name] in {" ".join(entry.words) for entry in ENTRIES}


@pytest.mark.parametrize("word", tool.words())
def test_every_word_of_the_table_can_be_loaded(word: str) -> None:
    """It is imported only when it is used: nobody would notice before."""
    context = click.Context(tool.main)
    assert tool.main.get_command(context, word) is not None


@pytest.mark.parametrize("path", sorted(ROOT.glob("ctl*.py")), ids=lambda path: str(path.stem))
def test_no_module_of_the_tool_imports_what_is_heavy(path: Path) -> None:
    """Half a second at every call is what makes a tool feel slow; a verb that needs one imports it itself."""
    command = [sys.executable, "-c", f"import sys, scaivaultd.{path.stem}; print(sorted({HEAVY!r} & set(sys.modules)))"]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout == "[]\n"


def test_the_tool_alone_imports_no_verb() -> None:
    """`--version`, `--help` and completion wait for none of them."""
    program = (
        "import sys\nfrom scaivaultd.ctl import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in sys.modules if name.startswith('scaivaultd.ctl_')])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(ast.literal_eval(ended.stdout.splitlines()[-1]))
    assert loaded == {
        "scaivaultd.ctl_client",
        "scaivaultd.ctl_output",
        "scaivaultd.ctl_places",
        "scaivaultd.ctl_session",
    }


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["statsu"], "there is no 'statsu' here; did you mean 'status'?"),
        (["certificate"], "did you mean 'cert'?"),
        (["token", "list"], "did you mean 'ls'?"),
        (["token", "rotat"], "did you mean 'rotate'?"),
        (["dns", "provider", "delete", "x"], "did you mean 'rm'?"),
        (["dns", "provider", "xyzzy"], "There are add, ls, rm, show, test, types, update."),
        (["token", "ls", "--jsn"], "--json"),
        (["account", "create", "--staginf"], "--staging"),
    ],
)
def test_whoever_mistypes_is_told_what_it_may_have_been(arguments: list[str], told: str) -> None:
    """At every level, for words and for options; and it is wrong usage for scripts."""
    ended = ctl.run(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert told in ended.err


def test_a_word_whose_module_is_broken_breaks_no_other(tmp_path: Path) -> None:
    """And it ends in one line, whatever the module fails with."""
    program = (
        "import sys\nimport scaivaultd\n"
        f"scaivaultd.__path__.insert(0, {str(tmp_path)!r})\n"
        "from scaivaultd.ctl import main\nmain()"
    )
    (tmp_path / "ctl_policy.py").write_text("raise ZeroDivisionError('on purpose')\n")
    for arguments, code in ((["policy", "ls"], 1), (["explain", "caa"], 0), (["--help"], 0)):
        command = [sys.executable, "-c", program, *arguments]
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert (ended.returncode, "Traceback" in ended.stderr) == (code, False), ended.stderr
        assert ("'policy' cannot be loaded" in ended.stderr) is (code == 1)


def test_help_tells_every_exit_code() -> None:
    """Scripts are written from it."""
    told = ctl.run("--help").out
    for code, meaning in EXIT_CODES.items():
        assert f"  {code:<5}{meaning}" in told
    assert max(len(line) for line in told.splitlines()) <= 80


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: " ".join(entry.words) or "scaivaultctl")
def test_help_of_every_verb_fits_and_says_what_each_option_is_for(entry: Any) -> None:
    """Terminals have 80 columns, and an option without a meaning is a riddle."""
    ended = ctl.run(*entry.words, "--help")
    assert ended.code == 0
    assert max(len(line) for line in ended.out.splitlines()) <= 80
    assert [option.written for option in entry.options if not option.meaning] == []
    assert entry.text != ("",)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: " ".join(entry.words) or "scaivaultctl")
def test_every_group_says_what_it_may_have_been_and_every_verb_has_json(entry: Any) -> None:
    """Whoever has learned one verb knows all."""
    command: click.Command = tool.main
    for word in entry.words:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    if entry.is_group:
        assert isinstance(command, Group)
    else:
        assert any("--json" in each.opts for each in command.params)


class TestSharedOptions:
    @pytest.fixture
    def tool(self, tmp_path: Path) -> Iterator[ctl.Tool]:
        with ctl.at(tmp_path) as found:
            found.api.replies["tokens.list"] = {"items": [], "next_cursor": None}
            yield found

    def test_they_may_stand_before_the_verb(self, tool: ctl.Tool) -> None:
        """As with other tools; what stands behind the verb is the stronger."""
        assert tool("--json", "token", "ls").out == "[]\n"
        ended = ctl.run("--address", "/nowhere.sock", "token", "ls", "--address", str(tool.socket))
        assert ended.code == 0
        assert ctl.run("--address", "/nowhere.sock", "token", "ls").code == 8

    def test_a_verb_of_its_own_mind_is_heard(self, tool: ctl.Tool) -> None:
        """`--timeout` of a test is about the test; the shared option of that name gives way."""
        command = next(each for each in ENTRIES if each.words == ("dns", "provider", "test"))
        assert [each.written.split()[0] for each in command.options if "timeout" in each.written] == ["--timeout"]
        test = tool_command("dns", "provider", "test")
        assert [is_shared(each) for each in test.params if "--timeout" in each.opts] == [False]

    def test_quiet_says_only_what_went_wrong(self, tool: ctl.Tool) -> None:
        """Cron mails everything else."""
        tool.api.replies["secrets.put"] = "permission_denied"
        assert tool("secret", "put", "a", "--quiet", given="x").err.startswith("scaivaultctl: this is permission")
        tool.api.replies["pki.dns_providers.get"] = {"id": "dnsp_1", **PROVIDER}
        assert "dry run" in tool("dns", "provider", "update", "x", "--zone", "z.example", "--dry-run").err
        assert tool("dns", "provider", "update", "x", "--zone", "z.example", "--dry-run", "-q").err == ""

    def test_an_answer_is_not_waited_for_longer_than_told(self, tmp_path: Path) -> None:
        """A daemon that hangs must not hang a script."""
        import socket

        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(tmp_path / "silent.sock"))
            silent.listen()
            ended = ctl.run("status", "--address", str(tmp_path / "silent.sock"), "--timeout", "0.05")
        assert ended.code == 8
        assert "no answer within 0.05 s" in ended.err


def tool_command(*words: str) -> click.Command:
    command: click.Command = tool.main
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    return command


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Children hear Ctrl-C even where the tests run in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupted_at_a_prompt_it_ends_without_a_word(tmp_path: Path) -> None:
    """Ctrl-C is no failure to explain; scripts see 130."""
    with ctl.at(tmp_path) as daemon:
        ended = ctl.on_terminal(
            "secret", "put", "a/b", answers=[("Value", "\x03")], SCAIVAULT_ADDR=f"unix:{daemon.socket}"
        )
    assert (ended.code, "Traceback" in ended.out, "Aborted" in ended.out) == (130, False, False)


@pytest.mark.usefixtures("interruptible")
def test_interrupted_while_it_waits_it_ends_without_a_word(tmp_path: Path) -> None:
    """The same where nobody is asked."""
    import socket

    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent.sock"))
        silent.listen()
        command = [sys.executable, "-m", "scaivaultd.ctl", "status", "--address", str(tmp_path / "silent.sock")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        taken, _ = silent.accept()
        with taken:
            assert taken.recv(10)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "")


def test_letters_that_the_terminal_lacks_are_no_failure() -> None:
    """A name from elsewhere on an old console must not be a traceback."""
    program = "from scaivaultd.ctl import main; main(['explain', '\u017eürich'])"
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    ended = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, timeout=60, env=environment
    )
    assert ended.returncode == 2
    assert b"\\u017e\xfcrich" in ended.stderr
