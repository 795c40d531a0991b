"""The checks of what lies beyond the host (CAs, their clocks, names from outside, DNS) and of what the daemon tells."""

from __future__ import annotations

import http.client
import secrets
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from scaivaultd import __version__
from scaivaultd.doctor_checks import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scaivaultd.doctor_checks import Host, Verdict

SKEW_MAX_SECONDS = 60
NAMES_MAX = 10
CONNECT_SECONDS = 4.0
AGENT = f"scaivaultctl/{__version__}"
CHALLENGE_PATH = "/.well-known/acme-challenge/"
_FAMILIES = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}


def clock(host: Host) -> Finding:
    """D04."""
    accounts = host.all("pki.acme.accounts.list")
    if accounts is None:
        return host.without("pki.acme.accounts.list")
    evidence: list[str] = []
    verdict: Verdict = "ok"
    told_by = 0
    for url in _directories(accounts):
        before = datetime.now(UTC)
        told = _date_of(url)
        if told is None:
            evidence.append(f"{_host_of(url)}: does not tell the time (D05 shows whether it answers)")
            continue
        skew = (before - told).total_seconds()
        # The header has whole seconds, and the answer takes its time.
        shown = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'}" if abs(skew) >= 2 else "in step with"
        evidence.append(f"this host is {shown} {_host_of(url)}")
        if abs(skew) > SKEW_MAX_SECONDS:
            verdict = "error"
        told_by += 1
    if not evidence:
        return Finding("skipped", ["there is no account yet, so no CA to compare with"])
    if not told_by:
        return Finding("skipped", evidence)
    return Finding(verdict, evidence, "" if verdict == "ok" else "Set the clock: `timedatectl set-ntp true`")


def directories(host: Host) -> Finding:
    """D05."""
    accounts = host.all("pki.acme.accounts.list")
    if accounts is None:
        return host.without("pki.acme.accounts.list")
    if not accounts:
        return Finding("skipped", ["there is no account yet"], "`scaivaultctl account create` registers one.")
    evidence: list[str] = []
    verdict: Verdict = "ok"
    for url in _directories(accounts):
        works = 0
        broken = 0
        for family, name in _FAMILIES.items():
            state, text = _reach(url, family, host.trust_context())
            evidence.append(f"{_host_of(url)} by {name}: {text}")
            works += state in ("ok", "doubtful")
            broken += state in ("broken", "doubtful")
        if not works:
            verdict = "error"
        elif broken and verdict == "ok":
            verdict = "warning"
    remedy = (
        ""
        if verdict == "ok"
        else "Look at DNS, routing and firewall from this host to the CA; roots: [acme] trust_files."
    )
    return Finding(verdict, evidence, remedy)


def nats(host: Host) -> Finding:
    """D06."""
    health = host.answers.get("sys.health")
    if health is None:
        return host.without("sys.health")
    parts = {each["name"]: each for each in health["components"]}
    evidence = [
        f"{name}: {parts[name]['status']}{': ' + parts[name]['detail'] if parts[name].get('detail') else ''}"
        for name in ("nats", "events")
        if name in parts
    ]
    if not evidence:
        return Finding("skipped", ["the daemon says nothing of NATS now"])
    if all(parts[name]["status"] == "ok" for name in ("nats", "events") if name in parts):
        servers = host.settings.nats.servers if host.settings else ()
        return Finding(
            "ok", [*evidence, f"{len(servers)} servers configured" if servers else "the daemon's own server"]
        )
    return Finding(
        "error",
        evidence,
        "Look at the server, its address in [nats] servers, and what its user may publish and subscribe to: "
        "docs/how-to/nats-identity.md. Events are kept until it is back.",
    )


