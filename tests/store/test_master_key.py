"""Where the master key may come from, and every way that can go wrong."""

from __future__ import annotations

import base64
import os
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from scaivaultd.model.errors import StartupError
from scaivaultd.store.master_key import (
    NoMasterKey,
    create_master_key_file,
    from_recovery_key,
    load_master_key,
    master_key_from_passphrase,
    recovery_key,
    replace_master_key_file,
    stage_master_key_file,
    staged_path,
)

if TYPE_CHECKING:
    from collections.abc import Callable
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


@pytest.mark.parametrize(
    "source", ["file:/nowhere/key", "credential:absent", "env:ABSENT", "env:PASSWORD", "credential:no.directory"]
)
def test_what_may_come_yet_is_a_missing_key(tmp_path: Path, source: str) -> None:
    """A daemon waits for it; only what can never be a source ends it."""
    directory = None if source.endswith("no.directory") else tmp_path
    with pytest.raises(NoMasterKey) as caught:
        load(source, environment={"PASSWORD": "p" * 20}, credentials_directory=directory)
    assert caught.value.reason == "key_missing"


def test_a_source_that_can_never_be_ends_the_daemon() -> None:
    """The configuration itself must be changed."""
    for source in ("vault:secret/key", "file:", "credential:../key"):
        with pytest.raises(StartupError) as caught:
            load(source)
        assert not isinstance(caught.value, NoMasterKey)


class TestRecoveryKey:
    def test_it_is_the_key_in_another_form(self) -> None:
        """Written down once, it brings the key back years later: the form never changes."""
        text = recovery_key(bytes(range(32)))
        assert text == "AAAQ-EAYE-AUDA-OCAJ-BIFQ-YDIO-B4IB-CEQT-CQKR-MFYY-DENB-WHA5-DYP3-EWMM"
        assert from_recovery_key(text) == bytes(range(32))

    @pytest.mark.parametrize(
        "spoiled", [str.lower, lambda t: t.replace("-", " "), lambda t: t.replace("-", "\n"), lambda t: f" {t}\n"]
    )
    def test_it_is_read_as_people_type(self, spoiled: Callable[[str], str]) -> None:
        """From paper, in whatever layout."""
        assert from_recovery_key(spoiled(recovery_key(KEY))) == KEY

    def test_digits_that_look_like_letters_are_read_as_those(self) -> None:
        """Base32 has no 0, 1 and 8, so there is no doubt what was meant."""
        text = recovery_key(KEY).replace("O", "0").replace("I", "1").replace("B", "8")
        assert text != recovery_key(KEY)
        assert from_recovery_key(text) == KEY

    def test_every_single_mistake_is_found(self) -> None:
        """A wrong key would be called another store's, and nobody would look for the slip."""
        text = recovery_key(KEY)
        for place, letter in enumerate(text):
            if letter != "-":
                wrong = text[:place] + ("A" if letter != "A" else "C") + text[place + 1 :]
                with pytest.raises(ValueError, match="mistake"):
                    from_recovery_key(wrong)

    @pytest.mark.parametrize("text", ["", "AAAA", "A" * 57, "A" * 55 + "!", "\u0661" * 56, "=" * 56])
    def test_what_is_none_is_told_and_not_repeated(self, text: str) -> None:
        """It may be most of the key."""
        with pytest.raises(ValueError, match="recovery key") as caught:
            from_recovery_key(text)
        assert not text or text not in str(caught.value)

    def test_a_file_is_made_from_it(self, tmp_path: Path) -> None:
        """On another machine than the one whose TPM held the credential."""
        create_master_key_file(tmp_path / "key", from_recovery_key(recovery_key(KEY)))
        assert load(f"file:{tmp_path / 'key'}") == KEY
        with pytest.raises(StartupError, match="never overwritten"):
            create_master_key_file(tmp_path / "key", KEY)


class TestPassphrase:
    def test_it_gives_the_same_key_for_ever(self) -> None:
        """Argon2id with 64 MiB, three passes, four lanes: another choice would lock every store."""
        key = master_key_from_passphrase("correct horse battery staple", bytes(range(16)))
        assert key.hex() == "853b272a44db1421c02962669a55eb0994f3cab385ed1c4c79253eee19bab49e"

    def test_it_is_the_same_however_it_is_typed(self) -> None:
        """Another keyboard makes other code points of the same letters."""
        assert master_key_from_passphrase("caf\u00e9 cafe", bytes(16)) == master_key_from_passphrase(
            "cafe\u0301 cafe", bytes(16)
        )

    def test_salt_and_case_make_another_key(self) -> None:
        """Equal passphrases of two stores must not look equal."""
        keys = {
            master_key_from_passphrase(phrase, salt)
            for phrase, salt in (("a phrase", bytes(16)), ("A phrase", bytes(16)), ("a phrase", b"1" * 16))
        }
        assert len(keys) == 3


class TestReplacing:
    def test_the_new_key_takes_the_place_of_the_old(self, tmp_path: Path) -> None:
        """And the old one is gone: whoever took it finds nothing that it opens."""
        path = key_file(tmp_path / "key", STANDARD)
        new = bytes(range(32))
        stage_master_key_file(path, new)
        assert load(f"file:{path}") == KEY
        assert load(f"file:{staged_path(path)}") == new
        for _ in range(2):
            replace_master_key_file(path, new)
            assert load(f"file:{path}") == new
            assert [each.name for each in tmp_path.iterdir()] == ["key"]
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

    @pytest.mark.parametrize("left", [None, b"half a k", STANDARD])
    def test_what_is_staged_is_made_again_where_it_is_not_whole(self, tmp_path: Path, left: bytes | None) -> None:
        """The store says which key it is to be; a file beside it may have been lost or be another attempt's."""
        path = key_file(tmp_path / "key", STANDARD)
        if left is not None:
            key_file(staged_path(path), left)
        replace_master_key_file(path, bytes(range(32)))
        assert load(f"file:{path}") == bytes(range(32))
        assert not staged_path(path).exists()

    def test_a_key_that_is_gone_is_put_there(self, tmp_path: Path) -> None:
        """Somebody has moved the old one away too early."""
        replace_master_key_file(tmp_path / "key", KEY)
        assert load(f"file:{tmp_path / 'key'}") == KEY

    def test_a_link_stays_a_link(self, tmp_path: Path) -> None:
        """What it leads to is the key's place."""
        (tmp_path / "real").mkdir()
        key_file(tmp_path / "real/key", STANDARD)
        (tmp_path / "key").symlink_to("real/key")
        stage_master_key_file(tmp_path / "key", bytes(range(32)))
        replace_master_key_file(tmp_path / "key", bytes(range(32)))
        assert (tmp_path / "key").is_symlink()
        assert load(f"file:{tmp_path / 'real/key'}") == bytes(range(32))
        assert [each.name for each in (tmp_path / "real").iterdir()] == ["key"]

    def test_a_disk_that_does_not_take_it_leaves_the_old_one(self, tmp_path: Path) -> None:
        """One whole key is there at any moment."""
        path = key_file(tmp_path / "key", STANDARD)
        staged_path(path).mkdir()
        for act in (stage_master_key_file, replace_master_key_file):
            with pytest.raises(OSError, match="irectory"):
                act(path, bytes(range(32)))
        assert load(f"file:{path}") == KEY


def test_the_command_line_tool_gets_by_without_cryptography() -> None:
    """It is to answer at once."""
    program = "import sys, scaivaultd.store.master_key; assert 'cryptography' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
