"""Path, query and body as the one request document that the dispatcher judges; opens no socket.

Nothing is checked here that the dispatcher checks: what does not fit the request's type is passed on as it came, and
is refused there with the same words as on NATS.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import inspect

from scaivaultd.api.dispatch import BODY_MAX
from scaivaultd.model.errors import FieldError, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scaivaultd.api.commands import Command

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,18})?")
# Whatever is in a URL is in logs: a request with a body says there what it has to say.
_WITH_BODY = ("POST", "PUT", "PATCH")
# What `?wait=` means: the end of the work, where the command knows of one.
_WAITS = ("wait_end_seconds", "wait_seconds")


class _Kind(msgspec.Struct, frozen=True):
    """What the text of a query member may mean."""

    is_list: bool = False
    has_numbers: bool = False
    has_booleans: bool = False

    def value(self, texts: Sequence[str]) -> Any:
        return [self._single(each) for each in texts] if self.is_list else self._single(texts[0])

    def _single(self, text: str) -> Any:
        if self.has_booleans and text in ("true", "false"):
            return text == "true"
        if self.has_numbers and _NUMBER.fullmatch(text):
            return msgspec.json.decode(text)
        return text


class Documents:
    """Makes the documents of one row's requests."""

    def __init__(self, command: Command[Any, Any]) -> None:
        self._has_body = command.method in _WITH_BODY
        info = inspect.type_info(command.request)
        assert isinstance(info, inspect.StructType)
        self._kinds = {field.encode_name: _kind(field.type) for field in info.fields}
        self._wait = next((name for name in _WAITS if name in self._kinds), None)

    def document(self, members: Mapping[str, str], query: Sequence[tuple[str, str]], body: bytes) -> bytes:
        """The request as JSON. A body that is no JSON object is returned as it is: the dispatcher says why it is wrong.

        Raises:
            InvalidRequest: a member stands in two places with two values, or in the wrong place.
        """
        said: dict[str, Any] = {**members}
        for name, value in self._of_query(query).items():
            _put(said, name, value)
        if not said or len(body) > BODY_MAX:
            return body
        try:
            document = msgspec.json.decode(body or b"{}", type=dict[str, msgspec.Raw])
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return body
        for name, value in said.items():
            if name in document:
                _put({name: _decoded(document[name])}, name, value)
            document[name] = msgspec.Raw(msgspec.json.encode(value))
        return msgspec.json.encode(document)

    def _of_query(self, query: Sequence[tuple[str, str]]) -> Mapping[str, Any]:
        texts: dict[str, list[str]] = {}
        for name, text in query:
            texts.setdefault(self._wait if name == "wait" and self._wait else name, []).append(text)
        return {name: self._value(name, each) for name, each in texts.items()}

    def _value(self, name: str, texts: Sequence[str]) -> Any:
        if self._has_body and name not in _WAITS:
            raise _wrong(name, f"{name!r} does not go into the query; put it into the JSON body")
        kind = self._kinds.get(name, _Kind())
        if len(texts) > 1 and not kind.is_list:
            raise _wrong(name, f"{name!r} is there {len(texts)} times")
        if name in self._kinds and name in _WAITS and not _NUMBER.fullmatch(texts[0]):
            raise _wrong(name, "how long to wait is a number of seconds, as in ?wait=60")
        return kind.value(texts)


def _put(said: dict[str, Any], name: str, value: Any) -> None:
    if said.setdefault(name, value) != value:
        raise _wrong(name, f"{name!r} is there twice, with two values")


def _wrong(name: str, detail: str) -> InvalidRequest:
    pointer = "/" + name.replace("~", "~0").replace("/", "~1")
    return InvalidRequest(detail, [FieldError(pointer=pointer, code="invalid_value", detail=detail)])


def _decoded(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def _kind(of: inspect.Type) -> _Kind:
    match of:
        case inspect.Metadata(type=inner):
            return _kind(inner)
        case inspect.UnionType(types=types):
            kinds = [_kind(each) for each in types]
            return _Kind(
                any(each.is_list for each in kinds),
                any(each.has_numbers for each in kinds),
                any(each.has_booleans for each in kinds),
            )
        case inspect.ListType(item_type=item):
            return msgspec.structs.replace(_kind(item), is_list=True)
        case inspect.IntType() | inspect.FloatType():
            return _Kind(has_numbers=True)
        case inspect.BoolType():
            return _Kind(has_booleans=True)
        case _:
            return _Kind()