def reachable(host: Host) -> Finding:
    """D08."""
    names = list(host.names) or _names_of(host, ("http-01", "tls-alpn-01"))
    if names is None:
        return host.without("pki.certificates.list")
    names = [each for each in names if not each.startswith("*.")][:NAMES_MAX]
    if not names:
        return Finding("skipped", ["no certificate is proved by http-01 or tls-alpn-01"], "Name one with --name NAME.")
    ours = _own_answer(host)
    if ours is None:
        return Finding("skipped", ["no http-01 listener answers on this host"], "D07 tells who holds port 80.")
    evidence: list[str] = []
    verdict: Verdict = "ok"
    for name in names:
        addresses = _addresses(name)
        if not addresses:
            evidence.append(f"{name}: has no address")
            verdict = "error"
        for family, address in addresses:
            state, text = _compare(name, family, address, ours)
            evidence.append(f"{name} at {address}: {text}")
            if state == "other":
                verdict = "error"
            elif state == "away" and verdict == "ok":
                verdict = "warning"
    return Finding(
        verdict,
        evidence,
        ""
        if verdict == "ok"
        else "Have the name lead here on port 80, by IPv6 too where it has an AAAA record, or take that record away. "
        "From inside, a firewall may look different than to the CA.",
    )


def providers(host: Host) -> Finding:
    """D09."""
    there = host.all("pki.dns_providers.list")
    if there is None:
        return host.without("pki.dns_providers.list")
    if not there:
        return Finding("skipped", ["no DNS provider is configured"])
    unusable = [each for each in there if each.get("status") == "unusable"]
    if unusable:
        return Finding(
            "error",
            [f"{each['name']}: {each.get('detail', '')}" for each in unusable],
            "`scaivaultctl dns provider show NAME`, and mend its settings.",
        )
    if not host.may_write:
        return Finding(
            "skipped",
            [f"{', '.join(each['name'] for each in there)}: not tried, since that writes a record"],
            "`scaivaultctl doctor D09 --write` writes a TXT record at each, looks for it, and removes it.",
        )
    evidence: list[str] = []
    verdict: Verdict = "ok"
    for each in there:
        reply = host.ask("pki.dns_providers.test", id=each["id"])
        if reply is None:
            evidence.append(f"{each['name']}: {host.why('pki.dns_providers.test')}")
            verdict = "error"
            continue
        last = reply["steps"][-1] if reply.get("steps") else {}
        evidence.append(f"{each['name']}: {'works' if reply['ok'] else last.get('detail', 'failed')}")
        if not reply["ok"]:
            verdict = "error"
    return Finding(
        verdict, evidence, "" if verdict == "ok" else "`scaivaultctl dns provider test NAME` shows every step."
    )


def delegation(host: Host) -> Finding:
    """D10."""
    names = list(host.names) or _names_of(host, ("dns-01",))
    if names is None:
        return host.without("pki.certificates.list")
    if not names:
        return Finding("skipped", ["no certificate is proved by dns-01"], "Name one with --name NAME.")
    evidence: list[str] = []
    verdict: Verdict = "ok"
    for name in names[:NAMES_MAX]:
        reply = host.ask("pki.dns_providers.trace", name=name)
        if reply is None:
            evidence.append(f"{name}: {host.why('pki.dns_providers.trace')}")
            verdict = "warning" if verdict == "ok" else verdict
            continue
        way = " -> ".join(
            [reply["challenge_name"], *(each for each in reply["chain"] if each != reply["challenge_name"])]
        )
        provider = (reply.get("dns_provider") or {}).get("name", "no provider")
        evidence.append(f"{name}: {way}, zone {reply.get('zone') or '?'}, {provider}")
        for problem in reply["problems"]:
            evidence.append(f"{name}: {problem}")
            verdict = "error"
    return Finding(verdict, evidence, "" if verdict == "ok" else "`scaivaultctl dns trace NAME` shows the whole way.")


