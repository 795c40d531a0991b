"""Logs: one JSON object a line, foreign libraries included, and a net under every secret."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from scaivaultd import logs

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----"
TOKEN = "scvt_Ab3dEf9h_" + "abc" * 16 + "0"
JWS = "eyJhbGciOiJFUzI1NiJ9.eyJhIjoxfQ.c2lnbmF0dXJlc2lnbmF0dXJl"


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    """Where logs go; logging is as it was afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def lines(output: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("token", "abc"),
        ("secret", "abc"),
        ("password", "abc"),
        ("Password", "abc"),
        ("authorization", "Bearer abc"),
        ("key_authorization", "abc.def"),
        ("hmac_key", "abc"),
        ("eab_hmac_key", b"abc"),
        ("private_key", "abc"),
        ("private_key_pem", "abc"),
        ("nats_password", ["abc"]),
        ("detail", f"found {KEY} in it"),
        ("detail", KEY.replace("PRIVATE", "EC PRIVATE")),
        ("detail", KEY.partition("-----END")[0] + "abc"),
        ("exception", f"Traceback\n  {KEY}\n"),
        ("detail", f"sent {JWS}"),
        ("url", "nats://user:abc@host:4222"),
        ("url", "tls://u:abc@host"),
        ("detail", f"a token {TOKEN}, mistyped"),
        ("detail", f"?token={TOKEN}&x"),
        ("detail", TOKEN[:30]),
        ("detail", TOKEN.replace("scvt", "scvs")),
        ("detail", TOKEN.replace("scvt", "scvb")),
        ("detail", "Authorization: Bearer abcabcabcabcabcabc"),
        ("detail", "authorization='basic YWJjOmFiY2FiY2FiY2FiYw=='"),
        ("detail", "SUA" + "ABC2" * 13 + "ABC"),
    ],
)
def test_what_looks_like_a_secret_is_struck_out(name: str, value: object) -> None:
    """By its name or by its form: the second net, when somebody slips."""
    text = repr(logs.strike_secrets(None, "info", {"event": "x", name: value}))
    assert "<secret>" in text
    for part in ("abc", "MIGHAgEA", "c2lnbmF0", "YWJjOm", "ABC2"):
        assert part not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("order_id", "acme_order_1"),
        ("url", "https://ca.test/order/1"),
        ("url", "nats://host:4222"),
        ("authorizations", 3),
        ("token_count", 3),
        ("secret", None),
        ("detail", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"),
        ("detail", "key too small: 1024"),
        ("keys", "k"),
        ("secretary", "s"),
        ("detail", "at 12:30 mail a@b.test"),
        ("detail", "the service wants basic authentication, or a bearer token"),
        ("principal", "token:Ab3dEf9h"),
        ("detail", "the token scvt_Ab3dEf9h is revoked"),
    ],
)
def test_what_only_sounds_like_one_is_left(name: str, value: object) -> None:
    """A log without ids and addresses is no help."""
    assert logs.strike_secrets(None, "info", {"event": "x", name: value}) == {"event": "x", name: value}


@pytest.mark.parametrize("value", [{"password": "abc"}, [f"found {KEY}"], {"a": {"token": "abc"}}, KEY.encode()])
def test_secrets_are_struck_out_wherever_they_are_nested(value: object) -> None:
    """Foreign libraries and stray dicts hold them deeper down."""
    text = repr(logs.strike_secrets(None, "info", {"event": "x", "detail": value}))
    assert "abc" not in text
    assert "MIGHAgEA" not in text


def test_each_event_is_one_json_object_on_one_line(output: io.StringIO) -> None:
    """Log collectors read lines."""
    log = logs.configure("info", "json", output)
    log.info("order.ready", order_id="acme_order_1", detail="two\nlines", names=["\u00e4"])
    (entry,) = lines(output)
    assert (entry["event"], entry["level"], entry["order_id"]) == ("order.ready", "info", "acme_order_1")
    assert entry["ts"].endswith("Z")
    assert entry["detail"] == "two\nlines"


def test_less_than_the_level_is_not_written(output: io.StringIO) -> None:
    """`level` is in the configuration for a reason."""
    log = logs.configure("warning", "json", output)
    log.info("order.ready")
    log.debug("acme.request")
    log.warning("order.set_back")
    assert [each["event"] for each in lines(output)] == ["order.set_back"]


def test_a_traceback_stays_on_its_line_and_its_secrets_are_struck_out(output: io.StringIO) -> None:
    """Exceptions quote what they were handed."""
    log = logs.configure("info", "json", output)
    try:
        raise RuntimeError(f"cannot parse {KEY}")
    except RuntimeError:
        log.exception("request.failed", request_id="req_1")
    (entry,) = lines(output)
    assert "RuntimeError" in entry["exception"]
    assert "<secret>" in entry["exception"]
    assert "MIGHAgEA" not in output.getvalue()


def test_foreign_libraries_speak_the_same_format_from_warning_upwards(output: io.StringIO) -> None:
    """A stray plain line breaks the collector; their chatter helps nobody."""
    logs.configure("debug", "json", output)
    foreign = logging.getLogger("some.library")
    foreign.info("chatter")
    foreign.warning("connection to nats://user:%s@host lost", "abc")
    (entry,) = lines(output)
    assert (entry["logger"], entry["level"]) == ("some.library", "warning")
    assert "abc" not in entry["event"]


def test_a_person_gets_columns_and_a_pipe_gets_json(output: io.StringIO) -> None:
    """`auto` looks where the lines go."""
    logs.configure("info", "auto", output).info("order.ready")
    assert lines(output)[0]["event"] == "order.ready"
    structlog.reset_defaults()
    terminal = type("Terminal", (io.StringIO,), {"isatty": lambda _: True})()
    logs.configure("info", "auto", terminal).info("order.ready")
    assert "order.ready" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


def test_the_level_changes_for_loggers_that_are_there(output: io.StringIO) -> None:
    """A reload reaches every room, though each has bound its logger long ago."""
    log = logs.configure("info", "json", output)
    bound = log.bind(room="a")
    bound.info("first")
    bound.debug("left.out")
    logs.set_level("debug")
    bound.debug("second")
    logs.set_level("error")
    bound.warning("left.out")
    bound.error("third")
    assert [each["event"] for each in lines(output)] == ["first", "second", "third"]
