"""Who is let in to what, what strangers learn, and what is written down of it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from publicsuffixlist import PublicSuffixList

from scaivaultd.api import commands as c
from scaivaultd.api.commands import COMMANDS, EVERYBODY
from scaivaultd.api.policies import KEY_READ
from scaivaultd.model.access import AccountRef, Policy, PolicyRule, Quota, Token
from scaivaultd.model.errors import (
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ScaivaultError,
    StorageUnavailable,
)
from scaivaultd.model.names import parse_identifiers
from scaivaultd.model.principals import SYSTEM, Principal
from scaivaultd.model.resources import Terms
from scaivaultd.services.access_targets import BY_ACTION, AccessTargets, object_of, references_in
from scaivaultd.services.gatekeeping import Gatekeeper
from scaivaultd.services.policies import Policies
from tests.fakes.access import LE, NOW, ROOT, WEB, ZEROSSL, Records, Shelves, TokensAtHand
from tests.fakes.scripted_ca import FakeClock, WatchedStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.commands import Command
    from scaivaultd.api.gate import Admission
    from scaivaultd.model.access import AuditEntry
    from scaivaultd.store.sqlite import SqliteStore

OURS, THEIRS = "cert_01k2v7m0e8zq3c9x5w1r4t6y8a", "cert_01k2v7m0e8zq3c9x5w1r4t6y8b"
OUR_ORDER, THEIR_ORDER = "acme_order_01k2v7m0e8zq3c9x5w1r4t6y8a", "acme_order_01k2v7m0e8zq3c9x5w1r4t6y8b"


class House:
    """A gate over a store with the certificates of two teams, and the policies of one of them."""

    def __init__(self, sqlite: SqliteStore, clock: FakeClock, log: FilteringBoundLogger) -> None:
        self.store = WatchedStore(sqlite)
        self.shelves = Shelves(self.store)
        self.records = Records()
        self.tokens = TokensAtHand()
        self.policies = Policies(
            store=self.store,
            from_file=(),
            own_uid=0,
            suffixes=PublicSuffixList(accept_unknown=False),
            clock=clock,
            log=log,
        )
        self.gate = Gatekeeper(
            store=self.store,
            policies=self.policies,
            tokens=self.tokens,
            auditing=self.records,
            clock=clock,
            log=log,
        )

    def allow(self, *actions: str, **members: Any) -> None:
        """Give the web team these rights, and no others."""
        rule = PolicyRule(**{"actions": actions, "domains": ("*.web.example.org",), **members})
        self.rules(rule)

    def rules(self, *rules: PolicyRule) -> None:
        self.policies.reload([Policy(name="web", principals=("token:web-ci",), rules=rules)])

    async def fill(self) -> None:
        await self.shelves.account(LE, "le")
        await self.shelves.account(ZEROSSL, "zerossl")
        await self.shelves.certificate(OURS, "a.web.example.org")
        await self.shelves.certificate(THEIRS, "a.bank.example.org", serial_number="2B", account_id=ZEROSSL)
        await self.shelves.order(OUR_ORDER, "a.web.example.org")
        await self.shelves.order(THEIR_ORDER, "a.bank.example.org")

    async def ask(self, command: Command[Any, Any], principal: Principal = WEB, /, **body: Any) -> Admission:
        request = msgspec.convert(body, command.request)
        return await self.gate.admit(command, request, principal=principal, request_id="req_1", source="192.0.2.1")

    async def refused(self, command: Command[Any, Any], principal: Principal = WEB, /, **body: Any) -> ScaivaultError:
        with pytest.raises(ScaivaultError) as caught:
            await self.ask(command, principal, **body)
        return caught.value

    @property
    def last(self) -> AuditEntry:
        return self.records.soon[-1]


@pytest.fixture
async def house(sqlite: SqliteStore, clock: FakeClock, log: FilteringBoundLogger) -> House:
    found = House(sqlite, clock, log)
    await found.fill()
    return found


def issue(*domains: str, **members: Any) -> dict[str, Any]:
    return {"account_id": LE, "challenge_type": "dns-01", "domains": list(domains), **members}


def pointers(error: ScaivaultError) -> list[str]:
    assert isinstance(error, PermissionDenied), error
    return [each.pointer for each in error.fields]


def csr(*names: str) -> str:
    key = ec.generate_private_key(ec.SECP384R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.add_extension(
        x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False
    ).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def test_every_command_is_judged_by_what_it_touches_or_by_its_action(
    sqlite: SqliteStore, log: FilteringBoundLogger
) -> None:
    """A command that nobody thought of would be open to all who may do such a thing to anything."""
    found = AccessTargets(sqlite, log).found_here
    assert found | BY_ACTION == {command.name for command in COMMANDS}
    assert not found & BY_ACTION


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.name)
async def test_nothing_is_open_to_a_principal_without_policies(house: House, command: Command[Any, Any]) -> None:
    """Default deny, for each row; and nothing is looked up for it."""
    looked = []

    async def look(key: str) -> None:
        looked.append(key)

    house.store.after_get = look
    if command.permission == EVERYBODY:
        await (await house.ask(command, **command.example)).settle("ok")
    else:
        error = await house.refused(command, **command.example)
        assert isinstance(error, PermissionDenied)
        assert f"token:Ab3dEf9h (web-ci) may not {command.permission}: no policy" in error.detail
    assert looked == []
    if command is not c.HEALTH:
        assert house.last.action == command.permission
        assert house.last.decision == ("allow" if command.permission == EVERYBODY else "deny")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.name)
async def test_every_example_gets_past_the_gate_for_root(house: House, command: Command[Any, Any]) -> None:
    """Root may do everything but read keys; that is written down too."""
    await house.shelves.certificate("cert_01k2v7m0e8zq3c9x5w1r4t6y8c", "c.example.org", serial_number="1A:2B:3C:4D")
    try:
        await house.ask(command, ROOT, **command.example)
    except NotFound:
        assert house.last.decision == "allow"
    except PermissionDenied:
        assert command is c.GET_KEY


@pytest.mark.parametrize(
    "name",
    ["a.web.example.org", "A.WEB.Example.Org.", "a\u3002web\u3002example\u3002org", " a.web.example.org "],
)
async def test_any_spelling_of_our_name_is_ours(house: House, name: str) -> None:
    """What the handler normalises, the gate normalises alike."""
    house.allow("cert.issue")
    await house.ask(c.ISSUE, **issue(name))


@pytest.mark.parametrize(
    "name",
    [
        "a.bank.example.org",
        "A.BANK.example.org.",
        "*.web.example.org",
        "web.example.org",
        "a.b.web.example.org",
        "a.web.example.org.evil.org",
        "a.w\u0435b.example.org",
        "192.0.2.1",
        "xn--bcher-kva.example.org",
    ],
)
async def test_no_spelling_of_another_name_is(house: House, name: str) -> None:
    """Another team's names, names above and below, look-alikes, wildcards."""
    house.allow("cert.issue")
    error = await house.refused(c.ISSUE, **issue("a.web.example.org", name))
    assert pointers(error) == ["/domains/1"]
    assert (house.last.decision, house.last.result) == ("deny", "permission_denied")
    assert house.last.object.split()[0] == "a.web.example.org"


