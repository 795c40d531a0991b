"""`scaivaultctl cert export`: a certificate and its key as files."""

from __future__ import annotations

import grp
import io
import os
import pwd
import re
import shlex
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scaivaultd import agent_files, ctl_find
from scaivaultd.ctl_cert import cert
from scaivaultd.ctl_client import Refused, Unreachable
from scaivaultd.ctl_output import complain, say
from scaivaultd.ctl_session import EX_FAILED, EX_UNREACHABLE, fail, read_secret, with_daemon

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaivaultd.ctl_session import Session

_RELOAD_SECONDS = 60.0


@cert.command("export")
@click.argument("certificate")
@click.option("--to", "directory", type=click.Path(path_type=Path), metavar="DIR", help="Replace this folder.")
@click.option("--tar", "tar", type=click.Path(path_type=Path), metavar="FILE", help="A tar file; `-` is stdout.")
@click.option("--pkcs12", type=click.Path(path_type=Path), metavar="FILE", help="A PKCS#12 file, for Java and Windows.")
@click.option(
    "--password-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Its password is the first line; else asked for, or from stdin.",
)
@click.option(
    "--layout", type=click.Choice(agent_files.LAYOUTS), default="certbot", show_default=True, help="Which files."
)
@click.option("--owner", metavar="USER", help="Who owns the files.")
@click.option("--group", metavar="GROUP", help="Their group.")
@click.option("--mode", default="644", show_default=True, metavar="MODE", help="Mode of the files, octal.")
@click.option("--key-mode", default="600", show_default=True, metavar="MODE", help="Mode of what holds the key, octal.")
@click.option("--reload-command", metavar="COMMAND", help="Run this after a change, without a shell.")
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@with_daemon
def cert_export(
    session: Session,
    certificate: str,
    directory: Path | None,
    tar: Path | None,
    pkcs12: Path | None,
    password_file: Path | None,
    layout: str,
    owner: str | None,
    group: str | None,
    mode: str,
    key_mode: str,
    reload_command: str | None,
    dry_run: bool,
) -> None:
    """Write a CERTIFICATE and its key to files.

    The folder is replaced in one step, and nothing is touched where the same is there already.
    """
    if sum(each is not None for each in (directory, tar, pkcs12)) != 1:
        raise click.UsageError("give one of --to DIR, --tar FILE and --pkcs12 FILE")
    if password_file is not None and pkcs12 is None:
        raise click.UsageError("--password-file goes with --pkcs12")
    try:
        rights = rights_of(owner, group, mode, key_mode)
    except NoRights as error:
        raise click.UsageError(str(error)) from None
    command = shlex.split(reload_command) if reload_command else []
    found = ctl_find.certificate(session, certificate)
    if dry_run:
        say(f"Would write version {found['version']} of {found['id']} to {directory or tar or pkcs12} (dry run).")
        return
    try:
        parts = parts_of(session, found["id"], found["version"], has_key=found.get("has_private_key", True))
    except Refused as refused:
        fail(refused.problem)
    except Unreachable as unreachable:
        complain(f"scaivaultctl: {unreachable}")
        sys.exit(EX_UNREACHABLE)
    if pkcs12 is not None:
        _write_pkcs12(pkcs12, parts, _password(password_file), found["domains"][0], rights)
        session.show(
            {"id": parts.certificate_id, "version": parts.version, "file": str(pkcs12), "changed": True},
            lambda: [f"Version {parts.version} is in {pkcs12}."],
        )
        _reload(command)
        return
    if tar is not None:
        _write_tar(tar, parts, layout, rights)
        return
    assert directory is not None
    told = {"id": parts.certificate_id, "version": parts.version, "directory": str(directory)}
    directory = Path(os.path.abspath(directory))  # noqa: PTH100 - resolve() would follow the link that is replaced
    try:
        if agent_files.is_installed(directory, parts, layout, rights):
            session.show(
                {**told, "changed": False}, lambda: [f"Version {parts.version} is there already; nothing was touched."]
            )
            return
        directory.parent.mkdir(parents=True, exist_ok=True)
        agent_files.install(directory, parts, layout, rights)
    except (agent_files.Unsafe, OSError) as error:
        complain(f"scaivaultctl: {error}")
        sys.exit(EX_FAILED)
    session.show({**told, "changed": True}, lambda: [f"Version {parts.version} is in {directory}."])
    _reload(command)


def _reload(command: Sequence[str]) -> None:
    if command and (wrong := reload_fails(command, _RELOAD_SECONDS)):
        complain(f"scaivaultctl: the files are new, but the reload failed: {wrong}")
        sys.exit(EX_FAILED)


