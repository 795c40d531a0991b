"""Checks before a CA is asked, by the real daemon: what stands in the order, and that the CA hears nothing of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.demo.ca import DevelopmentCa
from scaivaultd.demo.dns import DevelopmentDns
from scaivaultd.demo.process import free_port

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
    from pathlib import Path

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


async def test_verdicts_stand_in_the_order(stack: AsyncExitStack, new_daemon: Any, tmp_path: Path) -> None:
    """A record that permits, one that forbids, and our own answer at an address: each is told with its reason."""
    dns = await stack.enter_async_context(DevelopmentDns(["example.test", "test"]))
    dns.put("locked.example.test", "CAA", '0 issue "other-ca.example"')
    port = free_port()
    ca = await stack.enter_async_context(DevelopmentCa(http01_port=port))
    trust_file = tmp_path / "ca.pem"
    trust_file.write_text(ca.root_pem)
    daemon = new_daemon(
        SimpleNamespace(directory_url=ca.directory_url, http01_port=port, trust_file=trust_file),
        dns=f'resolvers = ["{dns.address}"]\nauthoritative_port = {dns.port}',
        preflight=f'caa = "block"\nreachability = "warn"\nhttp01_port = {port}',
    )
    await daemon.start()
    account_id = await daemon.account(ca)

    locked = await daemon.issue(account_id, "www.example.test", "locked.example.test")
    assert (locked["status"], locked["error"]["code"]) == ("invalid", "preflight_failed")
    detail = 'locked.example.test CAA 0 issue "other-ca.example" does not permit this CA: add issue "ca.example"'
    assert {"check": "caa", "identifier": "locked.example.test", "status": "failed", "detail": detail} in (
        locked["preflight"]
    )
    assert locked["error"]["detail"] == f"locked.example.test: {detail}"
    assert len(ca.orders) == 0

    open_one = await daemon.issue(account_id, "www.example.test", "127.0.0.1")
    assert (open_one["status"], len(ca.orders)) == ("valid", 1)
    verdicts = {(each["check"], each["identifier"]): each["status"] for each in open_one["preflight"]}
    # Whether this machine's own resolver knows the name is not ours to say.
    del verdicts["reachability", "www.example.test"]
    assert verdicts == {
        ("caa", "www.example.test"): "ok",
        ("delegation", "www.example.test"): "ok",
        ("reachability", "127.0.0.1"): "ok",
    }