async def test_a_refusal_points_at_every_member_in_the_way(house: House) -> None:
    """Whoever asks can mend all at once."""
    house.allow("cert.issue", accounts=("zerossl",), challenges=("http-01",), key_types=("rsa-2048",), max_names=1)
    body = issue("a.web.example.org", "b.web.example.org", "A.web.example.org")
    assert sorted(pointers(await house.refused(c.ISSUE, **body))) == [
        "/account_id",
        "/challenge_type",
        "/domains",
        "/key_type",
    ]
    house.allow("cert.issue")
    body = issue("x.org", "a.web.example.org", "X.org")
    assert pointers(await house.refused(c.ISSUE, **body)) == ["/domains/0", "/domains/2"]


async def test_a_fallback_account_is_judged_too(house: House) -> None:
    """The order may end up there."""
    house.allow("cert.issue", accounts=("le",))
    await house.ask(c.ISSUE, **issue("a.web.example.org"))
    error = await house.refused(c.ISSUE, **issue("a.web.example.org", account_ids=[ZEROSSL]))
    assert pointers(error) == ["/account_id"]
    assert f"takes le, not {ZEROSSL}" in error.detail
    house.rules(
        PolicyRule(actions=("account.read",)),
        PolicyRule(actions=("cert.issue",), domains=("*.web.example.org",), accounts=("le",)),
    )
    error = await house.refused(c.ISSUE, **issue("a.web.example.org", account_ids=[ZEROSSL]))
    assert "takes le, not zerossl" in error.detail


