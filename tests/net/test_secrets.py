"""Secrets by reference: only what is allowed, only from where it is said to be, and never named in an error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scaivaultd.model.errors import InvalidRequest, SecretNotFound
from scaivaultd.net.secrets import SECRET_MAX, ReferencedSecrets

if TYPE_CHECKING:
    from collections.abc import Sequence


def secrets(
    allow: Sequence[str] = ("cred:", "file:/etc/secrets", "env:ACME_"),
    *,
    master_key: str | None = None,
    directory: Path | None = None,
) -> ReferencedSecrets:
    environment = {"ACME_KEY": " value\n", "PATH": "/bin"}
    kept = [] if master_key is None else [master_key]
    return ReferencedSecrets(allow, master_keys=lambda: kept, environment=environment, credentials_directory=directory)


@pytest.mark.parametrize(
    "reference",
    ["cred:eab", "file:/etc/secrets", "file:/etc/secrets/eab", "file:/etc/secrets/a/b", "env:ACME_KEY"],
)
def test_what_lies_below_an_allowed_prefix_passes(reference: str) -> None:
    """The administrator's list is the whole rule."""
    secrets().check(reference, "/eab/hmac_key_path")


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "eab",
        "cred:",
        "file:",
        "env:",
        "CRED:eab",
        "vault:eab",
        "https://example.org",
        "file:eab",
        "file:./eab",
        "file:/etc/secretsX",
        "file:/etc/secretsX/eab",
        "file:/etc/secrets/../shadow",
        "file:/etc/secrets/..",
        "file:/etc/shadow",
        "file:/",
        "file://etc/secrets/eab",
        "env:PATH",
        "env:acme_key",
        " file:/etc/secrets/eab",
    ],
)
def test_everything_else_is_refused_and_points_at_the_member(reference: str) -> None:
    """A caller who may name any file reads the host's secrets by their effect."""
    with pytest.raises(InvalidRequest) as caught:
        secrets().check(reference, "/eab/hmac_key_path")
    assert [each.pointer for each in caught.value.fields] == ["/eab/hmac_key_path"]


def test_nothing_is_allowed_by_an_empty_list() -> None:
    """Closed unless opened."""
    with pytest.raises(InvalidRequest):
        secrets(()).check("cred:eab", "/eab/hmac_key_path")


@pytest.mark.parametrize(
    ("master_key", "reference"),
    [
        ("file:/etc/secrets/master", "file:/etc/secrets/master"),
        ("credential:master", "cred:master"),
        ("env:ACME_MASTER", "env:ACME_MASTER"),
    ],
)
def test_the_master_key_is_nobodys_to_name(master_key: str, reference: str) -> None:
    """Also below an allowed prefix: it would turn up as the MAC key of a binding."""
    with pytest.raises(InvalidRequest):
        secrets(master_key=master_key).check(reference, "/eab/hmac_key_path")
    secrets(master_key=master_key).check("cred:other", "/eab/hmac_key_path")


@pytest.mark.parametrize("reference", ["file:/etc/secrets//master", "file:/etc/secrets/./master"])
def test_the_master_key_is_known_in_any_spelling_of_its_path(reference: str) -> None:
    """Two slashes open the same file."""
    with pytest.raises(InvalidRequest):
        secrets(master_key="file:/etc/secrets/master").check(reference, "/eab/hmac_key_path")


async def test_values_come_without_the_white_space_around_them(tmp_path: Path) -> None:
    """Editors and `echo` end files with a line end."""
    (tmp_path / "eab").write_text("  s3cret\n\n")
    reader = secrets(directory=tmp_path)
    assert await reader.read(f"file:{tmp_path}/eab") == "s3cret"
    assert await reader.read("cred:eab") == "s3cret"
    assert await reader.read("env:ACME_KEY") == "value"


async def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    """Rotation needs no restart."""
    (tmp_path / "eab").write_text("one")
    reader = secrets(directory=tmp_path)
    assert await reader.read("cred:eab") == "one"
    (tmp_path / "eab").write_text("two")
    assert await reader.read("cred:eab") == "two"


async def not_found(reference: str, directory: Path | None = None) -> str:
    with pytest.raises(SecretNotFound) as caught:
        await secrets(directory=directory).read(reference)
    return caught.value.detail


@pytest.mark.parametrize("name", ["missing", "link", "dangling", "fifo", "folder", "large", "binary", "closed"])
async def test_what_is_no_plain_readable_text_file_is_not_found(tmp_path: Path, name: str) -> None:
    """A link leads elsewhere, a pipe hangs for ever, a device is endless: none of them is a secret."""
    (tmp_path / "target").write_text("s3cret")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "large").write_bytes(b"s" * (SECRET_MAX + 1))
    (tmp_path / "binary").write_bytes(b"s3cret\xff\xfe")
    if name == "closed":
        if os.geteuid() == 0:
            pytest.skip("root reads everything")
        (tmp_path / "closed").touch(mode=0)
    detail = await not_found(f"file:{tmp_path / name}")
    assert str(tmp_path / name) in detail
    assert "s3cret" not in detail
    assert "target" not in detail


async def test_the_largest_secret_is_still_read(tmp_path: Path) -> None:
    """The limit is a limit, not one less."""
    (tmp_path / "large").write_bytes(b"s" * SECRET_MAX)
    assert len(await secrets().read(f"file:{tmp_path}/large")) == SECRET_MAX


@pytest.mark.parametrize("name", ["../outside", "a/b", "..", "."])
async def test_a_credentials_name_stays_in_the_credentials_directory(tmp_path: Path, name: str) -> None:
    """`cred:` is allowed as a whole by default, so its names must not be paths."""
    (tmp_path / "credentials").mkdir()
    (tmp_path / "outside").write_text("s3cret")
    assert "s3cret" not in await not_found(f"cred:{name}", tmp_path / "credentials")


async def test_what_systemd_did_not_pass_is_looked_for_nowhere_else() -> None:
    """A missing secret is an error, never a guess."""
    assert "systemd" in await not_found("cred:eab")
    assert "environment" in await not_found("env:MISSING")


async def test_a_zero_byte_in_a_path_is_refused_like_any_other_nonsense() -> None:
    """JSON can carry it; an unforeseen error is retried and reported as ours."""
    reader = secrets()
    with pytest.raises((InvalidRequest, SecretNotFound)):
        reader.check("file:/etc/secrets/a\x00b", "/eab/hmac_key_path")
        await reader.read("file:/etc/secrets/a\x00b")
