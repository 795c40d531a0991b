"""The guided run behind `make demo`: a CA, the daemon, an account, a certificate, its event, what to type next."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import nats
import nats.errors

from scaivaultd.demo.ca import DevelopmentCa
from scaivaultd.demo.pebble import Pebble, is_installed
from scaivaultd.demo.process import Process, free_port, until

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

NAMES = ["www.example.test", "example.test"]
ROOT = "scaivault.v1"
ORDER_SECONDS = 60.0
EVENT_SECONDS = 10.0


class DemoFailed(Exception):
    """The demo cannot go on; the text says why and where to look."""


class _Ca(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    directory_url: str
    trust_file: Path


def run(*, keep: bool, ca: str) -> int:
    """Run the demo and return the exit code. `ca` is auto, pebble or development."""
    folder = Path(tempfile.mkdtemp(prefix="scaivaultd-demo-"))
    try:
        asyncio.run(_tour(folder, keep=keep, ca=ca))
    except (DemoFailed, TimeoutError, OSError) as error:
        print(f"\nThe demo failed: {error}\nLogs are in {folder}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    shutil.rmtree(folder, ignore_errors=True)
    return 0


async def _tour(folder: Path, *, keep: bool, ca: str) -> None:
    async with AsyncExitStack() as stack:
        http01_port = free_port()
        chosen = await _start_ca(folder, http01_port, ca, stack)
        _say(f"CA         {chosen.name} at {chosen.directory_url}")
        daemon = await _start_daemon(folder, http01_port, chosen, stack)
        login = json.loads((folder / "state/nats/client.json").read_text())
        _say(f"Daemon     pid {daemon.pid}, its own nats-server at {login['server']}")
        client = await nats.connect(login["url"], connect_timeout=5)
        stack.push_async_callback(client.close)
        arrived: asyncio.Queue[Msg] = asyncio.Queue(maxsize=100)
        await client.subscribe("scaivault.events.>", cb=arrived.put)
        await client.flush()
        certificate_id = await _issue(client, chosen)
        await _show_event(arrived, certificate_id)
        await _show_pem(client, certificate_id)
        _say_next(folder, certificate_id, keep=keep)
        if keep:
            await _until_interrupted()
    _say("Done: all stopped, nothing left behind." + ("" if keep else " `make demo KEEP=1` leaves it running."))


async def _start_ca(folder: Path, http01_port: int, ca: str, stack: AsyncExitStack) -> _Ca:
    if ca == "pebble" and not is_installed():
        raise DemoFailed("Pebble is not installed: as root, apt-get install pebble; or choose --ca development")
    if ca != "development" and is_installed():
        pebble = Pebble(folder / "pebble", http01_port, {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "5"})
        stack.push_async_callback(pebble.stop)
        await pebble.start()
        return _Ca(name="Pebble", directory_url=pebble.directory_url, trust_file=pebble.trust_file)
    development = await stack.enter_async_context(DevelopmentCa(http01_port=http01_port))
    trust_file = folder / "ca-root.pem"
    trust_file.write_text(development.root_pem)
    name = "the built-in development CA" + ("" if ca == "development" else " (Pebble is not installed)")
    return _Ca(name=name, directory_url=development.directory_url, trust_file=trust_file)


async def _start_daemon(folder: Path, http01_port: int, ca: _Ca, stack: AsyncExitStack) -> Process:
    config = folder / "scaivaultd.toml"
    host = ca.directory_url.split("/")[2]
    config.write_text(
        f'state_dir = "{folder / "state"}"\n'
        f'[http01]\nlisten = ["127.0.0.1:{http01_port}"]\n'
        "[tlsalpn01]\nlisten = []\n"
        f'[acme]\ntrust_files = ["{ca.trust_file}"]\nprivate_directories = ["{host}"]\n'
        '[log]\nformat = "json"\n'
    )
    daemon = Process([sys.executable, "-m", "scaivaultd", "serve", "--config", str(config)], folder / "daemon")
    stack.push_async_callback(_stop_if_alive, daemon)
    daemon.start()

    async def is_ready() -> bool:
        if not daemon.is_alive():
            raise DemoFailed(f"the daemon ended:\n{daemon.log[-2000:]}")
        return '"daemon.ready"' in daemon.log

    await until(is_ready, "the daemon is ready")
    return daemon


async def _stop_if_alive(daemon: Process) -> None:
    if daemon.is_alive():
        await daemon.stop()


async def _issue(client: Client, ca: _Ca) -> str:
    account = await _ask(
        client, "pki.acme.accounts.create", name="demo", provider="custom", directory_url=ca.directory_url
    )
    _say(f"Account    {account['id']} is {account['status']}")
    order = await _ask(client, "pki.acme.issue", account_id=account["id"], domains=NAMES, challenge_type="http-01")
    _say(f"Order      {order['order_id']} for {', '.join(order['domains'])}")
    shown = ""
    _say(f"  request  {ROOT}.pki.acme.orders.get, again and again")
    async with asyncio.timeout(ORDER_SECONDS):
        while order["status"] in ("pending", "ready", "processing"):
            if order["status"] != shown:
                shown = order["status"]
                _say(f"             {shown}")
            await asyncio.sleep(0.1)
            order = await _quietly_ask(client, "pki.acme.orders.get", order_id=order["order_id"])
    if order["status"] != "valid":
        raise DemoFailed(f"the order is {order['status']}: {order['error']}")
    _say(f"             valid: {order['certificate_id']}, until {order['not_after']}")
    return str(order["certificate_id"])


async def _ask(client: Client, command: str, **body: Any) -> Any:
    _say(f"  request  {ROOT}.{command}")
    return await _quietly_ask(client, command, **body)


async def _quietly_ask(client: Client, command: str, **body: Any) -> Any:
    try:
        message = await client.request(f"{ROOT}.{command}", json.dumps(body).encode(), timeout=20)
    except nats.errors.Error as error:
        raise DemoFailed(f"{command}: {type(error).__name__}") from error
    reply = json.loads(message.data)
    if (message.headers or {}).get("Nats-Service-Error-Code"):
        raise DemoFailed(f"{command}: {reply['detail']}")
    return reply


async def _show_event(arrived: asyncio.Queue[Msg], certificate_id: str) -> None:
    async with asyncio.timeout(EVENT_SECONDS):
        while True:
            message = await arrived.get()
            _say(f"Event      {message.subject}")
            if message.subject.endswith(f"certificate.issued.{certificate_id}"):
                body = json.loads(message.data)
                _say(f"             serial {body['serial_number']}, issuer {body['issuer']}")
                return


async def _show_pem(client: Client, certificate_id: str) -> None:
    reply = await _ask(client, "pki.certificates.pem", id=certificate_id, part="leaf")
    print(reply["pem"].strip(), flush=True)


def _say_next(folder: Path, certificate_id: str, *, keep: bool) -> None:
    if not keep:
        _say("Next       README.md shows the same from your own program; docs/ has the whole reference.")
        return
    client_file = folder / "state/nats/client.json"
    _say(f"Running    configuration {folder / 'scaivaultd.toml'}")
    _say(f"           log {folder / 'daemon/log'}")
    _say(f"           NATS login {client_file}")
    _say("Next, with the `nats` command of the NATS project:")
    read_url = f'import json; print(json.load(open("{client_file}"))["url"])'
    _say(f"  export NATS_URL=$(python3 -c '{read_url}')")
    _say(f"  nats request {ROOT}.pki.certificates.get '{json.dumps({'id': certificate_id})}'")
    _say("  nats subscribe 'scaivault.events.>'")
    _say("Ctrl-C ends it all and removes the folder.")


async def _until_interrupted() -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await stopping.wait()


def _say(text: str) -> None:
    print(text, flush=True)
