"""Where google_cloud_dns has its tokens from, seen at the socket."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from scaivaultd_contrib_dns.google import GoogleCloudDns, scaivaultd_dns_providers
from scaivaultd_contrib_dns.google_settings import GoogleSettings

from scaivaultd.plugin import PermanentError, ProviderAuthError, TransientError, Zone
from scaivaultd.plugin.testing import FixedSecrets, JumpingClock, RotatedSecrets, everything_about, make_context
from tests.fakes.google import FakeGoogle

NAME = "_acme-challenge.example.org"
ZONE = Zone(name="example.org", id="zone")
PATH = "infra/google/key"
KEY = rsa.generate_private_key(65537, 2048)
STRANGERS_KEY = rsa.generate_private_key(65537, 2048)


@pytest.fixture
async def server() -> AsyncIterator[FakeGoogle]:
    """The server, which must have nothing to object to when the test is over."""
    async with FakeGoogle(KEY) as server:
        server.add_zone("zone", "example.org")
        yield server
        assert server.violations == []


class Opened:
    """Opens providers with the clock and the secrets of a test."""

    def __init__(self, server: FakeGoogle) -> None:
        self.server = server
        self.clock = JumpingClock()
        self.secrets = FixedSecrets({PATH: server.key_file()})

    def __call__(self, **settings: Any) -> Any:
        kind = next(iter(scaivaultd_dns_providers()))
        decoded = msgspec.convert({"api_base": self.server.api_base, **settings}, GoogleSettings)
        return kind.open(decoded, make_context(self.secrets, clock=self.clock))


@pytest.fixture
def opened(server: FakeGoogle) -> Opened:
    return Opened(server)


async def test_one_token_serves_many_calls_at_once(opened: Opened) -> None:
    """Twenty orders must not ask for twenty tokens."""
    async with opened(service_account_json_path=PATH) as provider, asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(provider.find_zone(NAME))
    assert opened.server.token_requests == 1


async def test_a_token_is_renewed_five_minutes_before_it_expires(opened: Opened) -> None:
    """One that expires on its way is refused."""
    async with opened(service_account_json_path=PATH) as provider:
        await provider.find_zone(NAME)
        await opened.clock.sleep(3599 - 300 - 30)
        await provider.find_zone(NAME)
        assert opened.server.token_requests == 1
        await opened.clock.sleep(60)
        await provider.find_zone(NAME)
    assert opened.server.token_requests == 2


@pytest.mark.parametrize("expires_in", ["3599", 3599.0, None, "soon"])
async def test_lifetimes_are_read_in_any_form(opened: Opened, expires_in: object) -> None:
    """Token endpoints write numbers, digits, or nothing."""
    opened.server.expires_in = expires_in
    async with opened(service_account_json_path=PATH) as provider:
        await provider.find_zone(NAME)
        await provider.find_zone(NAME)
    assert opened.server.token_requests == 1


async def test_many_refusals_fetch_one_new_token(opened: Opened) -> None:
    """A revoked token is refused to all at once; the first to notice gets a new one for everybody."""
    async with opened(service_account_json_path=PATH) as provider:
        await provider.find_zone(NAME)
        opened.server.revoke_tokens()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(10):
                tasks.create_task(provider.find_zone(NAME))
    assert opened.server.token_requests == 2
    assert opened.secrets.forgotten == [PATH]


async def test_a_token_that_is_always_refused_is_an_error_after_one_more(opened: Opened) -> None:
    """Trying for ever would lock the account."""
    opened.server.fail("status", times=99, where="/dns/v1/", status=401)
    async with opened(service_account_json_path=PATH) as provider:
        with pytest.raises(ProviderAuthError):
            await provider.find_zone(NAME)
    assert opened.server.token_requests == 2


async def test_a_rotated_key_is_read_anew(opened: Opened) -> None:
    """Rotation needs no restart."""
    old = {PATH: opened.server.key_file(STRANGERS_KEY)}
    opened.secrets = RotatedSecrets(old, {PATH: opened.server.key_file()})
    async with opened(service_account_json_path=PATH) as provider:
        assert (await provider.find_zone(NAME)).id == "zone"
    assert opened.secrets.forgotten == [PATH]


def ec_pem() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


def encrypted_pem() -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return KEY.private_bytes(encoding, form, serialization.BestAvailableEncryption(b"x")).decode()


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"type": "authorized_user"}, "google_auth"),
        ({"client_email": ""}, "lacks client_email"),
        ({"private_key": ""}, "lacks private_key"),
        (
            {"private_key": "-----BEGIN PRIVATE KEY-----\ns3cret\n-----END PRIVATE KEY-----\n"},
            "no readable private key",
        ),
        ({"private_key": ec_pem()}, "no RSA key"),
        ({"private_key": encrypted_pem()}, "encrypted"),
        ({"client_email": 5}, "not the JSON"),
    ],
)
async def test_a_key_that_cannot_be_used_says_why_and_shows_nothing(
    opened: Opened, members: dict[str, Any], text: str
) -> None:
    """People store the wrong file; its content must not end up in a log."""
    stored = opened.server.key_file(**members)
    opened.secrets = FixedSecrets({PATH: stored})
    async with opened(service_account_json_path=PATH) as provider:
        with pytest.raises(ProviderAuthError, match=text) as caught:
            await provider.add_txt(ZONE, NAME, ["x"], 60)
    assert PATH in str(caught.value)
    assert not any(line in everything_about(caught.value) for line in stored.split("\\n") if len(line) > 5)


@pytest.mark.parametrize("token_uri", ["http://192.0.2.1/token", "ftp://127.0.0.1/token", "https://u:p@x.example/"])
async def test_an_assertion_goes_to_safe_places_only(opened: Opened, token_uri: str) -> None:
    """Whoever can change the secret must not choose where what it signs is sent in the clear."""
    opened.secrets = FixedSecrets({PATH: opened.server.key_file(token_uri=token_uri)})
    async with opened(service_account_json_path=PATH) as provider:
        with pytest.raises(PermanentError, match="token_uri of the service account"):
            await provider.find_zone(NAME)


async def test_token_uri_can_be_set_apart_from_the_key(opened: Opened) -> None:
    """Tests and proxies do; the audience follows."""
    opened.secrets = FixedSecrets({PATH: opened.server.key_file(token_uri="https://oauth2.googleapis.com/token")})
    async with opened(service_account_json_path=PATH, token_uri=f"{opened.server.url}/token") as provider:
        assert (await provider.find_zone(NAME)).id == "zone"


# The metadata server


@pytest.fixture
def metadata(server: FakeGoogle) -> Mapping[str, Any]:
    """Settings that use it; http to loopback is taken, host and port are enough."""
    return {"metadata_host": server.url.removeprefix("http://")}


async def test_the_machine_gives_token_and_project(opened: Opened, metadata: Mapping[str, Any]) -> None:
    """At Google nothing needs to be configured."""
    async with opened(**metadata) as provider:
        assert (await provider.find_zone(NAME)).id == "zone"
        await provider.find_zone(NAME)
    assert opened.server.token_requests == 1
    assert len(opened.server.asked("project-id")) == 1


async def test_a_busy_metadata_server_is_asked_again(opened: Opened, metadata: Mapping[str, Any]) -> None:
    """Just after boot it answers 503 for a while."""
    opened.server.fail("status", times=2, where="project-id", status=503)
    opened.server.fail("status", times=2, where="token$", status=503)
    async with opened(**metadata) as provider:
        assert (await provider.find_zone(NAME)).id == "zone"


@pytest.mark.parametrize("flavor", [None, "Other"])
async def test_what_is_no_metadata_server_is_not_believed(
    opened: Opened, metadata: Mapping[str, Any], flavor: str | None
) -> None:
    """A captive portal answers anything with 200."""
    opened.server.metadata_flavor = flavor
    async with opened(**metadata) as provider:
        with pytest.raises(ProviderAuthError, match="no metadata server"):
            await provider.find_zone(NAME)


@pytest.mark.parametrize("host", ["metadata.example", "169.254.169.1", "http://192.0.2.7"])
async def test_the_metadata_host_is_link_local_or_safe(opened: Opened, host: str) -> None:
    """Plain http is taken from the machine's own network only."""
    with pytest.raises(PermanentError, match="https is needed"):
        async with opened(metadata_host=host):
            pass


