"""`scaivaultctl explain | commands`: what the daemon's words mean; no daemon is asked."""

from __future__ import annotations

import difflib
from typing import Any

import click

from scaivaultd.ctl_output import wrapped
from scaivaultd.ctl_session import Verb, refuse, show, table, with_output

_PAGE = "docs/reference/errors.md"


@click.command(cls=Verb)
@click.argument("code", required=False)
@with_output
def explain(code: str | None, as_json: bool) -> None:
    """Explain an error CODE; without one, list them all.

    It is one of the daemon's own codes, or a problem type of a CA, such as caa or
    urn:ietf:params:acme:error:rateLimited.
    """
    if code is None:
        rows = [*_ours(), *_of_cas()]
        show(
            rows,
            lambda: table(("CODE", "OF", "MEANING"), [(row["code"], row["of"], row["title"]) for row in rows]),
            as_json=as_json,
        )
        return
    told = _explained(code)
    show(told, lambda: _lines(told), as_json=as_json)


def _ours() -> list[dict[str, Any]]:
    from scaivaultd.model.errors import WIRE_ERRORS
    from scaivaultd.model.explanations import REASONS

    return [
        {
            "code": error.code,
            "of": "daemon",
            "status": error.status,
            "title": f"{error.title}.",
            "reasons": list(REASONS[error.code]),
            "remedy": error.remedy,
            "retryable": error.retryable,
            "page": f"{_PAGE}#{error.code}",
        }
        for error in WIRE_ERRORS
    ]


def _of_cas() -> list[dict[str, Any]]:
    from scaivaultd.model.explanations import ACME_PROBLEMS

    return [
        {
            "code": each.name,
            "of": "CA",
            "type": each.type,
            "title": each.meaning,
            "remedy": each.remedy,
            "page": f"{_PAGE}#{each.name.lower()}",
        }
        for each in ACME_PROBLEMS
    ]


def _explained(code: str) -> dict[str, Any]:
    from scaivaultd.model.explanations import acme_problem

    known = {row["code"]: row for row in _ours()}
    wanted = code.removeprefix("urn:scaivault:error:")
    if (found := known.get(wanted.replace("-", "_").lower())) is not None:
        return found
    of_cas = {row["code"]: row for row in _of_cas()}
    if (problem := acme_problem(code)) is not None:
        return of_cas[problem.name]
    near = difflib.get_close_matches(wanted.rpartition(":")[2], [*known, *of_cas], n=2)
    return refuse(
        f"there is no error code {code!r}; "
        + (f"did you mean {' or '.join(map(repr, near))}?" if near else "`scaivaultctl explain` lists them")
    )


def _lines(told: dict[str, Any]) -> list[str]:
    number = f" ({told['status']})" if "status" in told else ""
    lines = [f"{told.get('type', told['code'])}{number}", *wrapped(told["title"])]
    if told.get("reasons"):
        lines += ["", "Typical reasons:"]
        for reason in told["reasons"]:
            first, *rest = wrapped(reason, indent="    ")
            lines += [f"  - {first.strip()}", *rest]
    lines += ["", "What to do:", *wrapped(told["remedy"])]
    if "retryable" in told:
        lines.append("  Asking again may help." if told["retryable"] else "  Asking again in the same way does not.")
    return [*lines, "", f"More: {told['page']}"]


@click.command(cls=Verb)
@click.option("--root", default="scaivault.v1", show_default=True, help="The subject root of the daemon.")
@with_output
def commands(root: str, as_json: bool) -> None:
    """List the commands that there are, with their NATS subjects."""
    from scaivaultd.api.commands import COMMANDS

    rows = [
        {
            "name": command.name,
            "subject": command.subject(root),
            "summary": command.summary,
            "permission": command.permission,
            "example": command.example,
        }
        for command in COMMANDS
    ]
    show(
        rows,
        lambda: [line for each in COMMANDS for line in (each.subject(root), f"  {each.summary}")],
        as_json=as_json,
    )
