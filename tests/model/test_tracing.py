"""Trace context: callers' traces go on, what is not one is left, and nobody's trace leaks into another's work."""

from __future__ import annotations

import asyncio

import pytest

from scaivaultd.model import tracing

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("given", "is_sampled"),
    [
        (f"00-{TRACE_ID}-{SPAN_ID}-01", True),
        (f"00-{TRACE_ID}-{SPAN_ID}-00", False),
        (f" 00-{TRACE_ID}-{SPAN_ID}-03 ", True),
        (f"01-{TRACE_ID}-{SPAN_ID}-01-what-comes", True),  # a later version may say more
        (f"cc-{TRACE_ID}-{SPAN_ID}-01", True),
    ],
)
def test_a_callers_trace_is_read(given: str, is_sampled: bool) -> None:
    """The caller finds our work under the id it knows."""
    trace = tracing.read_trace(given)
    assert trace is not None
    assert (trace.trace_id, trace.span_id, trace.is_sampled) == (TRACE_ID, SPAN_ID, is_sampled)


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "00",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{TRACE_ID[:-1]}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-0",
        f"00-{TRACE_ID}-{SPAN_ID}-01\nx",
    ],
)
def test_what_is_no_trace_is_left(given: str | None) -> None:
    """The standard wants a new trace then, not an error."""
    assert tracing.read_trace(given) is None


@pytest.mark.parametrize(
    ("given", "kept"), [("vendor=a", "vendor=a"), ("x" * 513, ""), ("a=\x01", ""), ("é=1", ""), (None, "")]
)
def test_a_tracestate_is_kept_if_it_is_one(given: str | None, kept: str) -> None:
    """It is handed on as it came, so nothing may hide in it."""
    trace = tracing.read_trace(f"00-{TRACE_ID}-{SPAN_ID}-01", given)
    assert trace is not None
    assert trace.state == kept


def test_what_is_done_inside_belongs_to_what_is_outside() -> None:
    """One trace from the request to the CA; each span knows its parent."""
    spans: list[tracing.Span] = []
    end = tracing.collect(spans.append)
    caller = tracing.read_trace(f"00-{TRACE_ID}-{SPAN_ID}-01", "a=b")
    try:
        with tracing.span("outer", "server", caller=caller, request_id="r") as outer, tracing.span("inner", "client"):
            pass
    finally:
        end()
    inner, told = spans
    assert (inner.name, inner.parent_id, inner.trace.trace_id) == ("inner", outer.trace.span_id, TRACE_ID)
    assert (told.name, told.parent_id, told.trace.state) == ("outer", SPAN_ID, "a=b")
    assert told.attributes == {"request_id": "r"}
    assert told.began_ns <= inner.began_ns <= inner.ended_ns <= told.ended_ns
    assert tracing.current() is None


def test_what_goes_wrong_is_told_by_its_kind_only() -> None:
    """An exception's text may hold anything."""
    spans: list[tracing.Span] = []
    end = tracing.collect(spans.append)
    with pytest.raises(ValueError, match="secret"), tracing.span("x"):
        raise ValueError("secret")
    end()
    assert spans[0].error == "ValueError"
    assert "secret" not in repr(spans[0])


@pytest.mark.parametrize(("ratio", "is_caller_sampled", "told"), [(0.0, False, 0), (0.0, True, 1), (1.0, False, 0)])
def test_a_caller_decides_what_is_kept_of_its_trace(ratio: float, is_caller_sampled: bool, told: int) -> None:
    """Half of a trace is worth nothing."""
    spans: list[tracing.Span] = []
    end = tracing.collect(spans.append, ratio)
    flags = "01" if is_caller_sampled else "00"
    with tracing.span("x", caller=tracing.read_trace(f"00-{TRACE_ID}-{SPAN_ID}-{flags}")):
        pass
    end()
    assert len(spans) == told


@pytest.mark.parametrize(("ratio", "told"), [(0.0, 0), (1.0, 20)])
def test_traces_that_begin_here_are_kept_by_the_ratio(ratio: float, told: int) -> None:
    """`[tracing] sample_ratio`."""
    spans: list[tracing.Span] = []
    end = tracing.collect(spans.append, ratio)
    for _ in range(20):
        with tracing.span("x"):
            pass
    end()
    assert len(spans) == told


async def test_tasks_have_the_trace_they_were_started_in_and_no_other() -> None:
    """Two requests at once must not mix."""
    begun = asyncio.Event()

    async def work() -> str | None:
        await begun.wait()
        trace = tracing.current()
        return trace.trace_id if trace else None

    async with asyncio.TaskGroup() as group:
        with tracing.span("one") as one:
            first = group.create_task(work())
        with tracing.span("two") as two:
            second = group.create_task(work())
        third = group.create_task(work())
        begun.set()
    assert (first.result(), second.result(), third.result()) == (one.trace.trace_id, two.trace.trace_id, None)
