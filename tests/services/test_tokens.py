"""API tokens: whoever asks gets no more than it may give, secrets are shown once, and nothing is lost or told twice."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from scaivaultd.api.tokens import judge_token, parse_token
from scaivaultd.model.access import principal_of
from scaivaultd.model.errors import (
    Conflict,
    Internal,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    RevisionConflict,
    StorageUnavailable,
)
from scaivaultd.model.principals import Principal
from scaivaultd.model.storage import Put
from scaivaultd.services.documents import TOKEN_NAMES, TOKENS, digest
from scaivaultd.services.tokens import WRITTEN_TOGETHER
from tests.fakes.token_house import DEADLINE, MAKER, House, policy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlog.typing import EventDict, FilteringBoundLogger

    from scaivaultd.model.storage import Change
    from scaivaultd.store.sqlite import SqliteStore


@pytest.fixture
def make_house(sqlite: SqliteStore, log: FilteringBoundLogger, logged: list[EventDict]) -> Callable[..., House]:
    def make(**members: Any) -> House:
        return House(sqlite=sqlite, log=log, logged=logged, **members)

    return make


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    return make_house()


def verdict_on(house: House, text: str, address: str | None = None) -> str:
    presented = parse_token(text)
    return judge_token(presented, house.tokens.find(presented.id), house.clock.now(), address)


def pointers(error: InvalidRequest | PermissionDenied | Conflict) -> list[str]:
    return [each.pointer for each in error.fields]


class TestCreating:
    async def test_the_text_is_shown_once_and_only_a_digest_is_kept(
        self, house: House, logged: list[EventDict]
    ) -> None:
        """Whoever reads the store or the log can use no token."""
        made = await house.create(policies=["issuer"], scopes=["cert.*"], networks=["192.0.2.7", "2001:DB8::/32"])
        secret = made.token[14:57]
        assert len(made.token) == 63
        assert verdict_on(house, made.token, "192.0.2.7") == "good"
        stored = await house.sqlite.scan("")
        assert stored.items
        assert not any(secret.encode() in each.document for each in stored.items)
        assert secret not in repr((logged, made, house.kept(made.id)))
        assert made.principal == f"token:{made.id}"
        assert (made.created_by, made.status) == ("unix:0", "valid")
        assert made.networks == ["192.0.2.7/32", "2001:db8::/32"]
        assert made.expires_at - made.created_at == timedelta(days=90)
        assert made.nats is not None
        assert made.nats.inbox_prefix == f"_INBOX_{made.id}"
        shown = await house.get(made.id)
        assert msgspec.to_builtins(made) == {**msgspec.to_builtins(shown), "token": made.token}

    async def test_where_tokens_do_not_log_in_to_nats_none_has_a_place_there(
        self, make_house: Callable[..., House]
    ) -> None:
        """A caller must not be told of a subject that nobody listens on."""
        assert (await make_house(has_nats=False).create()).nats is None

    @pytest.mark.parametrize(
        ("members", "pointer"),
        [
            ({"lifetime": "366d"}, "/lifetime"),
            ({"lifetime": 3.2e7}, "/lifetime"),
            ({"lifetime": "0s"}, "/lifetime"),
            ({"policies": ["viewer", "nobody-wrote-it"]}, "/policies/1"),
            ({"scopes": ["cert.read", "cert.isue"]}, "/scopes/1"),
            ({"scopes": ["certs.*"]}, "/scopes/0"),
            ({"scopes": ["key.*"]}, "/scopes/0"),
            ({"networks": ["10.0.0.0/8", "10.0.0.1/8"]}, "/networks/1"),
            ({"networks": ["example.test"]}, "/networks/0"),
        ],
    )
    async def test_what_cannot_be_meant_is_refused_with_a_pointer(
        self, house: House, members: dict[str, Any], pointer: str
    ) -> None:
        """A token that works less or longer than its maker thinks is found out too late."""
        with pytest.raises(InvalidRequest) as caught:
            await house.create(**members)
        assert pointers(caught.value) == [pointer]
        assert (await house.page()).items == []

    @pytest.mark.parametrize(
        ("scope", "meant"),
        [("cert.isue", "'cert.issue'"), ("certs.*", "'cert.\\*'"), ("key.*", "'key.read'"), ("KEY.READ", "'key.read'")],
    )
    async def test_a_mistyped_scope_is_told_what_was_meant(self, house: House, scope: str, meant: str) -> None:
        """The words are many."""
        with pytest.raises(InvalidRequest, match=f"did you mean {meant}"):
            await house.create(scopes=[scope])

    async def test_the_longest_lifetime_and_every_kind_of_scope_are_taken(self, house: House) -> None:
        """What the reference promises."""
        made = await house.create(lifetime="365d", scopes=["*", "cert.*", "key.read", "key.read"])
        assert made.expires_at - made.created_at == timedelta(days=365)
        assert made.scopes == ["*", "cert.*", "key.read"]

    async def test_a_name_is_never_given_again(self, house: House) -> None:
        """A policy for a token of yesterday must not become one for somebody else's."""
        made = await house.create()
        for _ in ("while it is good", "after it was revoked"):
            with pytest.raises(Conflict, match=made.id) as caught:
                await house.create()
            assert pointers(caught.value) == ["/name"]
            await house.revoke(made.id)
        with pytest.raises(Conflict):
            await (await house.again()).create()

    async def test_of_two_that_want_a_name_at_once_one_gets_it(self, house: House) -> None:
        """Two pipelines that begin at the same moment."""
        outcomes = await asyncio.gather(*(house.create() for _ in range(4)), return_exceptions=True)
        made = [each for each in outcomes if not isinstance(each, BaseException)]
        assert len(made) == 1
        assert all(isinstance(each, Conflict) for each in outcomes if each is not made[0])
        assert [each.id for each in (await house.page()).items] == [made[0].id]

    async def test_a_repeated_request_makes_no_second_token(self, house: House) -> None:
        """Its text cannot be shown again, and a silent second one would lie around unknown."""
        made = await house.create(key="once")
        with pytest.raises(Conflict, match=f"{made.id}.*shown only once"):
            await house.create(key="once")
        with pytest.raises(Conflict, match="another request"):
            await house.create(name="other", key="once")
        assert len((await house.page()).items) == 1

    async def test_the_same_request_twice_at_once_makes_one_token(self, house: House) -> None:
        """A client that repeats a call too early."""
        outcomes = await asyncio.gather(*(house.create(key="once") for _ in range(3)), return_exceptions=True)
        refused = [str(each) for each in outcomes if isinstance(each, Conflict)]
        assert len(refused) == 2
        assert all("shown only once" in each for each in refused)

    async def test_a_caller_that_goes_away_leaves_no_token_that_only_the_store_knows(self, house: House) -> None:
        """It would come to life at the next restart, and nobody could have revoked it until then."""
        reached = asyncio.Event()
        go = asyncio.Event()

        async def hold(_: Sequence[Change]) -> None:
            reached.set()
            await go.wait()

        house.store.before_commit = hold
        task = asyncio.create_task(house.create())
        async with asyncio.timeout(DEADLINE):
            await reached.wait()
        task.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [each.name for each in (await house.page()).items] == ["web-ci"]

    async def test_nothing_is_made_where_the_store_fails(self, house: House) -> None:
        """A token that works until the next restart only would be worse than none."""
        house.store.is_down = True
        with pytest.raises(StorageUnavailable):
            await house.create()
        house.store.is_down = False
        assert (await house.page()).items == []
        await house.create()


