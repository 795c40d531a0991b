"""Secrets by reference: written, listed, deleted, read by ourselves only, and never shown again."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.errors import Internal, InvalidRequest, NotFound, SecretNotFound
from scaivaultd.plugin import SecretMissing
from scaivaultd.services import jobs, secrets
from scaivaultd.services.documents import SECRETS, digest
from scaivaultd.services.secrets import LentSecrets

VALUE = "hunter2-hunter2-hunter2-hunter2"
CONTEXT = RequestContext(request_id="req_secret")


async def put(world: Any, path: str = "infra/dns/token", value: str = VALUE) -> Any:
    return await world.secret_store.put(m.PutSecret(path=path, value=value), CONTEXT)


async def listed(world: Any, **members: Any) -> Any:
    return await world.secret_store.list(m.ListSecrets(**members), CONTEXT)


class Backend:
    """A stranger's place for secrets."""

    def __init__(self) -> None:
        self.values = {"kv/dns#token": VALUE}
        self.meets: Any = None
        self.reads = 0

    async def read(self, path: str) -> str:
        self.reads += 1
        if isinstance(self.meets, BaseException):
            raise self.meets
        if self.meets is not None:
            await self.meets()
        if path not in self.values:
            raise SecretMissing(path, "there is no such key")
        return self.values[path]


class TestWriting:
    async def test_a_secret_is_listed_by_path_and_version(self, dns_world: Any) -> None:
        """An administrator sees what is there and how often it was changed."""
        assert (await put(dns_world)).version == 1
        dns_world.clock.advance(60)
        reply = await put(dns_world, value="another")
        assert reply.version == 2
        assert reply.updated_at > reply.created_at
        (item,) = (await listed(dns_world)).items
        assert item == reply

    async def test_the_newest_version_is_the_one_that_is_read(self, dns_world: Any) -> None:
        """A rotated token is used without a restart, and without waiting for a cache in the same process."""
        await put(dns_world)
        assert (await dns_world.secret_store.read("infra/dns/token")).reveal() == VALUE
        await put(dns_world, value="rotated")
        assert (await dns_world.secret_store.read("infra/dns/token")).reveal() == "rotated"

    async def test_two_puts_at_once_make_two_versions(self, dns_world: Any) -> None:
        """Neither is lost without a trace."""
        replies = await asyncio.gather(*(put(dns_world, value=f"value {n}") for n in range(5)))
        assert sorted(each.version for each in replies) == [1, 2, 3, 4, 5]
        last = next(each for each in range(5) if replies[each].version == 5)
        assert (await dns_world.secret_store.read("infra/dns/token")).reveal() == f"value {last}"

    async def test_white_space_around_a_secret_does_not_count(self, dns_world: Any) -> None:
        """A newline at the end of a pasted token breaks HTTP headers."""
        await put(dns_world, value=f"  {VALUE}\n")
        assert (await dns_world.secret_store.read("infra/dns/token")).reveal() == VALUE

    async def test_listing_pages_in_order_and_filters_by_prefix(self, dns_world: Any) -> None:
        """Nothing is skipped or shown twice between two pages."""
        paths = ["a/one", "a/two", "a.b", "b/one", "b-two"]
        for path in paths:
            await put(dns_world, path)
        seen: list[str] = []
        cursor = None
        while True:
            page = await listed(dns_world, limit=2, cursor=cursor)
            seen += [each.path for each in page.items]
            if (cursor := page.next_cursor) is None:
                break
        assert seen == sorted(paths)
        assert [each.path for each in (await listed(dns_world, prefix="a/")).items] == ["a/one", "a/two"]

    async def test_a_deleted_secret_is_gone_at_once(self, dns_world: Any) -> None:
        """Whoever deletes a leaked token means now."""
        await put(dns_world)
        await dns_world.secret_store.read("infra/dns/token")
        await dns_world.secret_store.delete(m.SecretByPath(path="infra/dns/token"), CONTEXT)
        with pytest.raises(SecretNotFound, match="infra/dns/token"):
            await dns_world.secret_store.read("infra/dns/token")
        with pytest.raises(NotFound):
            await dns_world.secret_store.delete(m.SecretByPath(path="infra/dns/token"), CONTEXT)

    async def test_who_refers_to_a_secret_is_told_when_it_is_listed_and_deleted(self, dns_world: Any) -> None:
        """Deleting a secret in use must not be a surprise weeks later."""
        await dns_world.provider("one")
        await put(dns_world, "dns/account/a")
        dns_world.clock.advance(1)  # ids sort by age
        await dns_world.provider("two", account_paths={"a": "dns/account/a"})
        by_path = {each.path: each.used_by for each in (await listed(dns_world)).items}
        assert by_path == {"dns/token": ["one", "two"], "dns/account/a": ["two"]}
        deleted = await dns_world.secret_store.delete(m.SecretByPath(path="dns/token"), CONTEXT)
        assert deleted.used_by == ["one", "two"]

    @pytest.mark.parametrize(
        "path", ["", "/", "Upper/case", "a//b", "a/../b", "a/", "/a", "a b", "env:HOME", "ä", "/".join("a" * 11)]
    )
    async def test_a_path_that_is_none_is_refused(self, dns_world: Any, path: str) -> None:
        """One grammar, so that a reference means the same everywhere."""
        for call in (put(dns_world, path), dns_world.secret_store.delete(m.SecretByPath(path=path), CONTEXT)):
            with pytest.raises(InvalidRequest) as refused:
                await call
            assert refused.value.fields[0].pointer == "/path"


