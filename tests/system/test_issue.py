"""A service asks over NATS and gets a certificate: the real daemon, Debian's Pebble, a real nats-server."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.system


async def test_a_certificate_over_nats_end_to_end(make_pebble: Any, make_daemon: Any, tmp_path: Path) -> None:
    """The main job, as its user does it; openssl judges the chain and the key."""
    pebble = await make_pebble()
    daemon = await make_daemon(pebble)
    account_id = await daemon.account(pebble)
    order = await daemon.issue(account_id, "www.example.test", "example.test")
    assert order["status"] == "valid", order
    certificate = await daemon.ask("pki.certificates.get", id=order["certificate_id"])
    assert certificate["domains"] == ["www.example.test", "example.test"]
    assert certificate["not_after"] == order["not_after"]

    pem = await daemon.ask("pki.certificates.pem", id=order["certificate_id"])
    leaf = await daemon.ask("pki.certificates.pem", id=order["certificate_id"], part="leaf")
    chain = await daemon.ask("pki.certificates.pem", id=order["certificate_id"], part="chain")
    assert pem["pem"] == leaf["pem"] + chain["pem"]
    key = await daemon.ask("pki.certificates.key", id=order["certificate_id"])
    (tmp_path / "root.pem").write_bytes(await pebble.root_pem())
    for name, text in {"leaf": leaf["pem"], "chain": chain["pem"], "key": key["private_key_pem"]}.items():
        (tmp_path / f"{name}.pem").write_text(text)

    def openssl(*arguments: str) -> str:
        return subprocess.run(["openssl", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "leaf.pem: OK" in openssl("verify", "-CAfile", "root.pem", "-untrusted", "chain.pem", "leaf.pem")
    public = openssl("x509", "-in", "leaf.pem", "-noout", "-pubkey")
    assert public == openssl("pkey", "-in", "key.pem", "-pubout")

    issued = [event for event in await daemon.events() if event[1]["ce-type"] == "certificate.issued"]
    ((subject, headers, body),) = issued
    assert subject == f"scaivault.events.certificate.issued.{order['certificate_id']}"
    assert headers["ce-specversion"] == "1.0"
    assert headers["ce-subject"] == order["certificate_id"]
    assert body["serial_number"] == certificate["serial_number"]
    assert await daemon.stop() == 0