class TestWhoMayGiveWhat:
    async def test_whoever_may_write_policies_may_give_any(self, house: House) -> None:
        """It could write them anyway."""
        made = await house.create(policies=["admin", "embedded-owner", "admin"])
        assert made.policies == ["admin", "embedded-owner"]

    async def test_everybody_else_gives_what_applies_to_itself(self, house: House) -> None:
        """Whoever hands out tokens must not become administrator by it."""
        made = await house.create(by=MAKER, policies=["issuer", "token-makers"])
        assert made.created_by == "token:Maker000"
        with pytest.raises(PermissionDenied) as caught:
            await house.create("other", by=MAKER, policies=["issuer", "admin", "operator"])
        assert pointers(caught.value) == ["/policies/1", "/policies/2"]
        assert len((await house.page()).items) == 1

    @pytest.mark.parametrize(
        ("own", "scopes", "refused"),
        [
            (("token.*", "cert.*"), [], ["/scopes"]),
            (("token.*", "cert.*"), ["cert.issue", "cert.*"], []),
            (
                ("token.*", "cert.*"),
                ["cert.issue", "*", "key.read", "secret.use"],
                ["/scopes/1", "/scopes/2", "/scopes/3"],
            ),
            (("token.create", "cert.issue"), ["cert.*"], ["/scopes/0"]),
            (("*",), ["cert.issue", "*"], []),
            (("*",), ["key.read"], ["/scopes/0"]),
            (("*", "key.read"), ["key.read"], []),
            (("*",), [], ["/scopes"]),
        ],
    )
    @pytest.mark.parametrize("policies", [("token-makers",), ("admin",)])
    async def test_scopes_bind_what_is_given_too(
        self, house: House, policies: tuple[str, ...], own: tuple[str, ...], scopes: list[str], refused: list[str]
    ) -> None:
        """A token confined to a few actions must not make one that is not, whatever its policies."""
        maker = msgspec.structs.replace(MAKER, policies=policies, scopes=own)
        if not refused:
            assert (await house.create(by=maker, scopes=scopes)).scopes == scopes
            return
        with pytest.raises(PermissionDenied) as caught:
            await house.create(by=maker, scopes=scopes)
        assert pointers(caught.value) == refused

    async def test_a_name_that_a_policy_speaks_of_is_given_by_those_who_have_that_policy(
        self, make_house: Callable[..., House]
    ) -> None:
        """A name is as good as a policy where a policy is for tokens of that name."""
        house = make_house(
            from_file=[
                policy("prod", "cert.issue", principals=("token:prod-*",)),
                policy("not-at-night", "cert.revoke", principals=("token:*",), effect="deny"),
            ]
        )
        with pytest.raises(PermissionDenied) as caught:
            await house.create("prod-7", by=MAKER)
        assert pointers(caught.value) == ["/name"]
        await house.create("dev-7", by=MAKER)
        await house.create("prod-7")
        await house.create("prod-8", by=msgspec.structs.replace(MAKER, policies=("token-makers", "prod")))

    async def test_a_denial_is_handed_on(self, make_house: Callable[..., House]) -> None:
        """An administrator who may not write policies must not get rid of that by a token of its own."""
        limits = policy("limits", "policy.*", "key.read", principals=("token:ops-*",), effect="deny")
        house = make_house(from_file=[limits])
        maker = Principal(kind="token", id="Maker000", name="ops-1", policies=("admin",))
        with pytest.raises(PermissionDenied) as caught:
            await house.create("other", by=maker, policies=["admin"])
        assert pointers(caught.value) == ["/policies"]
        for name, policies in (("ops-2", ["admin"]), ("other", ["admin", "limits"])):
            made = await house.create(name, by=maker, policies=policies)
            assert not house.asks(principal_of(house.kept(made.id))).permits.allows("policy.write")

    async def test_a_rotation_gives_no_more_than_the_caller_has(self, house: House) -> None:
        """To rotate a token is to be handed it."""
        admins = await house.create("admins", policies=["admin"])
        unbound = await house.create("unbound", policies=["issuer"])
        with pytest.raises(PermissionDenied, match="may do more than you") as caught:
            await house.rotate(admins.id, by=MAKER)
        assert pointers(caught.value) == ["/id"]
        confined = msgspec.structs.replace(MAKER, scopes=("token.rotate",))
        with pytest.raises(PermissionDenied) as caught:
            await house.rotate("unbound", by=confined)
        assert pointers(caught.value) == ["/id"]
        assert verdict_on(house, admins.token) == "good"
        await house.rotate("unbound", by=MAKER)
        assert verdict_on(house, unbound.token) == "good"


