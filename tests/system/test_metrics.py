"""The metrics as scrapers meet them: three ways in, and numbers that move with what happens."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from scaivaultd.demo.process import free_port, until
from tests.system.over_http import OverHttp

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.system


def numbers(page: str) -> dict[tuple[str, ...], float]:
    """Each series by its name and its labels' values, in the order of their names."""
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return {
        (each.name.removeprefix("scaivaultd_"), *(value for _, value in sorted(each.labels.items()))): each.value
        for each in samples
    }


def only(found: dict[tuple[str, ...], float], name: str) -> tuple[str, ...]:
    """The labels' values of the one series of that name."""
    [(_, *values)] = [each for each in found if each[0] == name]
    return tuple(values)


async def get(session: aiohttp.ClientSession, url: str, status: int = 200, **fields: str) -> str:
    async with session.get(url, headers=fields) as answer:
        text = await answer.text()
        assert answer.status == status, text
        return text


async def token_for(state_dir: Path, name: str, scope: str) -> str:
    """A token that may do one thing."""
    wanted = {"name": name, "policies": ["viewer"], "scopes": [scope]}
    answer = await OverHttp(unix=state_dir / "api.sock").ask("POST", "/v1/tokens", wanted)
    assert answer.status == 201, answer
    return str(answer.body["token"])


async def checked(page: str) -> None:
    """Prometheus' own linter has nothing to say."""
    if shutil.which("promtool") is None:
        pytest.fail("Debian's package prometheus is missing: `make test` installs it, or: apt-get install prometheus")
    judge = await asyncio.create_subprocess_exec(
        "promtool", "check", "metrics", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=-2
    )
    said, _ = await asyncio.wait_for(judge.communicate(page.encode()), 60)
    assert (judge.returncode, said) == (0, b"")


async def test_what_happens_is_counted_and_told_in_three_ways(new_daemon: Callable[..., Any], make_ca: Any) -> None:
    """An order that succeeds, one that fails, and a scraper at each of the doors."""
    metrics_port, rest_port = free_port(), free_port()
    ca = await make_ca(free_port())
    daemon = new_daemon(
        ca,
        metrics=f'listen = ["127.0.0.1:{metrics_port}"]\ncompat_x509 = true',
        rest=f'listen = ["127.0.0.1:{rest_port}"]',
    )
    await daemon.start()
    own, rest = f"http://127.0.0.1:{metrics_port}/metrics", f"http://127.0.0.1:{rest_port}/metrics"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        before = numbers(await get(session, own))
        assert before["sealed",] == 0
        assert before["config_last_reload_successful",] == 1
        account = await daemon.account(ca)
        assert (await daemon.issue(account, "a.example.test"))["status"] == "valid"
        # The CA refuses a name of one label.
        assert (await daemon.issue(account, "localhost"))["status"] == "invalid"
        name = ca.directory_url.split("/")[2]

        async def is_told() -> bool:
            return numbers(await get(session, own)).get(("certificates", "valid")) == 1

        await until(is_told, "the certificate is counted", 60)
        page = await get(session, own)
        await checked(page)
        after = numbers(page)
        assert after["issuances_total", name, "http-01", "new", "issued"] == 1
        assert after["issuances_total", name, "http-01", "new", "ca_error"] == 1
        assert after["issuance_duration_seconds_count", name, "http-01"] == 1
        assert after["challenges_total", "http-01", "valid", "http-01"] == 1
        assert after["acme_requests_total", name, "201", "newOrder"] == 1
        assert after["acme_requests_total", name, "400", "newOrder"] == 1
        assert after["acme_rate_limited_total", name, "ca"] == 0
        assert after["requests_total", "ok", "pki.acme.issue", "nats"] == 2
        assert after["nats_connected",] == 1
        assert after["store_operation_duration_seconds_count", "commit"] > 0
        assert only(after, "certificate_not_after_timestamp_seconds")[2:] == ("a.example.test", "default")
        assert only(after, "x509_cert_not_after")[-1] == "a.example.test"
        assert "localhost" not in page, "names that are not certified are nobody's label"

        assert "unauthenticated" in await get(session, rest, 401)
        token = await token_for(daemon.state_dir, "prometheus", "sys.info")
        strict = await get(
            session,
            rest,
            Authorization=f"Bearer {token}",
            Accept="application/openmetrics-text; version=1.0.0,text/plain;q=0.5",
        )
        families = openmetrics(strict)  # type: ignore[no-untyped-call]  # it has no annotations
        assert {each.name for each in families} >= {"scaivaultd_issuances", "scaivaultd_auth_failures"}
        useless = await token_for(daemon.state_dir, "useless", "account.read")
        assert "permission_denied" in await get(session, rest, 403, Authorization=f"Bearer {useless}")
        assert "there is nothing here" in await get(session, own.replace("metrics", "v1/sys/info"), 404)
    socket = aiohttp.UnixConnector(str(daemon.state_dir / "api.sock"))
    async with aiohttp.ClientSession(connector=socket) as session:
        last = numbers(await get(session, "http://localhost/metrics"))
    assert last["auth_failures_total", "missing", "http"] == 1
    assert last["authz_denials_total", "sys.info"] == 1
    assert last["requests_total", "unauthenticated", "metrics", "http"] == 1


async def test_a_sealed_daemon_is_measured_too(new_daemon: Callable[..., Any], make_ca: Any) -> None:
    """Nobody would know else that somebody has to come and unseal it."""
    port = free_port()
    daemon = new_daemon(await make_ca(free_port()), metrics=f'listen = ["127.0.0.1:{port}"]')
    daemon.configuration += f'\n[secrets]\nmaster_key = "file:{daemon.folder}/missing.key"\n'
    await daemon.start()
    async with aiohttp.ClientSession() as session:
        page = await get(session, f"http://127.0.0.1:{port}/metrics")
    assert numbers(page)["sealed",] == 1
    await checked(page)
    socket = aiohttp.UnixConnector(str(daemon.state_dir / "api.sock"))
    async with aiohttp.ClientSession(connector=socket) as session:
        assert numbers(await get(session, "http://localhost/metrics"))["sealed",] == 1
