"""Where azure_dns has its tokens from, seen at the socket."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from scaivaultd_contrib_dns.azure import scaivaultd_dns_providers
from scaivaultd_contrib_dns.azure_settings import AzureSettings

from scaivaultd.plugin import PermanentError, ProviderAuthError, ProviderError, TransientError
from scaivaultd.plugin.testing import FixedSecrets, JumpingClock, everything_about, make_context
from tests.fakes.azure import CLIENT, SUBSCRIPTION, TENANT, FakeAzure

NAME = "_acme-challenge.example.org"
SECRET, CERTIFICATE, HEADER = "infra/azure/secret", "infra/azure/certificate", "infra/azure/header"
KEY = rsa.generate_private_key(65537, 2048)
OTHER_KEY = rsa.generate_private_key(65537, 2048)
APPLICATION = {"tenant_id": TENANT, "client_id": CLIENT}


def certified(key: rsa.RSAPrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "scaivaultd")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    return builder.sign(key, hashes.SHA256())


def pem(*parts: rsa.RSAPrivateKey | x509.Certificate) -> str:
    encoding = serialization.Encoding.PEM
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    texts = [
        part.public_bytes(encoding) if isinstance(part, x509.Certificate) else part.private_bytes(encoding, form, plain)
        for part in parts
    ]
    return b"".join(texts).decode()


OWN_CERTIFICATE, OTHER_CERTIFICATE = certified(KEY), certified(OTHER_KEY)


@pytest.fixture
async def server() -> AsyncIterator[FakeAzure]:
    """The server, which must have nothing to object to when the test is over."""
    async with FakeAzure() as server:
        server.add_zone("group", "example.org")
        yield server
        assert server.violations == []


class Opened:
    """Opens providers with the clock and the secrets of a test."""

    def __init__(self, server: FakeAzure) -> None:
        self.server = server
        self.clock = JumpingClock()
        self.secrets = FixedSecrets({SECRET: server.client_secret})

    def __call__(self, **settings: Any) -> Any:
        kind = next(iter(scaivaultd_dns_providers()))
        config = {"api_base": self.server.url, "subscription_id": SUBSCRIPTION, **settings}
        return kind.open(msgspec.convert(config, AzureSettings), make_context(self.secrets, clock=self.clock))

    def application(self, **settings: Any) -> Any:
        return self(**APPLICATION, authority_url=self.server.url, **settings)


@pytest.fixture
def opened(server: FakeAzure) -> Opened:
    return Opened(server)


# Applications


async def test_many_refusals_fetch_one_new_token(opened: Opened) -> None:
    """A revoked token is refused to all at once; the first to notice gets a new one for everybody."""
    async with opened.application(client_secret_path=SECRET) as provider:
        await provider.find_zone(NAME)
        opened.server.revoke_tokens()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(10):
                tasks.create_task(provider.find_zone(NAME))
    assert opened.server.token_requests == 2
    assert opened.secrets.forgotten == [SECRET]


@pytest.mark.parametrize(
    "parts",
    [(KEY, OWN_CERTIFICATE), (OWN_CERTIFICATE, KEY), (OTHER_CERTIFICATE, OWN_CERTIFICATE, KEY)],
    ids=["key first", "certificate first", "chain"],
)
async def test_a_certificate_signs_for_the_application(opened: Opened, parts: tuple[Any, ...]) -> None:
    """Files combine certificate, chain and key in any order."""
    opened.server.certificate = OWN_CERTIFICATE
    opened.secrets = FixedSecrets({CERTIFICATE: pem(*parts)})
    async with opened.application(client_certificate_path=CERTIFICATE) as provider:
        assert (await provider.find_zone(NAME)).name == "example.org"


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        (pem(KEY), "holds no certificate"),
        (pem(KEY, OTHER_CERTIFICATE), "belongs to its private key"),
        (pem(OWN_CERTIFICATE), "no readable private key"),
        ("nothing", "no readable private key"),
    ],
)
async def test_a_certificate_that_cannot_be_used_says_why(opened: Opened, stored: str, text: str) -> None:
    """Its content must not end up in a log."""
    opened.secrets = FixedSecrets({CERTIFICATE: stored})
    async with opened.application(client_certificate_path=CERTIFICATE) as provider:
        with pytest.raises(ProviderAuthError, match=f"{CERTIFICATE}.*{text}") as caught:
            await provider.find_zone(NAME)
    assert not any(line in everything_about(caught.value) for line in stored.splitlines() if len(line) > 40)


async def test_the_federated_token_is_read_for_each_use(opened: Opened, tmp_path: Path) -> None:
    """Kubernetes rotates it."""
    file = tmp_path / "token"
    file.write_text("federated-token-1\n")
    async with opened.application(federated_token_file=str(file)) as provider:
        await provider.find_zone(NAME)
        opened.server.federated_token = "federated-token-2"
        file.write_text("federated-token-2\n")
        opened.server.revoke_tokens()
        await provider.find_zone(NAME)
    assert opened.server.token_requests == 2


@pytest.mark.parametrize("content", [None, "root:x:0:0:root\n", "-----BEGIN KEY-----\nabc\n", ""])
async def test_only_tokens_are_sent_from_files(opened: Opened, tmp_path: Path, content: str | None) -> None:
    """A wrong file name must not send passwords or keys anywhere."""
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    async with opened.application(federated_token_file=str(file)) as provider:
        with pytest.raises(ProviderAuthError, match="federated_token_file"):
            await provider.find_zone(NAME)
    assert opened.server.token_requests == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"client_id": "another"}, r"AADSTS700016.*client_id"),
        ({"tenant_id": "another"}, r"AADSTS90002.*tenant_id"),
        ({"client_secret_path": "infra/azure/wrong"}, r"AADSTS7000215.*not its id"),
        ({"environment": "china"}, r"AADSTS500011.*environment"),
    ],
)
async def test_refusals_say_what_helps(opened: Opened, change: dict[str, str], text: str) -> None:
    """The numbers alone help nobody."""
    opened.secrets = FixedSecrets({SECRET: opened.server.client_secret, "infra/azure/wrong": "wr0ng-s3cret"})
    config = {**APPLICATION, "client_secret_path": SECRET, "authority_url": opened.server.url, **change}
    async with opened(**config) as provider:
        with pytest.raises(ProviderAuthError, match=text) as caught:
            await provider.find_zone(NAME)
    assert "wr0ng-s3cret" not in everything_about(caught.value)


@pytest.mark.parametrize("status", [400, 401, 429, 503])
async def test_a_refusal_that_repeats_the_secret_does_not_show_it(opened: Opened, status: int) -> None:
    """Its words become the error's text, which many may read."""
    opened.secrets = FixedSecrets({SECRET: 'a "str4nge" one'})
    said = {"error": "invalid_client", "error_description": 'AADSTS7000215: a "str4nge" one is not it.'}
    body = json.dumps(said).encode()
    opened.server.fail("status", times=99, where="/token$", status=status, body=body, content_type="application/json")
    async with opened.application(client_secret_path=SECRET, max_retries=0) as provider:
        with pytest.raises(ProviderError, match="AADSTS7000215") as caught:
            await provider.find_zone(NAME)
    assert "str4nge" not in everything_about(caught.value)


