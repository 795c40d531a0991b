"""`scaivaultctl agent`: keeps the certificate files of a host up to date."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scaivaultd import agent_files
from scaivaultd.ctl_client import TIMEOUT_SECONDS, Client, Misplaced, Refused, Unreachable
from scaivaultd.ctl_output import complain
from scaivaultd.ctl_places import place_of
from scaivaultd.ctl_session import EX_CONFIG, EX_FAILED, Session, Verb, with_output

if TYPE_CHECKING:
    from scaivaultd.agent_state import AgentConfig, Kept, Memory
    from scaivaultd.systemd import Notifier

_WAIT_SECONDS = 30.0
_FULL_SECONDS = 900.0
_PAUSE_SECONDS = 1.0
_BACKOFF_SECONDS = (5.0, 300.0)
_OF_ALL = ("unauthenticated", "standby", "storage_unavailable", "sealed", "timeout", "rate_limited")
"""Refusals that every certificate would get."""


@click.command(cls=Verb)
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    default=Path("/etc/scaivaultd/agent.toml"),
    show_default=True,
    help="What to keep up to date.",
)
@click.option("--once", is_flag=True, help="Look once and end: 0 if all is current, else 1.")
@with_output
def agent(file: Path, once: bool, as_json: bool) -> None:
    """Keep a host's certificate files up to date.

    Installs new versions, runs the reload commands and tells the daemon. Logs to standard error.
    """
    from scaivaultd.agent_state import Memory
    from scaivaultd.systemd import Notifier

    config = _config(file)
    notifier = Notifier(os.environ.pop("NOTIFY_SOCKET", None))
    running = _Agent(config, Memory(config.state_dir), as_json=as_json or not sys.stderr.isatty())
    if once:
        sys.exit(0 if running.look() else EX_FAILED)
    running.follow(notifier)


def _config(file: Path) -> AgentConfig:
    import msgspec

    from scaivaultd.agent_state import AgentConfig

    try:
        config = msgspec.toml.decode(file.read_bytes(), type=AgentConfig, dec_hook=_path)
    except OSError as error:
        complain(f"scaivaultctl: {file} cannot be read: {error.strerror}")
        sys.exit(EX_CONFIG)
    except (msgspec.DecodeError, ValueError, TypeError) as error:
        complain(f"scaivaultctl: {file}: {error}")
        sys.exit(EX_CONFIG)
    for number, each in enumerate(config.certificate, 1):
        if wrong := _mistake(each):
            complain(f"scaivaultctl: {file}: [[certificate]] {number}, {each.directory}: {wrong}")
            sys.exit(EX_CONFIG)
    return config


def _mistake(kept: Kept) -> str | None:
    from scaivaultd.ctl_export import NoRights, rights_of

    if (kept.name is None) == (kept.id is None):
        return "needs one of name and id"
    if kept.layout not in agent_files.LAYOUTS:
        return f"layout: has to be one of {', '.join(agent_files.LAYOUTS)}"
    if not kept.directory.is_absolute():
        return "directory: has to be an absolute path"
    try:
        rights_of(kept.owner, kept.group, kept.mode, kept.key_mode)
    except NoRights as error:
        return str(error)
    return None


def _path(kind: type, value: Any) -> Any:
    return kind(value)


def _pause(failures: int) -> float:
    low, high = _BACKOFF_SECONDS
    return float(min(high, low * 2 ** min(failures - 1, 10)) * random.uniform(0.5, 1.0))  # noqa: S311 - a jitter


class _Agent:
    def __init__(self, config: AgentConfig, memory: Memory, *, as_json: bool) -> None:
        self._config = config
        self._memory = memory
        self._as_json = as_json
        self._away = 0
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}

    def follow(self, notifier: Notifier) -> None:
        """Look at the start, at events, and now and then, until the process ends."""
        notifier.ready("Starting")
        while True:
            is_good = self.look()
            notifier.status("All certificates are current" if is_good else "Not all is current; see the log")
            if self._away:
                time.sleep(_pause(self._away))
            else:
                self._wait_for_news()

    def look(self) -> bool:
        """Bring everything up to date that is not to wait for its next try; whether all is current."""
        now = time.monotonic()
        due = [each for each in self._config.certificate if self._not_before.get(str(each.directory), now) <= now]
        try:
            session = self._session()
            if self._memory.after is None:
                # Before the look: what happens during it is news afterwards.
                self._memory.after = session.attempt("events.list", limit=1)["next_after"]
            states = [self._attempt(session, each) for each in due]
            results = self._reload([each for each in states if each is not None])
            good = {str(each[0].directory) for each in results if self._confirm(session, *each)}
        except (Misplaced, Unreachable, Refused) as error:
            self._away += 1
            self._log("agent.daemon_away" if isinstance(error, Unreachable) else "agent.refused", error=str(error))
            self._save()
            return False
        self._away = 0
        for each in due:
            self._count(str(each.directory), is_good=str(each.directory) in good)
        return self._save() and not self._failures

    def _count(self, place: str, *, is_good: bool) -> None:
        """Let what failed wait for its next try, and nothing else."""
        if is_good:
            self._failures.pop(place, None)
            self._not_before.pop(place, None)
        else:
            self._failures[place] = self._failures.get(place, 0) + 1
            self._not_before[place] = time.monotonic() + _pause(self._failures[place])

    def _save(self) -> bool:
        try:
            self._memory.save()
        except OSError as error:
            self._log("agent.state_not_saved", error=str(error))
            return False
        return True

    def _session(self) -> Session:
        config = self._config
        given = {
            "at_address": config.address,
            "at_context": config.context,
            "at_token_file": config.token_file,
            "at_ca_file": config.ca_file,
        }
        place = place_of(given, os.environ)
        return Session(Client(place.address, place.token, place.ca_file, TIMEOUT_SECONDS), as_json=True)

    def _attempt(self, session: Session, kept: Kept) -> tuple[Kept, str, int] | None:
        try:
            return self._install(session, kept)
        except (Refused, agent_files.Unsafe, OSError, LookupError) as error:
            if isinstance(error, Refused) and error.code in _OF_ALL:
                raise
            self._log("agent.install_failed", certificate=kept.id or kept.name, error=str(error))
            return None

    def _install(self, session: Session, kept: Kept) -> tuple[Kept, str, int]:
        from scaivaultd.ctl_export import parts_of, rights_of

        found = self._find(session, kept)
        rights = rights_of(kept.owner, kept.group, kept.mode, kept.key_mode)
        has_key = found["has_private_key"]
        place = str(kept.directory)
        expected = agent_files.Parts(found["id"], found["version"], "", "", "" if has_key else None)
        # By what the folder tells of itself: a key is not fetched, and its reading audited, at every event.
        if not agent_files.looks_installed(kept.directory, expected, kept.layout, rights):
            parts = parts_of(session, found["id"], found["version"], has_key=has_key)
            # Written down first: whoever dies between the two runs the reload all the same.
            self._memory.reloads[place] = parts.version
            self._memory.save()
            agent_files.install(kept.directory, parts, kept.layout, rights)
            self._log("agent.installed", certificate_id=parts.certificate_id, version=parts.version, directory=place)
        return kept, expected.certificate_id, expected.version

    def _find(self, session: Session, kept: Kept) -> Any:
        if kept.id is not None:
            return session.attempt("pki.certificates.get", id=kept.id)
        items = session.attempt("pki.certificates.list", domain=kept.name, status="valid", limit=2)["items"]
        if len(items) != 1:
            number = "no valid certificate is" if not items else "several certificates are"
            raise LookupError(f"{number} for {kept.name}; name it by its id")
        return session.attempt("pki.certificates.get", id=items[0]["id"])

    def _reload(self, states: list[tuple[Kept, str, int]]) -> list[tuple[Kept, str, int, str | None]]:
        """Run what has to be run, each command once."""
        from scaivaultd.ctl_export import reload_fails

        ran: dict[tuple[str, ...], str | None] = {}
        results = []
        for kept, certificate_id, version in states:
            wrong = None
            if str(kept.directory) in self._memory.reloads:
                command = tuple(kept.reload)
                if command and command not in ran:
                    ran[command] = reload_fails(command, kept.reload_timeout_seconds)
                    self._log("agent.reload_failed" if ran[command] else "agent.reloaded", error=ran[command])
                wrong = ran.get(command)
                if wrong is None:
                    del self._memory.reloads[str(kept.directory)]
            results.append((kept, certificate_id, version, wrong))
        return results

    def _confirm(self, session: Session, kept: Kept, certificate_id: str, version: int, wrong: str | None) -> bool:
        place = str(kept.directory)
        if wrong is None and self._memory.confirmed.get(place) == f"{certificate_id} {version}":
            return True
        error = None if wrong is None else wrong[:1000]
        try:
            session.attempt(
                "pki.certificates.confirm",
                id=certificate_id,
                host=self._config.host,
                version=version,
                where=place,
                error=error,
            )
        except Refused as failure:
            if failure.code in _OF_ALL:
                raise
            self._log("agent.confirm_failed", certificate_id=certificate_id, error=str(failure))
            return False
        if wrong is None:
            self._memory.confirmed[place] = f"{certificate_id} {version}"
        else:
            self._memory.confirmed.pop(place, None)
        return wrong is None

    def _wait_for_news(self) -> None:
        """Return when there are events of these certificates, when one is to be tried again, or after a while."""
        until = min([time.monotonic() + _FULL_SECONDS, *self._not_before.values()])
        while (left := until - time.monotonic()) > 0:
            try:
                session = self._session()
                session.expect(_WAIT_SECONDS)
                page = session.attempt(
                    "events.list",
                    after=self._memory.after,
                    type="certificate.*",
                    wait_seconds=round(min(_WAIT_SECONDS, left), 1),
                )
            except (Refused, Unreachable, Misplaced) as error:
                if isinstance(error, Refused) and error.code == "invalid_request":
                    self._memory.after = None  # a restored daemon is behind us
                self._log("agent.events_failed", error=str(error))
                self._away += 1
                time.sleep(_pause(self._away))
                return
            self._memory.after = page["next_after"]
            if self._is_news(page["items"]):
                return
            time.sleep(_PAUSE_SECONDS)

    def _is_news(self, events: list[Any]) -> bool:
        """Whether any is about a certificate of this host; one that failed before is tried again at once then."""
        is_any = False
        for event in events:
            # Its own confirmations come back as events, and are no news.
            if event["type"] in ("certificate.deployed", "certificate.deploy_overdue"):
                continue
            names = event["data"].get("domains")
            for kept in self._config.certificate:
                if event["resource_id"] == kept.id or (kept.name and (names is None or kept.name in names)):
                    is_any = True
                    self._not_before.pop(str(kept.directory), None)
        return is_any

    def _log(self, event: str, **fields: Any) -> None:
        told = {name: value for name, value in fields.items() if value is not None}
        if self._as_json:
            at = datetime.now(UTC).isoformat()
            click.echo(json.dumps({"timestamp": at, "event": event, **told}), err=True)
        else:
            complain(f"{event} " + " ".join(f"{name}={value}" for name, value in told.items()))
