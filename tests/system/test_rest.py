"""The daemon over HTTP as its callers meet it: the how-to page letter by letter, its own certificate, strangers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.demo.process import free_port, until
from tests.system.over_http import NAME, OverHttp, token_for

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.system

PAGE = (Path(__file__).parents[2] / "docs/how-to/use-rest.md").read_text()
MakeDaemon = Callable[..., Awaitable[Any]]


def blocks(kind: str) -> list[str]:
    """The examples of the page, those of one language."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


async def run(*command: str, folder: Path, environment: Mapping[str, str], text: str) -> str:
    """What a program says to a script on its standard input; it must end well."""
    running = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(running.communicate(text.encode()), 90)
    assert running.returncode == 0, (output, errors)
    return output.decode()


def answers(output: str) -> list[Any]:
    """The JSON documents that stand one behind the other in an output."""
    found, decoder = [], json.JSONDecoder()
    while output := output.lstrip():
        value, end = decoder.raw_decode(output)
        found.append(value)
        output = output[end:]
    return found


async def in_use(daemon: Any, count: int) -> None:
    """Wait until the listener has taken so many certificates."""

    async def is_there() -> bool:
        return bool(daemon.process.log.count("rest.certificate_in_use") == count)

    await until(is_there, f"certificate {count} is in use")


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("jq") is None, reason="curl or jq is not installed")
async def test_the_calls_of_the_page_work_as_they_stand(
    make_ca: Any, make_daemon: MakeDaemon, tmp_path: Path, port: int
) -> None:
    """People copy them; only the places are those of this test."""
    ca = await make_ca(free_port())
    daemon = await make_daemon(ca, rest=f'listen = ["127.0.0.1:{port}"]')
    script = "set -euo pipefail\n" + "\necho\n".join(blocks("sh"))
    script = script.replace("/run/scaivaultd/api.sock", str(daemon.state_dir / "api.sock"))
    script = script.replace("https://ca.example.org/acme/directory", ca.directory_url)
    environment = {"SCAIVAULT": f"http://127.0.0.1:{port}"}
    output = await run("bash", "-s", folder=tmp_path, environment=environment, text=script)
    who, may, order, renewed, orders, revoked, secret, provider = answers(output)
    assert (who["name"], may["allowed"]) == ("web-ci", False)
    assert (order["domains"], renewed["status"]) == (["www.example.org"], "valid")
    assert [each["order_id"] for each in orders["items"]] == [renewed["order_id"]]
    assert revoked["status"] == "done"
    assert (secret["path"], provider["name"]) == ("infra/cloudflare/token", "dns-prod")
    assert (tmp_path / "fullchain.pem").read_text().startswith("-----BEGIN CERTIFICATE-----")
    assert json.loads((tmp_path / "page").read_text())["items"][0]["domains"] == ["www.example.org"]
    token = (tmp_path / "auth").read_text().split()[-1]
    assert token not in daemon.process.log
    if shutil.which("node") is not None:
        (script,) = blocks("js")
        said = await run("node", "--input-type=module", folder=tmp_path, environment=environment, text=script)
        assert said.startswith("valid cert_")


async def test_the_listener_serves_a_certificate_that_the_daemon_keeps_itself(
    make_ca: Any, make_daemon: MakeDaemon, port: int
) -> None:
    """Ordered over the UNIX socket, served at once, renewed without a dropped connection."""
    ca = await make_ca(free_port())
    daemon = await make_daemon(ca, rest=f'listen = ["127.0.0.1:{port}"]\ntls_managed = "{NAME}"')
    local = OverHttp(unix=daemon.state_dir / "api.sock")
    token = await token_for(daemon.state_dir, "web", "viewer")
    plain = await asyncio.open_connection("127.0.0.1", port)
    assert await asyncio.wait_for(plain[0].read(), 10) == b""
    plain[1].close()
    account = {"name": "own", "provider": "custom", "directory_url": ca.directory_url}
    account_id = (await local.ask("POST", "/v1/pki/acme/accounts?wait=30", account)).body["id"]
    wish = {"account_id": account_id, "domains": [NAME], "challenge_type": "http-01"}
    order = (await local.ask("POST", "/v1/pki/acme/issue?wait=60", wish)).body
    assert order["status"] == "valid", order
    await in_use(daemon, 1)
    remote = OverHttp(port=port, token=token, ca=ca.ca.issuer_root_pem)
    assert (await remote.ask("GET", "/v1/auth/whoami")).body["name"] == "web"

    context = ssl.create_default_context(cadata=ca.ca.issuer_root_pem)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=NAME)
    first = writer.get_extra_info("peercert")["serialNumber"]
    renewed = await local.ask("POST", f"/v1/pki/certificates/{order['certificate_id']}/renew?wait=60")
    assert renewed.body["status"] == "valid", renewed
    await in_use(daemon, 2)
    request = f"GET /v1/auth/whoami HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    writer.write(request)
    assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 200")
    writer.close()
    _, other = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=NAME)
    assert other.get_extra_info("peercert")["serialNumber"] != first
    other.close()


async def test_who_is_asking_decides(make_ca: Any, make_daemon: MakeDaemon, port: int) -> None:
    """A stranger gets nothing, a token what its policies allow while it is good; log and audit know it by one id."""
    ca = await make_ca(free_port())
    daemon = await make_daemon(ca, rest=f'listen = ["127.0.0.1:{port}"]')
    local = OverHttp(unix=daemon.state_dir / "api.sock")
    stranger = OverHttp(port=port)
    refused = await stranger.ask("GET", "/v1/pki/certificates")
    assert (refused.status, refused.body["code"]) == (401, "unauthenticated")
    assert refused.headers["WWW-Authenticate"] == 'Bearer realm="scaivaultd"'
    assert (await stranger.ask("GET", "/openapi.json")).status == 200
    assert (await stranger.ask("GET", "/readyz")).body == {"status": "ok"}
    viewer = OverHttp(port=port, token=await token_for(daemon.state_dir, "seer", "viewer"))
    assert (await viewer.ask("GET", "/v1/pki/certificates")).body == {"items": [], "next_cursor": None}
    denied = await viewer.ask("PUT", "/v1/secrets/a%2Fb", {"value": "canary-value"}, headers={"X-Request-Id": "mine-1"})
    assert (denied.status, denied.body["code"], denied.body["request_id"]) == (403, "permission_denied", "mine-1")
    assert (await local.ask("PUT", "/v1/secrets/a%2Fb", {"value": "canary-value"})).body["path"] == "a/b"
    lines = [json.loads(line) for line in daemon.process.log.splitlines() if line.startswith("{")]
    (named,) = [each for each in lines if each.get("named") == "mine-1"]
    audited = (await local.ask("GET", "/v1/audit?limit=50")).body["items"]
    assert named["request_id"] in {each["request_id"] for each in audited}
    assert "canary-value" not in daemon.process.log
    assert (await local.ask("DELETE", "/v1/tokens/seer")).status == 200
    assert (await viewer.ask("GET", "/v1/pki/certificates")).status == 401