async def test_a_federated_mismatch_says_what_helps(opened: Opened, tmp_path: Path) -> None:
    """Issuer, subject and audience have to match to the letter."""
    (tmp_path / "token").write_text("another-token")
    async with opened.application(federated_token_file=str(tmp_path / "token")) as provider:
        with pytest.raises(ProviderAuthError, match=r"AADSTS70021.*issuer, subject and audience"):
            await provider.find_zone(NAME)


def test_clouds_change_authority_root_and_scope_together() -> None:
    """One of them from another cloud is a token that nobody takes."""
    settings = {
        environment: AzureSettings(subscription_id="s", environment=environment)
        for environment in ("public", "usgovernment", "china")
    }
    assert {name: (each.authority, each.resource_manager, each.audience) for name, each in settings.items()} == {
        "public": ("https://login.microsoftonline.com", *["https://management.azure.com"] * 2),
        "usgovernment": ("https://login.microsoftonline.us", *["https://management.usgovcloudapi.net"] * 2),
        "china": ("https://login.chinacloudapi.cn", *["https://management.chinacloudapi.cn"] * 2),
    }


async def test_another_cloud_is_asked_for_its_own_scope(opened: Opened) -> None:
    """Also where the roots are replaced."""
    opened.server.audience = "https://management.usgovcloudapi.net"
    async with opened.application(client_secret_path=SECRET, environment="usgovernment") as provider:
        assert (await provider.find_zone(NAME)).name == "example.org"


