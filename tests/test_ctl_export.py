"""`cert export --pkcs12`: what Java and Windows read, under a password that is never an argument."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12

from scaivaultd.api.commands import IMPORT_CERTIFICATE
from tests.fakes import ctl
from tests.test_ctl_agent import CERTIFICATE, PLACE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INTERMEDIATE = "-----BEGIN" + IMPORT_CERTIFICATE.example["chain_pem"].split("-----BEGIN")[2]
KEY = ec.generate_private_key(ec.SECP256R1())
LEAF = (
    x509.CertificateBuilder()
    .subject_name(x509.Name([]))
    .issuer_name(x509.load_pem_x509_certificate(INTERMEDIATE.encode()).subject)
    .public_key(KEY.public_key())
    .serial_number(1)
    .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
    .not_valid_after(datetime(2027, 1, 1, tzinfo=UTC))
    .sign(KEY, hashes.SHA256())
    .public_bytes(serialization.Encoding.PEM)
    .decode()
)


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[ctl.Tool]:
    """A daemon with one certificate: the leaf is asked for first, then the chain."""
    pem = KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    with ctl.at(tmp_path) as found:
        found.api.replies.update(
            {
                "pki.certificates.get": CERTIFICATE,
                "pki.certificates.pem": [
                    {**PLACE, "part": "leaf", "pem": LEAF},
                    {**PLACE, "part": "chain", "pem": INTERMEDIATE},
                ],
                "pki.certificates.key": {**PLACE, "key_type": CERTIFICATE["key_type"], "private_key_pem": pem},
            }
        )
        yield found


def export(tool: ctl.Tool, file: Path, *arguments: str, given: str | None = None) -> ctl.Ended:
    return tool("cert", "export", str(CERTIFICATE["id"]), "--pkcs12", str(file), *arguments, given=given)


@pytest.mark.parametrize("is_in_file", [True, False])
def test_it_holds_key_certificate_and_chain(tool: ctl.Tool, tmp_path: Path, is_in_file: bool) -> None:
    """Under the password from a file, or from standard input."""
    file = tmp_path / "www.p12"
    password = tmp_path / "password"
    password.write_text("correct horse\n")
    if is_in_file:
        ended = export(tool, file, "--password-file", str(password))
    else:
        ended = export(tool, file, given="correct horse\n")
    assert ended.code == 0, ended.err
    key, leaf, chain = pkcs12.load_key_and_certificates(file.read_bytes(), b"correct horse")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.private_numbers() == KEY.private_numbers()
    assert leaf is not None
    assert leaf.public_bytes(serialization.Encoding.PEM).decode() == LEAF
    assert [each.public_bytes(serialization.Encoding.PEM).decode() for each in chain] == [INTERMEDIATE]
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ValueError, match="password"):
        pkcs12.load_key_and_certificates(file.read_bytes(), b"wrong")


def test_a_file_that_is_there_is_replaced(tool: ctl.Tool, tmp_path: Path) -> None:
    """In one step, and nothing is left beside it."""
    (tmp_path / "p").mkdir()
    file = tmp_path / "p/www.p12"
    file.write_text("old")
    assert export(tool, file, given="correct horse\n").code == 0
    assert file.read_bytes()[:3] != b"old"
    assert [each.name for each in file.parent.iterdir()] == ["www.p12"]


def test_a_password_file_goes_with_it_only(tool: ctl.Tool, tmp_path: Path) -> None:
    """And an empty one is no password."""
    (tmp_path / "empty").write_text("\n")
    wrong = tool("cert", "export", "x", "--to", str(tmp_path / "t"), "--password-file", str(tmp_path / "empty"))
    assert wrong.code == 2
    ended = export(tool, tmp_path / "p12", "--password-file", str(tmp_path / "empty"))
    assert ended.code == 2
    assert "is empty" in ended.err


def test_one_destination_must_be_given(tool: ctl.Tool, tmp_path: Path) -> None:
    """Two would leave it open which one failed."""
    assert tool("cert", "export", "x").code == 2
    assert export(tool, tmp_path / "a", "--tar", "-").code == 2