class TestShowing:
    async def test_a_token_is_found_by_id_and_by_name(self, house: House) -> None:
        """People know names, logs show ids."""
        made = await house.create()
        assert await house.get(made.id) == await house.get("web-ci")

    @pytest.mark.parametrize("shown", ["Ab3dEf9h", "web-cii"])
    async def test_what_is_not_there_is_named(self, house: House, shown: str) -> None:
        """A typo is seen at once."""
        with pytest.raises(NotFound, match=shown):
            await house.get(shown)

    async def test_a_token_pasted_in_place_of_its_id_is_not_repeated(self, house: House) -> None:
        """Errors are logged, and tokens are not."""
        made = await house.create()
        for text in (made.token, made.token[:40], made.token[14:]):
            for ask in (house.get, house.revoke, house.rotate):
                with pytest.raises(NotFound) as caught:
                    await ask(text)
                assert text[-20:] not in caught.value.detail

    async def test_a_thousand_tokens_are_paged_through_without_a_gap(self, house: House) -> None:
        """Pages are of what is asked for, and the last one says so."""
        made = [await house.create(f"t{number:04d}", lifetime="1d" if number % 3 else "90d") for number in range(1000)]
        await house.revoke(made[3].id)
        house.clock.advance(2 * 86400)
        for include_ended, count in ((True, 1000), (False, 333)):
            names: list[str] = []
            cursor: str | None = None
            while True:
                page = await house.page(limit=70, cursor=cursor, include_ended=include_ended)
                names += [each.name for each in page.items]
                if (cursor := page.next_cursor) is None:
                    break
                assert len(page.items) == 70
            assert names == sorted(set(names))
            assert len(names) == count

    async def test_a_page_fits_into_a_message(self, house: House) -> None:
        """A reply larger than a NATS server takes would be lost."""
        networks = [f"2001:db8:{number:x}:ffff:ffff:ffff:ffff:fff{number % 16:x}" for number in range(50)]
        for number in range(250):
            await house.create(f"t{number}", networks=networks, scopes=[f"{each}.*" for each in ("cert", "order")])
        page = await house.page(limit=500)
        assert len(msgspec.json.encode(page)) < 500_000
        rest = await house.page(limit=500, cursor=page.next_cursor)
        assert len(page.items) + len(rest.items) == 250

    async def test_its_state_is_shown(self, house: House) -> None:
        """An administrator looks for what still opens doors."""
        made = [await house.create(name, lifetime=life) for name, life in (("a", "1h"), ("b", "2h"), ("c", "2h"))]
        await house.revoke(made[2].id)
        house.clock.advance(3600)
        found = {each.name: each.status for each in (await house.page(include_ended=True)).items}
        assert found == {"a": "expired", "b": "valid", "c": "revoked"}
        assert [each.name for each in (await house.page()).items] == ["b"]


