"""What principals are told of themselves, and who is told of others."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from publicsuffixlist import PublicSuffixList

from scaivaultd.api import access_messages as am
from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.access import Policy, PolicyRule, Token, TokenName
from scaivaultd.model.errors import InvalidRequest, NotFound, PermissionDenied
from scaivaultd.model.principals import Principal
from scaivaultd.services.access_answers import AccessAnswers
from scaivaultd.services.documents import TOKEN_NAMES
from scaivaultd.services.policies import Policies
from tests.fakes.access import LE, NOW, ROOT, WEB, Shelves, TokensAtHand

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.store.sqlite import SqliteStore
    from tests.fakes.scripted_ca import FakeClock

TOKEN = Token(
    id=WEB.id,
    name="web-ci",
    secret_sha256=b"",
    created_at=NOW,
    created_by="unix:0",
    expires_at=NOW + timedelta(days=90),
)


class Everything:
    """Permits of somebody who may read policies, or of somebody who may not."""

    def __init__(self, *, is_admin: bool) -> None:
        self.is_admin = is_admin

    def allows(self, action: str, **about: object) -> bool:
        return self.is_admin

    def require(self, action: str, **about: object) -> None:
        if not self.is_admin:
            raise PermissionDenied(f"may not {action}")

    def quota(self) -> None:
        return None


def context(principal: Principal, *, is_admin: bool = False) -> RequestContext:
    return RequestContext(request_id="req_1", principal=principal, permits=Everything(is_admin=is_admin))


class Desk:
    """Answers over a store with one account, one token and one policy."""

    def __init__(self, sqlite: SqliteStore, clock: FakeClock, log: FilteringBoundLogger) -> None:
        self.store = sqlite
        self.tokens = TokensAtHand({TOKEN.id: TOKEN})
        rule = PolicyRule(actions=("cert.issue", "account.read"), domains=("*.web.example.org",), accounts=("le",))
        using = PolicyRule(actions=("secret.use",), secrets=("infra/aws",))
        self.policies = Policies(
            store=sqlite,
            from_file=[Policy(name="web", principals=("token:web-ci", "nats:APP/web"), rules=(rule, using))],
            own_uid=0,
            suffixes=PublicSuffixList(accept_unknown=False),
            clock=clock,
            log=log,
        )
        self.answers = AccessAnswers(
            store=sqlite,
            policies=self.policies,
            tokens=self.tokens,
            nats_login=lambda token_id: am.NatsLogin(
                subject_root=f"scaivault.v1.as.{token_id}", inbox_prefix=f"_INBOX_{token_id}"
            ),
        )

    async def can(self, who: Principal = WEB, /, **members: Any) -> am.CanIReply:
        request = am.CanI(**{"action": "cert.issue", **members})
        return await self.answers.can_i(request, context(who, is_admin=who == ROOT))


@pytest.fixture
async def desk(sqlite: SqliteStore, clock: FakeClock, log: FilteringBoundLogger) -> Desk:
    await Shelves(sqlite).account(LE, "le")
    await sqlite.commit([TOKEN_NAMES.put(TokenName(name="web-ci", token_id=TOKEN.id))])
    return Desk(sqlite, clock, log)


@pytest.mark.parametrize(
    ("members", "allowed", "said"),
    [
        ({"domains": ["A.web.example.org."], "account_id": "le"}, True, "rule 1 of policy web allows cert.issue"),
        ({"domains": ["a.web.example.org"], "account_id": LE}, True, "allows it by '*.web.example.org'"),
        ({"domains": ["a.web.example.org"], "account_id": "zerossl"}, False, "takes le, not zerossl"),
        ({"domains": ["a.web.example.org"]}, False, "takes le, not another account"),
        ({"domains": ["a.web.example.org", "b.org"], "account_id": "le"}, False, "not among the domains"),
        ({}, False, "judged by names, and none are given"),
        ({"action": "cert.isue"}, False, "did you mean 'cert.issue'?"),
        ({"action": "account.read", "account_id": "le"}, True, "allows account.read"),
        ({"action": "account.read", "account_id": "other"}, False, "not other"),
        ({"action": "secret.use", "secret": "infra/aws/key"}, True, "rule 2 of policy web"),
        ({"action": "secret.use", "secret": "infra/aws-prod/key"}, False, "takes infra/aws, and not this one"),
        ({"action": "secret.use"}, False, "none is given"),
        ({"action": "key.read", "domains": ["a.web.example.org"]}, False, "allows key.read: web"),
    ],
)
async def test_everybody_may_ask_for_themselves(desk: Desk, members: dict[str, Any], allowed: bool, said: str) -> None:
    """Whoever is refused can find out why without an administrator."""
    reply = await desk.can(**members)
    assert reply.allowed is allowed
    assert reply.principal == "token:Ab3dEf9h"
    assert said in " | ".join(each.detail for each in reply.reasons)
    assert (reply.policy is not None) is allowed


async def test_an_id_does_not_tell_the_name_of_an_account(desk: Desk) -> None:
    """Whoever may not look it up knows it by what they typed."""
    await Shelves(desk.store).account("acme_bank", "bank-production")
    for members in ({"action": "account.read"}, {"domains": ["a.web.example.org"]}):
        answers = [await desk.can(account_id=each, **members) for each in ("acme_bank", "acme_none")]
        assert [each.allowed for each in answers] == [False, False]
        words = [msgspec.json.encode(each).decode() for each in answers]
        assert "takes le, not acme_bank" in words[0]
        assert words[0].replace("acme_bank", "acme_none") == words[1]


async def test_nothing_is_done_for_a_name_that_is_none(desk: Desk) -> None:
    """It is pointed at."""
    with pytest.raises(InvalidRequest) as caught:
        await desk.can(domains=["a..b"])
    assert caught.value.fields[0].pointer == "/domains/0"


@pytest.mark.parametrize("text", ["token:web-ci", "token:Ab3dEf9h", "nats:APP/web"])
async def test_others_are_asked_about_by_whoever_may_read_policies(desk: Desk, text: str) -> None:
    """By name or id, before they find out themselves."""
    members = {"domains": ["a.web.example.org"], "account_id": "le", "principal": text}
    reply = await desk.can(ROOT, **members)
    assert reply.allowed
    assert reply.principal == ("nats:APP/web" if text.startswith("nats") else "token:Ab3dEf9h")
    with pytest.raises(PermissionDenied):
        await desk.can(Principal(kind="unix", id="33"), **members)


@pytest.mark.parametrize("text", ["token:web-ci", "token:Ab3dEf9h"])
async def test_oneself_is_nobody_else(desk: Desk, text: str) -> None:
    """However one is called."""
    assert (await desk.can(domains=["a.web.example.org"], account_id="le", principal=text)).allowed


async def test_what_the_token_has_now_counts(desk: Desk) -> None:
    """Its policies and scopes are those of the store."""
    desk.tokens[TOKEN.id] = msgspec.structs.replace(TOKEN, scopes=("cert.read",))
    reply = await desk.can(ROOT, principal="token:web-ci", domains=["a.web.example.org"])
    assert "confined to cert.read" in reply.reasons[0].detail


@pytest.mark.parametrize(
    ("text", "error"),
    [("token:nobody", NotFound), ("web", InvalidRequest), ("unix:x", InvalidRequest), ("nats:*", InvalidRequest)],
)
async def test_who_is_nobody_is_pointed_at(desk: Desk, text: str, error: type[NotFound | InvalidRequest]) -> None:
    """Rather than be judged as somebody without rights."""
    with pytest.raises(error) as caught:
        await desk.can(ROOT, principal=text)
    assert caught.value.fields[0].pointer == "/principal"


async def test_everybody_is_told_who_they_are(desk: Desk) -> None:
    """A token's end and place on NATS too."""
    reply = await desk.answers.who_am_i(m.Nothing(), context(WEB))
    assert (reply.principal, reply.name, reply.policies) == ("token:Ab3dEf9h", "web-ci", ["web"])
    assert reply.expires_at == TOKEN.expires_at
    assert reply.nats == am.NatsLogin(subject_root="scaivault.v1.as.Ab3dEf9h", inbox_prefix="_INBOX_Ab3dEf9h")
    reply = await desk.answers.who_am_i(m.Nothing(), context(ROOT))
    assert (reply.principal, reply.policies) == ("unix:0", ["local-admins"])
    assert (reply.name, reply.expires_at, reply.nats) == (None, None, None)
