"""The page `docs/reference/log-events.md`: every event that is logged, found in the code, and what to do about it."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from scaivaultd.logs_journal import message_id

if TYPE_CHECKING:
    from collections.abc import Mapping

LEVELS = ("debug", "info", "warning", "error", "critical")
_EVENT = re.compile(r"[a-z0-9_]+\.[a-z0-9_]+")
_PACKAGE = Path(__file__).parent

ADVICE: Mapping[str, str] = {
    "configuration.not_reloaded": "Mend what `mistakes` names, then reload. The configuration before holds.",
    "account.action_required": "Do at the CA what `detail` asks for (agree to new terms, say); orders wait for it.",
    "account.deactivated": "The CA has deactivated the account: create another; its certificates say what is blocked.",
    "account.not_registered": "Registration is tried again at `next_try_at`; `scaivaultctl explain CODE` helps.",
    "account.terms_changed": "Read the new terms; the CA may ask for agreement with the next order.",
    "account.unknown_to_ca": "The CA does not know the key any more: create another, and move its certificates there.",
    "audit.broken": "The audit log was changed behind the daemon: keep the files, look who could write there.",
    "audit.lost_at_stop": "Records could not be written before the end: free space, look at the disk.",
    "authentication.limited": "Somebody tries wrong tokens from `address`.",
    "certificate.deploy_overdue": "`host` still uses an earlier version: look at its agent.",
    "certificate.expired": "`scaivaultctl cert show` tells why no renewal succeeded; renew at once.",
    "certificate.expiring": "`scaivaultctl cert show` tells why no renewal has succeeded yet.",
    "certificate.renewal_blocked": "Remove what `detail` names (policy, a deactivated account); renewal goes on then.",
    "certificate.revoked_outside": "Somebody revoked it at the CA; a replacement is ordered. Ask who, and why.",
    "daemon.held_up": "A plugin or a thread did not end in time and was left; harmless once, a bug if it repeats.",
    "daemon.safe_mode": "A restored store: look at it, then `scaivaultctl resume`.",
    "dns.abandoned": "Delete the TXT record of `record_id` at the provider by hand.",
    "dns.no_route": "Add a DNS provider for the zone of `name`.",
    "dns.not_removed": "The provider refuses to delete a record; tried again in `next_try_seconds`.",
    "dns.provider_gone": "The provider of a record was deleted: remove the record by hand.",
    "dns_provider.broke": "The plugin raised what it must not: tell its author `error_type` and `frames`.",
    "dns_provider.not_live": "The provider's configuration does not work: `scaivaultctl dns provider test`.",
    "dns_provider.unusable": "Mend the provider's table in the configuration, as `detail` says.",
    "document.unreadable": "A document in the store cannot be read: `scaivaultctl doctor`, then restore a backup.",
    "event.too_large": "An event is larger than the NATS server takes: raise its `max_payload`.",
    "events.waiting": "Events are kept until NATS takes them again; look at the server.",
    "master_key.not_rewrapped": "A document could not be sealed anew; the old key is kept until it can.",
    "master_key.rotation_waits": "The rotation goes on when `reason` is gone.",
    "nats.disconnected": "Events are kept and requests over REST go on; look at the NATS server.",
    "nats_server.exited": "It is started again; look in `nats/server.log` of the state directory if it repeats.",
    "nats_server.store_gave_up": "JetStream has no room: free `needs_bytes` on the disk.",
    "order.account_forbidden": "The account may not order here; look at its quotas and at the CA.",
    "order.failed": "`scaivaultctl order show ID` shows the CA's words, what was seen, and the likely remedy.",
    "order.no_solver": "Switch on the listener or the solver of this challenge in the configuration.",
    "order.set_back": "Nothing: tried again at `next_try_at`.",
    "order.waits_for_person": "Do what `detail` asks for.",
    "plugin.not_opened": "A plugin failed to open; tell its author `error_type` and `frames`.",
    "plugin.refused": "The plugin does not fit this version: `scaivaultctl plugin ls`.",
    "preflight.problem": "The CA would not succeed either: mend what `detail` says.",
    "renewal.clock_set_back": "The host's clock jumped: look at its time synchronisation.",
    "request.failed": "A bug: report it with the lines of the same `request_id`.",
    "rest.no_certificate": "Callers over https are turned away until there is one: do what `advice` says.",
    "rest.tls_not_reloaded": "The earlier certificate stays in use; mend the files and reload.",
    "secret.backend_misconfigured": "Mend `[secrets]` as `detail` says.",
    "secrets.sealed": "Give the key that `detail` asks for; then `scaivaultctl unseal`, or reload.",
    "store.unavailable": "Free space or mend the disk; the daemon goes on by itself when it can write.",
    "supervision.failed": "A bug: report it; the service manager starts the daemon again.",
    "systemd.sockets_unused": "A socket unit passes a socket that no section of the configuration uses: disable it.",
    "systemd.unheard": "systemd does not take our notifications: look at `NotifyAccess=` and the sandbox.",
    "telemetry.not_sent": "The collector does not answer: look at it and at `[tracing] otlp_endpoint`.",
    "token.expiring": "Rotate it: `scaivaultctl token rotate`.",
    "watchdog.withheld": "The parts in `late` stand still; systemd is about to start the daemon again.",
}
"""What an administrator does about an event; without an entry there is nothing to do."""


def logged() -> dict[str, tuple[set[str], set[str]]]:
    """Every event in the code, with its levels and the names of its fields."""
    found: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for path in sorted(_PACKAGE.rglob("*.py")):
        if "demo" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(attr=level), args=[ast.Constant(value=str(event)), *_]) if (
                    level in LEVELS and _EVENT.fullmatch(event)
                ):
                    levels, fields = found[event]
                    levels.add(level)
                    fields.update(each.arg for each in node.keywords if each.arg not in (None, "exc_info"))
    return dict(found)


def logs_page() -> str:
    """The whole page."""
    lines = [
        "# Log events",
        "",
        "Generated from the code. [Read the logs](../how-to/read-the-logs.md) tells how to find what belongs together.",
        "",
        "Lines of a request or an order have `request_id`, `principal`, `order_id`, `certificate_id`, `account_id`,",
        "`job` and `trace_id` besides, as far as they apply. In the journal a field is `SCAIVAULT_` and its name in",
        "capitals (`SCAIVAULT_CERT_ID` is the certificate's).",
        "",
        "## To act on",
        "",
        "| event | level | what to do | MESSAGE_ID |",
        "|---|---|---|---|",
    ]
    events = sorted(logged().items())
    lines += [
        f"| `{event}` | {_levels(levels)} | {ADVICE[event]} | `{message_id(event)}` |"
        for event, (levels, _) in events
        if event in ADVICE
    ]
    lines += ["", "## All", "", "| event | level | fields |", "|---|---|---|"]
    lines += [
        f"| `{event}` | {_levels(levels)} | {', '.join(f'`{each}`' for each in sorted(fields))} |"
        for event, (levels, fields) in events
    ]
    return "\n".join(lines) + "\n"


def _levels(levels: set[str]) -> str:
    return ", ".join(sorted(levels, key=LEVELS.index))
