"""`scaivaultctl` against the real daemon, as an administrator meets it on the first day."""

from __future__ import annotations

import asyncio
import grp
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.demo.process import free_port, until
from tests.fakes.ctl import Ended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.system

EXAMPLE = Path(__file__).parent.parent.parent / "config/examples/policies.toml"
AS_NOBODY = """
import os, sys
from scaivaultd.ctl import main
import scaivaultd.api.commands, scaivaultd.model.errors
os.setgroups([int(each) for each in sys.argv.pop(1).split(",") if each])
os.setgid(65534), os.setuid(65534)
main()
"""


@dataclass(frozen=True)
class Shell:
    """A person at a shell."""

    environment: dict[str, str]

    async def __call__(self, *arguments: str, given: str = "", program: list[str] | None = None) -> Ended:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SCAIVAULT")}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(program or ["-m", "scaivaultd.ctl"]),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**inherited, "COLUMNS": "80", **self.environment},
        )
        out, err = await asyncio.wait_for(process.communicate(given.encode()), 60)
        assert b"Traceback" not in err, err
        return Ended(int(process.returncode or 0), out.decode(), err.decode())


async def test_the_first_day_of_an_administrator(make_daemon: Any, hanging_ca: Any) -> None:
    """From nothing to a team with its token: over the socket first, then over the network."""
    port = free_port()
    daemon = await make_daemon(hanging_ca, rest=f'listen = ["127.0.0.1:{port}"]')
    root = Shell({"SCAIVAULT_ADDR": f"unix:{daemon.state_dir}/api.sock"})
    assert (await root("status")).out.startswith("ok\n")
    assert (await root("auth", "whoami")).out.endswith("\npolicies   local-admins\n")
    ops_token = (await root("token", "create", "ops", "--admin")).out.strip()
    assert len(ops_token) == 63
    ops = Shell({"SCAIVAULT_ADDR": f"http://127.0.0.1:{port}", "SCAIVAULT_TOKEN": ops_token})
    applied = await ops("policy", "apply", "-f", str(EXAMPLE))
    assert (applied.code, applied.out.splitlines()[0]) == (0, "web-team: new")
    again = await ops("policy", "apply", "-f", str(EXAMPLE))
    assert {line.partition(": ")[2] for line in again.out.splitlines()} == {"unchanged"}

    web_token = (await ops("token", "create", "web-ci", "--lifetime", "7d")).out.strip()
    web = Shell({"SCAIVAULT_ADDR": f"http://127.0.0.1:{port}", "SCAIVAULT_TOKEN": web_token})
    asked = ["cert.issue", "--domain", "a.web.example.net", "--account", "letsencrypt"]
    assert (await web("auth", "can-i", *asked)).code == 0
    assert (await ops("auth", "can-i", *asked, "--as", "token:web-ci")).code == 0
    refused = await web("auth", "can-i", *asked[:2], "a.bank.example.net")
    assert (refused.code, refused.out.splitlines()[0]) == (4, "no, by rule 1 of policy bank-is-closed")
    refused = await web("token", "ls")
    assert (refused.code, refused.out) == (4, "")
    assert "permission_denied, request req_" in refused.err

    rotated = (await ops("token", "rotate", "web-ci", "--overlap", "1h")).out.strip()
    assert rotated != web_token
    assert (await web("auth", "whoami")).code == 0, "the old secret is good for a while"
    assert (await ops("token", "revoke", "web-ci", "--yes")).code == 0
    assert (await web("auth", "whoami")).code == 4

    assert (await ops("secret", "put", "dns/route53", given="s3cr3t-value\n")).out == "dns/route53: version 1\n"
    assert (await ops("secret", "ls")).out.splitlines()[1].startswith("dns/route53  1 ")
    assert (await ops("secret", "rm", "dns/route53", "--yes")).out == "dns/route53: deleted\n"
    before = (await ops("keys", "status", "--json")).json["kid"]
    assert (await ops("keys", "rotate-master", "--yes")).code == 0
    assert (await ops("keys", "status", "--json")).json["kid"] != before
    assert (await ops("call", "sys.info")).json["orders_under_way"] == 0
    assert (await ops("policy", "rm", "monitoring", "--yes")).code == 0
    assert (await ops("policy", "show", "monitoring")).code == 3

    tail = (await root("audit", "tail", "--action", "token.revoke")).out.splitlines()
    assert [line.split()[3] for line in tail[1:]] == ["begun", "ok"]
    assert (await root("audit", "verify")).out.startswith("sound    yes\n")
    assert (await root("audit", "verify", "--dir", f"{daemon.state_dir}/audit")).code == 0
    kept = b"".join(each.read_bytes() for each in (daemon.state_dir / "audit").iterdir())
    assert not any(each.encode() in kept for each in (ops_token, web_token, rotated, "s3cr3t-value"))

    await daemon.stop()
    assert (await root("status")).code == 8


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user of the host may enter; those of pytest are closed."""
    directory = Path(tempfile.mkdtemp(prefix="scaivault-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become somebody else")
async def test_members_of_the_admin_group_are_administrators_and_nobody_else_is(
    make_daemon: Any, hanging_ca: Any, open_directory: Path
) -> None:
    """The group is the whole of the bootstrap: no password, no default token."""
    group = grp.getgrgid(1)
    path = open_directory / "api.sock"
    await make_daemon(hanging_ca, rest=f'listen = ["{path}"]', access=f'admin_group = "{group.gr_name}"')
    person = Shell({"SCAIVAULT_ADDR": str(path)})
    stranger = await person("", "token", "create", "ops", "--admin", program=["-c", AS_NOBODY])
    assert (stranger.code, stranger.out) == (8, "")
    assert "admin_group" in stranger.err
    member = await person(str(group.gr_gid), "auth", "whoami", program=["-c", AS_NOBODY])
    assert member.out == "principal  unix:65534\npolicies   local-admins\n"
    made = await person(str(group.gr_gid), "token", "create", "ops", "--admin", program=["-c", AS_NOBODY])
    assert (made.code, made.out[:5]) == (0, "scvt_")


async def test_a_sealed_daemon_is_unsealed_by_a_passphrase_from_a_pipe(
    new_daemon: Any, hanging_ca: Any, launch: Callable[[Any], Any]
) -> None:
    """A host that starts unattended waits for a person, and says for what."""
    daemon = new_daemon(hanging_ca, secrets='master_key = "passphrase"')
    launch(daemon)
    root = Shell({"SCAIVAULT_ADDR": f"unix:{daemon.state_dir}/api.sock"})

    async def says(code: int) -> bool:
        return (await root("status")).code == code

    await until(lambda: says(1), "the daemon is up and sealed")
    sealed = await root("status")
    assert sealed.out.splitlines()[0] == "sealed"
    assert "passphrase_needed" in (await root("keys", "status")).out
    refused = await root("token", "ls")
    assert (refused.code, refused.out) == (1, "")
    assert "[sealed" in refused.err
    opened = await root("unseal", given="correct horse battery staple\n")
    assert opened.code == 0, opened.err
    assert "only way" in opened.err
    await until(lambda: says(0), "the daemon is open")
    assert (await root("unseal", given="x")).err == "The daemon is not sealed.\n"
