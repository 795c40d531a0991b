"""What the guided run shows: an account, a certificate by each of the three challenges, and a renewal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cryptography import x509

from scaivaultd.demo.tour_dns import Verdicts, create_provider, show_gone, show_trace
from scaivaultd.demo.tour_page import heading, say
from scaivaultd.demo.tour_stage import ZONE

if TYPE_CHECKING:
    from scaivaultd.demo.tour_caller import Caller
    from scaivaultd.demo.tour_stage import Stage


async def register(caller: Caller, stage: Stage) -> str:
    """An account at the CA; returns its id."""
    account = await caller.ask(
        "pki.acme.accounts.create", name="demo", provider="custom", directory_url=stage.directory_url
    )
    say("account", f"{account['id']} is {account['status']}")
    # An event follows its commit a moment later; here it belongs to this chapter.
    await caller.event("account.created", account["id"])
    return str(account["id"])


async def by_http01(caller: Caller, stage: Stage, account_id: str) -> str:
    """A name, proven by a file; returns the id of its certificate."""
    heading(f"1. http-01: the CA fetches a file from the daemon, port {stage.http01_port}\n")
    return await _issue(caller, account_id, "http-01", f"www.{ZONE}")


async def by_tlsalpn01(caller: Caller, stage: Stage, account_id: str) -> None:
    """A name, proven by a TLS certificate."""
    heading(f"2. tls-alpn-01: the CA looks at a certificate, port {stage.tlsalpn01_port}\n")
    await _issue(caller, account_id, "tls-alpn-01", f"mail.{ZONE}")


async def by_dns01(caller: Caller, stage: Stage, account_id: str) -> None:
    """A wildcard and its apex, proven by two values at one name in DNS."""
    heading("3. dns-01: a wildcard and its apex, proven by two values at one DNS name\n")
    await create_provider(caller, stage)
    await show_trace(caller, f"*.{ZONE}")
    await _issue(caller, account_id, "dns-01", f"*.{ZONE}", ZONE)
    await show_gone(caller, f"*.{ZONE}")


async def renew(caller: Caller, certificate_id: str) -> None:
    """A renewal ahead of its time: the next version of the same certificate."""
    heading("4. A renewal, which comes by itself otherwise: another version, with another key\n")
    certificate = await caller.ask("pki.certificates.get", id=certificate_id)
    say("", f"version {certificate['version']} would be renewed on {certificate['renewal']['moment'][:10]} by itself")
    ordered = await caller.ask("pki.certificates.renew", id=certificate_id)
    say("order", ordered["order_id"])
    await _watch(caller, ordered)
    renewed = await caller.event("certificate.renewed", certificate_id)
    say("", f"version {renewed['version']}, serial {renewed['serial_number']}")
    listed = await caller.ask("pki.certificates.versions", id=certificate_id)
    say("", f"versions {', '.join(str(each['version']) for each in listed['items'])} can be fetched")


async def _issue(caller: Caller, account_id: str, challenge_type: str, *names: str) -> str:
    ordered = await caller.ask(
        "pki.acme.issue", account_id=account_id, domains=list(names), challenge_type=challenge_type
    )
    say("order", ordered["order_id"])
    say("", f"for {', '.join(ordered['domains'])} by {ordered['challenge_type']}")
    certificate_id = await _watch(caller, ordered)
    await _show_certificate(caller, certificate_id)
    return certificate_id


async def _watch(caller: Caller, ordered: Any) -> str:
    """Tell how an order gets on until it is valid; returns the id of its certificate."""
    status, certificate_id, verdicts = "", "", Verdicts()
    async for order in caller.readings(ordered):
        verdicts.show(order["dns_records"])
        if order["status"] != status:
            status = order["status"]
            say("", status)
        certificate_id = order["certificate_id"]
    return certificate_id


async def _show_certificate(caller: Caller, certificate_id: str) -> None:
    issued = await caller.event("certificate.issued", certificate_id)
    say("", f"serial {issued['serial_number']}, issuer {issued['issuer']}")
    reply = await caller.ask("pki.certificates.pem", id=certificate_id, part="leaf")
    leaf = x509.load_pem_x509_certificate(reply["pem"].encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    lines = reply["pem"].strip().splitlines()
    say("PEM", f"{lines[0]} and {len(lines) - 1} lines more")
    say("", f"for {', '.join(names.get_values_for_type(x509.DNSName))}, until {leaf.not_valid_after_utc:%Y-%m-%d}")
