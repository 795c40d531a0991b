"""The stores of other clients as those clients wrote them: `tests/stores` was made by certbot 2.1 and lego 4.9.

acme.sh's is put together here, in the shape that its wiki describes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scaivaultd.import_accounts import account_plans, known_directories
from scaivaultd.import_acmesh import assignments, read_acmesh
from scaivaultd.import_certbot import read_certbot
from scaivaultd.import_lego import read_lego
from scaivaultd.import_store import ForeignCertificate, ForeignStore, Unreadable

STORES = Path(__file__).parent / "stores"
DIRECTORY = "https://ca.example.net/directory"
LETSENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"


def certificate(store: ForeignStore, name: str) -> ForeignCertificate:
    return next(each for each in store.certificates if each.name == name)


@pytest.fixture
def certbot(tmp_path: Path) -> Path:
    """A store that a test may spoil."""
    return Path(shutil.copytree(STORES / "certbot", tmp_path / "letsencrypt", symlinks=True))


@pytest.fixture
def acmesh(tmp_path: Path) -> Path:
    """An acme.sh home with an ECDSA certificate by DNS and an RSA one by a web root."""
    home = tmp_path / ".acme.sh"
    keys = STORES / "lego/certificates"
    account = home / "ca/acme-v02.api.letsencrypt.org/directory"
    account.mkdir(parents=True)
    shutil.copy(keys / "a.example.org.key", account / "account.key")
    (account / "account.json").write_text('{"status": "valid", "contact": ["mailto:ops@example.org"]}')
    (account / "ca.conf").write_text("ACCOUNT_URL='https://acme-v02.api.letsencrypt.org/acme/acct/1'\n")
    (home / "account.conf").write_text("LOG_FILE='/x'\nSAVED_CF_Token='the token'\nSAVED_CF_Zone_ID=''\n")
    for folder, name, webroot in (
        ("lego.example.org_ecc", "lego.example.org", "dns_cf"),
        ("a.example.org", "a.example.org", "/var/www,dns_aws"),
    ):
        (home / folder).mkdir()
        shutil.copy(keys / f"{name}.key", home / folder / f"{name}.key")
        shutil.copy(keys / f"{name}.crt", home / folder / "fullchain.cer")
        conf = f"Le_Domain='{name}'\nLe_Alt='no'\nLe_Webroot='{webroot}'\nLe_API='{LETSENCRYPT}'\nLe_ReloadCmd=''\n"
        (home / folder / f"{name}.conf").write_text(conf)
    return home


class TestCertbot:
    def test_everything_that_it_renews_is_found(self) -> None:
        """With the ways in which it proved the names."""
        store = read_certbot(STORES / "certbot")
        assert [(each.name, each.challenge_type, each.reuse_key) for each in store.certificates] == [
            ("bücher", "http-01", False),
            ("shop.example.org", "http-01", False),
            ("wild.example.org", "dns-01", True),
            ("www.example.org", "http-01", False),
        ]
        assert [each.problem for each in store.certificates] == [None] * 4
        assert all(each.chain_pem.count("BEGIN CERT") == 2 for each in store.certificates)
        (account,) = store.accounts
        assert account.directory_url == DIRECTORY
        assert {each.account for each in store.certificates} == {account.ref}

    def test_keys_are_not_shown(self) -> None:
        """A traceback or a debug line must not hold them."""
        store = read_certbot(STORES / "certbot")
        assert "PRIVATE KEY" not in repr(store)
        assert '"d"' not in repr(store)

    def test_its_account_key_is_read(self) -> None:
        """It is a JWK there, and PEM here."""
        (plan,) = account_plans(read_certbot(STORES / "certbot").accounts, [], None)
        assert plan.problem is None
        assert plan.members["account_key_pem"].startswith("-----BEGIN PRIVATE KEY-----")
        assert (plan.name, plan.members["provider"]) == ("ca.example.net", "custom")
        assert "PRIVATE KEY" not in repr(plan)

    def test_the_newest_of_the_archive_stands_in_for_broken_links(self, certbot: Path) -> None:
        """Copies of such folders often lose their links."""
        live, archive = certbot / "live/www.example.org", certbot / "archive/www.example.org"
        for part in ("fullchain", "privkey"):
            (live / f"{part}.pem").unlink()
            (live / f"{part}.pem").symlink_to(f"../../archive/www.example.org/{part}9.pem")
            shutil.copy(archive / f"{part}1.pem", archive / f"{part}10.pem")
        found = certificate(read_certbot(certbot), "www.example.org")
        assert found.problem is None
        assert "number 10" in found.notes[0]
        assert "points nowhere" in found.notes[0]

    def test_what_is_lost_is_told_and_the_rest_is_found(self, certbot: Path) -> None:
        """One broken certificate must not keep all others from moving."""
        shutil.rmtree(certbot / "live/www.example.org")
        shutil.rmtree(certbot / "archive/www.example.org")
        (certbot / "renewal/shop.example.org.conf").write_text("version = 2.1.0\n")
        (certbot / "renewal/bücher.conf").write_bytes(b"\xff\xfe")
        store = read_certbot(certbot)
        assert "is missing" in (certificate(store, "www.example.org").problem or "")
        assert "no [renewalparams]" in (certificate(store, "shop.example.org").problem or "")
        assert "is no text" in (certificate(store, "bücher").problem or "")
        assert certificate(store, "wild.example.org").problem is None

    def test_a_lost_account_is_told(self, certbot: Path) -> None:
        """Its certificates are left out then, and a person must know why."""
        shutil.rmtree(certbot / "accounts")
        store = read_certbot(certbot)
        assert store.accounts == ()
        assert "private_key.json is missing" in store.warnings[0]

    @pytest.mark.parametrize(
        ("lines", "expected"),
        [
            ("authenticator = nginx", ("http-01", None)),
            ("authenticator = dns-cloudflare", ("dns-01", "dns-cloudflare")),
            ("authenticator = certbot-dns-gandi:dns-gandi", ("dns-01", "dns-gandi")),
            ("authenticator = manual\npref_challs = dns-01,", ("dns-01", None)),
            ("authenticator = manual\npref_challs = http-01,", ("http-01", None)),
            ("authenticator = postfix", (None, None)),
            ("# authenticator = nginx", (None, None)),
            ("[[webroot_map]]\nauthenticator = nginx", (None, None)),
        ],
    )
    def test_plugins_become_challenges(self, certbot: Path, lines: str, expected: tuple[str, str]) -> None:
        """Whoever used a DNS plugin has no web server that the CA reaches."""
        conf = f"[renewalparams]\nserver = {DIRECTORY}\n{lines}\n"
        (certbot / "renewal/www.example.org.conf").write_text(conf)
        found = certificate(read_certbot(certbot), "www.example.org")
        assert (found.challenge_type, found.dns) == expected
        assert found.account is not None, "the only one of its server"

    @pytest.mark.parametrize("server", ["https://h/../../../etc", "", "https://other.example/directory"])
    def test_a_server_leads_nowhere_else(self, certbot: Path, server: str) -> None:
        """A configuration that somebody else wrote must not have other files read."""
        (certbot / "renewal/www.example.org.conf").write_text(f"[renewalparams]\nserver = {server}\n")
        assert certificate(read_certbot(certbot), "www.example.org").account is None

    def test_another_folder_is_not_taken_for_one(self, tmp_path: Path) -> None:
        """An empty report would look like success."""
        with pytest.raises(Unreadable, match="no certbot folder"):
            read_certbot(tmp_path)


class TestLego:
    def test_its_certificates_are_found_with_their_account(self) -> None:
        """By the host of the certificate's URL: that is all that it keeps."""
        store = read_lego(STORES / "lego", {"ca.example.net": DIRECTORY})
        assert [each.name for each in store.certificates] == ["a.example.org", "lego.example.org"]
        (account,) = store.accounts
        assert (account.directory_url, account.email) == (DIRECTORY, "ops@example.org")
        assert {each.account for each in store.certificates} == {account.ref}
        (plan,) = account_plans(store.accounts, [], None)
        assert plan.problem is None

    def test_a_directory_that_nobody_knows_is_asked_for(self) -> None:
        """A wrong guess would look for the account at another CA."""
        store = read_lego(STORES / "lego", known_directories())
        assert store.accounts == ()
        assert "--server" in store.warnings[0]
        assert [each.account for each in store.certificates] == [None, None]

    def test_a_leaf_alone_gets_its_issuer(self, tmp_path: Path) -> None:
        """That is how `--no-bundle` leaves it."""
        store = Path(shutil.copytree(STORES / "lego", tmp_path / "lego"))
        chain = store / "certificates/a.example.org.crt"
        chain.write_text(chain.read_text().partition("-----END CERTIFICATE-----\n")[0] + "-----END CERTIFICATE-----\n")
        found = certificate(read_lego(store, {"ca.example.net": DIRECTORY}), "a.example.org")
        assert found.chain_pem.count("BEGIN CERTIFICATE") == 2

    @pytest.mark.parametrize(("name", "text"), [("a.example.org.json", "{"), ("a.example.org.json", "[]")])
    def test_what_is_spoiled_is_told(self, tmp_path: Path, name: str, text: str) -> None:
        """And the rest is found."""
        store = Path(shutil.copytree(STORES / "lego", tmp_path / "lego"))
        (store / "certificates" / name).write_text(text)
        found = read_lego(store, {"ca.example.net": DIRECTORY})
        assert "is no JSON" in (certificate(found, "a.example.org").problem or "")
        assert certificate(found, "lego.example.org").problem is None

    def test_another_folder_is_not_taken_for_one(self, tmp_path: Path) -> None:
        """An empty report would look like success."""
        with pytest.raises(Unreadable, match="no lego folder"):
            read_lego(tmp_path, {})


