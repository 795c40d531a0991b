"""Policies as they are written, kept, and used for judging."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from publicsuffixlist import PublicSuffixList

from scaivaultd.api import access_messages as am
from scaivaultd.api.commands import RequestContext
from scaivaultd.api.policies import ACTIONS, KEY_READ, ROLES
from scaivaultd.model.access import (
    AccessRequest,
    AccountRef,
    CertificateTerms,
    Policy,
    PolicyRule,
    RoleName,
    StoredPolicy,
)
from scaivaultd.model.errors import Conflict, InvalidRequest, NotFound, StartupError, StorageUnavailable
from scaivaultd.model.names import parse_identifiers
from scaivaultd.model.principals import Principal
from scaivaultd.services.documents import POLICIES
from scaivaultd.services.policies import EMBEDDED_OWNER, LOCAL_ADMINS, Policies
from tests.fakes.access import ROOT, WEB
from tests.fakes.scripted_ca import FakeClock, WatchedStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import EventDict, FilteringBoundLogger

    from scaivaultd.store.sqlite import SqliteStore

CONTEXT = RequestContext(request_id="req_test", principal=ROOT)
OWN_UID = 990
LOCAL = Principal(kind="nats", id="$G/local")
TRUSTED = Principal(kind="nats", id="$G/trusted")
NOBODY = Principal(kind="unix", id="33")


@pytest.fixture
def store(sqlite: SqliteStore) -> WatchedStore:
    return WatchedStore(sqlite)


@pytest.fixture
def make(store: WatchedStore, clock: FakeClock, log: FilteringBoundLogger) -> Callable[..., Policies]:
    def policies(*from_file: Policy) -> Policies:
        return Policies(
            store=store,
            from_file=from_file,
            own_uid=OWN_UID,
            suffixes=PublicSuffixList(accept_unknown=False),
            clock=clock,
            log=log,
        )

    return policies


@pytest.fixture
def policies(make: Callable[..., Policies]) -> Policies:
    return make()


def asked(principal: Principal, action: str, *names: str, **members: Any) -> AccessRequest:
    certificate = CertificateTerms(
        names=parse_identifiers(names or ["a.example.org"], public_ca=False),
        accounts=(AccountRef("acme_1", "le"),),
        challenge_type="dns-01",
        key_type="ec-p256",
    )
    return AccessRequest(
        **{
            "principal": principal,
            "action": action,
            "tenant": "default",
            "certificate": certificate,
            "account": AccountRef("acme_1", "le"),
            "secret": "infra/aws/key",
            **members,
        }
    )


def wanted(name: str = "web", *principals: str, **rule: Any) -> am.PutPolicy:
    rules = [PolicyRule(**{"actions": ("cert.issue",), "domains": ("*.example.org",), **rule})]
    return am.PutPolicy(name=name, principals=list(principals or ["token:web-ci"]), rules=rules)


@pytest.mark.parametrize("role", ROLES)
def test_roles_are_policies_for_whoever_carries_them(policies: Policies, role: RoleName) -> None:
    """A token made with `--policy operator` needs nothing to be written first, and gets all of that role only."""
    carrier = Principal(kind="token", id="Ab3dEf9h", policies=(role,))
    names = ("a.example.org", "*.example.org", "192.0.2.1", "2001:db8::1")
    allowed = {action for action in ACTIONS if policies.decide(asked(carrier, action, *names)).allowed}
    assert allowed == ROLES[role].actions
    assert policies.applying(carrier) == [role]
    assert policies.applying(WEB) == []


@pytest.mark.parametrize(
    ("principal", "policy", "reads_keys"),
    [
        (ROOT, LOCAL_ADMINS, False),
        (Principal(kind="unix", id=str(OWN_UID)), LOCAL_ADMINS, False),
        (Principal(kind="unix", id="1000", policies=(LOCAL_ADMINS,)), LOCAL_ADMINS, False),
        (LOCAL, EMBEDDED_OWNER, True),
        (TRUSTED, "trusted-bus", False),
    ],
)
def test_who_is_let_in_without_a_word(policies: Policies, principal: Principal, policy: str, reads_keys: bool) -> None:
    """Administrators on the host, and the daemon's own user: somebody has to write the first policy."""
    assert policies.applying(principal) == [policy]
    allowed = {action for action in ACTIONS if policies.decide(asked(principal, action)).allowed}
    assert allowed == ROLES["admin"].actions | ({KEY_READ} if reads_keys else set())


