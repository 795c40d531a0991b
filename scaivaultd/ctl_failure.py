"""How a failed order is told: the CA's words, what the daemon saw at that moment, and what most likely helps.

`remedy` decides from the CA's problem type and what was seen; it knows nothing of the daemon but the order's reply.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from scaivaultd.ctl_output import moment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_ACME = "urn:ietf:params:acme:error:"
_WORDS_MAX = 1000
_NAMES_SHOWN = 10
_PORTS = {"http-01": 80, "tls-alpn-01": 443}

# The daemon's own words for what it saw (`net/own_answer.py`), by what they mean here; the first that fits counts.
_MEANINGS = (
    ("no_address", r"it has no address"),
    ("no_resolver", r"no name server gave"),
    ("refused", r"connection refused"),
    ("silent", r"no answer in time|no route to host|unreachable|timed out"),
    ("cut_off", r"connection was closed|connection reset|no valid HTTP answer"),
    ("missing", r"status 404"),
    ("denied", r"status (401|403)"),
    ("broken", r"status 5\d\d"),
    ("redirect", r"redirect"),
    ("other_answer", r"another answer|status \d+"),
    ("no_alpn", r"does not speak acme-tls/1"),
    ("no_sni", r"no answer for this name"),
    ("other_certificate", r"its certificate"),
    ("no_tls", r"TLS handshake failed"),
)


class Case(NamedTuple):
    """One name that stands against an order: by which problem, in whose words, and what was seen of it."""

    name: str
    challenge: str
    problem: str
    words: str
    seen: Sequence[Mapping[str, Any]] = ()
    subproblems: Sequence[Mapping[str, Any]] = ()
    is_from_ca: bool = True

    @property
    def of_challenge(self) -> list[Mapping[str, Any]]:
        """What was seen where the CA looks for the challenge."""
        return [each for each in self.seen if each["check"] == self.challenge]

    @property
    def bad(self) -> list[Mapping[str, Any]]:
        """Those places that do not have what the CA wants."""
        return [each for each in self.of_challenge if each.get("ok") is False]

    @property
    def good(self) -> list[Mapping[str, Any]]:
        """Those that have it."""
        return [each for each in self.of_challenge if each.get("ok")]

    @property
    def places(self) -> str:
        """Where it is not, for a sentence."""
        shown = [each["where"] for each in self.bad if each.get("where")][:3]
        return " and ".join(shown) or self.name

    def first_bad(self, check: str) -> Mapping[str, Any] | None:
        """What another look found wrong, if it did."""
        return next((each for each in self.seen if each["check"] == check and each.get("ok") is False), None)


def lines(order: Mapping[str, Any]) -> list[str]:
    """The whole report on an order that has failed, or has had a setback."""
    error = order.get("error")
    if not error:
        return []
    told = [*_head(order, error)]
    cases = cases_of(order)
    for case in cases[:_NAMES_SHOWN]:
        told += ["", *_of_case(case, error)]
    if len(cases) > _NAMES_SHOWN:
        told += ["", f"and {len(cases) - _NAMES_SHOWN} more names; --json shows them all"]
    if not cases:
        told += _of_order(order, error)
    return [*told, *_afterwards(order, error)]


def cases_of(order: Mapping[str, Any]) -> list[Case]:
    """The names that stand against an order."""
    error = order.get("error") or {}
    return [
        Case(
            name=each["identifier"],
            challenge=each.get("challenge_type") or order["challenge_type"],
            problem=_short(each["type"]),
            words=each.get("detail", ""),
            seen=_seen_of(order, each["identifier"]),
            subproblems=each.get("subproblems") or (),
            is_from_ca=":" in each["type"],
        )
        for each in error.get("identifiers") or ()
    ]


def _seen_of(order: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    """What was seen after the CA had refused it; else what the checks before it and the name servers have shown."""
    seen = [*(order.get("evidence") or ()), *_before(order)]
    of_name = [each for each in seen if _base(each["identifier"]) == _base(name)]
    return of_name or [each for each in _in_dns(order) if _base(each["identifier"]) == _base(name)]


def _before(order: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for each in order.get("preflight") or ():
        if each["status"] in ("failed", "warning"):
            check = order["challenge_type"] if each["check"] == "reachability" else each["check"]
            yield {"identifier": each["identifier"], "check": check, "saw": each["detail"], "ok": False}


def _in_dns(order: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for record in order.get("dns_records") or ():
        for each in record.get("verdicts") or ():
            yield {
                "identifier": record["identifier"],
                "check": "dns-01",
                "where": f"{each['server']} ({each['address']})" if each["address"] else each["server"],
                "saw": each.get("detail") or each["answer"],
                "ok": None if each["answer"] == "skipped" else each["answer"] == "complete",
            }


def remedy(case: Case) -> str | None:
    """The one thing that most likely helps with a name; None: it is no matter of the name."""
    if not case.is_from_ca and not case.bad and not case.first_bad("caa"):
        return None
    for rule in (_of_caa, _of_dnssec, _of_the_ca, *_RULES.get(case.challenge, ())):
        if told := rule(case):
            return told
    return _UNSEEN.get(case.challenge, "Read the CA's words: they say what it wanted to see.")


def _of_caa(case: Case) -> str | None:
    found = case.first_bad("caa")
    if found or case.problem == "caa":
        record = f" What stands there: {found['saw']}." if found else ""
        return f"Change the CAA record so that it permits this CA (it may stand at a parent of the name).{record}"
    return None


def _of_dnssec(case: Case) -> str | None:
    found = case.first_bad("dnssec")
    if found or (case.problem in ("dns", "dnssec", "caa") and re.search(r"dnssec|bogus", case.words, re.I)):
        zone = found["where"] if found else case.name
        return (
            f"Mend DNSSEC of {zone}: it does not validate, so every CA refuses. Compare the DS record at the parent "
            "zone with the zone's keys; expired signatures are renewed by the zone's signer."
        )
    return None


def _of_the_ca(case: Case) -> str | None:
    return {
        "rateLimited": "Wait: the CA's rate limit is reached. `scaivaultctl limits` shows when the next may go.",
        "rejectedIdentifier": "Take the name out, or use another CA: this one does not certify it.",
        "unsupportedIdentifier": "Take the name out, or use another CA: this one does not certify its kind.",
        "not_offered": "Choose another --challenge, or another CA: this one does not offer it for the name.",
        "serverInternal": "Try again later: the CA itself had an internal error.",
        "userActionRequired": "Do what the CA asks for on the page it names, then order again.",
    }.get(case.problem)


def _without_a_name(case: Case) -> str | None:
    if _means(case, "no_address") or (case.problem == "dns" and not case.of_challenge):
        return (
            f"Give {case.name} an A or AAAA record that leads to this daemon's host; it has no address now. For a name "
            "without one, prove it by --challenge dns-01."
        )
    if _means(case, "no_resolver"):
        return (
            "Look after DNS: the name servers of the name, or this host's resolver, do not answer. "
            f"`scaivaultctl dns trace {case.name}` shows where it ends."
        )
    return None


def _over_ipv6(case: Case) -> str | None:
    if case.bad and case.good and all(each["where"].startswith("[") for each in case.bad):
        return (
            f"Take the AAAA record away, or have this daemon answer there: over IPv6 ({case.places}) the name leads "
            "elsewhere, and CAs prefer IPv6. Over IPv4 all is well."
        )
    return None


def _at_one_address(case: Case) -> str | None:
    if case.bad and case.good:
        return (
            f"Take {case.places} out of DNS, or forward the challenge from there to this daemon: the name has several "
            "addresses, the CA takes any of them, and that one has not the answer."
        )
    return None


def _by_port(case: Case) -> str | None:
    port = _PORTS[case.challenge]
    if _means(case, "refused"):
        return (
            f"Have something listen at {case.places}: nothing does. If that is this host, see which address the daemon "
            f"binds (`scaivaultctl status`) and that port {port} leads there; if it is another, point the name here."
        )
    if _means(case, "silent"):
        return (
            f"Open port {port} to the world at {case.places}: no answer comes from there. Look at the firewall, the "
            "cloud's security group, or the router's port forwarding, and whether the address is this host's at all."
        )
    return None


def _by_web_server(case: Case) -> str | None:
    here = f"another web server answers at {case.places}"
    path = "/.well-known/acme-challenge/"
    if _means(case, "missing", "other_answer"):
        return (
            f"Forward {path} to this daemon: {here}. If it is on this host, docs/how-to/share-ports.md has the lines "
            "for nginx and others; if it is not, the name leads to a wrong host."
        )
    if _means(case, "redirect"):
        return (
            f"Leave {path} out of the redirect, and forward it to this daemon: {here} and sends the CA elsewhere. A "
            "redirect to https on the same host works if that forwards the path."
        )
    if _means(case, "denied"):
        return f"Let everybody read {path} and forward it to this daemon: {here} and asks for permission."
    if _means(case, "broken", "cut_off"):
        return (
            f"Look at the log of the web server or balancer at {case.places}: it takes the connection and fails. Its "
            f"way to this daemon for {path} may be broken."
        )
    return None


def _by_tls(case: Case) -> str | None:
    here = f"at {case.places} another server ends TLS"
    if _means(case, "no_alpn", "other_certificate", "no_tls", "no_sni", "cut_off"):
        return (
            f"Pass connections that ask for acme-tls/1 through to this daemon: {here} (docs/how-to/share-ports.md), "
            "or prove the name by --challenge http-01 or dns-01."
        )
    return None


def _seen_from_here(case: Case) -> str | None:
    if case.bad or not case.good:
        return None
    inside = [_host(each["where"]) for each in case.good]
    outside = re.match(r"([0-9A-Fa-f.:]+[0-9A-Fa-f]): ", case.words)
    if outside and outside[1] not in inside:
        return (
            f"Make DNS say the same inside and outside: the CA went to {outside[1]}, from here the name is at "
            f"{' and '.join(inside)}. If the record has just changed, wait until its old TTL has passed."
        )
    return (
        f"Look for what treats the CA otherwise than this host, from where all is well: a firewall or geo-block before "
        f"port {_PORTS[case.challenge]}, or DNS that answers differently outside. CAs look from several countries."
    )


def _by_txt(case: Case) -> str | None:
    written = next((each for each in case.bad if "the value was written at" in each["saw"]), None)
    if written is not None:
        return (
            "Let the DNS provider follow CNAMEs, or name the one that serves the target: the CA looks at "
            f"{written['where']}, and the value was written elsewhere. `scaivaultctl dns trace {_base(case.name)}`."
        )
    if case.bad and case.good:
        return (
            f"Wait for, or mend, the transfer of the zone: {case.places} has not the TXT value that the other name "
            "servers have. If it lags always, raise `propagation_timeout` of the DNS provider."
        )
    if case.bad and any(not each.get("where") for each in case.bad):
        return f"Mend the delegation: {case.bad[0]['saw']}. `scaivaultctl dns trace {_base(case.name)}` shows the way."
    if case.bad:
        return (
            "See that the DNS provider writes to the zone that the world asks: no authoritative server has the TXT "
            f"value. `scaivaultctl dns trace {_base(case.name)}` shows both; `dns provider test` tries it."
        )
    if case.good:
        return (
            "Order again in a few minutes: every name server has the value, so the CA's resolver remembered an older "
            "answer. If it happens again, lower the TTL of the TXT record or choose propagation `delay`."
        )
    return None


_RULES: dict[str, tuple[Callable[[Case], str | None], ...]] = {
    "http-01": (_without_a_name, _over_ipv6, _at_one_address, _by_port, _by_web_server, _seen_from_here),
    "tls-alpn-01": (_without_a_name, _over_ipv6, _at_one_address, _by_port, _by_tls, _seen_from_here),
    "dns-01": (_by_txt,),
}
_UNSEEN = {
    "http-01": "See that port 80 of the name's addresses can be reached from the internet and leads to this daemon.",
    "tls-alpn-01": "See that port 443 of the name's addresses can be reached from the internet and leads to this "
    "daemon, without anything that ends TLS on the way.",
    "dns-01": "See with `scaivaultctl dns trace` where the name leads, and with `dns provider test` that it can be "
    "written.",
}


def order_remedy(error: Mapping[str, Any]) -> str:
    """The one thing that most likely helps where no single name is to blame."""
    problem = error.get("acme") or {}
    kind = _short(problem.get("type", ""))
    if error.get("kind") != "permanent" and (error.get("limit") or kind == "rateLimited"):
        return f"Wait{_until(error)}: the CA's rate limit is reached. `scaivaultctl limits` shows what is left."
    if kind in ("accountDoesNotExist", "unauthorized") or error["code"] == "account_unusable":
        return (
            "Look at the account with `scaivaultctl account show`: the CA does not serve it. If it is deactivated or "
            "unknown there, register another (`scaivaultctl account create`) and order with that."
        )
    if kind == "userActionRequired" and problem.get("instance"):
        return f"Visit {problem['instance']}: the CA waits for a person. The order goes on by itself afterwards."
    return str(error.get("remedy") or f"`scaivaultctl explain {error['code']}` tells more.")


def _until(error: Mapping[str, Any]) -> str:
    return f" until {moment(error['retry_at'])}" if error.get("retry_at") else ""


def _means(case: Case, *meanings: str) -> bool:
    return any(meaning_of(each["saw"]) in meanings for each in case.bad)


def meaning_of(saw: str) -> str | None:
    """What the daemon's words for what it saw amount to."""
    return next((meaning for meaning, words in _MEANINGS if re.search(words, saw)), None)