class TestRotating:
    async def test_the_old_secret_stays_good_for_the_overlap_and_the_lifetime_begins_anew(self, house: House) -> None:
        """Whoever uses it has the time to change it everywhere, and the next end is as far away as the first was."""
        first = await house.create(lifetime="30d")
        house.clock.advance(20 * 86400)
        second = await house.rotate(first.id, overlap="1h")
        assert (second.id, second.name) == (first.id, first.name)
        assert second.expires_at == house.clock.now() + timedelta(days=30)
        assert second.previous_until == house.clock.now() + timedelta(hours=1)
        assert verdict_on(house, first.token) == verdict_on(house, second.token) == "good"
        house.clock.advance(3600)
        assert verdict_on(house, first.token) == "expired"
        assert (await house.get(first.id)).previous_until is None
        house.clock.advance(20 * 86400)
        third = await house.rotate("web-ci")
        assert third.expires_at == house.clock.now() + timedelta(days=30), "a lifetime must not grow by rotating"

    async def test_another_lifetime_is_taken(self, house: House) -> None:
        """A token that was made for too short a time."""
        made = await house.create(lifetime="1h")
        assert (await house.rotate(made.id, lifetime="365d")).expires_at == house.clock.now() + timedelta(days=365)

    async def test_no_secret_outlives_the_end_it_was_given(self, house: House) -> None:
        """Who made a token for an hour has said so of every copy of it."""
        first = await house.create(lifetime="1h")
        second = await house.rotate(first.id, overlap="7d", lifetime="10d")
        assert second.previous_until == first.expires_at
        assert (
            await house.rotate(first.id, overlap="7d", lifetime="1s")
        ).previous_until == house.clock.now() + timedelta(seconds=1)

    @pytest.mark.parametrize(
        ("members", "pointer"),
        [({"overlap": "8d"}, "/overlap"), ({"overlap": 604801}, "/overlap"), ({"lifetime": "366d"}, "/lifetime")],
    )
    async def test_what_is_too_long_is_refused(self, house: House, members: dict[str, Any], pointer: str) -> None:
        """Two secrets for ever are no rotation."""
        made = await house.create()
        with pytest.raises(InvalidRequest) as caught:
            await house.rotate(made.id, **members)
        assert pointers(caught.value) == [pointer]
        await house.rotate(made.id, overlap="7d")

    async def test_a_leaked_secret_is_ended_at_once(self, house: House) -> None:
        """`0s` means now; whoever has logged in with it is sent away."""
        made = await house.create()
        await house.rotate(made.id, overlap="0s")
        assert verdict_on(house, made.token) == "expired"
        assert house.ended == [made.id]

    async def test_a_rotation_with_overlap_sends_nobody_away_before_its_end(self, house: House) -> None:
        """Its point is that nothing breaks; and afterwards the old secret must be of no more use on NATS either."""
        made = await house.create()
        async with house.running():
            await house.rotate(made.id, overlap="120s")
            await house.clock.next_round()
            assert house.ended == []
            await house.clock.next_round()
            assert house.ended == [made.id]
            await house.clock.next_round()
            assert house.ended == [made.id]

    async def test_a_second_rotation_ends_the_first_secret(self, house: House) -> None:
        """There are never three."""
        first = await house.create()
        second = await house.rotate(first.id)
        assert house.ended == []
        third = await house.rotate(first.id)
        assert house.ended == [first.id]
        assert [verdict_on(house, each.token) for each in (first, second, third)] == ["wrong", "good", "good"]

    async def test_two_rotations_at_once_are_one(self, house: House) -> None:
        """The second would end the secret that everybody has, without any overlap."""
        first = await house.create()
        outcomes = await asyncio.gather(*(house.rotate(first.id) for _ in range(3)), return_exceptions=True)
        made = [each for each in outcomes if not isinstance(each, BaseException)]
        assert len(made) == 1
        assert sum(isinstance(each, Conflict) for each in outcomes) == 2
        assert verdict_on(house, first.token) == verdict_on(house, made[0].token) == "good"

    async def test_a_repeated_rotation_is_refused(self, house: House) -> None:
        """A client that lost the answer must not cut off everybody by asking again."""
        first = await house.create()
        await house.rotate(first.id, key="once")
        with pytest.raises(Conflict, match="shown only once"):
            await house.rotate(first.id, key="once")
        assert verdict_on(house, first.token) == "good"

    async def test_one_key_for_two_rotations_at_once_is_a_mistake(self, house: House) -> None:
        """A key stands for one request."""
        made = [await house.create(name) for name in ("a", "b")]
        outcomes = await asyncio.gather(*(house.rotate(each.id, key="once") for each in made), return_exceptions=True)
        assert [str(each)[:50] for each in outcomes if isinstance(each, BaseException)] == [
            "this Idempotency-Key was used for another request "[:50]
        ]

    async def test_what_has_ended_does_not_come_back(self, house: House) -> None:
        """Neither an attacker with an old right nor a pipeline may bring a dead token to life."""
        revoked = await house.create("a")
        await house.revoke(revoked.id)
        expired = await house.create("b", lifetime="1h")
        house.clock.advance(3600)
        for token, state in ((revoked, "revoked"), (expired, "expired")):
            with pytest.raises(Conflict, match=f"{state}.*make a new one"):
                await house.rotate(token.id)

    async def test_a_rotation_that_meets_another_change_keeps_both(self, house: House) -> None:
        """Writing down a last use must not undo a rotation, nor the other way round."""
        made = await house.create()
        house.tokens.used(made.id)
        meddled = False

        async def meddle(changes: Sequence[Change]) -> None:
            nonlocal meddled
            if not meddled:
                meddled = True
                (key,) = (each.key for each in changes)
                stored = await TOKENS.get(house.sqlite, made.id)
                assert stored is not None
                assert key == TOKENS.key(made.id)
                changed = msgspec.structs.replace(stored.value, last_used_at=house.clock.now())
                await house.sqlite.commit([TOKENS.put(changed, stored.revision)])

        house.store.before_commit = meddle
        rotated = await house.rotate(made.id)
        assert verdict_on(house, rotated.token) == "good"
        stored = await TOKENS.get(house.sqlite, made.id)
        assert stored is not None
        assert stored.value == house.kept(made.id)
        assert stored.value.last_used_at == house.clock.now()


