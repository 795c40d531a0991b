"""The files of a certificate: replaced as a whole, never where somebody else decides."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from scaivaultd import agent_files
from scaivaultd.agent_files import Parts, Rights, Unsafe, install, is_installed

if TYPE_CHECKING:
    from pathlib import Path

ONE = Parts("cert_1", 1, "leaf 1\n", "chain\n", "key 1\n")
TWO = Parts("cert_1", 2, "leaf 2\n", "chain\n", "key 2\n")
THREE = Parts("cert_1", 3, "leaf 3\n", "chain\n", "key 3\n")


@pytest.mark.parametrize("layout", agent_files.LAYOUTS)
def test_what_is_installed_is_known_again(tmp_path: Path, layout: str) -> None:
    """Else every run would reload the services of the host."""
    install(tmp_path / "x", ONE, layout, Rights())
    assert is_installed(tmp_path / "x", ONE, layout, Rights())
    assert not is_installed(tmp_path / "x", TWO, layout, Rights())
    assert not is_installed(tmp_path / "x", ONE, layout, Rights(key_mode=0o640))


def test_the_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    """The certificate is for all."""
    install(tmp_path / "x", ONE, "certbot", Rights())
    assert stat.S_IMODE((tmp_path / "x/privkey.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "x/fullchain.pem").stat().st_mode) == 0o644


def test_only_the_version_before_is_kept(tmp_path: Path) -> None:
    """For a way back, without filling the disk."""
    for parts in (ONE, TWO, THREE):
        install(tmp_path / "x", parts, "certbot", Rights())
    assert (tmp_path / "x/cert.pem").read_text() == "leaf 3\n"
    assert sorted(each.name[:5] for each in tmp_path.glob(".x.*")) == [".x.v2", ".x.v3"]


def test_a_folder_of_certificate_files_is_taken_over(tmp_path: Path) -> None:
    """Hosts have such folders from the tool before."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x/privkey.pem").write_text("old")
    install(tmp_path / "x", ONE, "certbot", Rights())
    assert (tmp_path / "x/privkey.pem").read_text() == "key 1\n"


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    """A mistyped path must not take /etc away."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x/passwd").write_text("mine")
    with pytest.raises(Unsafe, match="passwd"):
        install(tmp_path / "x", ONE, "certbot", Rights())
    assert (tmp_path / "x/passwd").read_text() == "mine"


def test_a_link_that_others_made_is_not_followed(tmp_path: Path) -> None:
    """It could lead anywhere."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "x").symlink_to("elsewhere")
    with pytest.raises(Unsafe, match="symbolic link"):
        install(tmp_path / "x", ONE, "certbot", Rights())
    assert list((tmp_path / "elsewhere").iterdir()) == []
