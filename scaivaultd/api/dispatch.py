"""From bytes to a handler and back: decodes by the table, runs, and encodes every error there is.

The one place beside the job boundary that catches everything: what is not expected becomes
`internal` with a request id, and its text stays in the log.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

import msgspec
from structlog.contextvars import bound_contextvars

from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.api.wrong_values import explained
from scaivaultd.model import errors as e
from scaivaultd.model import tracing
from scaivaultd.model.principals import Principal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.commands import Binding, Command
    from scaivaultd.api.gate import Gate
    from scaivaultd.model.ids import IdMaker

BODY_MAX = 256 << 10
_ENCODER = msgspec.json.Encoder()
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*?)`")
_MISSING_FIELD = re.compile(r"Object missing required field `(.*?)`")
_PLACE = re.compile(r" - at `(?:key in )?\$(.*)`$")
_KEY = re.compile(r"[!-~]{1,255}")


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """One request as a gateway received it. `principal` None: nobody knows who is asking, and it is refused.

    `source` is where it came from, for the audit log; `request_id` the id that it has already, if any. `takes_keys`:
    private keys may go back the way it came, in plain. `trace` is the caller's, which this becomes a part of.
    """

    body: bytes
    principal: Principal | None
    idempotency_key: str | None = None
    request_id: str | None = None
    source: str | None = None
    takes_keys: bool = False
    trace: tracing.Trace | None = None


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to send; `error_code` and `status` say what kind it is, `traceparent` what was done for it."""

    body: bytes
    status: int
    request_id: str
    error_code: str | None = None
    error_title: str | None = None
    traceparent: str | None = None


class Dispatcher:
    """Answers requests for every bound command."""

    def __init__(self, bindings: Sequence[Binding], *, gate: Gate, ids: IdMaker, log: FilteringBoundLogger) -> None:
        self._bindings = {binding.command.name: binding for binding in bindings}
        self._gate = gate
        self._ids = ids
        self._log = log

    @property
    def commands(self) -> list[Command[Any, Any]]:
        """The rows that have a handler."""
        return [binding.command for binding in self._bindings.values()]

    async def answer(self, name: str, incoming: Incoming) -> Outgoing:
        """Handle one request; never raises but for cancellation."""
        request_id = incoming.request_id or self._ids.request()
        with (
            tracing.span(name, "server", caller=incoming.trace, request_id=request_id) as doing,
            # Jobs that the request starts inherit it, and their lines say whose request they are about.
            bound_contextvars(request_id=request_id, principal=str(incoming.principal)),
        ):
            outgoing = await self._outgoing(name, incoming, request_id)
            doing.error = outgoing.error_code
            return msgspec.structs.replace(outgoing, traceparent=doing.trace.traceparent)

    async def _outgoing(self, name: str, incoming: Incoming, request_id: str) -> Outgoing:
        binding = self._bindings[name]
        about = {"request_id": request_id, "command": name}
        try:
            reply = await self._handled(binding, incoming, request_id)
            body = _ENCODER.encode(reply)
        except e.Internal as error:
            self._log.error("request.failed", detail=error.detail, **about)
            return self._internal(request_id)
        except e.ScaivaultError as error:
            self._log.info("request.refused", error_code=error.code, detail=error.detail, **about)
            return _failed(error, request_id)
        except Exception:  # noqa: BLE001 - the dispatcher: nothing of a request may end the daemon
            self._log.exception("request.failed", **about)
            return self._internal(request_id)
        # Reading is what everybody does all day; what changes something is the life of a certificate.
        (self._log.debug if binding.command.method == "GET" else self._log.info)("request.answered", **about)
        return Outgoing(body=body, status=getattr(reply, "http_status", binding.command.status), request_id=request_id)

    async def require(self, command: Command[Any, Any], incoming: Incoming) -> None:
        """Go on only if whoever asks might send this command, although nothing is done about it.

        Raises:
            ScaivaultError: they may not, and that is written down; that they may is not.
        """
        if incoming.principal is None:
            raise e.Unauthenticated("nobody knows who is asking")
        await self._gate.admit(
            command,
            command.request(),
            principal=incoming.principal,
            request_id=incoming.request_id or self._ids.request(),
            source=incoming.source,
        )

    async def _handled(self, binding: Binding, incoming: Incoming, request_id: str) -> msgspec.Struct:
        if incoming.principal is None:
            raise e.Unauthenticated("nobody knows who is asking")
        key = _idempotency_key(incoming)
        request = decode(incoming.body, binding.command.request)
        admission = await self._gate.admit(
            binding.command,
            request,
            principal=incoming.principal,
            request_id=request_id,
            source=incoming.source,
        )
        context = RequestContext(
            request_id=request_id,
            idempotency_key=key,
            principal=incoming.principal,
            permits=admission.permits,
            source=incoming.source,
            takes_keys=incoming.takes_keys,
        )
        try:
            reply = await binding.handler(request, context)
        except e.ScaivaultError as error:
            await admission.settle(error.code)
            raise
        except BaseException:
            # A caller that has gone away leaves a record too: what it asked for may have been done.
            await admission.settle(e.Internal.code)
            raise
        await admission.settle("ok")
        return reply

    def _internal(self, request_id: str) -> Outgoing:
        return _failed(e.Internal("an unexpected error; the log tells more under this request_id"), request_id)

    def refusal(self, error: e.ScaivaultError) -> Outgoing:
        """The answer to a request that is not even looked at."""
        return _failed(error, self._ids.request())


