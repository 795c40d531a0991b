"""The guided run behind `make demo`: DNS, a CA, the daemon, and a certificate by each of the three challenges.

Whatever ends it, its children, ports and folder go with it; only a failure leaves the folder, for its logs.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TextIO

from scaivaultd.demo.tour_acts import by_dns01, by_http01, by_tlsalpn01, register
from scaivaultd.demo.tour_caller import connect
from scaivaultd.demo.tour_farewell import explain
from scaivaultd.demo.tour_stage import DemoFailed, alive, set_up

EX_FAILED = 1
EX_INTERRUPTED = 130
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(*, keep: bool, ca: str) -> int:
    """Run the demo and return the exit code. `ca` is auto, pebble or development.

    Call it last: from its end on the process is deaf to the signals that would have ended the run.
    """
    folder = Path(tempfile.mkdtemp(prefix="scaivaultd-demo-"))
    code = _outcome(folder, keep=keep, ca=ca)
    if code == EX_FAILED and any(folder.iterdir()):
        _tell(f"Its logs are in {folder}", sys.stderr)
        return code
    shutil.rmtree(folder, ignore_errors=True)
    _tell("All stopped, nothing left behind." if code else "Done: all stopped, nothing left behind.", sys.stdout)
    return code


def _outcome(folder: Path, *, keep: bool, ca: str) -> int:
    try:
        asyncio.run(_tour(folder, keep=keep, ca=ca))
    # KeyboardInterrupt: before or after the loop had its handlers. A broken pipe: nobody watches any more.
    except (asyncio.CancelledError, KeyboardInterrupt, BrokenPipeError):
        _tell("\nInterrupted.", sys.stderr)
        return EX_INTERRUPTED
    except (DemoFailed, TimeoutError, OSError) as error:
        _tell(f"\nThe demo failed: {error}", sys.stderr)
        return EX_FAILED
    return 0


async def _tour(folder: Path, *, keep: bool, ca: str) -> None:
    ending = _Ending(asyncio.current_task())
    async with AsyncExitStack() as stack:
        # The loop's handlers end with it, and who presses Ctrl-C once more is to find no folder either.
        stack.callback(signal.pthread_sigmask, signal.SIG_BLOCK, ENDINGS)
        stage, daemon = await set_up(folder, ca, stack)
        async with alive(daemon):
            caller = await connect(stage.nats_login()["url"], stack)
            account_id = await register(caller, stage)
            await by_http01(caller, stage, account_id)
            await by_tlsalpn01(caller, stage, account_id)
            await by_dns01(caller, stage, account_id)
            explain(stage, account_id, keep=keep)
            if keep:
                await ending.wait()


class _Ending:
    """Ctrl-C, a kill, a closed terminal: the first ends the run, where it is; those that follow find it ending."""

    def __init__(self, task: asyncio.Task[Any] | None) -> None:
        self._task = task
        self._waiting: asyncio.Event | None = None
        self._has_come = False
        for number in ENDINGS:
            asyncio.get_running_loop().add_signal_handler(number, self._come)

    async def wait(self) -> None:
        """Wait for it: from now on it is no interruption."""
        self._waiting = asyncio.Event()
        await self._waiting.wait()

    def _come(self) -> None:
        if self._waiting is not None:
            self._waiting.set()
        elif not self._has_come and self._task is not None:
            self._task.cancel()
        self._has_come = True


def _tell(text: str, stream: TextIO) -> None:
    """The last words; whoever closed the terminal does not hear them."""
    with contextlib.suppress(OSError):
        print(text, file=stream, flush=True)
