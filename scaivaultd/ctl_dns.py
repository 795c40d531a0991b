"""`scaivaultctl dns`: DNS providers, and where the challenge of a name goes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from scaivaultd.ctl_dns_settings import (
    Kept,
    kept_at,
    kind_of,
    kinds,
    members,
    missing,
    secrets,
    text_of_file,
    with_reference,
)
from scaivaultd.ctl_output import Line, coloured, moment, wrapped
from scaivaultd.ctl_session import (
    EX_FAILED,
    Group,
    confirm,
    facts,
    read_stdin,
    refuse,
    say,
    show,
    table,
    with_daemon,
    with_output,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from scaivaultd.ctl_dns_settings import Wanted
    from scaivaultd.ctl_session import Session
    from scaivaultd.plugin import DnsProviderKind


@click.group(cls=Group)
def dns() -> None:
    """DNS providers, which write the answers of dns-01 challenges."""


@dns.group("provider")
def provider() -> None:
    """DNS providers: a service, its zones, and the secrets for it.

    A provider is named by its name or its id.
    """


def _settings(verb: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        (
            click.option("--zone", "zones", multiple=True, metavar="ZONE", help="A zone it serves; may be repeated."),
            click.option(
                "--set",
                "given",
                multiple=True,
                metavar="KEY=VALUE",
                help="A setting; may be repeated. `dns provider types TYPE` lists them.",
            ),
            click.option(
                "--secret",
                "given_secrets",
                multiple=True,
                metavar="NAME=REFERENCE",
                help="A secret by reference; NAME=- asks for it, NAME=@FILE reads it, and puts it into the daemon's "
                "store.",
            ),
            click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing."),
        )
    ):
        verb = option(verb)
    return verb


@provider.command("add")
@click.argument("name")
@click.option("--type", "kind_name", required=True, help="Its kind, such as cloudflare; see `dns provider types`.")
@_settings
@click.option("--test", "domain", metavar="NAME", help="Try it afterwards: write where this name's challenge would be.")
@with_daemon
def provider_add(
    session: Session,
    name: str,
    kind_name: str,
    zones: tuple[str, ...],
    given: tuple[str, ...],
    given_secrets: tuple[str, ...],
    dry_run: bool,
    domain: str | None,
) -> None:
    """Configure a DNS provider called NAME.

    What its kind needs and was not given is asked for, on a terminal. Secrets go into the daemon's store, and only
    their references into the provider.
    """
    kind = kind_of(kind_name)
    if kind is None and (near := _near(kind_name)):
        say(f"The type {kind_name!r} is not installed here; did you mean {near}? The daemon will judge it.")
    config = members(kind, given)
    kept = _referred(name, config, secrets(kind, given_secrets), dry_run=dry_run)
    if lacking := missing(kind, config):
        kept += _asked_for(name, kind_name, config, lacking, dry_run=dry_run)
    request = {"name": name, "type": kind_name, "zones": list(zones), "config": config}
    if dry_run:
        session.would_call("pki.dns_providers.create", **request)
        return
    reply = _put_then(session, kept, lambda: session.call("pki.dns_providers.create", **request))
    if domain is None:
        session.show(reply, lambda: _provider(reply))
        say(f"Try it: scaivaultctl dns provider test {name}")
        return
    tested = _test(session, name, domain, None)
    session.show({"provider": reply, "test": tested}, lambda: [*_provider(reply), "", *_tested(tested)])
    if not tested["ok"]:
        sys.exit(EX_FAILED)


def _near(kind_name: str) -> str:
    import difflib

    return " or ".join(difflib.get_close_matches(kind_name, kinds(), n=2))


def _referred(name: str, config: dict[str, Any], wanted: Sequence[Wanted], *, dry_run: bool) -> list[Kept]:
    """Name every wanted secret in the settings; those that are to be stored first, with their texts."""
    typed = [each for each in wanted if each.is_typed]
    texts = iter([] if dry_run else _typed(typed))
    kept = []
    for each in wanted:
        if each.is_typed or each.source.startswith("@"):
            path = kept_at(name, each)
            with_reference(config, each, path)
            if not dry_run:
                kept.append(Kept(path, next(texts) if each.is_typed else text_of_file(each.source)))
        else:
            with_reference(config, each, each.source)
    return kept


def _typed(wanted: Sequence[Wanted]) -> list[str]:
    """The texts of secrets: from the terminal, or from standard input, a line each (one alone is all of it)."""
    if not wanted:
        return []
    if sys.stdin.isatty():
        return [str(click.prompt(each.name, hide_input=True, err=True)) for each in wanted]
    text = read_stdin().rstrip("\r\n")
    lines = [text] if len(wanted) == 1 else text.splitlines()
    if len(lines) != len(wanted) or not all(lines):
        names = ", ".join(each.name for each in wanted)
        refuse(f"standard input must hold a line for each of: {names}")
    return lines


def _asked_for(
    name: str, kind_name: str, config: dict[str, Any], lacking: Sequence[str], *, dry_run: bool
) -> list[Kept]:
    """Ask for what the kind demands, where there is somebody to ask."""
    if not sys.stdin.isatty() or dry_run:
        options = " ".join(
            f"--secret {each.removesuffix('_path')}=REFERENCE" if each.endswith("_path") else f"--set {each}=VALUE"
            for each in lacking
        )
        refuse(f"{kind_name} needs more: {options}; `scaivaultctl dns provider types {kind_name}` tells what they are")
    kind = kind_of(kind_name)
    kept: list[Kept] = []
    for each in lacking:
        if each.endswith("_path"):
            kept += _referred(name, config, secrets(kind, [each]), dry_run=False)
        else:
            config |= members(kind, [f"{each}={click.prompt(each, err=True)}"])
    return kept


def _put_then(session: Session, kept: Sequence[Kept], act: Callable[[], Any]) -> Any:
    """Store the secrets, then act; if that fails, say that they stay."""
    for each in kept:
        reply = session.call("secrets.put", path=each.path, value=each.value)
        say(f"Secret {reply['path']}: version {reply['version']}")
    try:
        return act()
    except SystemExit:
        for each in kept:
            say(f"The secret {each.path} stays; `scaivaultctl secret rm {each.path}` deletes it.")
        raise


@provider.command("ls")
@with_daemon
def provider_ls(session: Session) -> None:
    """List DNS providers."""
    found = session.all("pki.dns_providers.list")
    session.show(
        found,
        lambda: table(
            ("NAME", "TYPE", "STATUS", "ORIGIN", "ZONES"),
            [
                (each["name"], each["type"], each["status"], each["origin"], ", ".join(each["zones"]) or "asked for")
                for each in found
            ],
        ),
    )


@provider.command("show")
@click.argument("name", metavar="PROVIDER")
@with_daemon
def provider_show(session: Session, name: str) -> None:
    """Show one DNS provider."""
    reply = session.call("pki.dns_providers.get", id=name)
    session.show(reply, lambda: _provider(reply))


def _provider(reply: Mapping[str, Any]) -> list[str]:
    lines = facts(
        [
            ("id", reply["id"]),
            ("name", reply["name"]),
            ("type", reply["type"]),
            ("status", reply["status"]),
            ("zones", reply["zones"] or "the service is asked which it has"),
            ("origin", {"api": "a request", "file": "the configuration file"}[reply["origin"]]),
            ("changed", moment(reply["updated_at"])),
            *((key, _setting(value)) for key, value in sorted(reply["config"].items())),
        ]
    )
    return lines + (wrapped(reply["detail"]) if reply.get("detail") else [])


def _setting(value: Any) -> Any:
    return ", ".join(f"{name}: {each}" for name, each in value.items()) if isinstance(value, dict) else value


@provider.command("update")
@click.argument("name", metavar="PROVIDER")
@click.option("--name", "new_name", metavar="NAME", help="Another name.")
@_settings
@click.option("--unset", multiple=True, metavar="KEY", help="Take a setting away; may be repeated.")
@with_daemon
def provider_update(
    session: Session,
    name: str,
    new_name: str | None,
    zones: tuple[str, ...],
    given: tuple[str, ...],
    given_secrets: tuple[str, ...],
    dry_run: bool,
    unset: tuple[str, ...],
) -> None:
    """Change a DNS provider; what is not named stays.

    Zones are replaced as a whole.
    """
    if not (new_name or zones or given or given_secrets or unset):
        refuse("nothing to change; give --name, --zone, --set, --secret or --unset")
    found = session.call("pki.dns_providers.get", id=name)
    kind = kind_of(found["type"])
    config = dict(found["config"])
    for key in unset:
        if config.pop(key, None) is None:
            refuse(f"--unset {key}: it has no such setting; it has {', '.join(sorted(config)) or 'none'}")
    for key, value in members(kind, given).items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    kept = _referred(found["name"], config, secrets(kind, given_secrets), dry_run=dry_run)
    request = {
        "id": found["id"],
        "name": new_name,
        "zones": list(zones) or None,
        "config": config if config != found["config"] else None,
    }
    if dry_run:
        session.would_call("pki.dns_providers.update", **request)
        return
    reply = _put_then(session, kept, lambda: session.call("pki.dns_providers.update", **request))
    session.show(reply, lambda: _provider(reply))


@provider.command("rm")
@click.argument("name", metavar="PROVIDER")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_daemon
def provider_rm(session: Session, name: str, yes: bool) -> None:
    """Delete a DNS provider; its secrets stay."""
    found = session.call("pki.dns_providers.get", id=name)
    confirm(found["name"], f"DNS provider {found['name']} ({found['type']}) will be gone", yes=yes)
    reply = session.call("pki.dns_providers.delete", id=found["id"])
    session.show(reply, lambda: [f"{found['name']}: deleted"])


@provider.command("test")
@click.argument("name", metavar="PROVIDER")
@click.option("--domain", metavar="NAME", help="Write where the challenge of this name would be.")
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(1, 300),
    metavar="SECONDS",
    help="How long the value may take to appear; 60 unless given.",
)
@with_daemon
def provider_test(session: Session, name: str, domain: str | None, timeout_seconds: float | None) -> None:
    """Write a random value, see it on every name server, remove it.

    The exit code is 1 if it does not work.
    """
    reply = _test(session, name, domain, timeout_seconds)
    session.show(reply, lambda: list(_tested(reply)))
    if not reply["ok"]:
        sys.exit(EX_FAILED)


def _test(session: Session, name: str, domain: str | None, timeout_seconds: float | None) -> Any:
    session.expect(timeout_seconds or 60)
    return session.call("pki.dns_providers.test", id=name, domain=domain, timeout_seconds=timeout_seconds)


def _tested(reply: Mapping[str, Any]) -> Iterator[str]:
    if reply["record_name"]:
        yield f"{reply['record_name']} in zone {reply['zone'] or 'unknown'}"
    for step in reply["steps"]:
        status = coloured(f"{step['status']:<8}")
        yield Line(f"{step['name']:<8} {status} {step['seconds']:7.1f} s")
        if step["detail"]:
            yield from wrapped(step["detail"], indent="         ")
        if step["status"] != "ok":
            yield from _verdicts(step.get("verdicts", ()))
    yield f"{reply['name']}: {'works' if reply['ok'] else 'does not work'}"


def _verdicts(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    return table(
        ("", "SERVER", "ADDRESS", "VERDICT", "DETAIL"),
        [("", each["server"], each["address"], each["answer"], each.get("detail", "")) for each in verdicts],
    )


@provider.command("types")
@click.argument("kind_name", metavar="TYPE", required=False)
@with_output
def provider_types(kind_name: str | None, as_json: bool) -> None:
    """List the kinds of DNS providers that are installed here, or the settings of one TYPE."""
    known = kinds()
    if kind_name is None:
        rows = [{"type": each.name, "service": each.title} for each in sorted(known.values(), key=lambda one: one.name)]
        show(rows, lambda: table(("TYPE", "SERVICE"), [tuple(row.values()) for row in rows]), as_json=as_json)
        return
    if kind_name not in known:
        near = _near(kind_name)
        refuse(
            f"there is no type {kind_name!r} here; "
            + (f"did you mean {near}?" if near else "`scaivaultctl dns provider types` lists them")
        )
    settings = list(_settings_of(known[kind_name]))
    show(
        {"type": kind_name, "service": known[kind_name].title, "settings": settings},
        lambda: list(_type(known[kind_name], settings)),
        as_json=as_json,
    )


def _settings_of(kind: DnsProviderKind) -> Iterator[dict[str, str]]:
    from scaivaultd.plugin import ProviderSettings
    from scaivaultd.reference_providers import default_of, description_of, inspect_fields, type_words

    common = {field.name: field for field in inspect_fields(ProviderSettings)}
    # Its own first, then those that every kind has.
    for field in sorted(inspect_fields(kind.settings), key=lambda each: common.get(each.name) == each):
        yield {
            "name": field.name,
            "takes": type_words(field).replace("`", ""),
            "default": default_of(field).replace("`", ""),
            "meaning": description_of(field.type),
        }


def _type(kind: DnsProviderKind, settings: Sequence[Mapping[str, str]]) -> Iterator[str]:
    yield f"{kind.name}: {kind.title}"
    # The texts of kinds are Markdown, and long: the first paragraph is enough, and docs/providers has the rest.
    yield from wrapped(" ".join(kind.summary.strip().partition("\n\n")[0].split()).replace("**", "").replace("`", ""))
    for each in settings:
        default = "" if each["default"] in ("", "required") else f"; {each['default']} unless given"
        needed = " (required)" if each["default"] == "required" else ""
        name = each["name"].removesuffix("_paths").removesuffix("_path")
        option = f"--set {name}" if name == each["name"] else f"--secret {name}"
        yield ""
        yield f"{option}{needed}: {each['takes']}{default}"
        yield from wrapped(each["meaning"].replace("`", ""))


@dns.command("trace")
@click.argument("name")
@click.option("--provider", "dns_provider", metavar="PROVIDER", help="As if this one were named in an order.")
@with_daemon
def trace(session: Session, name: str, dns_provider: str | None) -> None:
    """Show where the dns-01 challenge of NAME goes; nothing is written.

    The CNAMEs, the zone and its name servers with their answers, the CAA records, and which provider would write. The
    exit code is 1 if something stands in the way.
    """
    reply = session.call("pki.dns_providers.trace", name=name, dns_provider=dns_provider)
    session.show(reply, lambda: _trace(reply))
    if reply["problems"]:
        sys.exit(EX_FAILED)


def _trace(reply: Mapping[str, Any]) -> list[str]:
    used = reply["dns_provider"]
    lines = facts(
        [
            ("name", reply["name"]),
            ("challenge", reply["challenge_name"]),
            *(("leads to", target) for target in reply["chain"]),
            ("written at", reply["target"]),
            ("zone", reply["zone"] or "not found"),
            ("provider", _candidate(used) if used else "none"),
            *(("or", _candidate(each)) for each in reply["candidates"] if not used or each["id"] != used["id"]),
            *_caa(reply["caa"]),
        ]
    )
    lines += [""] * bool(reply["name_servers"]) + table(
        ("NAME SERVER", "ADDRESS", "VERDICT", "DETAIL"),
        [*_answers(reply), *((each["name"], "none", "failed", each["error"]) for each in _lost(reply))],
    )
    for problem in reply["problems"]:
        first, *rest = wrapped(problem, indent="  ")
        lines += [f"! {first.strip()}", *rest]
    return lines if reply["problems"] else [*lines, "Nothing stands in the way."]


def _candidate(each: Mapping[str, Any]) -> str:
    detail = f": {each['detail']}" if each.get("detail") else ""
    return f"{each['name']} ({each['type']}), zone {each['zone'] or 'unknown'}{detail}"


def _caa(caa: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if caa is None:
        return [("CAA", "could not be looked up")]
    if not caa["records"]:
        return [("CAA", "none: every CA may issue")]
    return [(f"CAA of {caa['owner']}", f'{each["flags"]} {each["tag"]} "{each["value"]}"') for each in caa["records"]]


def _answers(reply: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for each in reply["answers"]:
        # Nothing is expected to be there: an empty answer of the right server is a good one.
        verdict = "ok" if each["answer"] in ("absent", "complete", "partial") else each["answer"]
        yield each["server"], each["address"], verdict, each.get("detail", "")


def _lost(reply: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [each for each in reply["name_servers"] if each.get("error")]
