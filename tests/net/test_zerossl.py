"""ZeroSSL's API at the socket: over TLS, with every answer it may give, and never a word of the access key."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from scaivaultd.model.errors import BackendRateLimited, CaMisbehaved, CaRefused, CaUnavailable, ScaivaultError
from scaivaultd.net import zerossl
from scaivaultd.net.zerossl import ZeroSslEab

ACCESS_KEY = "0123456789abcdef0123456789abcdef"
GOOD = {"success": True, "eab_kid": "GD-VvWydSVFuss_GhBwYQQ", "eab_hmac_key": "MjXU3MH-Z0WQ7piMAnVsCpD1shgMiWx6gg"}


class Api:
    """Answers by what is scripted, else as the documentation says; what it was asked stays."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], dict[str, str]]] = []
        self.headers: dict[str, str] = {}
        self.script: list[Callable[[web.Request], Any]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.asked.append((request.method, request.path, dict(request.query), form))
        self.headers = dict(request.headers)
        if self.script:
            scripted = self.script.pop(0)(request)
            answer: web.StreamResponse = await scripted if asyncio.iscoroutine(scripted) else scripted
            return answer
        return web.json_response(GOOD)

    def says(self, body: Any, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.script.append(lambda _: web.Response(body=data, status=status, headers=headers))


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
async def url(api: Api, identity: Any) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", api.answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=identity.context).start()
    yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
def trust(identity: Any, tmp_path: Path) -> Path:
    path = tmp_path / "roots.pem"
    path.write_text(identity.pem)
    return path


@pytest.fixture
def source(url: str, trust: Path) -> ZeroSslEab:
    return ZeroSslEab(url, trust_files=[trust], user_agent="scaivaultd/test")


async def failing(source: ZeroSslEab) -> ScaivaultError:
    """The error of a request by access key, in which that key stands nowhere."""
    with pytest.raises(ScaivaultError) as caught:
        await source.by_access_key(ACCESS_KEY)
    chain = "".join(traceback.format_exception(caught.value))
    assert ACCESS_KEY not in chain
    assert ACCESS_KEY not in repr((caught.value, caught.value.__context__, caught.value.__cause__))
    return caught.value


async def test_an_access_key_goes_in_the_query_and_nothing_in_the_body(api: Api, source: ZeroSslEab) -> None:
    """As the documentation of the API says."""
    assert await source.by_access_key(ACCESS_KEY) == (GOOD["eab_kid"], GOOD["eab_hmac_key"])
    assert api.asked == [("POST", "/acme/eab-credentials", {"access_key": ACCESS_KEY}, {})]
    assert api.headers["User-Agent"] == "scaivaultd/test"
    assert api.headers["Accept-Encoding"] == "identity"


async def test_an_address_goes_as_a_form(api: Api, source: ZeroSslEab) -> None:
    """A plus in it must arrive as one."""
    assert await source.by_email("ops+a@example.org") == (GOOD["eab_kid"], GOOD["eab_hmac_key"])
    assert api.asked == [("POST", "/acme/eab-credentials-email", {}, {"email": "ops+a@example.org"})]


async def test_a_success_of_one_is_a_success(api: Api, source: ZeroSslEab) -> None:
    """The documentation shows 1, the service says true."""
    api.says({**GOOD, "success": 1})
    assert (await source.by_access_key(ACCESS_KEY))[0] == GOOD["eab_kid"]


@pytest.mark.parametrize(
    ("code", "kind", "expected"),
    [
        (101, "invalid_access_key", CaRefused),
        (2902, "failed_creating_eab_account", CaUnavailable),
        (2903, "failed_saving_eab_account", CaUnavailable),
        (2904, "too_many_eab_credentials_created_today", BackendRateLimited),
        (2905, "too_many_eab_credentials_created_for_user", CaRefused),
        (2977, "caddy_legacy_user_removed", CaRefused),
    ],
)
async def test_a_refusal_with_status_200_is_one(
    api: Api, source: ZeroSslEab, code: int, kind: str, expected: type[ScaivaultError]
) -> None:
    """Maintenance passes, a wrong key does not; a full day comes to its end."""
    api.says({"success": False, "error": {"code": code, "type": kind}})
    error = await failing(source)
    assert type(error) is expected
    assert kind in error.detail
    assert str(code) in error.detail


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        ({"success": False, "error": {"code": 7, "type": ACCESS_KEY}}, 200, CaRefused),
        ({"success": False, "error": ACCESS_KEY}, 200, CaRefused),
        ({"success": False}, 200, CaRefused),
        ({"success": True, "error": {"code": 101}, **GOOD}, 200, CaRefused),
        ({"eab_kid": "k", "eab_hmac_key": "h"}, 200, CaRefused),
        ({"success": False, "error": {"code": 101, "type": "invalid_access_key"}}, 401, CaRefused),
        ({**GOOD, "eab_kid": None}, 200, CaMisbehaved),
        ({**GOOD, "eab_kid": "a\nb"}, 200, CaMisbehaved),
        ({**GOOD, "eab_kid": ""}, 200, CaMisbehaved),
        ({**GOOD, "eab_hmac_key": "***"}, 200, CaMisbehaved),
        ({**GOOD, "eab_hmac_key": 7}, 200, CaMisbehaved),
        ([], 200, CaMisbehaved),
        (b"<html>", 200, CaMisbehaved),
        (b"<html>", 403, CaMisbehaved),
        (b"[" * 60_000, 200, CaMisbehaved),
        (GOOD, 302, CaMisbehaved),
        (b"<html>", 502, CaUnavailable),
        (b"slow down", 429, BackendRateLimited),
        (b" " * (zerossl.BODY_MAX + 1), 200, CaMisbehaved),
    ],
)
async def test_no_answer_is_taken_for_more_than_it_is(
    api: Api, source: ZeroSslEab, body: Any, status: int, expected: type[ScaivaultError]
) -> None:
    """What it echoes is not repeated either: it may be the key."""
    api.says(body, status, Location="https://elsewhere.test/")
    assert type(await failing(source)) is expected
    assert len(api.asked) == 1