class TestAcmeSh:
    def test_its_certificates_are_found_with_their_account(self, acmesh: Path) -> None:
        """By the directory in `Le_API`."""
        store = read_acmesh(acmesh)
        found = certificate(store, "lego.example.org_ecc")
        assert (found.challenge_type, found.dns) == ("dns-01", "dns_cf")
        (account,) = store.accounts
        assert (account.directory_url, account.email) == (LETSENCRYPT, "ops@example.org")
        assert {each.account for each in store.certificates} == {account.ref}
        (plan,) = account_plans(store.accounts, [], None)
        assert (plan.name, plan.members["provider"], plan.members["directory_url"]) == (
            "letsencrypt",
            "letsencrypt",
            None,
        )

    def test_names_proven_in_two_ways_are_proven_by_dns(self, acmesh: Path) -> None:
        """Every name can be, and a wildcard in no other way."""
        found = certificate(read_acmesh(acmesh), "a.example.org")
        assert (found.challenge_type, found.dns) == ("dns-01", "dns_aws")
        assert "different ways" in found.notes[0]

    @pytest.mark.parametrize(
        ("webroot", "expected"),
        [
            ("no", "http-01"),
            ("/var/www", "http-01"),
            ("nginx:/etc/nginx/x", "http-01"),
            ("apache", "http-01"),
            ("alpn", "tls-alpn-01"),
            ("dns", "dns-01"),
            ("", None),
        ],
    )
    def test_its_words_become_challenges(self, acmesh: Path, webroot: str, expected: str | None) -> None:
        """`no` is its standalone server."""
        (acmesh / "a.example.org/a.example.org.conf").write_text(f"Le_Webroot='{webroot}'\nLe_API='{LETSENCRYPT}'\n")
        assert certificate(read_acmesh(acmesh), "a.example.org").challenge_type == expected

    def test_an_account_of_an_older_version_is_found(self, acmesh: Path) -> None:
        """They had no folder for the directory's path."""
        folder = acmesh / "ca/acme-v02.api.letsencrypt.org"
        (folder / "directory/account.key").rename(folder / "account.key")
        (account,) = read_acmesh(acmesh).accounts
        assert account.path == folder

    def test_credentials_are_read_and_not_shown(self, acmesh: Path) -> None:
        """They go into the secret store only, and only if that is wished."""
        store = read_acmesh(acmesh)
        assert store.credentials == {"CF_Token": "the token"}
        assert "the token" not in repr(store)

    def test_assignments_are_read_as_its_shell_would(self) -> None:
        """But nothing is run."""
        text = (
            "A='one two'\nexport B=\"x\"\nC=plain\n# D='no'\nnonsense\n"
            "E='__ACME_BASE64__START_c3lzdGVtY3RsIHJlbG9hZA==__ACME_BASE64__END_'\nF='$(touch /nowhere)'\n"
        )
        assert assignments(text) == {
            "A": "one two",
            "B": "x",
            "C": "plain",
            "E": "systemctl reload",
            "F": "$(touch /nowhere)",
        }

    def test_another_folder_is_not_taken_for_one(self, tmp_path: Path) -> None:
        """An empty report would look like success."""
        with pytest.raises(Unreadable, match=r"no acme\.sh folder"):
            read_acmesh(tmp_path)
