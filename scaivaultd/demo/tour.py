"""The guided run behind `make demo`: DNS, a CA, the daemon, and a certificate by each of the three challenges.

Whatever ends it, its children, ports and folder go with it; only a failure leaves the folder, for its logs.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from scaivaultd.demo.tour_acts import by_dns01, by_http01, by_tlsalpn01, register, renew
from scaivaultd.demo.tour_caller import connect
from scaivaultd.demo.tour_ending import Ending, Interrupted
from scaivaultd.demo.tour_farewell import explain
from scaivaultd.demo.tour_stage import DemoFailed, set_up

if TYPE_CHECKING:
    from scaivaultd.demo.tour_stage import Stage

EX_FAILED = 1
EX_INTERRUPTED = 130


def run(*, keep: bool, ca: str) -> int:
    """Run the demo and return the exit code. `ca` is auto, pebble or development.

    Call it last: from its end on the process is deaf to the signals that would have ended the run.
    """
    folder = Path(tempfile.mkdtemp(prefix="scaivaultd-demo-"))
    try:
        code = _outcome(folder, keep=keep, ca=ca)
    # A second Ctrl-C that a thread of the loop had taken is told to the main thread as late as this.
    except KeyboardInterrupt:
        code = EX_INTERRUPTED
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
    except (Interrupted, KeyboardInterrupt, BrokenPipeError):
        _tell("\nInterrupted.", sys.stderr)
        return EX_INTERRUPTED
    except (DemoFailed, TimeoutError, OSError) as error:
        _tell(f"\nThe demo failed: {error}", sys.stderr)
        return EX_FAILED
    return 0


async def _tour(folder: Path, *, keep: bool, ca: str) -> None:
    ending = Ending()
    async with AsyncExitStack() as stack:
        # Last of all, so that who presses Ctrl-C once more finds no folder either.
        stack.callback(ending.be_deaf)
        stage, daemon = await ending.or_result(set_up(folder, ca, stack))
        await ending.or_result(_acts(stage, stack, keep=keep), daemon)
        if keep:
            with contextlib.suppress(Interrupted):
                await ending.or_result(asyncio.Event().wait(), daemon)


async def _acts(stage: Stage, stack: AsyncExitStack, *, keep: bool) -> None:
    caller = await connect(stage.nats_login()["url"], stack)
    account_id = await register(caller, stage)
    certificate_id = await by_http01(caller, stage, account_id)
    await by_tlsalpn01(caller, stage, account_id)
    await by_dns01(caller, stage, account_id)
    await renew(caller, certificate_id)
    explain(stage, account_id, keep=keep)


def _tell(text: str, stream: TextIO) -> None:
    """The last words; whoever closed the terminal does not hear them."""
    with contextlib.suppress(OSError):
        print(text, file=stream, flush=True)