def resolver(host: Host) -> Finding:
    """D11."""
    import dns.exception
    import dns.resolver

    asked = dns.resolver.Resolver(configure=False)
    configured = host.settings.dns.resolvers if host.settings else ()
    try:
        if configured:
            places = [str(each).rpartition(":") for each in configured]
            asked.nameservers = [address.strip("[]") for address, _, _ in places]
            asked.nameserver_ports = {address.strip("[]"): int(port) for address, _, port in places}
        else:
            asked.read_resolv_conf(str(host.root / "etc/resolv.conf"))
    except (dns.exception.DNSException, ValueError) as error:
        return Finding("error", [f"no resolver: {error}"], "Name one in /etc/resolv.conf or [dns] resolvers.")
    asked.lifetime = CONNECT_SECONDS
    asked.use_edns(0, 0, 1232)
    evidence = [f"asked: {', '.join(map(str, asked.nameservers))}"]
    began = time.monotonic()
    try:
        asked.resolve(f"{secrets.token_hex(8)}.invalid.", "A")
    except dns.resolver.NXDOMAIN:
        evidence.append(f"a name that there is not: NXDOMAIN, in {(time.monotonic() - began) * 1000:.0f} ms")
        return Finding("ok", evidence)
    except dns.resolver.NoAnswer:
        evidence.append("a name that there is not: an empty answer in place of NXDOMAIN")
    except dns.exception.DNSException as error:
        return Finding(
            "error",
            [*evidence, f"no answer: {type(error).__name__}"],
            "Look at the resolver; name others in [dns] resolvers.",
        )
    else:
        evidence.append("a name that there is not has an address: the resolver lies")
    return Finding(
        "warning", evidence, "Preflight checks and dns-01 go wrong with it; name another in [dns] resolvers."
    )


def budgets(host: Host) -> Finding:
    """D14."""
    reply = host.ask("pki.acme.limits")
    if reply is None:
        return host.without("pki.acme.limits")
    scarce = [
        each
        for each in reply["items"]
        if each.get("needs_human") or (each.get("amount") and (each.get("left") or 0) * 10 <= each["amount"])
    ]
    evidence = [
        f"{each['limit']} of {each['subject']}: "
        + ("paused by the CA" if each.get("needs_human") else f"{each.get('left') or 0} of {each['amount']} left")
        for each in scarce[:NAMES_MAX]
    ]
    if reply["waiting"]:
        evidence.append(f"{len(reply['waiting'])} orders wait for a budget")
    if evidence:
        return Finding("warning", evidence, "`scaivaultctl limits` shows until when; docs/how-to/rate-limits.md.")
    return Finding("ok", ["no budget is nearly spent"])


def certificates(host: Host) -> Finding:
    """D15."""
    there = host.all("pki.certificates.list")
    if there is None:
        return host.without("pki.certificates.list")
    now = datetime.now(UTC)
    expired = [each for each in there if each["status"] != "revoked" and _moment(each["not_after"]) <= now]
    failing = [each for each in there if each not in expired and ((each.get("renewal") or {}).get("attempt") or 0) > 0]
    overdue = [each for each in there if each not in expired and each not in failing and _is_overdue(each, now)]
    evidence = [f"{len(there)} certificates"]
    for what, found in (("has expired", expired), ("fails to renew", failing), ("is overdue", overdue)):
        for each in found[:NAMES_MAX]:
            error = ((each.get("renewal") or {}).get("error") or {}).get("detail", "")
            evidence.append(
                f"{each['domains'][0]} {what} (ends {each['not_after'][:10]}){': ' + error if error else ''}"
            )
        if found[NAMES_MAX:]:
            evidence.append(f"... and {len(found) - NAMES_MAX} more: {what}")
    verdict: Verdict = "error" if expired else "warning" if failing or overdue else "ok"
    remedy = (
        ""
        if verdict == "ok"
        else "`scaivaultctl cert show NAME` tells why; `scaivaultctl cert renew NAME --wait` tries now."
    )
    return Finding(verdict, evidence, remedy)


def _is_overdue(certificate: Mapping[str, Any], now: datetime) -> bool:
    moment = (certificate.get("renewal") or {}).get("moment")
    return bool(
        certificate["auto_renew"]
        and certificate["status"] == "valid"
        and moment is not None
        and _moment(moment) < now - timedelta(hours=1)
    )


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _directories(accounts: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({each["directory_url"] for each in accounts if each["status"] in ("valid", "pending")})


def _host_of(url: str) -> str:
    return urlsplit(url).netloc


def _date_of(url: str) -> datetime | None:
    parts = urlsplit(url)
    # Nothing is believed but the time, and a clock that is wrong enough would have no certificate be valid.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(
        parts.hostname or "", parts.port or 443, timeout=CONNECT_SECONDS, context=context
    )
    try:
        connection.request("GET", parts.path, headers={"User-Agent": AGENT})
        return parsedate_to_datetime(connection.getresponse().headers["Date"])
    except (OSError, http.client.HTTPException, TypeError, ValueError):
        return None
    finally:
        connection.close()


