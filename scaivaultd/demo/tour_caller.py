"""A caller of the daemon as anybody could write one: requests over NATS, and the events as they arrive."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

import nats
import nats.errors

from scaivaultd.demo.tour_page import say
from scaivaultd.demo.tour_stage import DemoFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AsyncExitStack

    from nats.aio.client import Client
    from nats.aio.msg import Msg

ROOT = "scaivault.v1"
EVENTS_ROOT = "scaivault.events"
REQUEST_SECONDS = 20.0
ORDER_SECONDS = 60.0
EVENT_SECONDS = 10.0
POLL_SECONDS = 0.05
EVENTS_MAX = 100
UNDER_WAY = ("pending", "ready", "processing")


class Caller:
    """Asks, and says what it asks; tells every event."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._events: deque[tuple[str, Any]] = deque(maxlen=EVENTS_MAX)
        self._news = asyncio.Event()

    async def ask(self, command: str, **body: Any) -> Any:
        """Say the subject, send the request, return the reply.

        Raises:
            DemoFailed: an error, or no reply in time.
        """
        say("request", f"{ROOT}.{command}")
        return await self.quietly_ask(command, **body)

    async def quietly_ask(self, command: str, **body: Any) -> Any:
        """The same without a word, for what is asked again and again."""
        try:
            message = await self._client.request(
                f"{ROOT}.{command}", json.dumps(body).encode(), timeout=REQUEST_SECONDS
            )
        except nats.errors.Error as error:
            raise DemoFailed(f"{command}: {type(error).__name__}") from error
        reply = json.loads(message.data)
        if (message.headers or {}).get("Nats-Service-Error-Code"):
            raise DemoFailed(f"{command}: {reply['detail']}")
        return reply

    async def readings(self, order: Any) -> AsyncIterator[Any]:
        """An order as it is now, and again and again until it has ended well; the last reading is the valid one.

        Raises:
            DemoFailed: it became invalid.
            TimeoutError: it took too long.
        """
        deadline = asyncio.get_running_loop().time() + ORDER_SECONDS
        while order["status"] in UNDER_WAY:
            yield order
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(f"order {order['order_id']} is {order['status']} after {ORDER_SECONDS:.0f} s")
            await asyncio.sleep(POLL_SECONDS)
            order = await self.quietly_ask("pki.acme.orders.get", order_id=order["order_id"])
        if order["status"] != "valid":
            raise DemoFailed(f"the order is {order['status']}: {order['error']['detail']}")
        yield order

    async def event(self, kind: str, resource_id: str) -> Any:
        """The body of an event, when it is there; raises TimeoutError."""
        subject = f"{EVENTS_ROOT}.{kind}.{resource_id}"
        try:
            async with asyncio.timeout(EVENT_SECONDS):
                return await self._found(subject)
        except TimeoutError:
            raise TimeoutError(f"the event {subject} did not arrive within {EVENT_SECONDS:.0f} s") from None

    async def _found(self, subject: str) -> Any:
        while True:
            for arrived, body in self._events:
                if arrived == subject:
                    return body
            self._news.clear()
            await self._news.wait()

    async def note(self, message: Msg) -> None:
        """An event has arrived."""
        say("event", message.subject)
        self._events.append((message.subject, json.loads(message.data)))
        self._news.set()


async def connect(url: str, stack: AsyncExitStack) -> Caller:
    """A caller with its subscription; `stack` closes the connection."""
    # What it hears while it is being closed it logs with a traceback, which is nothing to whoever pressed Ctrl-C.
    logging.getLogger("nats").addHandler(logging.NullHandler())
    client = await nats.connect(url, connect_timeout=5, allow_reconnect=False, error_cb=_say_nothing)
    stack.push_async_callback(client.close)
    caller = Caller(client)
    await client.subscribe(f"{EVENTS_ROOT}.>", cb=caller.note)
    await client.flush()
    return caller


async def _say_nothing(_: Exception) -> None:
    """A lost connection shows at the next request, or the daemon's end is told."""
