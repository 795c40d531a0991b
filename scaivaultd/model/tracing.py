"""Who belongs together: the trace of a request (W3C Trace Context) and the spans of what is done for it.

The trace of the moment is a context variable, so tasks inherit it. Spans cost next to nothing until somebody collects
them (`collect`). No secret may stand in an attribute.
"""

from __future__ import annotations

import re
import secrets
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SpanKind = Literal["server", "client", "internal"]
Attribute = str | int | float | bool

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TRACESTATE_MAX = 512
_SAMPLED = 0x01


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """One place in a trace: all that is done for one cause has the same `trace_id`."""

    trace_id: str
    span_id: str
    is_sampled: bool = False
    state: str = ""

    @property
    def traceparent(self) -> str:
        """As it is handed on (version 00)."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.is_sampled else '00'}"


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was done, from when to when (nanoseconds of Unix time)."""

    name: str
    kind: SpanKind
    trace: Trace
    parent_id: str | None
    began_ns: int
    ended_ns: int
    attributes: dict[str, Attribute]
    error: str | None = None


class Doing(msgspec.Struct, kw_only=True):
    """A span that has not ended: what is found out on the way is noted here. `error` is a word, never a text."""

    trace: Trace
    attributes: dict[str, Attribute]
    error: str | None = None


_current: ContextVar[Trace | None] = ContextVar("scaivault_trace", default=None)
_collectors: list[Callable[[Span], None]] = []
_sampling: list[float] = []


def current() -> Trace | None:
    """The trace that is worked for."""
    return _current.get()


def collect(collector: Callable[[Span], None], sample_ratio: float = 1.0) -> Callable[[], None]:
    """Hand every sampled span to `collector` when it ends; what is returned ends that.

    `sample_ratio` holds for traces that begin here; those of callers are kept if the caller keeps them.
    """
    _collectors.append(collector)
    _sampling.append(sample_ratio)

    def end() -> None:
        place = _collectors.index(collector)
        del _collectors[place], _sampling[place]

    return end


def read_trace(traceparent: str | None, tracestate: str | None = None) -> Trace | None:
    """A caller's trace (W3C Trace Context, sections 3.2 and 3.3); None for what is not one, as the standard wants."""
    found = _TRACEPARENT.fullmatch((traceparent or "").strip())
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    state = (tracestate or "").strip()
    if len(state) > _TRACESTATE_MAX or not (state.isascii() and state.isprintable()):
        state = ""
    return Trace(trace_id=trace_id, span_id=span_id, is_sampled=bool(int(flags, 16) & _SAMPLED), state=state)


@contextmanager
def span(
    name: str, kind: SpanKind = "internal", *, caller: Trace | None = None, **attributes: Attribute
) -> Iterator[Doing]:
    """Do something as part of a trace: the caller's, else the one that is worked for, else a new one."""
    parent = caller or _current.get()
    doing = Doing(trace=_child(parent), attributes=attributes)
    token = _current.set(doing.trace)
    began = time.time_ns()
    try:
        yield doing
    except BaseException as error:
        doing.error = doing.error or type(error).__name__
        raise
    finally:
        _current.reset(token)
        if _collectors and doing.trace.is_sampled:
            _tell(name, kind, doing, parent, began)


def _child(parent: Trace | None) -> Trace:
    span_id = secrets.token_hex(8)
    if parent is not None:
        return Trace(trace_id=parent.trace_id, span_id=span_id, is_sampled=parent.is_sampled, state=parent.state)
    trace_id = secrets.token_hex(16)
    ratio = max(_sampling, default=0.0)
    return Trace(trace_id=trace_id, span_id=span_id, is_sampled=int(trace_id[16:], 16) < ratio * 2.0**64)


def _tell(name: str, kind: SpanKind, doing: Doing, parent: Trace | None, began: int) -> None:
    done = Span(
        name=name,
        kind=kind,
        trace=doing.trace,
        parent_id=None if parent is None else parent.span_id,
        began_ns=began,
        ended_ns=time.time_ns(),
        attributes=doing.attributes,
        error=doing.error,
    )
    for collector in tuple(_collectors):
        collector(done)