def _reach(url: str, family: socket.AddressFamily, context: ssl.SSLContext) -> tuple[str, str]:
    """`ok`, `none` (it cannot be meant to work), `doubtful` or `broken`; and what was seen."""
    parts = urlsplit(url)
    name, port = parts.hostname or "", parts.port or 443
    try:
        addresses = socket.getaddrinfo(name, port, family, socket.SOCK_STREAM)
    except OSError as error:
        return ("none", "no address") if family == socket.AF_INET6 or ":" in name else ("broken", str(error))
    began = time.monotonic()
    try:
        with (
            socket.socket(family, socket.SOCK_STREAM) as plain,
            context.wrap_socket(plain, server_hostname=name) as wrapped,
        ):
            wrapped.settimeout(CONNECT_SECONDS)
            wrapped.connect(addresses[0][4])
            # RFC 8555, section 6.1: a CA may refuse whoever does not say what it is.
            head = (f"GET {parts.path} HTTP/1.1", f"Host: {parts.netloc}", f"User-Agent: {AGENT}", "Connection: close")
            wrapped.sendall("\r\n".join((*head, "", "")).encode())
            response = http.client.HTTPResponse(wrapped)
            response.begin()
    except ssl.SSLCertVerificationError as error:
        return "doubtful", f"not trusted from here ({error.verify_message}); the account may have roots of its own"
    except (OSError, http.client.HTTPException) as error:
        unroutable = isinstance(error, OSError) and error.errno in (101, 113, 97)
        if family == socket.AF_INET6 and unroutable:
            return "none", "this host has no IPv6 to get there"
        reason = getattr(error, "verify_message", None) or getattr(error, "strerror", None) or str(error)
        return "broken", f"{addresses[0][4][0]}: {reason or type(error).__name__}"
    if response.status != 200:
        return "broken", f"HTTP {response.status}"
    return "ok", f"HTTP 200 in {(time.monotonic() - began) * 1000:.0f} ms"


def _names_of(host: Host, kinds: Sequence[str]) -> list[str] | None:
    there = host.all("pki.certificates.list")
    if there is None:
        return None
    found = [
        name for each in there if each["challenge_type"] in kinds and each["auto_renew"] for name in each["domains"]
    ]
    return list(dict.fromkeys(found))


def _own_answer(host: Host) -> tuple[int, bytes] | None:
    """What our listener says to a token that it does not know."""
    for each in host.settings.http01.listen if host.settings else ():
        listened = each.rpartition(":")[0].strip("[]")
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listened, listened)  # noqa: S104 - read, not bound
        if (answer := _fetch("localhost", address, each.port)) is not None:
            return answer
    return None


def _compare(name: str, family: str, address: str, ours: tuple[int, bytes]) -> tuple[str, str]:
    answer = _fetch(name, address, 80)
    if answer is None:
        return "away", f"no answer on port 80 by {family}"
    if answer == ours:
        return "ours", f"leads here, by {family}"
    return "other", f"another web server answers (HTTP {answer[0]}), by {family}"


def _fetch(name: str, address: str, port: int) -> tuple[int, bytes] | None:
    connection = http.client.HTTPConnection(address, port, timeout=CONNECT_SECONDS)
    try:
        connection.request("GET", CHALLENGE_PATH + secrets.token_urlsafe(24), headers={"Host": name})
        response = connection.getresponse()
        return response.status, response.read(4096)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _addresses(name: str) -> list[tuple[str, str]]:
    try:
        found = socket.getaddrinfo(name, 80, 0, socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys((_FAMILIES[each[0]], str(each[4][0])) for each in found if each[0] in _FAMILIES))