def decode(body: bytes, request: type[m.Request]) -> m.Request:
    """Read a request; no body at all stands for `{}`.

    Raises:
        InvalidRequest: with a pointer to the member that is wrong.
    """
    if len(body) > BODY_MAX:
        raise e.InvalidRequest(f"the request has {len(body)} bytes; at most {BODY_MAX} are taken")
    try:
        return msgspec.json.decode(body or b"{}", type=request)
    except msgspec.ValidationError as error:
        field = field_error(str(error), request)
        raise e.InvalidRequest(field.detail, [field]) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        # No `from error`: nothing of a body that may hold secrets goes into a traceback.
        raise e.InvalidRequest(f"the request is not JSON: {str(error)[:200]}") from None


def problem(error: e.ScaivaultError, request_id: str) -> m.ProblemReply:
    """An error as a problem document (RFC 9457)."""
    return m.ProblemReply(
        type=f"urn:scaivault:error:{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        code=error.code,
        request_id=request_id,
        errors=error.fields if isinstance(error, e.AtFields) else (),
        identifiers=getattr(error, "identifiers", ()),
        acme=getattr(error, "problem", None),
        limit=_limit(error),
        retry_after=getattr(error, "retry_after", None),
        retry_at=getattr(error, "retry_at", None),
    )


def _limit(error: e.ScaivaultError) -> str | None:
    if not isinstance(error, e.BackendRateLimited) or error.problem is None:
        return None
    return error.problem.detail or None


def _failed(error: e.ScaivaultError, request_id: str) -> Outgoing:
    return Outgoing(
        body=_ENCODER.encode(problem(error, request_id)),
        status=error.status,
        request_id=request_id,
        error_code=error.code,
        error_title=error.title,
    )


def _idempotency_key(incoming: Incoming) -> str | None:
    key = incoming.idempotency_key
    if key is not None and not _KEY.fullmatch(key):
        raise e.InvalidRequest("Idempotency-Key takes 1 to 255 visible ASCII characters")
    return key


def field_error(message: str, request: type[msgspec.Struct], prefix: str = "") -> e.FieldError:
    """A message of msgspec as one about a member; `prefix` is the pointer of the Struct within the request."""
    place = _PLACE.search(message)
    pointer = prefix + (_pointer(place[1]) if place else "")
    text = message[: place.start()] if place else message
    if unknown := _UNKNOWN_FIELD.match(text):
        known = [field.name for field in msgspec.structs.fields(request)]
        near = difflib.get_close_matches(unknown[1], known, n=1) if pointer == prefix else []
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return e.FieldError(
            pointer=f"{pointer}/{_escaped(unknown[1])}",
            code="unknown_field",
            detail=f"unknown field {unknown[1]!r}{hint}",
        )
    if missing := _MISSING_FIELD.match(text):
        return e.FieldError(
            pointer=f"{pointer}/{missing[1]}", code="missing_field", detail=f"field {missing[1]!r} is missing"
        )
    where = f"{pointer}: " if pointer else ""
    told = explained(text, place[1] if place else "", request)
    return e.FieldError(pointer=pointer, code="invalid_value", detail=f"{where}{told}")


def _pointer(place: str) -> str:
    """A place as msgspec writes it, `.a.b[0]`; what is in a map is pointed at as a whole, since its key is not told."""
    return re.sub(r"\[(\d+)\]", r"/\1", place.partition("[...]")[0].replace(".", "/"))


def _escaped(name: str) -> str:
    """A name as part of a JSON Pointer (RFC 6901 section 3)."""
    return name.replace("~", "~0").replace("/", "~1")
