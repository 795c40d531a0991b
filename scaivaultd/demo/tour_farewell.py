"""What the guided run says in the end: how to reach it, if it keeps running, and what to type next."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from scaivaultd.demo.tour_caller import EVENTS_ROOT, ROOT
from scaivaultd.demo.tour_dns import PROVIDER
from scaivaultd.demo.tour_page import heading, plain, say
from scaivaultd.demo.tour_stage import NAME_SERVERS, ZONE

if TYPE_CHECKING:
    from scaivaultd.demo.tour_stage import Stage


def explain(stage: Stage, account_id: str, *, keep: bool) -> None:
    """Say what comes next."""
    if keep:
        _say_where(stage, account_id)
        _say_what_to_type(stage, account_id)
        plain("\nCtrl-C ends it all and removes the folder.")
    else:
        heading("Next: `make demo KEEP=1` leaves all of it running and says how to reach it;")
        plain("README.md shows the same from a program of your own.")


def _say_where(stage: Stage, account_id: str) -> None:
    heading("It keeps running. Where everything is:\n")
    say("settings", f"{stage.folder / 'scaivaultd.toml'}")
    say("log", f"{stage.folder / 'daemon/log'}")
    say("NATS", f"{stage.nats_login()['server']}, with the login in {stage.nats_login_file}")
    say("REST", f"over the UNIX socket {stage.rest_socket}")
    say("CA", f"{stage.directory_url}, account {account_id}")
    say("DNS", f"{' and '.join(NAME_SERVERS)}, port {stage.dns_port}, zone {ZONE}; provider {PROVIDER}")


def _say_what_to_type(stage: Stage, account_id: str) -> None:
    issue = [
        f'{{"account_id": "{account_id}",',
        f'    "domains": ["*.apps.{ZONE}"], "challenge_type": "dns-01"}}',
    ]
    test = json.dumps({"id": PROVIDER, "domain": f"apps.{ZONE}"})
    heading("Try, with `nats` of the NATS project, `curl` and `dig`:\n")
    plain(f"  LOGIN={stage.nats_login_file}")
    plain("  export NATS_URL=$(python3 -c \\")
    plain('    \'import json, sys; print(json.load(open(sys.argv[1]))["url"])\' "$LOGIN")')
    plain(f"  nats subscribe '{EVENTS_ROOT}.>' &")
    plain(f"  nats request {ROOT}.pki.certificates.list '{{}}'")
    plain(f"  nats request --timeout 30s {ROOT}.pki.dns_providers.test \\")
    plain(f"    '{test}'")
    plain(f"  nats request {ROOT}.pki.acme.issue \\")
    plain(f"    '{issue[0]}\n{issue[1]}'")
    plain(f"  API={stage.rest_socket}")
    plain('  curl -s --unix-socket "$API" http://localhost/v1/pki/certificates')
    plain(f"  dig @{NAME_SERVERS[1]} -p {stage.dns_port} +short TXT _acme-challenge.apps.{ZONE}")