# Machines


@pytest.mark.parametrize("path", ["", "/", "/metadata/identity/oauth2/token"])
async def test_the_machine_gives_a_token(opened: Opened, path: str) -> None:
    """Root or whole URL; lifetimes come as strings there."""
    async with opened(identity_endpoint=f"{opened.server.url}{path}") as provider:
        await provider.find_zone(NAME)
        await opened.clock.sleep(3599 - 300 - 30)
        await provider.find_zone(NAME)
        assert opened.server.token_requests == 1
        await opened.clock.sleep(60)
        await provider.find_zone(NAME)
    assert opened.server.token_requests == 2


@pytest.mark.parametrize("status", [404, 410, 429, 500, 503])
async def test_an_endpoint_that_is_not_ready_is_asked_again(opened: Opened, status: int) -> None:
    """After boot it takes its time."""
    opened.server.fail("status", times=3, where="/metadata/identity", status=status)
    async with opened(identity_endpoint=opened.server.url) as provider:
        assert (await provider.find_zone(NAME)).name == "example.org"


@pytest.mark.parametrize(("status", "text"), [(404, "not ready"), (503, "failed")])
async def test_an_endpoint_that_never_gets_ready_is_told(opened: Opened, status: int, text: str) -> None:
    """It may pass; the host decides how long to go on, and retries are not multiplied."""
    opened.server.fail("status", times=999, where="/metadata/identity", status=status)
    async with opened(identity_endpoint=opened.server.url, max_retries=3) as provider:
        with pytest.raises(TransientError, match=text):
            await provider.find_zone(NAME)
    assert len(opened.server.asked("/metadata/identity")) == 4


async def test_a_user_assigned_identity_is_named(opened: Opened) -> None:
    """Machines may have several; a wrong one is told."""
    opened.server.identity_client_id = "identity-1"
    config = {"identity_endpoint": opened.server.url, "credentials_source": "managed_identity"}
    async with opened(**config, managed_identity_client_id="identity-1") as provider:
        assert (await provider.find_zone(NAME)).name == "example.org"
    async with opened(**config) as provider:
        with pytest.raises(ProviderAuthError, match=r"Identity not found.*managed_identity_client_id"):
            await provider.find_zone(NAME)


async def test_app_service_wants_its_header(opened: Opened) -> None:
    """There the endpoint is a local port that needs a secret, and lifetimes are points in time."""
    opened.server.identity_header = "h3ader-secret"
    opened.secrets = FixedSecrets({HEADER: "h3ader-secret"})
    async with opened(identity_endpoint=f"{opened.server.url}/msi/token", identity_header_path=HEADER) as provider:
        await provider.find_zone(NAME)
        await provider.find_zone(NAME)
    assert opened.server.token_requests == 1


@pytest.mark.parametrize(
    "file", ["/etc/passwd", "/var/opt/azcmagent/tokens/../../x.key", "/var/opt/azcmagent/tokens/x"]
)
async def test_arc_cannot_ask_for_any_file(opened: Opened, file: str) -> None:
    """Whatever answers on that port would get the file's content."""
    headers = {"WWW-Authenticate": f"Basic realm={file}"}
    opened.server.fail("status", times=9, where="/metadata/identity", status=401, headers=headers)
    async with opened(identity_endpoint=opened.server.url) as provider:
        with pytest.raises(ProviderAuthError, match="none of Arc's keys"):
            await provider.find_zone(NAME)