def _head(order: Mapping[str, Any], error: Mapping[str, Any]) -> list[str]:
    names = ", ".join(order["domains"][:3]) + (f" and {len(order['domains']) - 3} more" * (len(order["domains"]) > 3))
    how = "has failed" if order["status"] == "invalid" else "had a setback"
    if order["status"] == "deactivated":
        how = "was given up"
    return _wrapped(f"Order {order['order_id']} {how} ({error['code']}): {names}", "")


def _of_case(case: Case, error: Mapping[str, Any]) -> list[str]:
    whose = "The CA says" if case.is_from_ca else "What stands in the way"
    return [
        f"{clean(case.name)} ({case.challenge})",
        *_paragraph(whose, f"{case.problem}: {case.words}"),
        *_details(case.subproblems),
        *_sights(case.seen),
        *_paragraph("Most likely remedy", remedy(case) or order_remedy(error)),
    ]


def _of_order(order: Mapping[str, Any], error: Mapping[str, Any]) -> list[str]:
    acme = error.get("acme")
    told = (
        [*_paragraph("The CA says", _problem_words(acme)), *_details(acme.get("subproblems") or ())]
        if acme
        else _paragraph("What stands in the way", error["detail"])
    )
    return [*told, *_sights(list(_before(order))), *_paragraph("Most likely remedy", order_remedy(error))]


