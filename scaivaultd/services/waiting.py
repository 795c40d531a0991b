"""Waiting for a document to change, with a deadline."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import msgspec

from scaivaultd.model.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaivaultd.services.documents import Shelf
    from scaivaultd.services.ports import Store

T = TypeVar("T", bound=msgspec.Struct)


async def wait_for(store: Store, shelf: Shelf[T], resource_id: str, seconds: float, reached: Callable[[T], bool]) -> T:
    """The document once `reached` holds, or as it stands when `seconds` are over; raises NotFound."""
    async with store.watch(shelf.key(resource_id)) as changes:
        # Watch first, look second: nothing that happens in between is missed.
        value = await _load(store, shelf, resource_id)
        if reached(value) or seconds <= 0:
            return value
        try:
            async with asyncio.timeout(seconds):
                async for _ in changes:
                    value = await _load(store, shelf, resource_id)
                    if reached(value):
                        return value
        except TimeoutError:
            pass
    return await _load(store, shelf, resource_id)


async def _load(store: Store, shelf: Shelf[T], resource_id: str) -> T:
    found = await shelf.get(store, resource_id)
    if found is None:
        raise NotFound(f"{resource_id} is gone")
    return found.value