async def test_an_arc_key_that_cannot_be_read_names_the_group(opened: Opened) -> None:
    """The daemon does not run as root."""
    headers = {"WWW-Authenticate": "Basic realm=/var/opt/azcmagent/tokens/absent.key"}
    opened.server.fail("status", times=9, where="/metadata/identity", status=401, headers=headers)
    async with opened(identity_endpoint=opened.server.url) as provider:
        with pytest.raises(ProviderAuthError, match="group himds"):
            await provider.find_zone(NAME)


async def test_the_identity_endpoint_is_link_local_or_safe(opened: Opened) -> None:
    """Plain http is taken from the machine itself only."""
    with pytest.raises(PermanentError, match="https is needed"):
        async with opened(identity_endpoint="http://192.0.2.1"):
            pass


# azure-identity


@pytest.fixture
def azure_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that stands in for azure-identity; it is none of our dependencies."""
    for package in ("azure", "azure/core", "azure/identity"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    errors = "class AzureError(Exception): pass\nclass ServiceRequestError(AzureError): pass\n"
    (tmp_path / "azure/core/exceptions.py").write_text(errors)
    (tmp_path / "azure/identity/__init__.py").write_text(
        "class Token: token, expires_on = 'by-the-library', 4102444800\n"
        "class DefaultAzureCredential:\n"
        "    def __init__(self, authority, managed_identity_client_id): pass\n"
        "    def get_token(self, scope):\n"
        "        assert scope == 'https://management.azure.com/.default'\n"
        "        return Token\n"
        "    def close(self): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "azure"]:
        del sys.modules[name]


@pytest.mark.usefixtures("azure_identity")
async def test_azure_identity_is_used_when_it_is_asked_for(opened: Opened) -> None:
    """Exotic credentials are left to the library that knows them; nobody else loads it."""
    opened.server.tokens.add("by-the-library")
    async with opened(credentials_source="azure_identity") as provider:
        assert (await provider.find_zone(NAME)).name == "example.org"


async def test_a_missing_azure_identity_says_what_to_install(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is the documentation that people read."""
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    async with opened(credentials_source="azure_identity") as provider:
        with pytest.raises(PermanentError, match="pip install azure-identity"):
            await provider.find_zone(NAME)


# Settings


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"client_secret_path": "a/b"}, "client_secret needs tenant_id and client_id"),
        ({"tenant_id": "t", "client_certificate_path": "a/b"}, "client_certificate needs client_id"),
        (APPLICATION, "none of client_secret_path"),
        ({**APPLICATION, "credentials_source": "workload_identity"}, "needs federated_token_file"),
        ({**APPLICATION, "client_secret_path": "a", "client_certificate_path": "b"}, "leave all but one out"),
        ({"credentials_source": "managed_identity", "client_secret_path": "a"}, "does not use client_secret_path"),
        ({"credentials_source": "managed_identity", "client_id": "c"}, "named by managed_identity_client_id"),
        ({**APPLICATION, "federated_token_file": "token"}, "absolute path"),
        (
            {**APPLICATION, "federated_token_file": "/token", "authority_url": "https://login.example"},
            "own authorities only",
        ),
        ({"identity_header_path": "a/b"}, "needs identity_endpoint"),
        ({"api_base": "http://arm.example"}, "api_base: .*https is needed"),
        ({"environment": "germany"}, "Invalid enum value"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_they_are_given(config: Mapping[str, Any], text: str) -> None:
    """At three in the morning nobody wants to learn that half of the credentials were never there."""
    with pytest.raises(msgspec.ValidationError, match=text):
        msgspec.convert({"subscription_id": SUBSCRIPTION, **config}, AzureSettings)