def _problem_words(problem: Mapping[str, Any]) -> str:
    name = f"{problem['identifier']}: " if problem.get("identifier") else ""
    return f"{name}{_short(problem['type'])}: {problem.get('detail', '')}"


def _details(problems: Sequence[Mapping[str, Any]]) -> list[str]:
    return [line for each in problems for line in _wrapped(_problem_words(each), "      ")]


def _sights(seen: Sequence[Mapping[str, Any]]) -> list[str]:
    marks = {True: "ok", False: "NO", None: "? "}
    told = [
        line
        for each in seen
        for line in _wrapped(
            ": ".join(filter(None, (each.get("where"), each["saw"]))), "        ", f"    {marks[each.get('ok')]}  "
        )
    ]
    return ["  What was seen from here:", *told] if told else []


def _afterwards(order: Mapping[str, Any], error: Mapping[str, Any]) -> list[str]:
    if order["status"] not in ("invalid", "deactivated") and order.get("next_try_at"):
        return ["", f"It is tried again at {moment(order['next_try_at'])}."]
    if order.get("renews") and error.get("retry_at"):
        return ["", f"The renewal is tried again at {moment(error['retry_at'])}."]
    return []


def _paragraph(title: str, text: str) -> list[str]:
    return [f"  {title}:", *_wrapped(text, "    ")]


def _wrapped(text: str, indent: str, first: str | None = None) -> list[str]:
    import shutil
    import textwrap

    width = max(40, min(shutil.get_terminal_size().columns, 100))
    return textwrap.wrap(
        clean(text),
        width,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def clean(text: str) -> str:
    """A stranger's words on one line, without what would move the cursor, and no longer than anybody reads."""
    plain = clean_line(" ".join(text.split()))
    return plain if len(plain) <= _WORDS_MAX else f"{plain[:_WORDS_MAX]}..."


def clean_line(text: str) -> str:
    """A line without what would move the cursor, its indentation kept."""
    return "".join(each for each in text if each.isprintable())


def _short(problem_type: str) -> str:
    return problem_type.removeprefix(_ACME)


def _base(name: str) -> str:
    return name.removeprefix("*.")


def _host(where: str) -> str:
    return where.rpartition(":")[0].strip("[]")
