"""The settings of a DNS provider as a person types them: judged by its kind, where the kind is installed here.

A daemon elsewhere may have other plugins; of kinds that are not known here it alone can judge.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

from scaivaultd.ctl_session import refuse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scaivaultd.plugin import DnsProviderKind

_KEPT_BELOW = "dns"
_NAME_ALLOWED = "abcdefghijklmnopqrstuvwxyz0123456789-_"


class Kept(NamedTuple):
    """A secret that is to be put into the daemon's store: where, and its text."""

    path: str
    value: str

    def __repr__(self) -> str:
        return f"Kept({self.path!r})"


class Wanted(NamedTuple):
    """One `--secret`: the member of the settings (and the key in it), and what it is to refer to."""

    member: str
    key: str | None
    source: str

    @property
    def name(self) -> str:
        """What a person calls it."""
        return self.member.removesuffix("_paths").removesuffix("_path") + (f".{self.key}" if self.key else "")

    @property
    def is_typed(self) -> bool:
        """Whether its text is to be asked for."""
        return self.source == "-"


def kind_of(name: str) -> DnsProviderKind | None:
    """The kind of that name among the plugins installed here."""
    return kinds().get(name)


def kinds() -> dict[str, DnsProviderKind]:
    """The kinds of every plugin that is installed here, by name."""
    from scaivaultd.plugin import DnsProviderKind
    from scaivaultd.plugin_check import findings

    brought = [kind for each in findings() if each.refused is None for kind in each.kinds]
    return {kind.name: kind for kind in brought if isinstance(kind, DnsProviderKind)}


def members(kind: DnsProviderKind | None, given: Sequence[str]) -> dict[str, Any]:
    """The settings of `--set KEY=VALUE`: lists with commas, maps as KEY.NAME=VALUE, anything as JSON."""
    found: dict[str, Any] = {}
    hints = {} if kind is None else get_type_hints(kind.settings, include_extras=True)
    for each in given:
        key, equals, text = each.partition("=")
        if not equals:
            refuse(f"--set {each}: write KEY=VALUE")
        member, _, name = key.partition(".")
        if name:
            found.setdefault(member, {})
            if not isinstance(found[member], dict):
                refuse(f"--set {key}: {member} has a value already")
            found[member][name] = text
        else:
            found[member] = _value(hints.get(member), member, text) if hints else _guessed(text)
        if hints and member not in hints:
            refuse(_unknown(member, hints))
        if member.endswith(("_path", "_paths")):
            refuse(f"--set {key}: that is a secret; name it with --secret {member.removesuffix('_path')}=REFERENCE")
    return found


def _unknown(member: str, hints: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(member, hints, n=1)
    return f"--set {member}: there is no such setting" + (f"; did you mean {near[0]!r}?" if near else "")


def _value(hint: Any, member: str, text: str) -> Any:
    import msgspec

    if hint is None:
        return text
    failed = ""
    for value in _readings(text):
        try:
            return msgspec.to_builtins(msgspec.convert(value, hint, strict=False))
        except msgspec.ValidationError as error:
            # That of the last reading, the text itself, is what the person understands.
            failed = str(error)
    return refuse(f"--set {member}={text}: {failed}")


def _readings(text: str) -> list[Any]:
    # A list first: where a text is wanted it does not fit.
    readings: list[Any] = [[part.strip() for part in text.split(",") if part.strip()], text]
    if text[:1] in ("[", "{"):
        try:
            return [json.loads(text)]
        except ValueError:
            return readings
    return readings


def _guessed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def secrets(kind: DnsProviderKind | None, given: Sequence[str]) -> list[Wanted]:
    """What `--secret NAME=REFERENCE` say; `-`, or nothing, stands for a text that is asked for."""
    return [_secret(kind, each) for each in given]


def _secret(kind: DnsProviderKind | None, given: str) -> Wanted:
    name, equals, source = given.partition("=")
    name, _, key = name.partition(".")
    plain = name.removesuffix("_paths").removesuffix("_path")
    known = () if kind is None else kind.settings.__struct_fields__
    member = f"{plain}_paths" if key or f"{plain}_paths" in known else f"{plain}_path"
    if kind is not None and member not in known:
        there = [each for each in known if each.endswith(("_path", "_paths"))]
        names = ", ".join(each.removesuffix("_paths").removesuffix("_path") for each in there) or "none"
        refuse(f"--secret {name}: {kind.name} has no such secret; it has: {names}")
    if member.endswith("_paths") and not key:
        refuse(f"--secret {name}: that is a map; write {plain}.KEY=REFERENCE")
    return Wanted(member, key or None, source if equals and source else "-")


def missing(kind: DnsProviderKind | None, config: Mapping[str, Any]) -> list[str]:
    """The settings that the kind demands and nobody gave."""
    if kind is None:
        return []
    from msgspec.structs import fields

    return [each.name for each in fields(kind.settings) if each.required and each.name not in config]


def kept_at(provider: str, wanted: Wanted) -> str:
    """Where a secret is put that was typed, or read from a file."""
    words = (_KEPT_BELOW, provider, wanted.name.replace(".", "-"))
    return "/".join("".join(each if each in _NAME_ALLOWED else "-" for each in word.lower()) for word in words)


def text_of_file(source: str) -> str:
    """The text of `@FILE`."""
    try:
        return Path(source[1:]).read_text().rstrip("\r\n")
    except OSError as error:
        refuse(f"{source[1:]} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        refuse(f"{source[1:]} is no text")


def with_reference(config: dict[str, Any], wanted: Wanted, reference: str) -> None:
    """Name the secret in the settings."""
    if wanted.key is None:
        config[wanted.member] = reference
    else:
        config.setdefault(wanted.member, {})[wanted.key] = reference