async def test_an_account_that_is_not_for_these_eyes_is_like_one_that_is_not_there(house: House) -> None:
    """Or its id would tell its name, and whether there is one."""
    house.allow("cert.issue", "cert.update", accounts=("le",))
    for command, body in ((c.ISSUE, issue("a.web.example.org")), (c.UPDATE_CERTIFICATE, {"id": OURS})):
        answers = set()
        for account_id in (ZEROSSL, "acme_none"):
            for member in ({"account_id": account_id}, {"account_ids": [account_id]}):
                error = await house.refused(command, **{**body, **member})
                assert pointers(error) == ["/account_id"]
                answers.add(str(error).replace(account_id, "ID"))
        assert len(answers) == 1
    house.allow("cert.issue")
    assert isinstance(await house.refused(c.ISSUE, **{**issue("a.web.example.org"), "account_id": "none"}), NotFound)


@pytest.mark.parametrize(
    ("command", "body"),
    [
        (c.UPDATE_CERTIFICATE, {"domains": ["no name"]}),
        (c.UPDATE_CERTIFICATE, {"csr": "nonsense"}),
        (c.UPDATE_CERTIFICATE, {"account_id": "none"}),
        (c.REVOKE, {"version": 99}),
        (c.GET_PEM, {"version": 99}),
        (c.GET_KEY, {"version": 99}),
    ],
)
async def test_a_wrong_request_tells_nothing_of_what_is_not_for_these_eyes(
    house: House, command: Command[Any, Any], body: dict[str, Any]
) -> None:
    """A mistake that is answered for what is there only is a way to look for it."""
    house.allow("*", KEY_READ)
    member = "certificate_id" if command is c.REVOKE else "id"
    theirs, nobodys = [str(await house.refused(command, **{**body, member: each})) for each in (THEIRS, "cert_none")]
    assert theirs.replace(THEIRS, "cert_none") == nobodys


async def test_the_names_of_a_csr_count(house: House) -> None:
    """With or without `domains`; and its kind of key, not the one that is named."""
    house.allow("cert.issue", key_types=("ec-p384",))
    await house.ask(c.ISSUE, **issue(csr=csr("a.web.example.org")))
    error = await house.refused(c.ISSUE, **issue(csr=csr("a.web.example.org", "a.bank.example.org")))
    assert pointers(error) == ["/csr"]
    with pytest.raises(InvalidRequest, match="in the CSR but not asked for"):
        await house.ask(c.ISSUE, **issue("a.web.example.org", csr=csr("a.web.example.org", "a.bank.example.org")))
    house.allow("cert.issue", key_types=("ec-p256",))
    error = await house.refused(c.ISSUE, **issue(csr=csr("a.web.example.org")))
    assert pointers(error) == ["/csr"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (issue(), "/domains"),
        (issue("a..example.org"), "/domains/0"),
        (issue(csr="nonsense"), "/csr"),
    ],
)
async def test_what_cannot_be_meant_is_refused_as_the_handler_would(
    house: House, body: dict[str, Any], pointer: str
) -> None:
    """And leaves a record."""
    house.allow("cert.issue")
    with pytest.raises(InvalidRequest) as caught:
        await house.ask(c.ISSUE, **body)
    assert caught.value.fields[0].pointer == pointer
    assert house.last.result == "invalid_request"


async def test_an_account_that_is_not_there_is_pointed_at(house: House) -> None:
    """As the handler does."""
    house.allow("cert.issue")
    error = await house.refused(c.ISSUE, **issue("a.web.example.org", account_ids=["acme_x"]))
    assert isinstance(error, NotFound)
    assert [each.pointer for each in error.fields] == ["/account_ids/0"]


BY_ID: Sequence[tuple[Command[Any, Any], str, str, str]] = [
    (c.GET_CERTIFICATE, "id", OURS, THEIRS),
    (c.GET_PEM, "id", OURS, THEIRS),
    (c.GET_KEY, "id", OURS, THEIRS),
    (c.LIST_VERSIONS, "id", OURS, THEIRS),
    (c.RENEW_CERTIFICATE, "id", OURS, THEIRS),
    (c.UPDATE_CERTIFICATE, "id", OURS, THEIRS),
    (c.REVOKE, "certificate_id", OURS, THEIRS),
    (c.REVOKE, "serial_number", "1A", "2B"),
    (c.GET_ORDER, "order_id", OUR_ORDER, THEIR_ORDER),
    (c.CANCEL_ORDER, "order_id", OUR_ORDER, THEIR_ORDER),
    (c.GET_REVOCATION, "id", "revocation_1", "revocation_2"),
    (c.GET_ACCOUNT, "id", LE, ZEROSSL),
    (c.UPDATE_ACCOUNT, "id", LE, ZEROSSL),
    (c.ROTATE_ACCOUNT_KEY, "id", LE, ZEROSSL),
    (c.DEACTIVATE_ACCOUNT, "id", LE, ZEROSSL),
    (c.LIMITS, "account_id", LE, ZEROSSL),
    (c.DELETE_SECRET, "path", "web/token", "bank/token"),
]


