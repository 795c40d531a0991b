"""Moving in: stores that the real certbot and lego have made are taken over, account, key, first renewal and all."""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.demo.process import free_port
from tests.system.test_ctl import Shell

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


async def ran(*command: str, **environment: str) -> None:
    """Run another client to its end."""
    if shutil.which(command[0]) is None:
        pytest.fail(f"Debian's package {command[0]} is missing: `make test` installs it")
    process = await asyncio.create_subprocess_exec(
        *command,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, said.decode()


async def made_by_certbot(ca: Any, folder: Path, name: str) -> tuple[str, ...]:
    """A store of certbot's; what `scaivaultctl` says to take it over."""
    await ran(
        "certbot", "certonly", "--standalone", "--non-interactive", "--agree-tos", "--email", "ops@example.test",
        "--http-01-address", "127.0.0.1", "--http-01-port", str(ca.http01_port), "--server", ca.directory_url,
        "--domain", name, "--config-dir", str(folder), "--work-dir", str(folder / "w"), "--logs-dir", str(folder / "l"),
        REQUESTS_CA_BUNDLE=str(ca.trust_file),
    )  # fmt: skip
    return "import", "certbot", "--dir", str(folder), "--ca-certificates", str(ca.trust_file)


async def made_by_lego(ca: Any, folder: Path, name: str) -> tuple[str, ...]:
    """The same of lego's."""
    await ran(
        "lego", "--path", str(folder), "--server", ca.directory_url, "--accept-tos", "--email", "ops@example.test",
        "--domains", name, "--http", "--http.port", f"127.0.0.1:{ca.http01_port}", "run",
        LEGO_CA_CERTIFICATES=str(ca.trust_file),
    )  # fmt: skip
    return (
        "import", "lego", "--dir", str(folder), "--server", ca.directory_url, "--ca-certificates", str(ca.trust_file)
    )  # fmt: skip


@pytest.mark.parametrize("made", [made_by_certbot, made_by_lego])
async def test_a_store_is_taken_over(made: Any, new_daemon: Callable[..., Any], make_ca: Any, tmp_path: Path) -> None:
    """A dry run changes nothing; then the account at the CA is the same, and the CA hears what is replaced."""
    ca = await make_ca(free_port())
    verb = await made(ca, tmp_path / "store", "old.example.test")
    accounts = len(ca.ca.accounts)
    daemon = new_daemon(ca, preflight='delegation = "off"')
    await daemon.start()
    ctl = Shell({"SCAIVAULT_ADDR": f"unix:{daemon.state_dir}/api.sock"})

    ended = await ctl(*verb)
    assert ended.code == 0, ended.err
    assert "old.example.test" in ended.out
    assert "--apply" in ended.err
    assert (await ctl("cert", "ls", "--json")).json == (await ctl("account", "ls", "--json")).json == []

    # Timers of the machine that runs the tests are none of this store's, but the tool cannot know.
    ended = await ctl(*verb, "--apply", "--allow-dup")
    assert ended.code == 0, ended.out + ended.err
    [certificate] = (await ctl("cert", "ls", "--json")).json
    assert (certificate["domains"], certificate["version"]) == (["old.example.test"], 1)
    assert certificate["has_private_key"]
    [account] = (await ctl("account", "ls", "--json")).json
    assert account["status"] == "valid"
    assert len(ca.ca.accounts) == accounts

    again = await ctl(*verb, "--apply", "--allow-dup", "--json")
    assert again.code == 0
    assert [each["id"] for each in (await ctl("cert", "ls", "--json")).json] == [certificate["id"]]

    ended = await ctl("cert", "renew", "old.example.test", "--wait")
    assert ended.code == 0, ended.err
    [renewed] = (await ctl("cert", "ls", "--json")).json
    assert (renewed["version"], renewed["account_id"]) == (2, account["id"])
    assert len(ca.ca.accounts) == accounts
    assert [each["ce-type"] for _, each, _ in await daemon.events() if "certificate" in each["ce-type"]] == [
        "certificate.imported",
        "certificate.renewed",
    ]