class TestRevoking:
    async def test_a_revoked_token_is_good_for_nothing_from_that_moment(self, house: House) -> None:
        """With both its secrets, and after a restart."""
        first = await house.create()
        second = await house.rotate(first.id)
        reply = await house.revoke("web-ci")
        assert (reply.status, reply.revoked_at) == ("revoked", house.clock.now())
        for life in (house, await house.again()):
            assert verdict_on(life, first.token) == verdict_on(life, second.token) == "revoked"
        assert house.ended == [first.id]

    async def test_revoking_again_changes_nothing(self, house: House) -> None:
        """Whoever is not sure does it twice."""
        made = await house.create()
        reply = await house.revoke(made.id)
        house.clock.advance(60)
        assert await house.revoke(made.id) == reply
        assert house.ended == [made.id]

    async def test_a_revocation_wins_over_a_rotation_at_the_same_moment(self, house: House) -> None:
        """Whatever comes first, the token is dead in the end."""
        made = await house.create()
        await asyncio.gather(house.rotate(made.id), house.revoke(made.id), return_exceptions=True)
        assert (await house.get(made.id)).status == "revoked"
        assert (await (await house.again()).get(made.id)).status == "revoked"

    async def test_a_revocation_by_another_process_is_noticed_when_the_token_is_changed(self, house: House) -> None:
        """The store knows better than memory."""
        made = await house.create()
        await (await house.again()).revoke(made.id)
        with pytest.raises(Conflict, match="revoked"):
            await house.rotate(made.id)
        assert house.ended == [made.id]

    async def test_an_old_reading_does_not_bring_it_back_for_a_moment(self, house: House) -> None:
        """Reading may take long, and a token that is revoked meanwhile must stay so."""
        made = await house.create()
        await (await house.again()).rotate(made.id)
        verdicts: list[str] = []

        async def look(_: Sequence[Change]) -> None:
            verdicts.append((await house.get(made.id)).status)

        async def revoke(_: str) -> None:
            house.store.after_get = None
            await house.revoke(made.id)
            house.store.before_commit = look

        house.store.after_get = revoke
        with pytest.raises(Conflict):
            await house.rotate(made.id, lifetime="2d")
        assert set(verdicts) <= {"revoked"}
        assert (await house.get(made.id)).status == "revoked"

    async def test_a_caller_that_goes_away_has_revoked_it_all_the_same(self, house: House) -> None:
        """What is in the store must hold at once, not from the next restart on."""
        made = await house.create()
        reached = asyncio.Event()
        go = asyncio.Event()

        async def hold(_: Sequence[Change]) -> None:
            reached.set()
            await go.wait()

        house.store.before_commit = hold
        task = asyncio.create_task(house.revoke(made.id))
        async with asyncio.timeout(DEADLINE):
            await reached.wait()
        task.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert verdict_on(house, made.token) == "revoked"