@pytest.mark.parametrize(
    "principal",
    [NOBODY, WEB, Principal(kind="nats", id="APP/local"), Principal(kind="system"), Principal(kind="unix", id="9900")],
)
def test_nobody_else_is(policies: Policies, principal: Principal) -> None:
    """Default deny."""
    assert not any(policies.decide(asked(principal, action)).allowed for action in ACTIONS)
    assert not any(policies.decide_action(asked(principal, action)).allowed for action in ACTIONS)


@pytest.mark.parametrize("principal", [ROOT, Principal(kind="unix", id=str(OWN_UID))])
async def test_root_can_always_undo_a_denial(policies: Policies, principal: Principal) -> None:
    """An administrator who denies everything to everybody would have to repair the store by hand."""
    everything = am.PutPolicy(
        name="oops",
        principals=["unix:*", "token:*", "nats:*"],
        rules=[PolicyRule(effect="deny", actions=("*",))],
    )
    await policies.put(everything, CONTEXT)
    for action in ("policy.delete", "policy.write", "policy.read", "token.create", "token.revoke"):
        assert policies.decide(asked(principal, action)).allowed
        assert policies.decide_action(asked(principal, action)).allowed
        assert not policies.decide(asked(LOCAL, action)).allowed
    assert not policies.decide(asked(principal, "cert.issue")).allowed
    member = Principal(kind="unix", id="1000", policies=(LOCAL_ADMINS,))
    assert not policies.decide(asked(member, "policy.delete")).allowed


async def test_a_written_policy_holds_at_once_and_after_a_restart(
    policies: Policies, make: Callable[..., Policies], clock: FakeClock
) -> None:
    """Whoever takes a right away must not have to wait for it."""
    told: list[None] = []
    policies.changed.subscribe(told.append)
    assert not policies.decide(asked(WEB, "cert.issue")).allowed
    written = await policies.put(wanted(), CONTEXT)
    assert (written.origin, written.created_at, written.updated_at) == ("api", clock.now(), clock.now())
    assert policies.decide(asked(WEB, "cert.issue")).policy == "web"
    clock.advance(60)
    narrowed = await policies.put(wanted(domains=("b.example.org",)), CONTEXT)
    assert (narrowed.created_at, narrowed.updated_at) == (written.created_at, clock.now())
    assert not policies.decide(asked(WEB, "cert.issue")).allowed
    again = make()
    await again.resume()
    assert again.decide(asked(WEB, "cert.issue", "b.example.org")).allowed
    assert not again.decide(asked(WEB, "cert.issue")).allowed
    await again.put(wanted(), CONTEXT)
    assert again.exists("web")
    await again.delete(am.PolicyByName(name="web"), CONTEXT)
    assert not again.decide(asked(WEB, "cert.issue")).allowed
    assert not again.exists("web")
    assert len(told) == 2


async def test_a_policy_that_is_not_stored_does_not_hold(policies: Policies, store: WatchedStore) -> None:
    """After a restart it would be gone."""
    store.is_down = True
    with pytest.raises(StorageUnavailable):
        await policies.put(wanted(), CONTEXT)
    assert not policies.exists("web")
    store.is_down = False
    await policies.put(wanted(), CONTEXT)
    store.is_down = True
    with pytest.raises(StorageUnavailable):
        await policies.delete(am.PolicyByName(name="web"), CONTEXT)
    assert policies.decide(asked(WEB, "cert.issue")).allowed


async def test_a_caller_who_goes_away_leaves_no_policy_that_judges_nothing(
    policies: Policies, store: WatchedStore
) -> None:
    """A denial in the store that nobody is held to until the next restart would be worse than none."""
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def hold(*_: Any) -> None:
        reached.set()
        await go_on.wait()

    store.before_commit = hold
    caller = asyncio.create_task(policies.put(wanted(), CONTEXT))
    await reached.wait()
    caller.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert policies.decide(asked(WEB, "cert.issue")).allowed
    assert await POLICIES.get(store, "web") is not None


