"""AWS keys: each source against a server that behaves like it, renewal, and the signature against botocore's."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import botocore.auth  # type: ignore[import-untyped]  # it has no stubs
import botocore.awsrequest  # type: ignore[import-untyped]  # it has no stubs
import botocore.credentials  # type: ignore[import-untyped]  # it has no stubs
import msgspec
import pytest
from aiohttp import web
from scaivaultd_contrib_dns.aws_credentials import AwsSettings, key_ring
from scaivaultd_contrib_dns.aws_signing import AwsKeys, Scope, signed_headers

from scaivaultd.plugin import PermanentError, ProviderAuthError, Secret, TransientError
from scaivaultd.plugin.http import HttpRequest
from scaivaultd.plugin.testing import FixedSecrets, JumpingClock, RecordingLog, RotatedSecrets, make_context
from tests.fakes.http import FakeApi, Seen, problem
from tests.fakes.route53 import form_of

LIFETIME = timedelta(hours=1)


class FakeAws(FakeApi):
    """The instance metadata service, a container's credential service, and STS, at one address."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = JumpingClock()
        self.issued = 0
        self.role = "web-server"
        self.container_token = ""
        self.web_identity_token = "the-identity-token"

    async def answer(self, seen: Seen) -> web.StreamResponse:
        match seen.line:
            case "PUT /latest/api/token":
                assert seen.headers["x-aws-ec2-metadata-token-ttl-seconds"] == "21600"
                return web.Response(text="imds-token")
            case "GET /latest/meta-data/iam/security-credentials/":
                self._demand(seen, "x-aws-ec2-metadata-token", "imds-token")
                return web.Response(text=self.role) if self.role else web.Response(status=404)
            case "GET /latest/meta-data/iam/security-credentials/web-server":
                self._demand(seen, "x-aws-ec2-metadata-token", "imds-token")
                return problem(200, {"Code": "Success", "Type": "AWS-HMAC", **self._document()})
            case "GET /v1/credentials":
                if seen.headers.get("authorization", "") != self.container_token:
                    return problem(403, {"message": "no"})
                return problem(200, {"RoleArn": "arn:aws:iam::1:role/r", **self._document()})
            case "POST /":
                return self._sts(seen)
        self.violation(f"no such operation: {seen.line}")
        return web.Response(status=404)

    def _sts(self, seen: Seen) -> web.Response:
        form = form_of(seen.body)
        if form["Version"] != "2011-06-15" or not form["RoleSessionName"]:
            self.violation("STS wants its version and a session name")
        signed = "authorization" in seen.headers
        action = form["Action"]
        if (action == "AssumeRoleWithWebIdentity") == signed:
            self.violation(f"{action} is {'' if signed else 'not '}signed")
        if action == "AssumeRoleWithWebIdentity" and form["WebIdentityToken"] != self.web_identity_token:
            return _xml(
                400,
                "<ErrorResponse><Error><Type>Sender</Type><Code>InvalidIdentityToken</Code><Message>No OpenIDConnect "
                "provider found</Message></Error><RequestId>s-1</RequestId></ErrorResponse>",
            )
        keys = self._document()
        return _xml(
            200,
            f"<{action}Response><{action}Result><AssumedRoleUser><Arn>a</Arn></AssumedRoleUser><Credentials>"
            f"<AccessKeyId>{keys['AccessKeyId']}</AccessKeyId><SecretAccessKey>{keys['SecretAccessKey']}"
            f"</SecretAccessKey><SessionToken>{keys['Token']}</SessionToken><Expiration>{keys['Expiration']}"
            f"</Expiration></Credentials></{action}Result></{action}Response>",
        )

    def _document(self) -> dict[str, str]:
        self.issued += 1
        expiration = (self.clock.now() + LIFETIME).strftime("%Y-%m-%dT%H:%M:%SZ")
        number = self.issued
        return {
            "AccessKeyId": f"ASIA{number}",
            "SecretAccessKey": f"secret{number}",
            "Token": f"token{number}",
            "Expiration": expiration,
        }

    def _demand(self, seen: Seen, header: str, value: str) -> None:
        if seen.headers.get(header) != value:
            self.violation(f"{seen.line} without {header}")


def _xml(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text, content_type="text/xml")


@pytest.fixture
async def aws() -> AsyncIterator[FakeAws]:
    async with FakeAws() as server:
        yield server
        assert not server.violations