# google-auth


@pytest.fixture
def google_auth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FakeGoogle) -> Iterator[None]:
    """A package that stands in for google-auth; it is none of our dependencies."""
    package = tmp_path / "google" / "auth"
    (package / "transport").mkdir(parents=True)
    (package / "transport" / "__init__.py").touch()
    (package / "transport" / "requests.py").write_text("class Request: pass\n")
    errors = "class GoogleAuthError(Exception): pass\nclass TransportError(GoogleAuthError): pass\n"
    (package / "exceptions.py").write_text(errors + "class DefaultCredentialsError(GoogleAuthError): pass\n")
    (package / "__init__.py").write_text(
        "import datetime\n"
        "class Credentials:\n"
        "    token = expiry = None\n"
        "    def refresh(self, request):\n"
        "        self.token = 'ya29.by-the-library'\n"
        "        self.expiry = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None) "
        "+ datetime.timedelta(hours=1)\n"
        "def default(scopes): return Credentials(), 'dns-project'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    server.tokens["ya29.by-the-library"] = "https://www.googleapis.com/auth/ndev.clouddns.readwrite"
    yield
    for name in [name for name in sys.modules if name.startswith("google.auth")]:
        del sys.modules[name]


@pytest.mark.usefixtures("google_auth")
async def test_google_auth_is_used_when_it_is_asked_for(opened: Opened) -> None:
    """Exotic credentials are left to the library that knows them; nobody else loads it."""
    async with opened(credentials_source="google_auth") as provider:
        assert isinstance(provider, GoogleCloudDns)
        assert (await provider.find_zone(NAME)).id == "zone"


async def test_a_missing_google_auth_says_what_to_install(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is the documentation that people read."""
    for name in ("google.auth", "google.auth.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    async with opened(credentials_source="google_auth", project="dns-project") as provider:
        with pytest.raises(PermanentError, match="pip install google-auth"):
            await provider.find_zone(NAME)


async def test_a_gateways_answer_in_place_of_a_token_is_asked_again(opened: Opened) -> None:
    """Proxies answer 200 in HTML; that is no token and no reason to give up."""
    opened.server.fail("status", where="/token", status=200)
    opened.server.fail("status", where="/token", status=502)
    async with opened(service_account_json_path=PATH) as provider:
        assert (await provider.find_zone(NAME)).id == "zone"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": "internal_failure"}),
        (400, {"error": "temporarily_unavailable", "error_description": "Later."}),
        (403, {"error": {"code": 403, "errors": [{"reason": "rateLimitExceeded"}], "message": "Slow down."}}),
        (403, {"error": {"code": 403, "status": "RESOURCE_EXHAUSTED", "message": "Slow down."}}),
    ],
)
async def test_a_busy_token_endpoint_is_no_refusal(opened: Opened, status: int, body: Mapping[str, Any]) -> None:
    """Its status looks like one; taken so, a busy minute at Google fails the order for good."""
    details = {"status": status, "body": json.dumps(body).encode(), "content_type": "application/json"}
    opened.server.fail("status", times=3, where="/token", **details)
    async with opened(service_account_json_path=PATH) as provider:
        assert (await provider.find_zone(NAME)).id == "zone"
    assert opened.secrets.forgotten == []


async def test_a_token_that_still_lasts_outlives_a_failing_endpoint(opened: Opened) -> None:
    """Five minutes are left for the endpoint to come back; it is not asked by every request meanwhile."""
    async with opened(service_account_json_path=PATH, max_retries=0) as provider:
        await provider.find_zone(NAME)
        await opened.clock.sleep(3599 - 200)
        opened.server.fail("status", times=2, where="/token", status=503)
        await provider.find_zone(NAME)
        await provider.find_zone(NAME)
        assert len(opened.server.asked("/token")) == 2
        await opened.clock.sleep(200)
        with pytest.raises(TransientError):
            await provider.find_zone(NAME)
        await provider.find_zone(NAME)
    assert opened.server.token_requests == 2


async def test_refusals_are_told_in_the_services_words(opened: Opened) -> None:
    """A wrong clock looks like a wrong key; only the description tells."""
    body = json.dumps({"error": "invalid_grant", "error_description": "Invalid JWT: reasonable timeframe"}).encode()
    opened.server.fail("status", times=9, where="/token", status=400, body=body, content_type="application/json")
    async with opened(service_account_json_path=PATH) as provider:
        with pytest.raises(ProviderAuthError, match=r"reasonable timeframe .*clock"):
            await provider.find_zone(NAME)
