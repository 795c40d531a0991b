"""The strict development CA: `DevelopmentCa`, what it is told, and `python -m scaivaultd.demo.ca`.

A real RFC 8555 server on loopback, apart from our client on purpose: it shares no protocol code
with it, so the two can disagree. It validates every challenge for real, as far as it is told where to look.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click
import msgspec

from scaivaultd.demo.ca_limits import Limits, RateLimit
from scaivaultd.demo.ca_lineage import cert_id
from scaivaultd.demo.ca_misbehaviour import (
    Endless,
    Fault,
    Hang,
    LoseAnswer,
    Malformed,
    Misbehaviour,
    NoNonce,
    Nulls,
    Pass,
    Redirect,
    Reset,
    Status,
    WrongCertificate,
)
from scaivaultd.demo.ca_renewal import RenewalPolicy, Window, last_third
from scaivaultd.demo.ca_server import DevelopmentCa, Phase
from scaivaultd.demo.ca_settings import CaSettings, Profile
from scaivaultd.demo.ca_state import Account, Authorization, Challenge, Issued, Order

__all__ = [
    "Account",
    "Authorization",
    "CaSettings",
    "Challenge",
    "DevelopmentCa",
    "Endless",
    "Fault",
    "Hang",
    "Issued",
    "Limits",
    "LoseAnswer",
    "Malformed",
    "Misbehaviour",
    "NoNonce",
    "Nulls",
    "Order",
    "Pass",
    "Phase",
    "Profile",
    "RateLimit",
    "Redirect",
    "RenewalPolicy",
    "Reset",
    "Status",
    "Window",
    "WrongCertificate",
    "cert_id",
    "last_third",
    "main",
]


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """The line on stdout that says the CA serves."""

    directory_url: str
    root_pem_file: str
    issuer_root_pem_file: str


@click.command()
@click.option("--http01-port", type=click.IntRange(1, 65535), required=True, help="Where http-01 validations connect.")
@click.option("--tlsalpn01-port", type=click.IntRange(1, 65535), help="Where tls-alpn-01 validations connect.")
@click.option("--dns-server", help="ADDRESS:PORT of the DNS server that dns-01 validations ask.")
@click.option("--listen", default="127.0.0.1:0", show_default=True, help="ADDRESS:PORT; port 0: the kernel chooses.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Where the root certificates are written.",
)
@click.option("--always-valid", is_flag=True, help="Validate nothing: every challenge succeeds.")
def main(
    http01_port: int,
    tlsalpn01_port: int | None,
    dns_server: str | None,
    listen: str,
    folder: Path,
    *,
    always_valid: bool,
) -> None:
    """Serve a development CA until SIGTERM; one JSON line on stdout says where."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal():
        raise click.BadParameter("expected ADDRESS:PORT", param_hint="--listen")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        ca = DevelopmentCa(
            http01_port=http01_port,
            tlsalpn01_port=tlsalpn01_port,
            dns_server=dns_server,
            host=host.strip("[]"),
            port=int(port),
            misbehaviour=Misbehaviour(always_valid=always_valid),
        )
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--dns-server") from error
    started = _write_roots(ca, folder)
    asyncio.run(_serve(ca, started))


def _write_roots(ca: DevelopmentCa, folder: Path) -> Started:
    root, issuer_root = folder / "root.pem", folder / "issuer-root.pem"
    root.write_text(ca.root_pem)
    issuer_root.write_text(ca.issuer_root_pem)
    return Started(directory_url=ca.directory_url, root_pem_file=str(root), issuer_root_pem_file=str(issuer_root))


async def _serve(ca: DevelopmentCa, started: Started) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with ca:
        print(msgspec.json.encode(started).decode(), flush=True)
        await stop.wait()


if __name__ == "__main__":
    main()
