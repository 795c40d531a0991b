"""tls-alpn-01 for real: Pebble looks at the daemon's own listener."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.system


@pytest.fixture
async def world(
    make_pebble: Callable[..., Awaitable[Any]], make_daemon: Callable[..., Awaitable[Any]]
) -> tuple[Any, str]:
    pebble = await make_pebble()
    daemon = await make_daemon(pebble)
    return daemon, await daemon.account(pebble)


async def test_names_and_an_address_are_proven_by_tls(world: Any) -> None:
    """RFC 8737 for names, RFC 8738 for addresses, whose SNI is their reverse name."""
    daemon, account = world
    order = await daemon.issue(account, "a.example.org", "b.example.org", "127.0.0.1", challenge_type="tls-alpn-01")
    assert order["status"] == "valid", order


async def test_orders_for_the_same_name_take_turns(world: Any) -> None:
    """A validator says the name and nothing else: only one certificate can be shown for it at a time."""
    daemon, account = world
    orders = await asyncio.gather(
        *(
            daemon.issue(account, "same.example.org", f"n{n}.example.org", challenge_type="tls-alpn-01")
            for n in range(10)
        )
    )
    assert [order["status"] for order in orders] == ["valid"] * 10, orders