async def test_two_puts_at_once_are_one_after_the_other(policies: Policies) -> None:
    """Neither is lost unheard, and memory holds what the store holds."""
    await asyncio.gather(*(policies.put(wanted(domains=(f"{name}.example.org",)), CONTEXT) for name in "abc"))
    (kept,) = [each for each in (await policies.list(am.ListPolicies(), CONTEXT)).items if each.origin == "api"]
    assert kept.rules[0].domains == ("c.example.org",)


async def test_what_another_process_has_written_is_taken_up(policies: Policies, make: Callable[..., Policies]) -> None:
    """A change on top of an older one would undo what nobody has seen."""
    other = make()
    await policies.put(wanted(), CONTEXT)
    with pytest.raises(Conflict, match="changed by another request"):
        await other.put(wanted(domains=("b.example.org",)), CONTEXT)
    assert other.decide(asked(WEB, "cert.issue")).allowed
    await other.put(wanted(domains=("b.example.org",)), CONTEXT)
    with pytest.raises(Conflict, match="changed by another request"):
        await policies.delete(am.PolicyByName(name="web"), CONTEXT)
    assert policies.decide(asked(WEB, "cert.issue", "b.example.org")).allowed
    await other.delete(am.PolicyByName(name="web"), CONTEXT)
    with pytest.raises(Conflict, match="changed by another request"):
        await policies.put(wanted(), CONTEXT)
    assert not policies.exists("web")


@pytest.mark.parametrize(
    ("request_", "pointer", "said"),
    [
        (wanted(domains=("**.co.uk",)), "/rules/0/domains/0", "co.uk is a public suffix"),
        (wanted(actions=("cert.isue",)), "/rules/0/actions/0", "did you mean 'cert.issue'?"),
        (wanted(actions=("key.*",)), "/rules/0/actions/0", "write 'key.read'"),
        (wanted(domains=()), "/rules/0/domains", "give domains"),
        (wanted(secrets=()), "/rules/0/secrets", "an empty list means none"),
        (wanted("web", "token:a", "web"), "/principals/1", "names no principal"),
        (wanted("web", "token:w*b"), "/principals/0", "names no principal"),
    ],
)
async def test_a_policy_that_cannot_be_meant_is_refused(
    policies: Policies, request_: am.PutPolicy, pointer: str, said: str
) -> None:
    """With a pointer into the request, not into a file."""
    with pytest.raises(InvalidRequest) as caught:
        await policies.put(request_, CONTEXT)
    (field,) = caught.value.fields
    assert field.pointer == pointer
    assert said in field.detail
    assert not policies.exists("web")


@pytest.mark.parametrize(("name", "said"), [("admin", "built in"), ("local-admins", "built in"), ("team", "stands in")])
async def test_what_callers_did_not_write_they_cannot_change(
    make: Callable[..., Policies], name: str, said: str
) -> None:
    """The administrator's file is not overruled by request, nor is the way in closed."""
    policies = make(Policy(name="team", principals=("token:web-ci",)))
    with pytest.raises(Conflict, match=said):
        await policies.put(wanted(name), CONTEXT)
    with pytest.raises(Conflict, match=said):
        await policies.delete(am.PolicyByName(name=name), CONTEXT)


async def test_what_is_not_there_cannot_be_deleted_nor_shown(policies: Policies) -> None:
    """A typing error is told."""
    with pytest.raises(NotFound, match="there is no policy 'web'"):
        await policies.delete(am.PolicyByName(name="web"), CONTEXT)
    with pytest.raises(NotFound, match="there is no policy 'web'"):
        await policies.get(am.PolicyByName(name="web"), CONTEXT)


async def test_the_file_comes_before_what_was_written_by_request(
    make: Callable[..., Policies], policies: Policies, logged: list[EventDict]
) -> None:
    """Whoever has written a policy by request does not keep the administrator from taking its name."""
    await policies.put(wanted("team"), CONTEXT)
    (denied,) = (Policy(name="team", principals=("token:web-ci",)),)
    policies.reload([denied])
    assert not policies.decide(asked(WEB, "cert.issue")).allowed
    assert (await policies.get(am.PolicyByName(name="team"), CONTEXT)).origin == "file"
    assert [each["policy"] for each in logged if each["event"] == "policy.hidden"] == ["team"]
    policies.reload([])
    assert policies.decide(asked(WEB, "cert.issue")).allowed


