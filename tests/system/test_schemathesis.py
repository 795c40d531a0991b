"""The OpenAPI document against the running daemon: whatever it lets a client send is answered as it says."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.demo.process import free_port
from tests.system.over_http import token_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
    "missing_required_header",
    "use_after_free",
)
"""All but those that want what a description cannot say (that a domain is a name, whose token it is), and the one that
sends wrong tokens: ten of them are answered, and then nobody is.
"""
REFUSED = '[checks.negative_data_rejection]\nexpected-statuses = ["4xx", "5xx"]\n'
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")


async def test_every_operation_answers_as_it_is_described(
    make_daemon: Callable[..., Awaitable[Any]], hanging_ca: Any, tmp_path: Path
) -> None:
    """Thousands of requests, right and wrong ones, the same at every run; nothing of them is a fault of ours."""
    port = free_port()
    daemon = await make_daemon(hanging_ca, rest=f'listen = ["127.0.0.1:{port}"]')
    token = await token_for(daemon.state_dir, "schemathesis", "admin")
    (tmp_path / "schemathesis.toml").write_text(REFUSED)
    environment = {
        **os.environ,
        "PYTHONPATH": str(HOOKS.parent),
        "SCHEMATHESIS_HOOKS": HOOKS.stem,
        "SCAIVAULTD_TEST_TOKEN_ID": token.split("_")[1],
        "SCAIVAULTD_TEST_TOKEN_NAME": "schemathesis",
    }
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"http://127.0.0.1:{port}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {token}", "--checks", ",".join(CHECKS), "--no-color"]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", "3", "--seed", "1", "--workers", "2"]
    command += ["--continue-on-failure", "--request-timeout", "20", "--warnings", "off"]
    running = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await running.communicate()
    assert running.returncode == 0, output.decode()[-8000:]
    assert b"passed" in output
    assert '"level": "error"' not in daemon.process.log
