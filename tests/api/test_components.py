"""The schemas that both descriptions share."""

from __future__ import annotations

import inspect
from collections import ChainMap
from datetime import datetime
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from scaivaultd.api.commands import COMMANDS
from scaivaultd.api.components import about, components, operation_id, tag


class Inner(msgspec.Struct):
    """Held by another."""

    at: datetime
    again: Inner | None = None


class Listed(msgspec.Struct):
    """Held in lists only."""

    at: datetime


class Outer(msgspec.Struct):
    """Holds times in every way that messages do."""

    plain: datetime
    nullable: datetime | None
    described: Annotated[datetime | None, Meta(description="When.")]
    with_zone: Annotated[datetime, Meta(tz=True)] | None
    inner: Inner
    listed: list[Listed]
    text: str | None
    number: float | str


def test_times_are_told_from_texts_however_deep_they_stand() -> None:
    """A generated client has to make times of them, and of nothing else."""
    found = components([Outer])
    times = {"plain", "nullable", "described", "with_zone"}
    assert {name for name, each in found["Outer"]["properties"].items() if "date-time" in str(each)} == times
    time = {"type": "string", "format": "date-time"}
    assert found["Outer"]["properties"]["nullable"]["anyOf"] == [time, {"type": "null"}]
    assert found["Inner"]["properties"]["at"] == found["Listed"]["properties"]["at"] == time


def test_components_come_in_order_of_their_names() -> None:
    """The committed copies would differ from run to run."""
    assert list(components([Outer])) == ["Inner", "Listed", "Outer"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.name)
def test_replies_tell_times_of_all_members_that_hold_one(command: Any) -> None:
    """Our own messages, not only those made for the test."""
    schema = components([command.reply])[command.reply.__name__]
    annotations = ChainMap(*(inspect.get_annotations(each) for each in command.reply.__mro__))
    held = {name for name in command.reply.__struct_fields__ if "datetime" in annotations[name]}
    assert held == {name for name, each in schema["properties"].items() if "date-time" in str(each)}


def test_names_of_operations_are_unique_and_identifiers() -> None:
    """Generators of clients make functions of them."""
    names = [operation_id(command) for command in COMMANDS]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


def test_commands_stand_in_their_part_of_the_table() -> None:
    """A tag for each command alone would group nothing."""
    tags = {command.name: tag(command) for command in COMMANDS}
    assert tags["pki.acme.accounts.create"] == tags["pki.acme.issue"] == "pki.acme"
    assert tags["pki.certificates.pem"] == "pki.certificates"
    assert tags["pki.revoke"] == "pki"
    assert tags["secrets.put"] == tags["secrets.list"] == "secrets"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.name)
def test_what_is_said_of_a_command_names_its_permission(command: Any) -> None:
    """Whoever writes a policy looks for it there."""
    assert about(command).endswith(f"Needs the permission `{command.permission}`.")
    assert "\n" not in about(command)
