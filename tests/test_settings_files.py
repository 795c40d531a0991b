"""The files that a configuration names: what is said when they cannot be used."""

from __future__ import annotations

import datetime
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scaivaultd.settings import layers_of, load
from scaivaultd.settings_files import check_files

if TYPE_CHECKING:
    from collections.abc import Callable

STATE_DIR = 'state_dir = "/var/lib/scaivaultd"\n'


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Put a configuration into a file of its own."""

    def write(text: str) -> Path:
        path = tmp_path / "scaivaultd.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with one certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a root")])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(start).not_valid_after(start + datetime.timedelta(days=1))
    path = tmp_path / "root.pem"
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path


def test_files_that_can_be_used_are_no_mistakes(
    write: Callable[[str], Path], certificate: Path, tmp_path: Path
) -> None:
    """A check that cries wolf is switched off."""
    credentials = tmp_path / "nats.creds"
    credentials.touch()
    path = write(
        f'{STATE_DIR}[nats]\ncredentials_file = "{credentials}"\ntls_ca_file = "{certificate}"\n'
        f'server_path = "{shutil.which("true")}"\n[acme]\ntrust_files = ["{certificate}"]\n'
    )
    assert check_files(load(path), layers_of(path)) == []


def test_a_certificate_and_a_key_of_another_are_told_before_the_start(
    write: Callable[[str], Path], certificate: Path, tmp_path: Path
) -> None:
    """After a renewal by hand it is the usual mistake; without the check it shows when REST is down."""
    key = tmp_path / "api.key"
    format_, encryption = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(serialization.Encoding.PEM, format_, encryption)
    )
    text = f'{STATE_DIR}[rest]\ntls_certificate_file = "{certificate}"\ntls_key_file = "%s"\n'
    path = write(text % key)
    (mistake,) = check_files(load(path), layers_of(path))
    assert (mistake.line, mistake.key) == (4, "rest.tls_key_file")
    assert "do not belong together" in mistake.message
    path = write(text % (tmp_path / "none.key"))
    (mistake,) = check_files(load(path), layers_of(path))
    assert mistake.message == f"{tmp_path}/none.key cannot be read: No such file or directory"


def test_files_that_cannot_be_used_are_told_with_their_lines(
    write: Callable[[str], Path], certificate: Path, tmp_path: Path
) -> None:
    """A root that is not there shows only at the next order, as a CA that cannot be reached."""
    (tmp_path / "damaged.pem").write_bytes(certificate.read_bytes().replace(b"M", b"%", 3))
    (tmp_path / "empty.pem").touch()
    os.mkfifo(tmp_path / "pipe")
    path = write(
        f"""{STATE_DIR}
[nats]
credentials_file = "{tmp_path}/none.creds"
tls_ca_file = "{tmp_path}/pipe"
server_path = "{certificate}"
[acme]
trust_files = [
    "{certificate}",
    "{tmp_path}/damaged.pem",
    "{tmp_path}/empty.pem",
    "{tmp_path}",
]
"""
    )
    assert [str(each).replace(f"{tmp_path}", "T") for each in check_files(load(path), layers_of(path))] == [
        "T/scaivaultd.toml:10: acme.trust_files[1]: T/damaged.pem holds no PEM certificate, or a damaged one",
        "T/scaivaultd.toml:11: acme.trust_files[2]: T/empty.pem holds no PEM certificate, or a damaged one",
        "T/scaivaultd.toml:12: acme.trust_files[3]: T is not a regular file",
        "T/scaivaultd.toml:5: nats.tls_ca_file: T/pipe is not a regular file",
        "T/scaivaultd.toml:4: nats.credentials_file: T/none.creds cannot be read: No such file or directory",
        "T/scaivaultd.toml:6: nats.server_path: T/root.pem is not a program that this user may run",
    ]


def test_files_are_checked_without_the_configuration_too(write: Callable[[str], Path]) -> None:
    """The mistakes matter more than their lines when the file has gone since."""
    path = write(f'{STATE_DIR}nats.server_path = "/nowhere/nats-server"')
    settings = load(path)
    layers = layers_of(path)
    path.unlink()
    message = "nats.server_path: /nowhere/nats-server does not exist"
    assert [str(each) for each in check_files(settings)] == [message]
    assert [str(each) for each in check_files(settings, layers)] == [f"{path}:2: {message}"]


class TestPolicies:
    def test_every_mistake_of_every_file_is_told(self, write: Callable[[str], Path], tmp_path: Path) -> None:
        """A policy that silently does not hold allows what it should deny."""
        texts = {
            "good": '[[policy]]\nname = "web"\n',
            "twice": '[[policy]]\nname = "web"\n',
            "bad": '[[policy]]\nname = "ci"\nprincpals = []\n[[policy.rule]]\nactions = ["cert.isue"]\n',
        }
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        listed = ", ".join(f'"{tmp_path / name}"' for name in ("good", "twice", "bad", "none"))
        config = write(f"{STATE_DIR}[access]\npolicy_files = [{listed}]\n")
        told = [str(each) for each in check_files(load(config), layers_of(config))]
        assert any("'web'" in each and "already" in each for each in told)
        assert any("princpals" in each and "did you mean 'principals'" in each for each in told)
        assert any("none cannot be read" in each for each in told)
        assert all(each.startswith(f"{config}:3: access.policy_files") for each in told)