class TestRestart:
    async def test_all_is_there_again(self, house: House) -> None:
        """Nobody is locked out by an update of the daemon."""
        first = await house.create(policies=["issuer"], networks=["192.0.2.0/24"])
        second = await house.rotate(first.id)
        later = await house.again()
        assert await later.get("web-ci") == await house.get("web-ci")
        assert verdict_on(later, first.token, "192.0.2.1") == verdict_on(later, second.token, "192.0.2.1") == "good"
        assert verdict_on(later, second.token, "192.0.3.1") == "elsewhere"

    @pytest.mark.parametrize(
        "broken",
        [
            {},
            {"name": "Not A Name"},
            {"networks": ["all"]},
            {"expires_at": "2027-01-01T00:00:00"},
            {"created_at": "2026-01-01T00:00:00"},
        ],
        ids=["not JSON", "name", "networks", "expires_at", "created_at"],
    )
    async def test_one_broken_document_does_not_stop_the_others(
        self, house: House, broken: dict[str, Any], logged: list[EventDict]
    ) -> None:
        """A bad sector must not lock everybody out; whose it was is in the log."""
        lost = await house.create("lost")
        found = await house.create("found")
        stored = await house.sqlite.get(TOKENS.key(lost.id))
        assert stored is not None
        document = msgspec.json.encode({**msgspec.json.decode(stored.document), **broken}) if broken else b"\x00{"
        await house.sqlite.commit([Put(key=stored.key, document=document, expect_revision=stored.revision)])
        later = await house.again()
        assert verdict_on(later, found.token) == "good"
        assert verdict_on(later, lost.token) == "unknown"
        assert {"event": "document.unreadable", "key": stored.key, "log_level": "error"} in logged
        with pytest.raises(Conflict, match=lost.id):
            await later.create("lost")
        async with later.running():
            await later.clock.next_round()

    async def test_the_name_points_to_the_token(self, house: House) -> None:
        """Others look names up in the store."""
        made = await house.create()
        named = await TOKEN_NAMES.get(house.sqlite, digest("web-ci"))
        assert named is not None
        assert named.value.token_id == made.id


