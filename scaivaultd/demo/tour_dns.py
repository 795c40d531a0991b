"""The guided run's DNS: the provider, where a name leads, what each name server says, and that nothing stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scaivaultd.demo.process import until
from scaivaultd.demo.tour_page import say
from scaivaultd.demo.tour_stage import NAME_SERVERS, TSIG_KEY_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaivaultd.demo.tour_caller import Caller
    from scaivaultd.demo.tour_stage import Stage

PROVIDER = "demo-dns"
SECRET_PATH = "demo/tsig"  # noqa: S105 - where it is kept, not what it is
POLLING_SECONDS = 0.5
GONE_SECONDS = 15.0


async def create_provider(caller: Caller, stage: Stage) -> None:
    """Store the TSIG key, then a provider that refers to it."""
    secret = await caller.ask("secrets.put", path=SECRET_PATH, value=stage.tsig_secret)
    say("secret", f"{SECRET_PATH}, version {secret['version']}: sealed, to be used and never read back")
    config = {
        "server": NAME_SERVERS[0],
        "port": stage.dns_port,
        "tsig_key_name": TSIG_KEY_NAME,
        "tsig_secret_path": SECRET_PATH,
        "polling_interval": POLLING_SECONDS,
    }
    provider = await caller.ask("pki.dns_providers.create", name=PROVIDER, type="rfc2136", config=config)
    say("provider", f"{provider['name']} is {provider['status']}: {provider['type']}, updates signed by TSIG")


async def show_trace(caller: Caller, name: str) -> None:
    """Where the challenge of a name would be written, and what is there now."""
    trace = await caller.ask("pki.dns_providers.trace", name=name)
    say("trace", f"{trace['target']} is in zone {trace['zone']}, written by {trace['dns_provider']['name']}")
    for answer in trace["answers"]:
        say("", _verdict(answer))
    for problem in trace["problems"]:
        say("", f"problem: {problem}")


async def show_gone(caller: Caller, name: str) -> None:
    """Wait until no name server has a value any more; raises TimeoutError."""
    answers: list[Any] = []

    async def is_gone() -> bool:
        trace = await caller.quietly_ask("pki.dns_providers.trace", name=name)
        answers[:] = trace["answers"]
        return all(each["answer"] == "absent" for each in answers)

    await until(is_gone, f"the values of {name} are gone from DNS", GONE_SECONDS)
    say("cleaned up", f"no values left on {' and '.join(each['server'] for each in answers)}")


class Verdicts:
    """Tells what changes: a server's answer, and that all have it."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def show(self, records: Sequence[Any]) -> None:
        """Tell what is new in an order's `dns_records`."""
        for record in records:
            # Both are left out of the reply until somebody has been asked.
            when = f"{record.get('seconds', 0.0):.1f} s"
            for verdict in record.get("verdicts", ()):
                self._tell("verdict", when, _verdict(verdict))
            if record["status"] == "visible":
                self._tell("visible", when, "on all name servers, twice in a row; now the CA may look")

    def _tell(self, label: str, when: str, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            say(label, f"{when}: {text}")


def _verdict(verdict: Any) -> str:
    # The port is the same for all and has been said; that an answer without an error has none goes without saying.
    address = verdict["address"].rpartition(":")[0]
    detail = verdict.get("detail", "").removeprefix("NOERROR, ")
    return f"{verdict['server']} ({address}) {verdict['answer']}{f': {detail}' if detail else ''}"