class Bench:
    """A key ring over the fake, and what it logged."""

    def __init__(
        self, aws: FakeAws, environment: Mapping[str, str], secrets: Mapping[str, str] = {}, **settings: Any
    ) -> None:
        config = {"sts_endpoint_url": aws.url, "imds_endpoint": aws.url, **settings}
        self.log = RecordingLog()
        context = make_context(FixedSecrets(secrets), clock=aws.clock, log=self.log)
        self.ring = key_ring(msgspec.convert(config, AwsSettings), context, environment)

    async def id(self, refused: bool = False) -> str:
        return (await self.ring.current(refused)).access_key_id


async def test_keys_are_renewed_five_minutes_before_they_expire(aws: FakeAws) -> None:
    """A request signed at the last second arrives after it."""
    bench = Bench(aws, {}, credentials_source="imds")
    assert [await bench.id(), await bench.id()] == ["ASIA1", "ASIA1"]
    await aws.clock.sleep(54 * 60)
    assert await bench.id() == "ASIA1"
    await aws.clock.sleep(2 * 60)
    assert await bench.id() == "ASIA2"


async def test_many_callers_fetch_once(aws: FakeAws) -> None:
    """Twenty orders must not ask twenty times, nor after a refusal of keys they all had."""
    bench = Bench(aws, {}, credentials_source="imds")
    assert set(await asyncio.gather(*(bench.id() for _ in range(20)))) == {"ASIA1"}
    assert set(await asyncio.gather(*(bench.id(refused=True) for _ in range(20)))) == {"ASIA2"}


async def test_keys_that_still_last_outlive_a_failing_source(aws: FakeAws) -> None:
    """Five minutes of grace are there to be used, with a warning; expired keys are not."""
    bench = Bench(aws, {}, credentials_source="imds")
    await bench.id()
    await aws.clock.sleep(57 * 60)
    aws.fail("status", times=2)
    assert await bench.id() == "ASIA1"
    assert any("aws.keys_not_renewed" in line for line in bench.log.lines)
    await aws.clock.sleep(4 * 60)
    with pytest.raises(TransientError, match="hop limit"):
        await bench.id()


async def test_an_instance_without_a_role_is_told(aws: FakeAws) -> None:
    """Somebody must attach one."""
    aws.role = ""
    with pytest.raises(ProviderAuthError, match="no role"):
        await Bench(aws, {}, credentials_source="imds").id()


async def test_a_container_asks_with_the_token_of_its_file_each_time(aws: FakeAws, tmp_path: Path) -> None:
    """The file is rotated by the cluster."""
    file = tmp_path / "token"
    environment = {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{aws.url}/v1/credentials",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(file),
    }
    bench = Bench(aws, environment)
    for number, token in enumerate(["first", "second"], 1):
        file.write_text(f"{token}\n")
        aws.container_token = token
        assert await bench.id(refused=number > 1) == f"ASIA{number}"


async def test_a_containers_keys_come_from_known_hosts_or_by_https(aws: FakeAws) -> None:
    """An environment that names any host would send the token there."""
    environment = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://192.0.2.1/credentials"}
    with pytest.raises(PermanentError, match="https is needed"):
        await Bench(aws, environment).id()


async def test_web_identity_hands_the_token_to_sts(aws: FakeAws, tmp_path: Path) -> None:
    """As service accounts in EKS do; a refused token is a matter for somebody, and is not shown."""
    file = tmp_path / "token"
    file.write_text("the-identity-token")
    environment = {"AWS_ROLE_ARN": "arn:aws:iam::1:role/r", "AWS_WEB_IDENTITY_TOKEN_FILE": str(file)}
    bench = Bench(aws, environment)
    keys = await bench.ring.current(False)
    assert (keys.access_key_id, keys.session_token) == ("ASIA1", Secret("token1"))
    assert form_of(aws.seen[0].body)["RoleSessionName"] == "scaivaultd"
    file.write_text("another-token")
    with pytest.raises(ProviderAuthError, match="InvalidIdentityToken") as caught:
        await bench.id(refused=True)
    assert "another-token" not in str(caught.value)


async def test_a_role_is_assumed_on_top_of_static_keys(aws: FakeAws) -> None:
    """The signature for STS is for its region and service."""
    bench = Bench(
        aws,
        {},
        {"id": "AKIA", "secret": "s3cret"},
        access_key_id_path="id",
        secret_access_key_path="secret",
        assume_role_arn="arn:aws:iam::1:role/dns",
        external_id="ext",
        region="eu-west-1",
    )
    assert await bench.id() == "ASIA1"
    assert "/eu-west-1/sts/aws4_request" in aws.seen[0].headers["authorization"]
    assert form_of(aws.seen[0].body)["ExternalId"] == "ext"