@pytest.mark.parametrize(("command", "member", "ours", "theirs"), BY_ID)
async def test_what_is_not_ours_looks_as_if_it_were_not_there(
    house: House, command: Command[Any, Any], member: str, ours: str, theirs: str
) -> None:
    """404 in the very words of a thing that does not exist: ids of others cannot be tried out."""
    await house.shelves.revocation("revocation_1", OURS, 1)
    await house.shelves.revocation("revocation_2", THEIRS, 1)
    more = {"confirm": "x"} if command is c.DEACTIVATE_ACCOUNT else {}
    house.allow(command.permission, accounts=("le",), secrets=("web/",))
    await house.ask(command, **{member: ours}, **more)
    hidden = await house.refused(command, **{member: theirs}, **more)
    assert (house.last.decision, house.last.result) == ("deny", "not_found")
    absent = theirs[:-1] + ("9" if member != "serial_number" else "F")
    if command is c.DELETE_SECRET:
        assert (type(hidden), hidden.detail) == (NotFound, "there is no secret bank/token")
        return
    missing = await house.refused(command, **{member: absent}, **more)
    assert (type(hidden), type(missing)) == (NotFound, NotFound)
    assert hidden.detail == missing.detail.replace(absent, theirs)
    assert isinstance(hidden, NotFound)
    assert isinstance(missing, NotFound)
    assert hidden.fields == missing.fields


@pytest.mark.parametrize(
    ("command", "reading", "member", "theirs"),
    [
        (c.GET_KEY, "cert.read", "id", THEIRS),
        (c.REVOKE, "cert.read", "certificate_id", THEIRS),
        (c.CANCEL_ORDER, "order.read", "order_id", THEIR_ORDER),
        (c.ROTATE_ACCOUNT_KEY, "account.read", "id", ZEROSSL),
        (c.DELETE_SECRET, "secret.list", "path", "bank/token"),
    ],
)
async def test_whoever_may_see_it_is_told_that_they_may_not(
    house: House, command: Command[Any, Any], reading: str, member: str, theirs: str
) -> None:
    """That a certificate on the screen is not there would help nobody."""
    house.rules(
        PolicyRule(actions=(reading,), domains=("**",)),
        PolicyRule(actions=(command.permission,), domains=("*.web.example.org",), accounts=("le",), secrets=("web/",)),
    )
    error = await house.refused(command, **{member: theirs})
    assert isinstance(error, PermissionDenied)
    assert f"may not {command.permission}" in error.detail


async def test_a_denial_wins(house: House) -> None:
    """Over the same name, and over a wildcard that would cover it."""
    allow = PolicyRule(actions=("cert.issue",), domains=("**.web.example.org", "web.example.org"), wildcards=True)
    house.rules(allow, PolicyRule(effect="deny", actions=("cert.*",), domains=("admin.web.example.org",)))
    await house.ask(c.ISSUE, **issue("a.web.example.org"))
    for name in ("admin.web.example.org", "*.web.example.org", "ADMIN.web.example.org."):
        error = await house.refused(c.ISSUE, **issue(name))
        assert "rule 2 of policy web denies it" in error.detail
        assert (house.last.policy, house.last.rule) == ("web", 2)


async def test_an_update_is_judged_as_it_is_and_as_it_will_be(house: House) -> None:
    """Neither may others' certificates be taken over, nor ours be led to others' names."""
    kinds = ("ec-p256", "ec-p384")
    house.allow("cert.update", accounts=("le",), challenges=("dns-01",), key_types=kinds)
    await house.ask(c.UPDATE_CERTIFICATE, id=OURS, domains=["b.web.example.org"], auto_renew=False)
    assert isinstance(await house.refused(c.UPDATE_CERTIFICATE, id=THEIRS, domains=["a.web.example.org"]), NotFound)
    wrong: Sequence[tuple[dict[str, Any], str]] = [
        ({"domains": ["b.web.example.org", "a.bank.example.org"]}, "/domains/1"),
        ({"account_id": ZEROSSL}, "/account_id"),
        ({"account_ids": [ZEROSSL]}, "/account_id"),
        ({"challenge_type": "http-01"}, "/challenge_type"),
        ({"key_type": "rsa-2048"}, "/key_type"),
        ({"csr": csr("a.bank.example.org")}, "/csr"),
        ({"domains": ["a.web.example.org"], "csr": csr("a.bank.example.org")}, "/csr"),
    ]
    for body, pointer in wrong:
        assert pointer in pointers(await house.refused(c.UPDATE_CERTIFICATE, id=OURS, **body))