def parts_of(session: Session, certificate_id: str, version: int, *, has_key: bool) -> agent_files.Parts:
    """One version, whole: all of it is asked for by its number, whatever is renewed meanwhile."""

    def pem(part: str) -> str:
        return str(session.attempt("pki.certificates.pem", id=certificate_id, part=part, version=version)["pem"])

    key = None
    if has_key:
        key = str(session.attempt("pki.certificates.key", id=certificate_id, version=version)["private_key_pem"])
    return agent_files.Parts(certificate_id, version, pem("leaf"), pem("chain"), key)


class NoRights(LookupError):
    """An owner, a group or a mode is none; the text begins with its name."""


def rights_of(owner: str | None, group: str | None, mode: str, key_mode: str) -> agent_files.Rights:
    """The rights by their names.

    Raises:
        NoRights: a name is unknown here, or a mode is none.
    """
    try:
        uid = -1 if owner is None else int(owner) if owner.isdecimal() else pwd.getpwnam(owner).pw_uid
    except KeyError:
        raise NoRights(f"owner: there is no user {owner!r} on this host") from None
    try:
        gid = -1 if group is None else int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise NoRights(f"group: there is no group {group!r} on this host") from None
    for name, each in (("mode", mode), ("key_mode", key_mode)):
        if not re.fullmatch("[0-7]{3,4}", each):
            raise NoRights(f"{name}: {each!r} is no mode; one is octal, such as 640")
    return agent_files.Rights(uid, gid, int(mode, 8), int(key_mode, 8))


def reload_fails(command: Sequence[str], seconds: float) -> str | None:
    """Run a reload command; what is wrong with it, or None. One that takes too long is killed with its children."""
    # No pipe: what it leaves running in the background may hold its output, and is not waited for.
    with os.fdopen(os.memfd_create("reload"), "w+b") as output:
        try:
            running = subprocess.Popen(  # noqa: S603 - whoever may write it down may run it; there is no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=agent_files.clean_environment(os.environ),
                start_new_session=True,
            )
        except OSError as error:
            return f"{command[0]} cannot be run: {error.strerror}"
        try:
            code = running.wait(seconds)
        except BaseException as error:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return f"{command[0]} did not end within {seconds:g} s"
        if code == 0:
            return None
        output.seek(0)
        said = output.read().decode(errors="replace").strip()[-500:]
    return f"{command[0]} ended with {code}" + (f": {said}" if said else "")


def _password(file: Path | None) -> str:
    if file is None:
        return read_secret("Password of the PKCS#12 file", twice=True)
    try:
        password = file.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--password-file: {file} cannot be read: {error}") from None
    if not password:
        raise click.UsageError(f"--password-file: the first line of {file} is empty")
    return password


def _write_pkcs12(file: Path, parts: agent_files.Parts, password: str, name: str, rights: agent_files.Rights) -> None:
    """Replace the file in one step. It differs each time, since its encryption is salted."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import pkcs12

    if parts.key is None:
        complain("scaivaultctl: the daemon has no private key of it, so there is nothing to protect: use --to")
        sys.exit(EX_FAILED)
    key = serialization.load_pem_private_key(parts.key.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)  # there are no others here
    encryption = (
        serialization.PrivateFormat.PKCS12.encryption_builder()
        .kdf_rounds(100_000)
        .key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC)
        .hmac_hash(hashes.SHA256())
        .build(password.encode())
    )
    leaf = x509.load_pem_x509_certificate(parts.leaf.encode())
    chain = x509.load_pem_x509_certificates(parts.chain.encode()) if parts.chain.strip() else None
    content = pkcs12.serialize_key_and_certificates(name.encode(), key, leaf, chain, encryption)
    try:
        agent_files.replace_file(file, content, rights)
    except OSError as error:
        complain(f"scaivaultctl: {file}: {error.strerror}")
        sys.exit(EX_FAILED)


def _write_tar(file: Path, parts: agent_files.Parts, layout: str, rights: agent_files.Rights) -> None:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, (content, is_secret) in agent_files.files_of(parts, layout).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = rights.key_mode if is_secret else rights.mode
            entry.uid, entry.gid = max(rights.owner, 0), max(rights.group, 0)
            archive.addfile(entry, io.BytesIO(content))
    try:
        if str(file) == "-":
            sys.stdout.buffer.write(written.getvalue())
            sys.stdout.buffer.flush()
            return
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as target:
            target.write(written.getvalue())
    except OSError as error:
        complain(f"scaivaultctl: {file}: {error.strerror}")
        sys.exit(EX_FAILED)
