"""`scaivaultctl config` and `reload`: what the configuration says, where that comes from, and having it read again."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from scaivaultd.ctl_output import complain
from scaivaultd.ctl_session import EX_CONFIG, Group, Session, Verb, refuse, say, show, table, with_daemon, with_output

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scaivaultd.settings_layers import Layers, Mistake

DEFAULT_CONFIG = Path("/etc/scaivaultd/scaivaultd.toml")
_LONGEST = 36

_file = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"The configuration file; {DEFAULT_CONFIG} unless given.",
)


@click.group(cls=Group)
def config() -> None:
    """The configuration: check, show, examples.

    It has layers: what is built in, the file, the drop-ins conf.d/*.toml beside it, and variables of the environment
    such as SCAIVAULT__LOG__LEVEL=debug. The later wins.
    """


@config.command()
@_file
@with_output
def check(config_file: Path | None, as_json: bool) -> None:
    """Check all layers, and the files that they name.

    Does what `scaivaultd check-config` does, and looks as the user who asks: ask as the daemon's own, such as with
    `sudo -u scaivaultd`. Ends with 78 if something is wrong.
    """
    layers = _layers(config_file, as_json)
    mistakes = _mistakes_in(layers)
    if mistakes:
        _end_with(mistakes, as_json)
    show(
        {"ok": True, "files": [str(each) for each in layers.files], "mistakes": []},
        lambda: [f"{each}: ok" for each in layers.files],
        as_json=as_json,
    )


@config.command("show")
@_file
@click.option("--effective", is_flag=True, help="The defaults too, not only what is written somewhere.")
@click.option("--origin", is_flag=True, help="Where each value comes from.")
@with_output
def show_(config_file: Path | None, effective: bool, origin: bool, as_json: bool) -> None:
    """Show what all layers say together; passwords are not shown."""
    layers = _layers(config_file, as_json)
    rows = list(_rows(layers, as_json, is_effective=effective))
    if as_json and not origin:
        show({row["key"]: row["value"] for row in rows}, list, as_json=True)
    elif as_json:
        show(rows, list, as_json=True)
    else:
        for line in _lines(rows, origin=origin):
            click.echo(line)


@config.command()
@with_output
def schema(as_json: bool) -> None:
    """Print the JSON Schema of the file, for editors.

    Whatever --json says, it is JSON.
    """
    from scaivaultd.settings_schema import schema as of_settings

    show(of_settings(), list, as_json=True)


@config.command()
@click.argument("name", default="annotated")
@with_output
def example(name: str, as_json: bool) -> None:
    """Print an example; without a NAME the file that explains every key.

    NAME `list` names them all.
    """
    there = _examples()
    if name == "list":
        show(
            [{"name": each, "about": _about(path)} for each, path in there.items()],
            lambda: table(("NAME", "ABOUT"), [(each, _about(path)) for each, path in there.items()]),
            as_json=as_json,
        )
        return
    if name.removesuffix(".toml") not in there:
        refuse(f"there is no example {name!r}; there are {', '.join(there)}")
    text = there[name.removesuffix(".toml")].read_text(encoding="utf-8")
    show({"name": name.removesuffix(".toml"), "text": text}, lambda: text.rstrip("\n").split("\n"), as_json=as_json)


@click.command(cls=Verb)
@with_daemon
def reload(session: Session) -> None:
    """Have the daemon read its configuration again.

    Shows what is in force now, and what waits for a restart. A configuration with mistakes changes nothing; ends with
    78 then.
    """
    reply = session.call("sys.reload")
    if not reply["ok"]:
        if session.as_json:
            session.show(reply, list)
        for each in reply["mistakes"]:
            complain(each)
        complain("scaivaultctl: nothing was changed; the configuration before holds")
        sys.exit(EX_CONFIG)
    rows = [(key, "in force") for key in reply["changed"]] + [
        (key, "needs a restart") for key in reply["needs_restart"]
    ]
    session.show(reply, lambda: table(("KEY", "STATE"), rows) if rows else [])
    if not rows:
        say("Nothing has changed. Policy files and TLS files were read again.")
    elif reply["needs_restart"]:
        say("Restart the daemon for the rest: systemctl restart scaivaultd")


def _layers(config_file: Path | None, as_json: bool) -> Layers:
    from scaivaultd.settings import layers_of
    from scaivaultd.settings_layers import SettingsError

    given = config_file or click.get_current_context().find_root().params.get("at_config") or DEFAULT_CONFIG
    try:
        return layers_of(given, os.environ)
    except SettingsError as error:
        _end_with(error.mistakes, as_json)


def _mistakes_in(layers: Layers) -> Sequence[Mistake]:
    from scaivaultd.ctl_installed import installed
    from scaivaultd.settings import settings_of
    from scaivaultd.settings_files import check_files
    from scaivaultd.settings_layers import SettingsError
    from scaivaultd.settings_plugins import check_plugins

    try:
        settings = settings_of(layers)
    except SettingsError as error:
        return error.mistakes
    return layers.in_order(check_files(settings, layers)) or layers.in_order(
        check_plugins(settings, installed(), layers)
    )


def _end_with(mistakes: Sequence[Mistake], as_json: bool) -> NoReturn:
    if as_json:
        show({"ok": False, "mistakes": [str(each) for each in mistakes]}, list, as_json=True)
    else:
        for each in mistakes:
            complain(str(each))
    sys.exit(EX_CONFIG)


def _rows(layers: Layers, as_json: bool, *, is_effective: bool) -> Iterator[dict[str, Any]]:
    from scaivaultd.settings import settings_of
    from scaivaultd.settings_layers import SettingsError
    from scaivaultd.settings_schema import shown_values

    try:
        values = shown_values(settings_of(layers))
    except SettingsError as error:
        _end_with(error.mistakes, as_json)
    for key, value in values:
        name = ".".join(map(str, key))
        place = layers.place_of(key) if _is_written(layers.table, key) else None
        if place is not None or is_effective:
            yield {"key": name, "value": value, "origin": "built in" if place is None else str(place)}


def _is_written(table: Any, key: Sequence[str | int]) -> bool:
    for part in key:
        if isinstance(part, int) or not isinstance(table, dict) or part not in table:
            return False
        table = table[part]
    return True


def _lines(rows: Sequence[dict[str, Any]], *, origin: bool) -> Iterator[str]:
    """As TOML could say it; each with its origin behind."""
    for row in rows:
        text = f"# {row['key']} is unset" if row["value"] is None else f"{row['key']} = {_toml(row['value'])}"
        yield f"{text:<{_LONGEST}}  # {row['origin']}" if origin else text


def _toml(value: Any) -> str:
    match value:
        case dict():
            inner = ", ".join(f"{_word(key)} = {_toml(each)}" for key, each in value.items() if each is not None)
            return f"{{ {inner} }}" if inner else "{}"
        case list():
            return f"[{', '.join(map(_toml, value))}]"
        case _:
            return json.dumps(value, ensure_ascii=False)


def _word(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else json.dumps(key)


def _examples() -> dict[str, Path]:
    installed = Path(__file__).with_name("_config")
    folder = installed if installed.is_dir() else Path(__file__).parent.parent / "config"
    examples = {each.stem: each for each in sorted((folder / "examples").glob("*.toml"))}
    return {"annotated": folder / "scaivaultd.toml", **examples}


def _about(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""