async def test_names_to_come_count_for_reading_and_renewing(house: House) -> None:
    """Of a certificate whose next version has another team's names, nothing is shown, and it is not renewed."""
    later = Terms(
        account_id=LE,  # type: ignore[arg-type]
        identifiers=parse_identifiers(["a.bank.example.org"], public_ca=False),
        challenge_type="dns-01",
        key_type="ec-p256",
    )
    await house.shelves.certificate("cert_3", "a.web.example.org", terms=later, serial_number="3C")
    house.allow("cert.read", "cert.renew", "cert.update")
    for command in (c.GET_CERTIFICATE, c.LIST_VERSIONS, c.RENEW_CERTIFICATE, c.UPDATE_CERTIFICATE):
        assert isinstance(await house.refused(command, id="cert_3"), NotFound)
    await house.ask(c.GET_PEM, id="cert_3")


async def test_an_earlier_version_is_judged_by_its_own_names(house: House) -> None:
    """Its key is still good for them."""
    await house.shelves.certificate("cert_3", "a.web.example.org", version=3, serial_number="3C")
    await house.shelves.version("cert_3", 1, "a.bank.example.org", serial_number="3A")
    await house.shelves.version("cert_3", 2, "b.web.example.org", serial_number="3B")
    house.allow(KEY_READ, "cert.read", "cert.revoke")
    for command in (c.GET_KEY, c.GET_PEM):
        await house.ask(command, id="cert_3")
        await house.ask(command, id="cert_3", version=2)
        await house.ask(command, id="cert_3", version=9)
        assert not isinstance(await house.refused(command, id="cert_3", version=1), InvalidRequest)
    await house.ask(c.REVOKE, certificate_id="cert_3", version=2)
    await house.ask(c.REVOKE, serial_number="3B")
    assert isinstance(await house.refused(c.REVOKE, serial_number="3A"), NotFound)
    assert isinstance(await house.refused(c.REVOKE, certificate_id="cert_3", version=1), NotFound)


async def test_a_version_is_judged_by_the_account_that_ordered_it(house: House) -> None:
    """Revoking goes through that account."""
    await house.shelves.version(OURS, 0, "a.web.example.org", serial_number="3A", account_id=ZEROSSL)
    allow = PolicyRule(actions=("cert.revoke",), domains=("*.web.example.org",))
    house.rules(allow, PolicyRule(effect="deny", actions=("*",), accounts=("zerossl",)))
    await house.ask(c.REVOKE, certificate_id=OURS)
    assert isinstance(await house.refused(c.REVOKE, serial_number="3A"), NotFound)


async def test_an_ambiguous_serial_number_tells_nothing_of_others(house: House) -> None:
    """The handler would name them all."""
    await house.shelves.certificate("cert_3", "b.bank.example.org", serial_number="1A")
    house.allow("cert.revoke")
    assert isinstance(await house.refused(c.REVOKE, serial_number="1A"), NotFound)
    await house.ask(c.REVOKE, certificate_id=OURS)
    await house.ask(c.REVOKE, ROOT, serial_number="1A")


@pytest.mark.parametrize(
    "body", [{}, {"serial_number": "1A", "certificate_id": OURS}, {"serial_number": "1A", "version": 1}]
)
async def test_a_revocation_of_nothing_in_particular_is_invalid(house: House, body: dict[str, Any]) -> None:
    """As the handler says."""
    house.allow("cert.revoke")
    assert isinstance(await house.refused(c.REVOKE, **body), InvalidRequest)


