"""`scaivaultctl backup | resume`: copies of everything, and the way back from one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from scaivaultd.ctl_session import (
    EX_FAILED,
    EX_USAGE,
    Group,
    Verb,
    confirm,
    facts,
    read_secret,
    say,
    show,
    with_daemon,
    with_output,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaivaultd.ctl_session import Session
    from scaivaultd.restoring import OpeningKey, RestoredState, Verdict

_NOT_INSIDE = "the configuration file, the files it names (policies, roots), and events that NATS keeps"

_file = click.Path(path_type=Path, dir_okay=False)
_passphrase_option = click.option(
    "--passphrase-file", type=_file, metavar="FILE", help="Its first line is the passphrase; else it is asked for."
)
_identity_option = click.option(
    "--identity", type=_file, metavar="FILE", help="What `backup keygen` wrote, for a backup made for a recipient."
)


@click.group(cls=Group)
def backup() -> None:
    """Back up everything, look into a backup, restore one."""


@backup.command("keygen")
@click.option("--to", type=_file, metavar="FILE", help="Where the private half goes (mode 0600); else to stdout.")
@with_output
def backup_keygen(to: Path | None, as_json: bool) -> None:
    """Make a key pair for backups.

    Nobody on the daemon's host can then open them.

    The identity (scvi1...) opens the backups: keep it elsewhere. The recipient (scvr1...) only makes them.
    """
    from scaivaultd.store.backup_keys import new_identity, recipient_of

    identity = new_identity()
    recipient = recipient_of(identity)
    reply = {"recipient": recipient, "identity_file": to and str(to), "identity": None if to else identity}
    if to is None:
        show(reply, lambda: [f"# recipient: {recipient}", identity], as_json=as_json)
        return
    try:
        descriptor = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"# recipient: {recipient}\n{identity}\n")
    except OSError as error:
        _end(f"{to} cannot be made: {error.strerror}")
    show(reply, lambda: [recipient], as_json=as_json)
    say(f"{to} opens the backups made with --recipient {recipient[:12]}...: keep it away from the daemon's host,")
    say("and a second copy elsewhere. Without it there is no way into them.")


@backup.command("create")
@click.option("--to", type=click.Path(path_type=Path), metavar="FILE|DIR", help="Move it there, on the daemon's host.")
@click.option("--recipient", metavar="KEY", help="Lock it for the recipient scvr1... instead of by a passphrase.")
@_passphrase_option
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    metavar="N",
    help="Delete the oldest backups where it comes to lie, all but N.",
)
@with_daemon
def backup_create(
    session: Session, to: Path | None, recipient: str | None, passphrase_file: Path | None, keep: int | None
) -> None:
    """Make a backup: an encrypted copy of everything.

    It goes on working meanwhile. The file is made below its state directory, and stays there without --to.
    """
    if recipient is not None and passphrase_file is not None:
        raise click.UsageError("give --recipient or --passphrase-file, not both")
    if recipient is not None and recipient.startswith("scvi1"):
        raise click.UsageError("that is an identity, which opens backups: make another pair, and give the recipient")
    passphrase = None if recipient else _passphrase(passphrase_file, twice=True)
    target = to and _target(to)
    reply = session.call("sys.backup", recipient=recipient, passphrase=passphrase)
    made = Path(reply["path"])
    if target is not None:
        made = _moved(made, target, reply["sha256"])
        reply["path"] = str(made)
    deleted = _delete_older(made, keep) if keep is not None else []
    session.show(reply, lambda: _created(reply))
    for each in deleted:
        say(f"{each} deleted")
    if target is None:
        say(f"Copy it to another machine. Check it there: scaivaultctl backup verify {made.name}")


@backup.command("verify")
@click.argument("file", type=_file)
@_passphrase_option
@_identity_option
@click.option("--without-key", is_flag=True, help="Look only at what can be seen without the passphrase or identity.")
@with_output
def backup_verify(
    file: Path, passphrase_file: Path | None, identity: Path | None, without_key: bool, as_json: bool
) -> None:
    """Look whether a backup is whole and can be used.

    No daemon is needed. Everything is decrypted and checked: the store, each sealed value, the audit log. That needs
    as much room in the temporary directory ($TMPDIR) as the store has. Exit code 1 when something is wrong.
    """
    from scaivaultd.restoring import verify
    from scaivaultd.store.backup_keys import CannotOpen

    try:
        found = verify(file, None if without_key else _opening_key(file, passphrase_file, identity))
    except CannotOpen as error:
        _end(str(error))
    show(_verdict_json(file, found), lambda: _verdict(found), as_json=as_json)
    if not found.is_opened:
        say("Without its key nobody can tell more: whether it opens, and whether it is what was written.")
    say(f"Not inside: {_NOT_INSIDE}.")
    if found.audit_broken:
        _end(f"the audit log in the backup is not as it was written: {found.audit_broken}")


@backup.command("restore")
@click.argument("file", type=_file)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    required=True,
    help="Where it goes: empty, or not there yet.",
)
@_passphrase_option
@_identity_option
@click.option(
    "--master-key",
    metavar="file:PATH|none",
    help="Where the master key goes. A key that is there already takes its place; none: you have it elsewhere.",
)
@click.option("--owner", metavar="USER[:GROUP]", help="Whose it will be, if root restores it.")
@with_output
def backup_restore(
    file: Path,
    state_dir: Path,
    passphrase_file: Path | None,
    identity: Path | None,
    master_key: str | None,
    owner: str | None,
    as_json: bool,
) -> None:
    """Make a state directory of a backup.

    No daemon is needed. The one that starts on it is in safe mode: it answers, and asks no CA anything, until
    `scaivaultctl resume`. Nothing is ever written over, and a restore that is interrupted leaves nothing.
    """
    from scaivaultd.restoring import default_owner, named_owner, restore
    from scaivaultd.store.backup_keys import CannotOpen

    try:
        whose = default_owner(state_dir) if owner is None else named_owner(owner)
        key = _opening_key(file, passphrase_file, identity)
        made = restore(file, state_dir, key, master_key=master_key, owner=whose)
    except CannotOpen as error:
        _end(str(error))
    reply = {
        **_verdict_json(file, made.verdict),
        "state_dir": str(state_dir.absolute()),
        "master_key_file": made.key_file,
        "sealed_anew": made.is_sealed_anew,
    }
    show(reply, lambda: [*_verdict(made.verdict), *facts([("state dir", reply["state_dir"])])], as_json=as_json)
    for line in _what_next(state_dir.absolute(), made, master_key):
        say(line)


@click.command(cls=Verb)
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_daemon
def resume(session: Session, yes: bool) -> None:
    """Let a daemon work that was restored from a backup.

    Only once the daemon that the backup was made of has stopped for good: both would use the same accounts.
    """
    health = session.call("sys.health")
    component = next((each for each in health["components"] if each["name"] == "safe_mode"), None)
    if component is not None and component["status"] != "ok":
        confirm("resume", "The daemon begins to order and renew; the one it was copied from must not run", yes=yes)
    reply = session.call("sys.resume")
    session.show(reply, lambda: facts([("was in safe mode", reply["was_paused"]), ("backup", reply["restored_from"])]))
    say("The daemon works." if reply["was_paused"] else "The daemon was not in safe mode; nothing was changed.")


def _end(text: str) -> NoReturn:
    say(f"scaivaultctl: {text}")
    sys.exit(EX_FAILED)


def _opening_key(file: Path, passphrase_file: Path | None, identity: Path | None) -> OpeningKey:
    from scaivaultd.restoring import OpeningKey
    from scaivaultd.store.backup_file import BackupFile
    from scaivaultd.store.backup_keys import RecipientLock

    if identity is not None and passphrase_file is not None:
        raise click.UsageError("give --identity or --passphrase-file, not both")
    if identity is not None:
        return OpeningKey(identity=_identity_in(identity))
    with BackupFile(file) as opened:
        lock = opened.manifest.lock
    if isinstance(lock, RecipientLock):
        _end(f"the backup is for {lock.recipient}: give its identity file with --identity")
    return OpeningKey(passphrase=_passphrase(passphrase_file))


def _identity_in(path: Path) -> str:
    lines = _read(path).splitlines()
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if len(found) != 1:
        _end(f"{path} holds no identity: `scaivaultctl backup keygen --to FILE` makes such a file")
    return found[0]


def _passphrase(file: Path | None, *, twice: bool = False) -> str:
    """From its file, the terminal without echo, or the first line of standard input; never from an argument."""
    if file is None:
        return read_secret("Passphrase of the backup", twice=twice)
    passphrase = _read(file).partition("\n")[0].rstrip("\r")
    if not passphrase:
        say(f"scaivaultctl: {file} is empty; its first line must be the passphrase of the backup")
        sys.exit(EX_USAGE)
    return passphrase


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        _end(f"{path} is not text")
    except OSError as error:
        _end(f"{path} cannot be read: {error.strerror}")


def _target(to: Path) -> Path:
    """Looked at before there is a backup: a mistake then costs nothing."""
    folder = to if to.is_dir() else to.parent
    if not folder.is_dir():
        _end(f"{folder} is no directory")
    if not to.is_dir() and os.path.lexists(to):
        _end(f"{to} exists already, and is not written over")
    if not os.access(folder, os.W_OK):
        _end(f"{folder} may not be written by this user")
    return to


def _moved(made: Path, to: Path, sha256: str) -> Path:
    target = to / made.name if to.is_dir() else to
    try:
        _copy(made, target, sha256)
        made.unlink()
    except FileNotFoundError:
        _end(f"the backup lies at {made} on the daemon's host: fetch it from there; --to works on that host only")
    except PermissionError:
        _end(f"the backup lies at {made}, where this user may not take it from: be root, or the daemon's user")
    except OSError as error:
        _end(f"the backup lies at {made}, and could not be moved to {target}: {error.strerror or error}")
    return target


def _copy(source: Path, target: Path, sha256: str) -> None:
    """On stable storage under its name, or not there at all."""
    import hashlib

    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    digest = hashlib.sha256()
    try:
        with source.open("rb") as read:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as write:
                while block := read.read(1 << 20):
                    digest.update(block)
                    write.write(block)
                write.flush()
                os.fsync(descriptor)
        if digest.hexdigest() != sha256:
            raise OSError("what was read is not what was written")
        os.link(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _delete_older(made: Path, keep: int) -> Sequence[Path]:
    try:
        backups = sorted(made.parent.glob("scaivaultd-*.scvb"), key=lambda each: each.stat().st_mtime_ns)
        surplus = [each for each in backups[:-keep] if each != made]
        for each in surplus:
            each.unlink()
    except OSError as error:
        _end(f"the backup is at {made}; older ones could not be deleted: {error.strerror}")
    return surplus


def _created(reply: Any) -> list[str]:
    return facts(
        [
            ("file", reply["path"]),
            ("bytes", reply["bytes"]),
            ("sha256", reply["sha256"]),
            ("documents", reply["documents"]),
            ("audit records", reply["audit_records"]),
        ]
    )


def _verdict(found: Verdict) -> list[str]:
    manifest = found.manifest
    return facts(
        [
            ("made", f"{manifest.created_at:%Y-%m-%d %H:%M:%S} UTC by scaivaultd {manifest.version}"),
            ("node", manifest.node_id),
            ("store", f"{manifest.store_id}, schema {manifest.schema_version}"),
            ("master key", manifest.kid),
            ("bytes", found.bytes),
            ("documents", manifest.documents),
            ("pending events", str(manifest.pending_events)),
            ("audit records", manifest.audit_records),
            ("checked", _checked(found)),
        ]
    )


def _checked(found: Verdict) -> str:
    if not found.is_opened:
        return "the header and the length only"
    chain = "BROKEN" if found.audit_broken else "whole"
    return f"everything; {found.sealed_values} sealed values open, the audit chain is {chain}"


def _verdict_json(file: Path, found: Verdict) -> dict[str, Any]:
    manifest = found.manifest
    return {
        "file": str(file),
        "bytes": found.bytes,
        "created_at": manifest.created_at.isoformat(),
        "version": manifest.version,
        "schema_version": manifest.schema_version,
        "store_id": manifest.store_id,
        "node_id": manifest.node_id,
        "key_id": manifest.kid,
        "documents": manifest.documents,
        "pending_events": manifest.pending_events,
        "audit_records": manifest.audit_records,
        "opened": found.is_opened,
        "sealed_values": found.sealed_values,
        "audit_broken": found.audit_broken,
    }


def _what_next(state_dir: Path, made: RestoredState, master_key: str | None) -> list[str]:
    lines = []
    if made.verdict.audit_broken:
        lines.append(f"Warning: the audit log is not as it was written: {made.verdict.audit_broken}")
    if made.is_sealed_anew:
        lines.append(f"Everything will be sealed under the key in {master_key}, from the first start on.")
    elif made.key_file is not None and master_key is None:
        lines.append(f"Warning: the master key is in {made.key_file}, beside what it opens. Keep it elsewhere:")
        lines.append("restore with --master-key file:PATH, or rotate it: scaivaultctl keys rotate-master")
    elif made.key_file is not None:
        lines.append(f"The master key is in {made.key_file}.")
    elif made.has_passphrase and master_key in (None, "none"):
        lines.append("The master key is made from the passphrase of `scaivaultctl unseal`, as before.")
    if master_key not in (None, "none"):
        lines.append(f'Say so in the configuration: [secrets] master_key = "{master_key}"')
    return [
        *lines,
        f"Not inside were {_NOT_INSIDE}: bring them along.",
        f'Next: state_dir = "{state_dir}" in the configuration, start the daemon (it is in safe mode), look',
        "around (scaivaultctl status), make sure that the old daemon is gone, then: scaivaultctl resume",
    ]
