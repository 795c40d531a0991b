"""`scaivaultctl context` and `login`: which daemon is meant, and whose token goes where."""

from __future__ import annotations

import datetime
import os
import ssl
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scaivaultd.ctl_client import Misplaced
from scaivaultd.ctl_places import Context, place_of, write
from tests.fakes import ctl
from tests.fakes.api_socket import served_over_tcp

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TOKEN = "scvt_Ab3dEf9h_canary"
WHO: dict[str, Any] = {
    "principal": "token:Ab3dEf9h",
    "name": "ops",
    "policies": [],
    "scopes": [],
    "expires_at": None,
    "nats": None,
}


class Home:
    """A person's configuration directory, and a daemon."""

    def __init__(self, directory: Path, daemon: ctl.Tool) -> None:
        self.directory = directory
        self.daemon = daemon

    def __call__(self, *arguments: str, given: str | None = None, **environment: str | None) -> ctl.Ended:
        return ctl.run(*arguments, given=given, **{"XDG_CONFIG_HOME": str(self.directory), **environment})

    def file(self, name: str) -> Path:
        return self.directory / "scaivault/contexts" / f"{name}.toml"

    @property
    def environment(self) -> Mapping[str, str]:
        return {"XDG_CONFIG_HOME": str(self.directory)}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with ctl.at(tmp_path) as daemon:
        daemon.api.replies["auth.whoami"] = WHO
        yield Home(tmp_path / "config", daemon)


class TestPlace:
    """Flags beat the environment, that beats the context, that beats the socket of the packaged unit."""

    @pytest.fixture(autouse=True)
    def _contexts(self, tmp_path: Path) -> None:
        self.environment = {"XDG_CONFIG_HOME": str(tmp_path)}
        write("one", Context("https://one.example", "scvt_one"), self.environment)
        write("two", Context("https://two.example", None, None, Path("/ca.pem")), self.environment)
        (tmp_path / "scaivault/current-context").write_text("one\n")

    def where(self, given: Mapping[str, object] | None = None, **environment: str) -> tuple[str, str | None]:
        place = place_of(given or {}, {**self.environment, **environment})
        return place.address, place.token

    def test_the_chosen_context_beats_the_default(self) -> None:
        """That is what choosing is for."""
        assert self.where() == ("https://one.example", "scvt_one")
        (Path(self.environment["XDG_CONFIG_HOME"]) / "scaivault/current-context").unlink()
        assert self.where() == ("unix:/run/scaivaultd/api.sock", None)

    def test_the_environment_beats_the_chosen_context(self) -> None:
        """By the name of another, or by an address."""
        assert self.where(SCAIVAULT_CONTEXT="two")[0] == "https://two.example"
        assert self.where(SCAIVAULT_ADDR="https://three.example")[0] == "https://three.example"
        assert self.where(SCAIVAULT_ADDR="https://three.example", SCAIVAULT_CONTEXT="two")[0] == "https://three.example"
        assert self.where(SCAIVAULT_TOKEN="scvt_mine") == ("https://one.example", "scvt_mine")

    def test_flags_beat_all(self) -> None:
        """A context that is named takes its token along."""
        environment = {"SCAIVAULT_ADDR": "https://three.example", "SCAIVAULT_TOKEN": "scvt_mine"}
        assert self.where({"at_context": "one"}, **environment) == ("https://one.example", "scvt_one")
        assert self.where({"at_context": "two"}, **environment) == ("https://two.example", "scvt_mine")
        assert self.where({"at_address": "/a.sock"}, **environment)[0] == "unix:/a.sock"

    def test_the_token_of_a_context_goes_nowhere_else(self) -> None:
        """A mistyped address must not get it."""
        assert self.where({"at_address": "https://evil.example"}) == ("https://evil.example", None)
        assert self.where(SCAIVAULT_ADDR="https://evil.example") == ("https://evil.example", None)

    def test_the_ca_is_that_of_the_context_unless_named(self) -> None:
        """As everything else."""
        assert place_of({"at_context": "two"}, self.environment).ca_file == Path("/ca.pem")
        named = {**self.environment, "SCAIVAULT_CA_FILE": "/other.pem"}
        assert place_of({"at_context": "two"}, named).ca_file == Path("/other.pem")
        assert place_of({"at_context": "two", "at_ca_file": Path("/x.pem")}, named).ca_file == Path("/x.pem")

    def test_no_token_is_in_what_is_printed_by_accident(self) -> None:
        """A debugger, a traceback."""
        assert "scvt" not in repr(place_of({}, self.environment))

    def test_a_broken_context_is_in_nobodys_way_who_names_another_place(self) -> None:
        """It can wait until it is used."""
        file = Path(self.environment["XDG_CONFIG_HOME"]) / "scaivault/contexts/one.toml"
        file.write_text("[")
        assert self.where({"at_address": "/a.sock"})[0] == "unix:/a.sock"
        with pytest.raises(Misplaced, match="not TOML"):
            self.where()


