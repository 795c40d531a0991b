"""How the daemon is: the worst of its parts."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.services.system import System

Status = Literal["ok", "degraded", "down"]


def probe(status: Status) -> Any:
    async def tell() -> m.ComponentHealth:
        return m.ComponentHealth(name=status, status=status)

    return tell


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        (["ok", "ok"], "ok"),
        (["ok", "degraded"], "degraded"),
        (["down", "degraded"], "down"),
        (["degraded", "down"], "down"),
    ],
)
async def test_the_worst_part_tells(parts: list[Status], whole: str) -> None:
    """A monitor that looks at one word must not miss a full disk behind a healthy bus."""
    system = System([probe(each) for each in parts], lambda: None)  # type: ignore[arg-type, return-value]
    reply = await system.health(m.Nothing(), RequestContext(request_id="r"))
    assert reply.status == whole
    assert [each.status for each in reply.components] == parts