async def test_a_renamed_account_is_another_one(house: House) -> None:
    """Policies know accounts by name: whoever may change one could make it pass for another."""
    house.allow("account.update", accounts=("le", "le2"))
    await house.ask(c.UPDATE_ACCOUNT, id=LE, name="le2")
    assert pointers(await house.refused(c.UPDATE_ACCOUNT, id=LE, name="production")) == ["/name"]
    house.allow("account.create", accounts=("le",))
    base = {"provider": "letsencrypt", "email": "a@example.org"}
    await house.ask(c.CREATE_ACCOUNT, name="le", **base)
    assert pointers(await house.refused(c.CREATE_ACCOUNT, name="production", **base)) == ["/name"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"eab": {"key_id": "k", "hmac_key_path": "bank/hmac"}}, "/eab/hmac_key_path"),
        ({"zerossl_access_key_path": "bank/zerossl"}, "/zerossl_access_key_path"),
        ({"account_key_path": "cred:bank"}, "/account_key_path"),
    ],
)
async def test_a_reference_needs_a_right_to_its_secret(house: House, body: dict[str, Any], pointer: str) -> None:
    """Whoever may make accounts could send any secret to a CA of their own."""
    base = {"name": "le", "provider": "letsencrypt"}
    house.allow("account.create", "secret.use", secrets=("web/",))
    assert pointers(await house.refused(c.CREATE_ACCOUNT, **base, **body)) == [pointer]
    house.allow("account.create")
    error = await house.refused(c.CREATE_ACCOUNT, **base, **body)
    assert pointers(error) == [pointer]
    assert "may not secret.use" in error.detail
    assert "bank" not in error.detail
    house.allow("account.create", "secret.use", secrets=("bank", "cred:bank"))
    await house.ask(c.CREATE_ACCOUNT, **base, **body)


@pytest.mark.parametrize("command", [c.CREATE_DNS_PROVIDER, c.UPDATE_DNS_PROVIDER])
async def test_a_provider_needs_a_right_to_all_its_secrets(house: House, command: Command[Any, Any]) -> None:
    """One among many is enough to lend somebody else's credentials."""
    named = {"name": "p", "type": "t"} if command is c.CREATE_DNS_PROVIDER else {"id": "p"}
    config = {"token_path": "web/token", "option_paths": {"a": "web/a", "b": "bank/b"}, "url": "bank/x"}
    house.allow(command.permission, "secret.use", secrets=("web/",))
    assert pointers(await house.refused(command, **named, config=config)) == ["/config/option_paths/b"]
    house.allow(command.permission, "secret.use", secrets=("web/", "bank/b"))
    await house.ask(command, **named, config=config)
    await house.ask(c.UPDATE_DNS_PROVIDER, ROOT, id="p", zones=["example.org"])


def test_references_are_found_wherever_they_stand() -> None:
    """In any case and depth: what is overlooked is used without a right to it."""
    config = {
        "api_token_path": "a",
        "Nested": {"keyPath": "b", "list": [{"x_path": "c"}, "no"], "other": "no"},
        "option_paths": {"one": "d", "two": ["e"]},
        "weird/path": "f",
        "number_path": 5,
        "path_": "no",
    }
    assert dict(references_in(config)) == {
        "/config/api_token_path": "a",
        "/config/Nested/keyPath": "b",
        "/config/Nested/list/0/x_path": "c",
        "/config/option_paths/one": "d",
        "/config/option_paths/two/0": "e",
        "/config/weird~1path": "f",
    }
    deep: dict[str, Any] = {"x_path": "z"}
    for _ in range(5_000):
        deep = {"a": deep}
    assert [reference for _, reference in references_in(deep)] == ["z"]


async def test_secrets_are_held_against_where_they_are(house: House) -> None:
    """Writing one is as good as using it."""
    house.allow("secret.write", secrets=("web",))
    await house.ask(c.PUT_SECRET, path="web/token", value="v")
    for path in ("web-prod/token", "bank/token", "web/../bank/token"):
        assert pointers(await house.refused(c.PUT_SECRET, path=path, value="v")) == ["/path"]
    assert "canary" not in str(house.records.soon)


async def test_a_bulk_renewal_is_ended_by_its_owner_or_by_whoever_may_renew_all(house: House) -> None:
    """It may be the answer to an incident of a CA."""
    await house.shelves.bulk_renewal("bulk_1", WEB)
    await house.shelves.bulk_renewal("bulk_2", ROOT)
    house.allow("cert.renew", "cert.read")
    await house.ask(c.CANCEL_BULK_RENEWAL, id="bulk_1")
    for command in (c.CANCEL_BULK_RENEWAL, c.GET_BULK_RENEWAL):
        for another in ("bulk_2", "bulk_3"):
            assert isinstance(await house.refused(command, id=another), NotFound)
    house.rules(
        PolicyRule(actions=("cert.renew",), domains=("*.web.example.org",)),
        PolicyRule(actions=("cert.read",), domains=("**",)),
    )
    await house.ask(c.GET_BULK_RENEWAL, id="bulk_2")
    assert isinstance(await house.refused(c.CANCEL_BULK_RENEWAL, id="bulk_2"), PermissionDenied)
    for bulk in ("bulk_1", "bulk_2"):
        await house.ask(c.CANCEL_BULK_RENEWAL, ROOT, id=bulk)