class TestLastUse:
    async def test_a_use_is_shown_at_once_and_written_down_within_a_minute(self, house: House) -> None:
        """A token that nobody uses can go; a request never waits for the disk."""
        made = await house.create()
        house.clock.advance(90)
        house.tokens.used(made.id)
        used_at = house.clock.now().replace(second=0)
        assert (await house.get(made.id)).last_used_at == used_at
        assert house.kept(made.id).last_used_at is None
        async with house.running():
            assert (await (await house.again()).get(made.id)).last_used_at == used_at

    async def test_a_token_in_constant_use_is_written_once_a_minute(self, house: House) -> None:
        """A thousand requests a second must not become a thousand writes."""
        made = [await house.create(name) for name in ("a", "b")]
        commits: list[list[str]] = []

        async def count(changes: Sequence[Change]) -> None:
            commits.append([each.key for each in changes])

        house.store.before_commit = count
        async with house.running():
            for _ in range(3):
                for _ in range(50):
                    house.tokens.used(made[0].id)
                await house.clock.next_round()
            await house.clock.next_round()
        assert commits == [[TOKENS.key(made[0].id)]] * 3

    async def test_many_are_written_together(self, house: House) -> None:
        """A thousand tokens in use are a few commits each minute."""
        for number in range(WRITTEN_TOGETHER + 20):
            house.tokens.used((await house.create(f"t{number}")).id)
        sizes: list[int] = []

        async def count(changes: Sequence[Change]) -> None:
            sizes.append(len(changes))

        house.store.before_commit = count
        async with house.running():
            assert sizes == [WRITTEN_TOGETHER, 20]
        used = [each.last_used_at for each in (await (await house.again()).page(limit=500)).items]
        assert None not in used

    async def test_one_that_changes_meanwhile_is_written_the_next_time(self, house: House) -> None:
        """Neither may be lost."""
        made = [await house.create(name) for name in ("a", "b")]
        for each in made:
            house.tokens.used(each.id)
        other = await house.again()
        await other.rotate("b")
        async with house.running():
            assert house.kept(made[0].id).last_used_at is None
            await house.clock.next_round()
        later = await house.again()
        assert all(later.kept(each.id).last_used_at is not None for each in made)
        assert later.kept(made[1].id).previous_sha256 is not None

    async def test_a_store_that_fails_for_a_while_loses_nothing(self, house: House, logged: list[EventDict]) -> None:
        """The daemon lives on, and writes when it can."""
        made = await house.create()
        house.tokens.used(made.id)
        house.store.is_down = True
        async with house.running():
            await house.clock.next_round()
            assert [each["event"] for each in logged].count("tokens.not_written") == 2
            house.store.is_down = False
            await house.clock.next_round()
        assert (await house.again()).kept(made.id).last_used_at is not None

    async def test_what_nobody_knows_is_not_remembered(self, house: House) -> None:
        """Ids come from strangers."""
        house.tokens.used("Ab3dEf9h")
        async with house.running():
            await house.clock.next_round()
        assert house.tokens.find("Ab3dEf9h") is None


