"""dns-lexicon in a thread of its own: it blocks, mostly without time limits, and its errors tell too much.

What a job raises is turned into an error of ours inside the thread; nothing of the original goes further, since
`requests` puts whole URLs into its texts, and some services take their tokens there.
"""

from __future__ import annotations

import asyncio
import importlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from scaivaultd.plugin import PermanentError, ProviderAuthError, ProviderError, RateLimited, TransientError
from scaivaultd.plugin.http import RETRY_STATUS

# Where dns-lexicon guesses a zone from the list of public suffixes it may download that list. For an address literal
# there is nothing to look up; the zone itself is put in front of the guess afterwards.
NO_GUESS = "[::1]"

Job = Callable[[Any], bool]
"""Does something with dns-lexicon's operations; whether that worked."""


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """What dns-lexicon has to know for one job; `options` hold secrets, so this is never shown."""

    provider: str
    zone: str
    ttl: int
    options: Mapping[str, Any]
    job: Job

    def __repr__(self) -> str:
        return f"Errand({self.provider}, {self.zone})"


class LexiconWorker:
    """One thread; one job at a time. A job that hangs cannot be stopped: the thread is given up with the provider."""

    def __init__(self, seconds: float) -> None:
        """`seconds` is how long a job may take, with the wait for its turn."""
        self._seconds = seconds
        self._errands: queue.SimpleQueue[tuple[Errand, asyncio.Future[bool]] | None] = queue.SimpleQueue()
        self._turn = asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = asyncio.get_running_loop()
        # A daemon thread: a job that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="lexicon", daemon=True)

    async def start(self) -> None:
        """Load dns-lexicon, and begin.

        Raises:
            PermanentError: it is not installed.
        """
        try:
            await asyncio.to_thread(importlib.import_module, "lexicon.client")
        except ImportError:
            raise PermanentError("dns-lexicon is not installed: pip install 'scaivaultd[lexicon]'") from None
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its present job; does not wait for it."""
        self._errands.put(None)

    async def run(self, errand: Errand) -> bool:
        """What the job returns.

        Raises:
            TransientError: it took too long; it may still be carried out.
            ProviderError: what became of dns-lexicon's error.
        """
        try:
            async with asyncio.timeout(self._seconds), self._turn:
                # Also after a job that was given up: it may yet end, and must not meet the next one.
                await self._idle.wait()
                self._idle.clear()
                answer: asyncio.Future[bool] = self._loop.create_future()
                self._errands.put((errand, answer))
                return await answer
        except TimeoutError:
            raise TransientError(f"dns-lexicon took more than {self._seconds:g} seconds") from None

    def _work(self) -> None:
        while (item := self._errands.get()) is not None:
            errand, answer = item
            result = _done(errand)
            try:
                self._loop.call_soon_threadsafe(self._settle, answer, result)
            except RuntimeError:
                return  # the loop is closed: nobody is left to be told

    def _settle(self, answer: asyncio.Future[bool], result: bool | ProviderError) -> None:
        self._idle.set()
        if answer.done():
            return  # given up meanwhile
        if isinstance(result, ProviderError):
            answer.set_exception(result)
        else:
            answer.set_result(result)


def _done(errand: Errand) -> bool | ProviderError:
    try:
        with _operations(errand) as operations:
            return errand.job(operations)
    except Exception as error:  # noqa: BLE001 - 91 modules raise whatever they like, bare Exceptions among it
        return _translated(error)


@contextmanager
def _operations(errand: Errand) -> Iterator[Any]:
    client_module = importlib.import_module("lexicon.client")
    config_module = importlib.import_module("lexicon.config")
    config = config_module.ConfigResolver().with_dict(
        {
            "provider_name": errand.provider,
            "domain": NO_GUESS,
            "delegated": errand.zone,
            "ttl": errand.ttl,
            errand.provider: dict(errand.options),
        }
    )
    client = client_module.Client(config)
    config.add_config_source(config_module.DictConfigSource({"domain": errand.zone}), 0)
    with client as operations:
        yield operations


def _translated(error: Exception) -> ProviderError:
    """The kind of error and the status, never the text."""
    kind = type(error).__name__
    names = {each.__name__ for each in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    told = f"dns-lexicon failed ({kind}{f', HTTP {status}' if status else ''})"
    if "ProviderNotAvailableError" in names:
        return PermanentError(
            "dns-lexicon does not know this provider, or lacks the packages it needs: pip install "
            "'dns-lexicon[PROVIDER]'"
        )
    if "AuthenticationError" in names or status in (401, 403):
        return ProviderAuthError(f"the service refuses the credentials, or has no such zone: {told}")
    if status == 429:
        return RateLimited(told)
    if status in RETRY_STATUS or names & {"ConnectionError", "Timeout", "ChunkedEncodingError"}:
        return TransientError(told)
    return PermanentError(told, kind)
