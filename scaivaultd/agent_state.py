"""What the agent of a host is told by its file, and what it remembers between runs."""

from __future__ import annotations

import json
import os
import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One certificate that a host uses."""

    name: str | None = None
    id: str | None = None
    directory: Path
    layout: str = "certbot"
    owner: str | None = None
    group: str | None = None
    mode: str = "644"
    key_mode: str = "600"
    reload: list[str] = []
    reload_timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The agent's file."""

    address: str | None = None
    context: str | None = None
    token_file: Path | None = None
    ca_file: Path | None = None
    host: str = msgspec.field(default_factory=socket.gethostname)
    state_dir: Path = Path("/var/lib/scaivaultd-agent")
    certificate: list[Kept]


class Memory:
    """The cursor into the events, and for each folder what is not done yet; in one file, replaced as a whole."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "agent.json"
        try:
            told = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            told = {}
        found: dict[str, Any] = told if isinstance(told, dict) else {}
        self.after: int | None = found.get("after")
        self.reloads: dict[str, int] = dict(found.get("reloads", {}))
        self.confirmed: dict[str, str] = dict(found.get("confirmed", {}))

    def save(self) -> None:
        """Write it down; raises OSError."""
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        content: Mapping[str, Any] = {"after": self.after, "reloads": self.reloads, "confirmed": self.confirmed}
        new = self._file.with_name(f".agent-{secrets.token_hex(4)}")
        try:
            with new.open("w") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._file)
        except OSError:
            new.unlink(missing_ok=True)
            raise
