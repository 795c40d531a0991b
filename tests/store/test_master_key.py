"""Where the master key may come from, and every way that can go wrong."""

from __future__ import annotations

import base64
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from scaivaultd.model.errors import StartupError
from scaivaultd.store.master_key import create_master_key_file, load_master_key

if TYPE_CHECKING:
    from pathlib import Path

KEY = bytes.fromhex("fbefbe" * 10 + "000a")  # base64 of it has - and _ in the URL alphabet, + and / in the other
HEX = KEY.hex().encode()
STANDARD = base64.b64encode(KEY)
URL = base64.urlsafe_b64encode(KEY)
TEXTS = [HEX, HEX.upper(), STANDARD, STANDARD.rstrip(b"="), URL, URL.rstrip(b"="), STANDARD + b"\n", HEX + b"\r\n"]
NOT_KEYS = [
    b"",
    b"\n",
    KEY[:31],
    KEY + b"\x00",
    HEX[:-2],
    HEX + b"00",
    STANDARD[:-5],
    b"g" * 64,
    b"*" * 44,
    b"0123456789abcdef0123456789abcdef",
    b"a password of 32 characters here",
    STANDARD + STANDARD,
    bytes(5000),
]


def load(source: str, *, environment: dict[str, str] | None = None, credentials_directory: Path | None = None) -> bytes:
    return load_master_key(source, environment=environment or {}, credentials_directory=credentials_directory)


def key_file(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("content", [KEY, KEY + b"\n", KEY + b"\r\n", *TEXTS])
def test_a_file_holds_the_key_raw_or_as_text(tmp_path: Path, content: bytes) -> None:
    """Whatever tool made it, and with an editor's line end behind it."""
    assert load(f"file:{key_file(tmp_path / 'key', content)}") == KEY


@pytest.mark.parametrize("content", [KEY, *TEXTS])
def test_a_credential_holds_the_key_whatever_its_mode(tmp_path: Path, content: bytes) -> None:
    """systemd decides about owner and mode of credentials (0440 with an ACL in some versions)."""
    key_file(tmp_path / "scaivaultd.master-key", content, 0o444)
    assert load("credential:scaivaultd.master-key", credentials_directory=tmp_path) == KEY


@pytest.mark.parametrize("content", TEXTS)
def test_a_variable_holds_the_key_as_text(content: bytes) -> None:
    """For containers."""
    assert load("env:MASTER", environment={"MASTER": content.decode()}) == KEY


@pytest.mark.parametrize("content", NOT_KEYS)
def test_what_is_no_key_is_refused_unseen(tmp_path: Path, content: bytes) -> None:
    """A short key or a password must not become the root of all secrets, nor stand in an error."""
    source = f"file:{key_file(tmp_path / 'key', content)}"
    with pytest.raises(StartupError) as caught:
        load(source)
    assert source in str(caught.value)
    assert "openssl rand -base64 32" in str(caught.value)
    assert not content.strip() or content.decode("latin-1") not in str(caught.value)


def test_a_raw_key_is_not_text() -> None:
    """A variable cannot hold raw bytes; 32 characters in one are a password."""
    with pytest.raises(StartupError, match="env:MASTER has the wrong form"):
        load("env:MASTER", environment={"MASTER": "k" * 32})


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o666])
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    """A key that others could read is no secret any more."""
    path = key_file(tmp_path / "key", STANDARD, mode)
    with pytest.raises(StartupError, match=f"file:{path} is open to others .mode 0{mode:o}.: run `chmod 600 {path}`"):
        load(f"file:{path}")


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: a foreign owner. Giving files away takes root.")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    """Its owner could replace or read it."""
    path = key_file(tmp_path / "key", STANDARD)
    os.chown(path, 12345, -1)
    with pytest.raises(StartupError, match=f"file:{path} belongs to uid 12345"):
        load(f"file:{path}")


def test_a_link_is_followed_to_a_regular_file(tmp_path: Path) -> None:
    """Secret mounts of containers are links; what counts is the file behind them."""
    key_file(tmp_path / "key", STANDARD)
    (tmp_path / "link").symlink_to("key")
    assert load(f"file:{tmp_path / 'link'}") == KEY
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(StartupError, match="open to others"):
        load(f"file:{tmp_path / 'link'}")


@pytest.mark.parametrize("kind", ["folder", "fifo", "socket"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    """A FIFO would stop the start for ever."""
    path = tmp_path / "key"
    match kind:
        case "folder":
            path.mkdir(mode=0o700)
        case "fifo":
            os.mkfifo(path, 0o600)
        case _:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
    with pytest.raises(StartupError, match=f"file:{path}"):
        load(f"file:{path}")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("file:/nowhere/key", "file:/nowhere/key cannot be read: No such file"),
        ("credential:absent", "credential:absent cannot be read: No such file"),
        ("credential:../key", "must name a credential, not a path"),
        ("credential:..", "must name a credential, not a path"),
        ("env:ABSENT", "env:ABSENT, but the variable is not set"),
        ("env:EMPTY", "env:EMPTY, but the variable is not set"),
        ("file:", "must be file:PATH"),
        ("credential:", "must be file:PATH"),
        ("env:", "must be file:PATH"),
        ("vault:secret/key", "must be file:PATH"),
        ("c2VjcmV0IGJ5IG1pc3Rha2U=", "must be file:PATH"),
    ],
)
def test_a_source_that_cannot_be_is_told(tmp_path: Path, source: str, says: str) -> None:
    """Each failure says where the key was looked for."""
    with pytest.raises(StartupError) as caught:
        load(source, environment={"EMPTY": ""}, credentials_directory=tmp_path)
    assert says in str(caught.value)
    assert "c2VjcmV0" not in str(caught.value)  # perhaps the key itself, put where its source belongs


def test_a_credential_without_systemd_is_told() -> None:
    """Started by hand there is no credentials directory."""
    with pytest.raises(StartupError, match=r"LoadCredentialEncrypted=scaivaultd\.master-key"):
        load("credential:scaivaultd.master-key")


def test_a_created_file_is_private_and_loads(tmp_path: Path) -> None:
    """What we make we can read, and nobody else can, whatever the umask."""
    umask = os.umask(0)
    try:
        create_master_key_file(tmp_path / "one")
        create_master_key_file(tmp_path / "two")
    finally:
        os.umask(umask)
    one, two = load(f"file:{tmp_path / 'one'}"), load(f"file:{tmp_path / 'two'}")
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o600
    assert len(one) == 32
    assert one != two


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    """It may be the only key to a store; nor is a link followed to somewhere else."""
    path = key_file(tmp_path / "key", STANDARD)
    (tmp_path / "link").symlink_to("elsewhere")
    for taken in (path, tmp_path / "link"):
        with pytest.raises(StartupError, match="exists already and is never overwritten"):
            create_master_key_file(taken)
    assert path.read_bytes() == STANDARD
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """The file's place is the administrator's to prepare."""
    with pytest.raises(StartupError, match="cannot be made: No such file"):
        create_master_key_file(tmp_path / "absent" / "key")