class TestFiles:
    @pytest.mark.parametrize("mode", [0o644, 0o660, 0o604, 0o700 | 0o020])
    def test_one_that_others_may_read_or_write_is_refused(self, home: Home, mode: int) -> None:
        """It may hold a token, and says where tokens go."""
        write("x", Context("unix:/x", TOKEN), home.environment)
        home.file("x").chmod(mode)
        ended = home("--context", "x", "auth", "whoami")
        assert ended.code == 2
        assert "chmod 600" in ended.err

    def test_it_is_the_owners_alone_from_the_start(self, home: Home) -> None:
        """Whatever the umask."""
        before = os.umask(0)
        try:
            home("context", "add", "x", "--address", "/x.sock", "--token", given=TOKEN)
        finally:
            os.umask(before)
        assert stat.S_IMODE(home.file("x").stat().st_mode) == 0o600
        assert stat.S_IMODE(home.file("x").parent.stat().st_mode) == 0o700

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("[", "not TOML"),
            ('token = "x"', "has an address"),
            ("address = 5", "is a text"),
            ('address = "/x"\ntokn = "y"', "'tokn' is no member"),
            ('address = "ftp://x"', "unix:/PATH"),
            ('address = "/x"\ntoken = "two words"', "is no token"),
            ('address = "/x"\ntoken_file = "/nowhere"', "cannot be read"),
        ],
    )
    def test_one_that_says_something_else_is_wrong_usage(self, home: Home, text: str, told: str) -> None:
        """People edit them; the token is not repeated."""
        write("x", Context("unix:/x"), home.environment)
        home.file("x").write_text(text)
        ended = home("--context", "x", "auth", "whoami")
        assert ended.code == 2
        assert told in ended.err
        assert "two words" not in ended.err

    @pytest.mark.parametrize("name", ["../x", "", ".x", "a/b", "a b", "x" * 65])
    def test_what_is_no_name_is_no_file(self, home: Home, name: str) -> None:
        """Nothing is written outside of the directory."""
        assert home("context", "add", name, "--address", "/x.sock").code == 2
        assert not home.directory.exists()

    def test_letters_that_mean_something_in_toml_come_back(self, home: Home) -> None:
        """File names may have any."""
        kept = Context("unix:/x", None, None, Path('/a "b" \\c\u00e9'))
        write("x", kept, home.environment)
        assert place_of({"at_context": "x"}, home.environment).ca_file == kept.ca_file