def test_a_reload_is_told_and_holds_at_once(policies: Policies) -> None:
    """Renewals that were blocked go on when the file allows them again."""
    told: list[None] = []
    policies.changed.subscribe(told.append)
    rule = PolicyRule(actions=("cert.issue",), domains=("*.example.org",))
    assert not policies.decide(asked(WEB, "cert.issue")).allowed
    policies.reload([Policy(name="team", principals=("token:web-ci",), rules=(rule,))])
    assert policies.decide(asked(WEB, "cert.issue")).policy == "team"
    assert told == [None]


def test_a_file_cannot_take_the_name_of_what_is_built_in(make: Callable[..., Policies], policies: Policies) -> None:
    """`admin` means one thing everywhere; a reload that tries changes nothing."""
    with pytest.raises(StartupError, match="'admin' is built in"):
        make(Policy(name="admin"))
    with pytest.raises(StartupError, match="'admin' is built in"):
        policies.reload([Policy(name="team"), Policy(name="admin")])
    assert not policies.exists("team")


def test_a_policy_of_a_tenant_that_is_not_there_is_spoken_of(
    make: Callable[..., Policies], logged: list[EventDict]
) -> None:
    """It applies to nobody, and its author believes that it does."""
    make(Policy(name="team", tenant="web"), Policy(name="all", tenant="*"))
    assert [each["policy"] for each in logged if each["event"] == "policy.of_no_tenant"] == ["team"]


async def test_one_document_that_cannot_be_read_does_not_hide_the_others(
    policies: Policies, make: Callable[..., Policies], sqlite: SqliteStore, logged: list[EventDict]
) -> None:
    """And it is told of at every start."""
    await policies.put(wanted(), CONTEXT)
    broken = POLICIES.put(StoredPolicy(policy=Policy(name="x"), created_at=CLOCK.now(), updated_at=CLOCK.now()))
    await sqlite.commit([type(broken)(key=broken.key, document=b"{}", expect_revision=0)])
    again = make()
    await again.resume()
    assert again.exists("web")
    assert [each["key"] for each in logged if each["event"] == "document.unreadable"] == ["policy/x"]


async def test_lists_are_paged_by_name(make: Callable[..., Policies]) -> None:
    """Of all origins, each once."""
    policies = make(Policy(name="team"))
    for name in ("zz", "aa"):
        await policies.put(wanted(name), CONTEXT)
    names: list[str] = []
    cursor = None
    while True:
        page = await policies.list(am.ListPolicies(limit=2, cursor=cursor), CONTEXT)
        names += [each.name for each in page.items]
        assert len(page.items) <= 2
        if (cursor := page.next_cursor) is None:
            break
    assert names == sorted(
        ["aa", "zz", "team", "viewer", "issuer", "operator", "admin", LOCAL_ADMINS, EMBEDDED_OWNER, "trusted-bus"]
    )


async def test_a_page_fits_into_a_message(policies: Policies) -> None:
    """An ordinary NATS server takes 1 MiB."""
    domains = tuple(f"a{number:05}.{'b' * 60}.example.org" for number in range(2_500))
    for number in range(6):
        await policies.put(wanted(f"p{number}", domains=domains), CONTEXT)
    shown: list[str] = []
    cursor = None
    while True:
        page = await policies.list(am.ListPolicies(limit=500, cursor=cursor), CONTEXT)
        assert len(msgspec.json.encode(page)) < 1 << 20
        shown += [each.name for each in page.items]
        if (cursor := page.next_cursor) is None:
            break
    assert [each for each in shown if each.startswith("p")] == [f"p{number}" for number in range(6)]


async def test_judging_does_not_depend_on_how_many_policies_there_are(make: Callable[..., Policies]) -> None:
    """Only those for the principal are looked at."""
    rule = PolicyRule(actions=("cert.issue",), domains=("*.example.org",))
    many = [Policy(name=f"p{number}", principals=(f"token:t{number}",), rules=(rule,)) for number in range(1_000)]
    policies = make(*many, Policy(name="web", principals=("token:web-ci",), rules=(rule,)))
    assert policies.decide(asked(WEB, "cert.issue")).policy == "web"
    assert policies.applying(WEB) == ["web"]


CLOCK = FakeClock()