async def test_scopes_bind_whatever_policies_say(house: House) -> None:
    """A token made for reading only reads."""
    house.allow("*", "key.read")
    scoped = msgspec.structs.replace(WEB, scopes=("cert.read",))
    await house.ask(c.GET_CERTIFICATE, scoped, id=OURS)
    for command, body in ((c.ISSUE, issue("a.web.example.org")), (c.GET_KEY, {"id": OURS})):
        error = await house.refused(command, scoped, **body)
        assert "is confined to cert.read" in error.detail


async def test_a_request_leaves_one_record(house: House, clock: FakeClock) -> None:
    """Who, what, by which rule, how it ended, when."""
    house.allow("cert.issue", quota=Quota(issue_per_day=2))
    admission = await house.ask(c.ISSUE, **issue("B.web.example.org", "a.web.example.org"))
    assert house.records.soon == []
    quota = admission.permits.quota()
    assert quota is not None
    assert quota.issue_per_day == 2
    clock.advance(5)
    await admission.settle("ok")
    await admission.settle("internal")
    (entry,) = house.records.soon
    assert msgspec.to_builtins(entry) == {
        "at": "2026-01-01T00:00:05Z",
        "principal": "token:Ab3dEf9h",
        "tenant": "default",
        "action": "cert.issue",
        "object": "b.web.example.org a.web.example.org",
        "decision": "allow",
        "policy": "web",
        "rule": 1,
        "result": "ok",
        "request_id": "req_1",
        "source": "192.0.2.1",
    }
    assert house.records.durable == []


async def test_health_leaves_no_record(house: House) -> None:
    """It is asked every few seconds, for ever."""
    await (await house.ask(c.HEALTH, ROOT)).settle("ok")
    assert house.records.soon == []


FIRST = [
    (c.PUT_SECRET, {"path": "web/token", "value": "v"}),
    (c.DELETE_SECRET, {"path": "web/token"}),
    (c.CREATE_TOKEN, {"name": "t"}),
    (c.ROTATE_TOKEN, {"id": "t"}),
    (c.REVOKE_TOKEN, {"id": "t"}),
    (c.PUT_POLICY, {"name": "p"}),
    (c.DELETE_POLICY, {"name": "p"}),
    (c.ROTATE_MASTER_KEY, {}),
]


@pytest.mark.parametrize(("command", "body"), FIRST)
async def test_what_must_not_go_unseen_is_written_down_first(
    house: House, command: Command[Any, Any], body: dict[str, Any]
) -> None:
    """Whoever fills the disk must not thereby work unseen."""
    admission = await house.ask(command, ROOT, **body)
    (begun,) = house.records.durable
    assert (begun.action, begun.result, begun.policy) == (command.permission, "begun", "local-admins")
    house.records.is_full = True
    await admission.settle("ok")
    assert house.last.result == "ok"
    error = await house.refused(command, ROOT, **body)
    assert isinstance(error, StorageUnavailable)
    assert house.last.result == "storage_unavailable"


async def test_a_key_does_not_leave_without_its_record(house: House) -> None:
    """Neither before the handler nor after it."""
    house.allow(KEY_READ)
    admission = await house.ask(c.GET_KEY, id=OURS)
    house.records.is_full = True
    with pytest.raises(StorageUnavailable):
        await admission.settle("ok")
    assert [each.result for each in house.records.durable] == ["begun"]
    assert isinstance(await house.refused(c.GET_KEY, id=OURS), StorageUnavailable)
    house.records.is_full = False
    admission = await house.ask(c.GET_KEY, id=OURS)
    await admission.settle("ok")
    assert [(each.result, each.object) for each in house.records.durable[1:]] == [("begun", OURS), ("ok", OURS)]
    admission = await house.ask(c.GET_KEY, id=OURS)
    house.records.is_full = True
    await admission.settle("not_found")