async def test_an_endless_answer_is_cut_off(api: Api, source: ZeroSslEab) -> None:
    """Also where it tells no length."""

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 8192)

    api.script.append(stream)
    assert isinstance(await failing(source), CaMisbehaved)


async def test_a_connection_that_breaks_may_be_tried_again(api: Api, source: ZeroSslEab) -> None:
    """Weather."""

    def drop(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    api.script.append(drop)
    assert isinstance(await failing(source), CaUnavailable)


async def test_a_server_that_hangs_is_given_up(api: Api, url: str, trust: Path) -> None:
    """A registration must not hang with it."""
    gone = asyncio.Event()
    api.script.append(lambda _: gone.wait())
    error = await failing(ZeroSslEab(url, trust_files=[trust], user_agent="scaivaultd/test", timeout_seconds=0.2))
    gone.set()
    assert isinstance(error, CaUnavailable)
    assert "in time" in error.detail


async def test_a_server_without_a_trusted_certificate_never_sees_the_key(api: Api, url: str) -> None:
    """The key is worth an account."""
    error = await failing(ZeroSslEab(url, trust_files=[], user_agent="scaivaultd/test"))
    assert isinstance(error, CaUnavailable)
    assert "trust_files" in error.detail
    assert api.asked == []


async def test_nobody_there_is_said_with_the_address(source: ZeroSslEab) -> None:
    """A proxy may be what is missing."""
    error = await failing(ZeroSslEab("https://127.0.0.1:1", trust_files=[], user_agent="scaivaultd/test"))
    assert isinstance(error, CaUnavailable)
    assert "127.0.0.1:1" in error.detail


async def test_no_log_of_the_http_library_holds_the_key(
    api: Api, source: ZeroSslEab, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even with everything turned on."""
    with caplog.at_level(logging.DEBUG):
        await source.by_access_key(ACCESS_KEY)
        api.says(b"<html>")
        await failing(source)
    assert ACCESS_KEY not in caplog.text