class TestNeverReadable:
    async def test_the_value_is_in_no_reply_log_repr_or_stored_byte(self, dns_world: Any) -> None:
        """The one promise of this store."""
        request = m.PutSecret(path="infra/dns/token", value=VALUE)
        replies = [
            await dns_world.secret_store.put(request, CONTEXT),
            await listed(dns_world),
            await dns_world.secret_store.read("infra/dns/token"),
            await dns_world.secret_store.delete(m.SecretByPath(path="infra/dns/token"), CONTEXT),
        ]
        await dns_world.secret_store.put(request, CONTEXT)
        stored = await dns_world.sqlite.get(SECRETS.key(digest("infra/dns/token")))
        shown = [repr(each) for each in (*replies, request, dns_world.logged, dns_world.secret_store)]
        shown += [msgspec.json.encode(each).decode() for each in (replies[0], replies[1], replies[3])]
        assert not [each for each in shown if VALUE in each]
        assert VALUE.encode() not in stored.document

    async def test_a_secret_cannot_be_encoded_or_formatted(self, dns_world: Any) -> None:
        """What is passed on by mistake must not become text on the way."""
        await put(dns_world)
        secret = await dns_world.secret_store.read("infra/dns/token")
        assert VALUE not in f"{secret} {secret!r} {[secret]}"
        with pytest.raises(TypeError):
            msgspec.json.encode(secret)

    async def test_a_sealed_value_copied_to_another_path_does_not_open(self, dns_world: Any) -> None:
        """Whoever can write the store, but has no master key, must not be able to move secrets about."""
        await put(dns_world, "a/one")
        await put(dns_world, "a/two", "other")
        one = await dns_world.read(SECRETS, digest("a/one"))
        two = await dns_world.read(SECRETS, digest("a/two"))
        moved = msgspec.structs.replace(two.value, sealed=one.value.sealed)
        await dns_world.sqlite.commit([SECRETS.put(moved, two.revision)])
        with pytest.raises(Internal) as failed:
            await dns_world.secret_store.read("a/two")
        assert VALUE not in repr(failed.value)

    @pytest.mark.parametrize(
        "pasted",
        [
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "dop-v1-0123456789abcdef0123456789abcdef",
            "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789",
            "admin-of-everything:swordfish-swordfish",
        ],
    )
    async def test_a_token_pasted_in_place_of_a_reference_is_never_repeated(self, dns_world: Any, pasted: str) -> None:
        """It happens to everybody once; the answer lands in tickets and logs."""
        texts = []
        try:
            dns_world.secret_store.check(pasted, "/config/token_path")
        except InvalidRequest as refused:
            texts += [str(refused), repr(refused.fields)]
        for read in (dns_world.secret_store.read, LentSecrets(dns_world.secret_store).read):
            with pytest.raises((SecretNotFound, SecretMissing)) as missing:
                await read(pasted)
            texts += [str(missing.value), repr(missing.value), repr(vars(missing.value))]
        assert texts
        for text in texts:
            assert pasted not in text
            assert "swordfish" not in text
            assert "bPxRfi" not in text