class TestExpiring:
    async def test_the_end_is_announced_fourteen_three_and_one_day_before(
        self, house: House, logged: list[EventDict]
    ) -> None:
        """A pipeline that stops on a Sunday has been announced three times."""
        made = await house.create(lifetime="20d")
        house.clock.advance(5 * 86400)
        async with house.running():
            for days, seconds in ((14, 86400), (3, 11 * 86400), (1, 2 * 86400)):
                await house.clock.next_round()
                assert days not in [body["days_left"] for _, body in await house.events()]
                house.clock.advance(seconds - 60)
                house.tokens.used(made.id)
                used_at = house.clock.now()
                await house.clock.next_round()
                await house.clock.next_round()
                event_id, body = (await house.events())[-1]
                assert body == {
                    "token_id": made.id,
                    "name": "web-ci",
                    "expires_at": made.expires_at.isoformat().replace("+00:00", "Z"),
                    "days_left": days,
                    "last_used_at": used_at.isoformat().replace("+00:00", "Z"),
                }
                assert event_id.endswith(f".{days}.token.expiring")
            house.clock.advance(86400)
            await house.clock.next_round()
        assert [body["days_left"] for _, body in await house.events()] == [14, 3, 1]
        assert [each["days_left"] for each in logged if each["event"] == "token.expiring"] == [14, 3, 1]

    async def test_nothing_is_announced_twice_after_a_restart_or_when_the_clock_is_set_back(self, house: House) -> None:
        """Once is a reminder, twice is noise."""
        await house.create(lifetime="20d")
        house.clock.advance(17 * 86400)
        for _ in range(2):
            async with house.running():
                await house.clock.next_round()
            house = await house.again()
            house.clock.advance(-2 * 86400)
        assert [body["days_left"] for _, body in await house.events()] == [3]

    async def test_a_rotated_token_is_announced_anew(self, house: House) -> None:
        """Its new secret has an end of its own."""
        made = await house.create(lifetime="20d")
        house.clock.advance(10 * 86400)
        async with house.running():
            await house.rotate(made.id)
            await house.clock.next_round()
            assert len(await house.events()) == 1
            house.clock.advance(10 * 86400)
            await house.clock.next_round()
        told = await house.events()
        assert [body["days_left"] for _, body in told] == [14, 14]
        assert len({event_id for event_id, _ in told}) == 2

    async def test_tokens_for_an_hour_and_those_that_have_ended_are_not_announced(self, house: House) -> None:
        """Nobody needs to be told what was wanted."""
        await house.create("short", lifetime="1d")
        revoked = await house.create("revoked", lifetime="15d")
        await house.revoke(revoked.id)
        await house.create("expired", lifetime="2d")
        house.clock.advance(2 * 86400)
        async with house.running():
            await house.clock.next_round()
        assert await house.events() == []

    async def test_a_token_that_is_rotated_while_it_is_announced_is_not_called_expiring(self, house: House) -> None:
        """The two meet in the store."""
        made = await house.create(lifetime="20d")
        house.clock.advance(10 * 86400)
        rotated = False

        async def rotate_first(_: Sequence[Change]) -> None:
            nonlocal rotated
            if not rotated:
                rotated = True
                await (await house.again()).rotate(made.id)

        house.store.before_commit = rotate_first
        async with house.running():
            pass
        assert await house.events() == []

    async def test_a_store_that_fails_delays_the_announcement(self, house: House) -> None:
        """It is not given up."""
        await house.create(lifetime="20d")
        house.clock.advance(10 * 86400)
        house.store.is_down = True
        async with house.running():
            assert await house.events() == []
            house.store.is_down = False
            await house.clock.next_round()
        assert [body["days_left"] for _, body in await house.events()] == [14]


async def test_a_token_that_others_change_all_the_time_does_not_hang_the_request(house: House) -> None:
    """A wait without an end would hold the caller and the daemon's stop."""
    made = await house.create()

    async def never(_: Sequence[Change]) -> None:
        raise RevisionConflict(TOKENS.key(made.id))

    house.store.before_commit = never
    with pytest.raises(Internal, match="changed by others"):
        await house.revoke(made.id)