async def test_issuing_goes_on_without_the_audit_log(house: House) -> None:
    """Certificates must not lapse because a disk is full."""
    house.records.is_full = True
    for command, body in ((c.ISSUE, issue("a.example.org")), (c.RENEW_CERTIFICATE, {"id": OURS})):
        await (await house.ask(command, ROOT, **body)).settle("ok")


async def test_handlers_judge_for_themselves(house: House) -> None:
    """Items of a list leave no record; what stands in a request's way does."""
    house.allow("account.read", "policy.read", accounts=("le",))
    admission = await house.ask(c.LIST_ACCOUNTS)
    permits = admission.permits
    assert permits.allows("account.read", account=AccountRef(LE, "le"))
    assert not permits.allows("account.read", account=AccountRef(ZEROSSL, "zerossl"))
    permits.require("account.read", account=AccountRef(LE, "le"))
    with pytest.raises(PermissionDenied) as caught:
        permits.require("secret.use", secret="bank/token", pointer="/x")
    assert [each.pointer for each in caught.value.fields] == ["/x"]
    await admission.settle("permission_denied")
    assert (house.last.decision, house.last.result) == ("deny", "permission_denied")
    with pytest.raises(PermissionDenied) as caught:
        permits.require("secret.use", secret="bank/token")
    assert caught.value.fields == ()


async def test_a_store_that_is_down_lets_nobody_in_by_name(house: House) -> None:
    """What cannot be judged is not done."""
    house.allow("cert.read")
    house.store.is_down = True
    assert isinstance(await house.refused(c.GET_CERTIFICATE, id=OURS), StorageUnavailable)


@pytest.mark.parametrize(
    ("command", "body", "object_"),
    [
        (c.PUT_SECRET, {"path": "a/b", "value": "canary"}, "a/b"),
        (c.PUT_SECRET, {"path": "Canary-Secret", "value": "a/b"}, "a text of 13 letters that is no path"),
        (c.GET_ORDER, {"order_id": "o" * 5_000}, "o" * 1_000),
        (c.LIST_CERTIFICATES, {}, ""),
        (c.LIST_CERTIFICATES, {"domain": "a.example.org"}, "a.example.org"),
        (c.PUT_POLICY, {"name": "web"}, "web"),
        (c.UPDATE_CERTIFICATE, {"id": "cert_1", "domains": ["x"]}, "cert_1"),
        (c.REVOKE, {"serial_number": "1A"}, "1A"),
    ],
)
def test_a_record_says_what_it_was_about(command: Command[Any, Any], body: dict[str, Any], object_: str) -> None:
    """In bounds, and never a secret."""
    assert object_of(msgspec.convert(body, command.request)) == object_


class TestRenewals:
    """Rights are asked for again at each renewal."""

    made = 0

    async def judged(self, house: House, owner: Principal | None, **members: Any) -> bool:
        self.made += 1
        certificate = await house.shelves.certificate(
            f"cert_{self.made}", "a.web.example.org", requested_by=owner, **members
        )
        return (await house.gate.judge_renewal(certificate)).allowed

    @pytest.mark.parametrize("owner", [None, SYSTEM])
    async def test_nobodys_go_on(self, house: House, owner: Principal | None) -> None:
        """They are from before there were principals."""
        assert await self.judged(house, owner)

    async def test_a_right_that_is_gone_ends_renewals(self, house: House) -> None:
        """And one that comes back lets them go on."""
        assert not await self.judged(house, WEB)
        house.allow("cert.renew", accounts=("le",), challenges=("dns-01",))
        assert await self.judged(house, WEB)
        assert not await self.judged(house, WEB, challenge_type="http-01")
        assert not await self.judged(house, WEB, account_id=ZEROSSL)
        house.allow("cert.issue")
        assert not await self.judged(house, WEB)

    async def test_a_token_counts_as_it_is_now_and_not_whether_it_is_good(self, house: House) -> None:
        """Certificates do not lapse because the token of a pipeline has expired."""
        token = Token(
            id=WEB.id,
            name="web-ci",
            secret_sha256=b"",
            created_at=NOW,
            created_by="unix:0",
            expires_at=NOW - timedelta(days=1),
            revoked_at=NOW,
            policies=("issuer",),
        )
        house.tokens[WEB.id] = token
        assert await self.judged(house, WEB)
        house.tokens[WEB.id] = msgspec.structs.replace(token, scopes=("cert.read",))
        assert not await self.judged(house, WEB)
        house.tokens.clear()
        assert not await self.judged(house, WEB)
        assert await self.judged(house, msgspec.structs.replace(WEB, policies=("issuer",)))