class TestReading:
    async def test_a_value_is_kept_for_a_minute_and_no_longer(self, dns_world: Any) -> None:
        """A rotation in a vault is noticed without a restart; a busy hour does not ask it a thousand times."""
        dns_world.secrets.values["cred:token"] = "old"
        assert (await dns_world.secret_store.read("cred:token")).reveal() == "old"
        dns_world.secrets.values["cred:token"] = "new"
        dns_world.clock.advance(59.9)
        assert (await dns_world.secret_store.read("cred:token")).reveal() == "old"
        dns_world.clock.advance(0.2)
        assert (await dns_world.secret_store.read("cred:token")).reveal() == "new"

    async def test_a_forgotten_value_is_read_anew(self, dns_world: Any) -> None:
        """A provider that was refused asks again before it gives up."""
        dns_world.secrets.values["cred:token"] = "old"
        lent = LentSecrets(dns_world.secret_store)
        assert (await lent.read("cred:token")).reveal() == "old"
        dns_world.secrets.values["cred:token"] = "new"
        lent.forget("cred:token")
        assert (await lent.read("cred:token")).reveal() == "new"

    async def test_the_cache_does_not_grow_without_end(self, dns_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Secrets lie about in memory no longer and no more than needed."""
        monkeypatch.setattr(secrets, "CACHE_MAX", 3)
        for number in range(10):
            dns_world.secrets.values[f"cred:t{number}"] = "v"
            await dns_world.secret_store.read(f"cred:t{number}")
            assert len(dns_world.secret_store._cache) <= 3

    async def test_a_missing_secret_is_named_by_its_reference(self, dns_world: Any) -> None:
        """Whoever has to act must know which one."""
        with pytest.raises(SecretNotFound, match="infra/dns/token: there is no such secret"):
            await dns_world.secret_store.read("infra/dns/token")
        with pytest.raises(SecretMissing) as missing:
            await LentSecrets(dns_world.secret_store).read("infra/dns/token")
        assert missing.value.reference == "infra/dns/token"
        assert str(missing.value) == "infra/dns/token: there is no such secret; secrets.put stores it"

    async def test_a_missing_secret_is_not_remembered_as_missing(self, dns_world: Any) -> None:
        """It is put a second later, and must be found."""
        with pytest.raises(SecretNotFound):
            await dns_world.secret_store.read("infra/dns/token")
        await put(dns_world)
        assert (await dns_world.secret_store.read("infra/dns/token")).reveal() == VALUE

    async def test_one_reference_is_one_place(self, dns_world: Any) -> None:
        """Looking elsewhere for what is not there would let one place answer for another."""
        dns_world.secrets.values["cred:infra/dns/token"] = VALUE
        with pytest.raises(SecretNotFound):
            await dns_world.secret_store.read("infra/dns/token")


class TestOutside:
    async def test_a_reference_outside_is_refused_where_it_is_not_allowed(self, dns_world: Any) -> None:
        """`env:` and `file:` of any caller's choice would read the daemon's own secrets."""
        with pytest.raises(InvalidRequest, match="not allowed"):
            dns_world.secret_store.check("env:HOME", "/config/token_path")

    async def test_it_is_refused_again_at_the_moment_of_use(self, dns_world: Any) -> None:
        """An allow list that has become shorter holds for references that were accepted before."""
        dns_world.secrets.values["file:/etc/shadow"] = VALUE
        with pytest.raises(SecretNotFound, match="not allowed"):
            await dns_world.secret_store.read("file:/etc/shadow")


class TestBackends:
    @pytest.fixture
    def backend(self) -> Backend:
        return Backend()

    @pytest.fixture
    def world(self, make_dns_world: Any, backend: Backend) -> Any:
        return make_dns_world(secret_backends={"vault": backend})

    async def test_a_backend_reads_what_stands_behind_its_scheme(self, world: Any, backend: Backend) -> None:
        """Kept for a minute as every other secret."""
        for _ in range(3):
            assert (await world.secret_store.read("vault:kv/dns#token")).reveal() == VALUE
        assert backend.reads == 1

    async def test_a_scheme_nobody_reads_is_refused_with_those_that_are(self, world: Any) -> None:
        """A typing error is found when the provider is created."""
        world.secret_store.check("vault:kv/dns#token", "/config/token_path")
        with pytest.raises(InvalidRequest, match="cred, env, file, vault") as refused:
            world.secret_store.check("valt:kv/dns#token", "/config/token_path")
        assert refused.value.fields[0].pointer == "/config/token_path"

    async def test_a_missing_secret_names_reference_and_reason(self, world: Any) -> None:
        """The backend's own words, because they say more."""
        with pytest.raises(SecretNotFound, match="vault:kv/other: there is no such key"):
            await world.secret_store.read("vault:kv/other")

    async def test_a_backend_that_breaks_is_told_without_its_words(self, world: Any, backend: Backend) -> None:
        """A stranger's exception may hold the token it sent."""
        backend.meets = ValueError("secret-xyz")
        with pytest.raises(SecretNotFound) as failed:
            await world.secret_store.read("vault:kv/dns#token")
        assert str(failed.value) == "vault:kv/dns#token: the backend failed (ValueError)"
        assert failed.value.__cause__ is None
        assert world.said("secret.backend_failed")[0]["error_type"] == "ValueError"
        assert "secret-xyz" not in repr(world.logged)

    async def test_a_backend_that_hangs_is_left_after_its_deadline(
        self, world: Any, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A vault that is down must not hold up an order for ever, even if its client ignores cancellation."""
        monkeypatch.setattr(secrets, "BACKEND_SECONDS", 0.01)
        monkeypatch.setattr(jobs, "ABANDON_SECONDS", 0.01)
        gate = asyncio.Event()

        async def hang() -> None:
            while not gate.is_set():
                with suppress(asyncio.CancelledError):
                    await gate.wait()

        backend.meets = hang
        with pytest.raises(SecretNotFound, match="did not answer"):
            await world.secret_store.read("vault:kv/dns#token")
        gate.set()

    async def test_a_backend_that_did_not_open_is_missing_not_ignored(self, dns_world: Any) -> None:
        """The reference is fine; what reads it is not there at this moment."""
        with pytest.raises(SecretNotFound, match="no plugin reads secrets of the scheme 'vault'"):
            await dns_world.secret_store.read("vault:kv/dns#token")