class TestVerbs:
    def test_one_is_kept_used_and_forgotten(self, home: Home) -> None:
        """The whole life of one."""
        assert home("context", "add", "here", "--address", str(home.daemon.socket), "--use").code == 0
        assert home("auth", "whoami").code == 0
        listed = home("context", "ls").out.splitlines()
        assert listed[1].split()[:2] == ["*", "here"]
        assert home("context", "use", "--none").code == 0
        assert home("context", "ls", "--json").json[0]["is_current"] is False
        assert home("context", "rm", "here").code == 2
        assert home("context", "rm", "here", "--yes").code == 0
        assert home("context", "ls").out == ""

    def test_the_one_in_use_that_is_forgotten_is_used_no_more(self, home: Home) -> None:
        """Every verb would fail otherwise."""
        home("context", "add", "x", "--address", "/x.sock", "--use")
        home("context", "rm", "x", "--yes")
        assert home("context", "show").code == 2
        assert not (home.directory / "scaivault/current-context").exists()

    def test_none_is_replaced_unasked(self, home: Home) -> None:
        """The token in it may be the only copy."""
        home("context", "add", "x", "--address", "/x.sock")
        assert home("context", "add", "x", "--address", "/y.sock").code == 2
        assert "/x.sock" in home.file("x").read_text()
        assert home("context", "add", "x", "--address", "/y.sock", "--force").code == 0

    def test_no_token_is_ever_shown(self, home: Home) -> None:
        """Only that there is one."""
        added = home("context", "add", "x", "--address", "/x.sock", "--token", given=f"{TOKEN}\n")
        for ended in (
            added,
            home("context", "ls"),
            home("context", "show", "x"),
            home("context", "show", "x", "--json"),
        ):
            assert ended.code == 0
            assert TOKEN not in ended.out + ended.err
        assert TOKEN in home.file("x").read_text()

    @pytest.mark.parametrize("arguments", [["use", "nowhere"], ["show", "nowhere"], ["rm", "nowhere"], ["use"]])
    def test_one_that_is_not_there_is_wrong_usage(self, home: Home, arguments: list[str]) -> None:
        """And is not used."""
        assert home("context", *arguments).code == 2

    def test_a_broken_one_is_listed_as_broken(self, home: Home) -> None:
        """It must not hide the others."""
        home("context", "add", "x", "--address", "/x.sock")
        home("context", "add", "y", "--address", "/y.sock")
        home.file("x").write_text("[")
        told = home("context", "ls").out
        assert "unusable" in told
        assert "/y.sock" in told


class TestLogin:
    def test_a_good_token_is_kept_and_used(self, home: Home) -> None:
        """By its name, or by that of the host."""
        ended = home("login", str(home.daemon.socket), "--name", "here", given=f"{TOKEN}\n")
        assert (ended.code, TOKEN in ended.out + ended.err) == (0, False)
        assert home.daemon.api.headers[-1]["Authorization"] == f"Bearer {TOKEN}"
        assert home("auth", "whoami", "--json").json["name"] == "ops"

    def test_a_wrong_one_is_not_kept(self, home: Home) -> None:
        """Every later verb would fail."""
        home.daemon.api.replies["auth.whoami"] = "unauthenticated"
        assert home("login", str(home.daemon.socket), given=f"{TOKEN}\n").code == 4
        assert not home.directory.exists()

    @pytest.mark.parametrize("given", ["", "\n", "two words\n"])
    def test_what_is_no_token_is_not_sent(self, home: Home, given: str) -> None:
        """An empty pipe must not log in as the socket's user."""
        assert home("login", str(home.daemon.socket), given=given).code == 2
        assert home.daemon.api.asked == []


def certified(directory: Path) -> tuple[Path, Path]:
    """A certificate for localhost that is its own CA, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, key_file = directory / "certificate.pem", directory / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem, key_file


class TestPrivateCa:
    def test_an_https_address_is_trusted_by_its_own_ca_and_no_other(self, tmp_path: Path) -> None:
        """The token goes to nobody else."""
        (tmp_path / "mine").mkdir()
        (tmp_path / "other").mkdir()
        pem, key = certified(tmp_path / "mine")
        other, _ = certified(tmp_path / "other")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pem, key)
        with served_over_tcp(context) as (api, address):
            api.replies["auth.whoami"] = WHO
            usual = ("auth", "whoami", "--address", address)
            assert ctl.run(*usual, "--ca-file", str(pem), SCAIVAULT_TOKEN=TOKEN).code == 0
            assert ctl.run(*usual, SCAIVAULT_CA_FILE=str(pem), SCAIVAULT_TOKEN=TOKEN).code == 0
            asked = len(api.headers)
            for wrong in ((), ("--ca-file", str(other))):
                ended = ctl.run(*usual, *wrong, SCAIVAULT_TOKEN=TOKEN)
                assert ended.code == 8
                assert "not trusted" in ended.err
            assert len(api.headers) == asked

    @pytest.mark.parametrize("text", [None, "no certificate"])
    def test_a_ca_file_that_is_none_is_told_by_its_name(self, tmp_path: Path, text: str | None) -> None:
        """Not as a fault of the daemon's."""
        file = tmp_path / "ca.pem"
        if text is not None:
            file.write_text(text)
        ended = ctl.run("auth", "whoami", "--address", "https://localhost:1", "--ca-file", str(file))
        assert ended.code == 8
        assert f"the CA file {file} cannot be used" in ended.err
