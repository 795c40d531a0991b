"""Where the daemon is and who asks: flags, then the environment, then a context, then the packaged unit's socket.

A context is a file in `contexts/` of the person's configuration directory. It may hold a token, so that one which
others may read or write is refused. The token of a context goes to the address of that context and to no other.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scaivaultd.agent_files import Rights, replace_file
from scaivaultd.ctl_client import DEFAULT_SOCKET, Misplaced, address_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MEMBERS = ("address", "token", "token_file", "ca_file")


class Place(NamedTuple):
    """Where to ask, and as whom. `said_by` tells which source named the address."""

    address: str
    token: str | None = None
    ca_file: Path | None = None
    said_by: str = ""

    def __repr__(self) -> str:
        return f"Place({self.address!r})"


class Context(NamedTuple):
    """What a context's file says."""

    address: str
    token: str | None = None
    token_file: Path | None = None
    ca_file: Path | None = None

    def __repr__(self) -> str:
        return f"Context({self.address!r})"


def place_of(given: Mapping[str, Any], environment: Mapping[str, str]) -> Place:
    """The daemon that is meant; `given` are the options of every verb.

    Raises:
        Misplaced: an address, a token or a context is no good.
    """
    name = given.get("at_context") or environment.get("SCAIVAULT_CONTEXT")
    is_named = bool(given.get("at_context"))
    address, config = given.get("at_address"), given.get("at_config")
    context: Context | None = None
    # A context that is not used may be broken.
    if not address and not config and (is_named or not environment.get("SCAIVAULT_ADDR")):
        name = name or current(environment)
        context = read(name, environment) if name else None
    token_file = given.get("at_token_file")
    token = None if token_file is None else _token_of_file(token_file)
    if token is None and not (is_named and context and (context.token or context.token_file)):
        token = token_in(environment.get("SCAIVAULT_TOKEN", ""), "$SCAIVAULT_TOKEN")
    if token is None and context is not None:
        token = _of_context(context, str(name))
    ca_file = given.get("at_ca_file") or _path(environment.get("SCAIVAULT_CA_FILE")) or (context and context.ca_file)
    if context is not None:
        return Place(address_of(context.address, None, {}), token, ca_file, f"context {name}")
    said_by = "--address" if address else "--config" if config else "$SCAIVAULT_ADDR"
    where = address_of(address, config, environment)
    return Place(where, token, ca_file, "the default" if where == DEFAULT_SOCKET and not address else said_by)


def _of_context(context: Context, name: str) -> str | None:
    if context.token_file is not None:
        return _token_of_file(context.token_file)
    return None if context.token is None else token_in(context.token, f"context {name}")


def _token_of_file(file: Path) -> str:
    try:
        text = file.read_bytes().decode("ascii", "replace")
    except OSError as error:
        raise Misplaced(f"{file} cannot be read: {error.strerror}") from error
    if (token := token_in(text, str(file))) is None:
        raise Misplaced(f"what {file} holds is no token: one is scvt_, letters and digits")
    return token


def token_in(text: str, source: str) -> str | None:
    """The token in a text, None if that is empty.

    Raises:
        Misplaced: it is no token.
    """
    if not (token := text.strip()):
        return None
    if not re.fullmatch(r"[0-9A-Za-z_]+", token):
        raise Misplaced(f"what {source} holds is no token: one is scvt_, letters and digits")
    return token


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def directory(environment: Mapping[str, str]) -> Path:
    """Where the person's configuration is (XDG base directories)."""
    given = environment.get("XDG_CONFIG_HOME", "")
    base = Path(given) if given.startswith("/") else Path(environment.get("HOME") or "~").expanduser() / ".config"
    return base / "scaivault"


def file_of(name: str, environment: Mapping[str, str]) -> Path:
    """The file of a context.

    Raises:
        Misplaced: that is no name.
    """
    if not _NAME.fullmatch(name):
        raise Misplaced(f"{name!r} is no name of a context: letters, digits, '.', '_' and '-', at most 64")
    return directory(environment) / "contexts" / f"{name}.toml"


def names(environment: Mapping[str, str]) -> list[str]:
    """The contexts that there are."""
    found = (directory(environment) / "contexts").glob("*.toml")
    return sorted(each.stem for each in found if _NAME.fullmatch(each.stem))


def current(environment: Mapping[str, str]) -> str | None:
    """The context that was chosen by `context use`."""
    try:
        return (directory(environment) / "current-context").read_text().strip() or None
    except (OSError, ValueError):
        return None


def choose(name: str | None, environment: Mapping[str, str]) -> None:
    """Use a context from now on, or none.

    Raises:
        Misplaced: that cannot be written down.
    """
    file = directory(environment) / "current-context"
    try:
        if name is None:
            file.unlink(missing_ok=True)
            return
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(file, f"{name}\n".encode(), Rights())
    except OSError as error:
        raise Misplaced(f"{file} cannot be written: {error.strerror}") from error


def remove(name: str, environment: Mapping[str, str]) -> None:
    """Delete a context.

    Raises:
        Misplaced: it cannot be deleted.
    """
    file = file_of(name, environment)
    try:
        file.unlink()
        if current(environment) == name:
            choose(None, environment)
    except OSError as error:
        raise Misplaced(f"{file} cannot be deleted: {error.strerror}") from error


def read(name: str, environment: Mapping[str, str]) -> Context:
    """What a context says.

    Raises:
        Misplaced: it is not there, others may read or write it, or it says what is no context.
    """
    file = file_of(name, environment)
    try:
        with file.open("rb") as opened:
            state = os.fstat(opened.fileno())
            if stat.S_IMODE(state.st_mode) & 0o077 or state.st_uid not in (os.geteuid(), 0):
                raise Misplaced(f"{file} may be read or changed by others, and can hold a token; `chmod 600` it")
            said = tomllib.load(opened)
    except FileNotFoundError as error:
        known = ", ".join(names(environment)) or "none"
        raise Misplaced(f"there is no context {name!r}; there are: {known}") from error
    except OSError as error:
        raise Misplaced(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Misplaced(f"{file} is not TOML: {error}") from error
    if others := said.keys() - set(_MEMBERS):
        raise Misplaced(f"{file}: {min(others)!r} is no member of a context; those are {', '.join(_MEMBERS)}")
    if not all(isinstance(each, str) for each in said.values()) or "address" not in said:
        raise Misplaced(f"{file}: a context has an address, and every member is a text")
    return Context(said["address"], said.get("token"), _path(said.get("token_file")), _path(said.get("ca_file")))


def write(name: str, context: Context, environment: Mapping[str, str]) -> Path:
    """Write a context's file, for its owner alone.

    Raises:
        Misplaced: the name is none, or the directory cannot be written.
    """
    file = file_of(name, environment)
    members = [(key, value) for key, value in zip(_MEMBERS, context, strict=True) if value is not None]
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lines = [f"{key} = {json.dumps(str(value), ensure_ascii=False)}\n" for key, value in members]
        replace_file(file, "".join(lines).encode(), Rights())
    except OSError as error:
        raise Misplaced(f"{file} cannot be written: {error.strerror}") from error
    return file
