"""What a check of `scaivaultctl doctor` is given, and what it finds."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from scaivaultd.ctl_client import Refused, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from scaivaultd.ctl_session import Session
    from scaivaultd.settings import Settings

Verdict = Literal["ok", "warning", "error", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What one check has seen. `remedy` says what to type or do; empty where all is well."""

    verdict: Verdict
    evidence: Sequence[str]
    remedy: str = ""


@dataclass(frozen=True)
class Check:
    """One check of the list."""

    id: str
    title: str
    run: Callable[[Host], Finding]


@dataclass
class Host:
    """This host and the daemon that was found on it. Shared by all checks, each in a thread of its own."""

    session: Session
    config: Path
    is_config_named: bool
    root: Path
    environment: Mapping[str, str]
    names: Sequence[str] = ()
    may_write: bool = False
    settings: Settings | None = None
    mistakes: Sequence[str] = ()
    away: str = ""
    """Why the daemon does not answer; empty when it does."""
    is_sealed: bool = False
    answers: dict[str, Any] = field(default_factory=dict)

    @property
    def has_config(self) -> bool:
        """Whether the daemon is configured on this host, as far as one can see."""
        return self.is_config_named or os.path.lexists(self.config)

    def ask(self, command: str, /, **members: Any) -> Any:
        """The daemon's reply, or None; `why` then tells why there is none."""
        if self.away:
            return None
        try:
            return self.session.attempt(command, **members)
        except Unreachable as error:
            self.away = str(error)
        except Refused as refused:
            self.is_sealed = self.is_sealed or refused.code == "sealed"
            self.answers[f"{command} refused"] = str(refused)
        return None

    def all(self, command: str) -> list[Any] | None:
        """Every item of a list, asked for once; None where the daemon does not say."""
        if command not in self.answers:
            found: list[Any] = []
            cursor = None
            while True:
                page = self.ask(command, limit=500, cursor=cursor)
                if page is None:
                    return None
                found += page["items"]
                if (cursor := page["next_cursor"]) is None:
                    break
            self.answers[command] = found
        return list(self.answers[command])

    def why(self, command: str) -> str:
        """Why the daemon does not say."""
        if self.away:
            return "the daemon does not answer"
        return str(self.answers.get(f"{command} refused", "the daemon does not say"))

    def without(self, command: str) -> Finding:
        """The finding of a check that needs that answer."""
        is_sealed = self.is_sealed and not self.away
        remedy = "Unseal it: `scaivaultctl unseal`, or bring its master key back." if is_sealed else ""
        return Finding("skipped", [self.why(command)], remedy)

    def trust_context(self) -> Any:
        """TLS as the daemon trusts CAs: the system's roots, and those of `[acme] trust_files`."""
        import ssl

        context = ssl.create_default_context()
        for path in self.settings.acme.trust_files if self.settings else ():
            try:
                context.load_verify_locations(path)
            except (OSError, ssl.SSLError):
                continue  # D01 tells of it
        return context