async def test_the_environment_is_used_when_nothing_is_given(aws: FakeAws) -> None:
    """As every AWS tool does, half of it being an error."""
    environment = {"AWS_ACCESS_KEY_ID": "AKIAENV", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"}
    keys = await Bench(aws, environment).ring.current(False)
    assert (keys.access_key_id, keys.session_token) == ("AKIAENV", Secret("t"))
    with pytest.raises(ProviderAuthError, match="AWS_SECRET_ACCESS_KEY"):
        await Bench(aws, {"AWS_ACCESS_KEY_ID": "AKIAENV"}).id()


async def test_without_any_keys_nobody_is_asked(aws: FakeAws) -> None:
    """Off EC2 the metadata service hangs; it is asked only on request."""
    with pytest.raises(PermanentError, match="no AWS credentials"):
        Bench(aws, {})
    assert not aws.seen


async def test_static_keys_are_read_anew_after_a_refusal() -> None:
    """They may have been rotated."""
    old, new = {"id": "AKIA1", "secret": "a"}, {"id": "AKIA2", "secret": "b"}
    settings = AwsSettings(access_key_id_path="id", secret_access_key_path="secret")
    ring = key_ring(settings, make_context(RotatedSecrets(old, new)), {})
    assert (await ring.current(False)).access_key_id == "AKIA1"
    assert (await ring.current(True)).access_key_id == "AKIA2"


async def test_botocore_is_asked_for_what_only_it_knows(
    aws: FakeAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Profiles and their like; the real library reads a file of its own kind."""
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = AKIAFILE\naws_secret_access_key = x\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bench = Bench(aws, {}, credentials_source="botocore")
    assert await bench.id() == "AKIAFILE"


async def test_a_missing_botocore_says_what_to_install(aws: FakeAws, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no dependency of ours."""
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    with pytest.raises(PermanentError, match="pip install botocore"):
        await Bench(aws, {}, credentials_source="botocore").id()


def test_keys_print_without_their_secrets() -> None:
    """They pass through many hands."""
    keys = AwsKeys(access_key_id="AKIA", secret_access_key=Secret("s3cret"), session_token=Secret("t0ken"))
    assert "s3cret" not in repr(keys)
    assert "t0ken" not in repr(keys)


@pytest.mark.parametrize("token", [None, "session+token/=="])
@pytest.mark.parametrize(
    ("method", "url", "body"),
    [
        ("GET", "https://route53.amazonaws.com/2013-04-01/hostedzonesbyname?maxitems=1&dnsname=_a.example.org.", b""),
        (
            "GET",
            "http://127.0.0.1:8080/2013-04-01/hostedzone/Z1/rrset?type=TXT&name=%5C052.a%2Fb%20c.&identifier=",
            b"",
        ),
        ("POST", "https://route53.amazonaws.com:443/2013-04-01/hostedzone/Z1/rrset/", b"<a/>"),
        ("GET", "http://[::1]:8080/2013-04-01/change/C%2B1", b""),
    ],
)
def test_botocore_signs_the_same(
    method: str, url: str, body: bytes, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vendor's own signer judges ours, for the same request at the same time."""
    moment = datetime(2026, 11, 24, 12, 34, 56, tzinfo=UTC)
    headers = {"Content-Type": "application/xml", "Accept": "application/xml"} if body else {}
    keys = AwsKeys(
        access_key_id="AKIATEST", secret_access_key=Secret("s3cret/+"), session_token=Secret(token) if token else None
    )
    request = HttpRequest(method=method, url=url, headers=headers, body=body)
    ours = signed_headers(request, keys, Scope(service="route53", region="us-east-1"), moment)

    peer = botocore.awsrequest.AWSRequest(
        method=method, url=url, data=body, headers={"Content-Type": "application/xml"} if body else {}
    )
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda remove_tzinfo=True: moment.replace(tzinfo=None))
    signer = botocore.auth.SigV4Auth(
        botocore.credentials.Credentials("AKIATEST", "s3cret/+", token), "route53", "us-east-1"
    )
    signer.add_auth(peer)
    assert ours["Authorization"] == peer.headers["Authorization"]
    assert ours["X-Amz-Date"] == peer.headers["X-Amz-Date"]
