"""What a member takes, found wherever it stands in a request."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from scaivaultd.api import dispatch


class Colour(enum.Enum):
    """A kind of value that is an enum."""

    RED = "red"
    BLUE = "blue"


Many = Literal[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24]
Form = Annotated[str, Meta(pattern="^x$")]


class Inner(msgspec.Struct):
    """A Struct within the request."""

    level: Literal[3, 1, 2] = 1


class Asked(msgspec.Struct, rename={"renamed": "other-name"}):
    """Every way in which a member may stand."""

    colour: Colour | None = None
    many: Many = 0
    renamed: Literal["a"] = "a"
    inner: list[Inner] = []
    pair: tuple[Literal["l"], ...] = ()
    labels: dict[str, Literal["v"]] = {}
    keys: dict[Form, int] = {}
    bare: Form = "x"
    told: Annotated[Form | None, Meta(description="One x.")] = None
    titled: Annotated[Annotated[str, Meta(pattern="^x$", title="X")] | None, Meta(description="An x.")] = None
    nearer: Annotated[Annotated[str, Meta(pattern="^x$", description="Near.")] | None, Meta(description="Far.")] = None


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        ({"colour": "green"}, "/colour: Invalid enum value 'green'; it takes 'red', 'blue'"),
        ({"other-name": "b"}, "/other-name: Invalid enum value 'b'; it takes 'a'"),
        ({"inner": [{}, {"level": 9}]}, "/inner/1/level: Invalid enum value 9; it takes 1, 2, 3"),
        ({"pair": ["l", "r"]}, "/pair/1: Invalid enum value 'r'; it takes 'l'"),
        ({"labels": {"k": "w"}}, "/labels: Invalid enum value 'w'; it takes 'v'"),
        ({"told": "y"}, "/told: not of the form it takes: One x."),
        ({"titled": "y"}, "/titled: not of the form it takes: An x."),
        ({"nearer": "y"}, "/nearer: not of the form it takes: Near."),
        ({"bare": "y"}, "/bare: Expected `str` matching regex '^x$'"),
        ({"colour": 5}, "/colour: Expected `str | null`, got `int`"),
    ],
)
def test_what_a_member_takes_is_said(value: dict[str, Any], detail: str) -> None:
    """By its place in the request, through lists, unions and other Structs."""
    assert field_error_of(value) == detail


def test_of_many_values_some_are_shown() -> None:
    """A detail is one line for a person."""
    detail = field_error_of({"many": 99})
    assert detail.endswith("0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19 and 5 more")


def test_a_key_of_the_wrong_form_does_no_harm() -> None:
    """msgspec names its place differently."""
    assert "matching regex" in field_error_of({"keys": {"y": 1}})


def field_error_of(value: dict[str, Any]) -> str:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(msgspec.json.encode(value), type=Asked)
    return dispatch.field_error(str(caught.value), Asked).detail
