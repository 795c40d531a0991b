"""Open DNS providers: whatever a stranger's code does, its caller gets an error of ours, in time, without secrets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.errors import DnsProviderError, InvalidRequest, SecretNotFound
from scaivaultd.plugin import (
    LostAnswer,
    PermanentError,
    ProviderAuthError,
    ProviderError,
    RateLimited,
    SecretMissing,
    TransientError,
    ZoneNotFound,
)
from scaivaultd.services import jobs, provider_pool
from scaivaultd.services.provider_pool import FAILURES_MAX, REST_SECONDS, ZONE_CACHE_SECONDS, NoZone

CONTEXT = RequestContext(request_id="req_pool")
NAME = "_acme-challenge.example.test"


@pytest.fixture
async def opened(dns_world: Any) -> Any:
    await dns_world.provider(token_path=None)
    return await dns_world.opened()


@contextmanager
def hasty(*names: str) -> Iterator[None]:
    """Deadlines for hung plugins that a test can see the end of; only around what hangs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(provider_pool, name, 0.02)
        patch.setattr(jobs, "ABANDON_SECONDS", 0.02)
        yield


async def hang() -> None:
    await asyncio.Event().wait()


class Stubborn:
    """Goes on whatever it is told, until it is let go."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.swallowed = 0

    async def __call__(self) -> None:
        while not self.gate.is_set():
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.swallowed += 1


class TestTranslation:
    @pytest.mark.parametrize(
        ("raised", "says", "is_final"),
        [
            (ProviderAuthError("error 10000"), "main: refuses the credentials: error 10000", True),
            (PermanentError("the record is locked"), "main: the record is locked", True),
            (PermanentError("locked", "81057"), "main: locked [81057]", True),
            (PermanentError("81057: locked", "81057"), "main: 81057: locked", True),
            (ProviderError("something"), "main: something", True),
            (TransientError("503"), "main: 503", False),
            (LostAnswer("reset"), "main: reset", False),
            (ZoneNotFound("none of 3"), "main: none of 3", True),
        ],
    )
    async def test_what_the_contract_names_is_passed_on_with_the_provider_s_name(
        self, dns_world: Any, opened: Any, raised: Exception, says: str, is_final: bool
    ) -> None:
        """Whoever has several providers must know which one, and we whether to try again."""
        dns_world.service.script["add_txt"].append(raised)
        zone = await opened.find_zone(NAME)
        with pytest.raises(DnsProviderError) as failed:
            await opened.add_txt(zone, NAME, ["v"])
        assert failed.value.detail == f"DNS provider {says}"
        assert failed.value.is_final is is_final

    async def test_a_missing_secret_is_no_fault_of_the_service(self, dns_world: Any, opened: Any) -> None:
        """It has a code of its own, and names the reference."""
        dns_world.service.always["find_zone"] = SecretMissing("infra/token", "there is no such secret")
        for _ in range(FAILURES_MAX + 1):
            with pytest.raises(SecretNotFound, match="main: infra/token: there is no such secret"):
                await opened.find_zone(NAME)

    async def test_the_text_of_an_unforeseen_exception_stays_inside(self, dns_world: Any, opened: Any) -> None:
        """It may hold the request with its token; the place in the plugin is enough to find the fault."""
        dns_world.service.script["find_zone"].append(ValueError("secret-xyz"))
        with pytest.raises(DnsProviderError, match=r"find_zone broke \(ValueError\)") as failed:
            await opened.find_zone(NAME)
        assert failed.value.__cause__ is None
        assert failed.value.__suppress_context__
        (said,) = dns_world.said("dns_provider.broke")
        assert any("find_zone" in frame for frame in said["frames"])
        assert "secret-xyz" not in repr((dns_world.logged, failed.value))

    @pytest.mark.parametrize("handle", [{"client": object()}, [1], "text", {"a": {1: object()}}])
    async def test_a_handle_that_is_no_json_object_is_the_plugin_s_fault(
        self, dns_world: Any, opened: Any, acts: Any, handle: Any
    ) -> None:
        """It would be lost at the next restart, when it is needed."""
        dns_world.service.script["add_txt"].append(acts(handle))
        zone = await opened.find_zone(NAME)
        with pytest.raises(DnsProviderError, match="no JSON object"):
            await opened.add_txt(zone, NAME, ["v"])

    async def test_no_handle_at_all_is_an_empty_one(self, dns_world: Any, opened: Any, acts: Any) -> None:
        """Many services have nothing to remember."""
        dns_world.service.script["add_txt"].append(acts({}))
        assert await opened.add_txt(await opened.find_zone(NAME), NAME, ["v"]) == {}

    async def test_something_else_than_a_zone_is_refused(self, dns_world: Any, opened: Any, instead: Any) -> None:
        """A plugin without type checking gets a sentence, not a traceback three calls later."""
        dns_world.service.script["find_zone"].append(instead("example.test"))
        with pytest.raises(DnsProviderError, match="something else than a Zone"):
            await opened.find_zone(NAME)

    async def test_a_zone_that_is_gone_takes_its_values_along(self, dns_world: Any, opened: Any) -> None:
        """What cannot be there any more needs no further tries."""
        dns_world.service.script["remove_txt"].append(ZoneNotFound("gone"))
        await opened.remove_txt(await opened.find_zone(NAME), NAME, ["v"], None)
        assert dns_world.said("dns_provider.zone_gone")

    async def test_a_plugin_that_cancels_itself_has_failed(self, dns_world: Any, opened: Any) -> None:
        """Some HTTP clients do when a session is closed; the order's own job must not die of it without a word."""
        dns_world.service.script["find_zone"].append(asyncio.CancelledError())
        call = asyncio.create_task(opened.find_zone(NAME))
        await asyncio.wait({call})
        assert not call.cancelled()
        assert isinstance(call.exception(), DnsProviderError)


class TestDeadlines:
    @pytest.mark.parametrize("method", ["find_zone", "add_txt", "remove_txt", "check", "wait_live"])
    async def test_every_call_has_one(self, dns_world: Any, method: str) -> None:
        """A hung connection must not hold an order for ever; the provider's own signal is only a hint."""
        await dns_world.provider(kind="signalling", token_path=None)
        opened = await dns_world.opened()
        zone = await opened.find_zone(NAME)
        opened._zones.clear()
        dns_world.service.script[method].append(hang)
        calls: dict[str, Any] = {
            "find_zone": lambda: opened.find_zone(NAME),
            "add_txt": lambda: opened.add_txt(zone, NAME, ["v"]),
            "remove_txt": lambda: opened.remove_txt(zone, NAME, ["v"], None),
            "check": opened.check,
            "wait_live": lambda: opened.wait_live({"change": 1}, 0.02),
        }
        if method == "wait_live":
            assert await calls[method]() is False
            return
        with hasty("CALL_SECONDS"), pytest.raises(DnsProviderError, match=f"{method} did not end within") as failed:
            await calls[method]()
        assert not failed.value.is_final

    async def test_a_plugin_that_swallows_its_cancellation_is_left_behind(self, dns_world: Any) -> None:
        """`except BaseException: pass` in somebody's plugin must not stop the daemon."""
        await dns_world.provider(token_path=None)
        opened = await dns_world.opened()
        stubborn = Stubborn()
        dns_world.service.script["find_zone"].append(stubborn)
        with hasty("CALL_SECONDS"), pytest.raises(DnsProviderError, match="did not end"):
            await opened.find_zone(NAME)
        assert stubborn.swallowed
        assert (await opened.find_zone(NAME)).name == "example.test"
        stubborn.gate.set()

    async def test_opening_has_a_deadline(self, dns_world: Any) -> None:
        """A plugin that connects while it opens may meet a dead host; creating one says so."""
        dns_world.service.script["open"].append(hang)
        with hasty("OPEN_SECONDS", "CLOSE_SECONDS"), pytest.raises(InvalidRequest, match="did not open within"):
            await dns_world.provider(token_path=None)
        assert (await dns_world.provider(token_path=None)).status == "ready"

    async def test_closing_has_a_deadline(self, dns_world: Any) -> None:
        """The daemon stops in time whatever a plugin does on its way out."""
        await dns_world.provider(token_path=None)
        await dns_world.opened()
        stubborn = Stubborn()
        dns_world.service.script["close"].append(stubborn)
        with hasty("CLOSE_SECONDS"):
            await dns_world.pool.close()
            await dns_world.until(lambda: dns_world.said("dns_provider.close_timed_out"))
        stubborn.gate.set()
        await dns_world.until(lambda: dns_world.service.closed == 2)


class TestOpening:
    async def test_it_is_opened_once_for_all_who_ask_at_once(self, dns_world: Any) -> None:
        """Twenty orders at once need one session."""
        await dns_world.provider()
        all_opened = await asyncio.gather(*(dns_world.opened() for _ in range(20)))
        assert len(set(map(id, all_opened))) == 1
        assert dns_world.service.opened == 2  # once to try it at creation

    async def test_what_breaks_while_opening_is_told_without_its_words(self, dns_world: Any) -> None:
        """And nothing is kept: the next one who asks tries again."""
        await dns_world.provider()
        dns_world.service.script["open"].append(ValueError("secret-xyz"))
        with pytest.raises(DnsProviderError, match="opening it broke"):
            await dns_world.opened()
        assert "secret-xyz" not in repr(dns_world.logged)
        assert await dns_world.opened()

    async def test_a_plugin_that_cancels_itself_while_opening_has_failed(self, dns_world: Any) -> None:
        """Its caller was not cancelled, and must hear of it."""
        await dns_world.provider()
        dns_world.service.script["open"].append(asyncio.CancelledError())
        use = asyncio.create_task(dns_world.opened())
        await asyncio.wait({use})
        assert not use.cancelled()
        assert isinstance(use.exception(), DnsProviderError)
        assert await dns_world.opened()

    async def test_what_breaks_while_closing_is_logged(self, dns_world: Any) -> None:
        """It is nobody's error any more."""
        await dns_world.provider()
        await dns_world.opened()
        dns_world.service.script["close"].append(ValueError("secret-xyz"))
        await dns_world.pool.close()
        assert dns_world.said("dns_provider.not_closed")
        assert "secret-xyz" not in repr(dns_world.logged)

    async def test_changed_settings_open_it_anew_and_close_the_old_one(self, dns_world: Any) -> None:
        """New credentials count at once; the old session does not stay."""
        await dns_world.provider()
        old = await dns_world.opened()
        zone = await old.find_zone(NAME)
        await dns_world.providers.update(m.UpdateDnsProvider(id="main", config={"ttl": 300}), CONTEXT)
        new = await dns_world.opened()
        assert (old is new, new.ttl) == (False, 300)
        await dns_world.until(lambda: dns_world.service.closed == 3)
        with pytest.raises(DnsProviderError, match="just changed") as failed:
            await old.add_txt(zone, NAME, ["v"])
        assert not failed.value.is_final

    async def test_a_config_that_no_longer_fits_its_kind_is_named(self, dns_world: Any) -> None:
        """After an upgrade of a plugin."""
        await dns_world.provider(ttl=300)
        record = await dns_world.providers.find("main")
        record.config["old_member"] = 1
        with pytest.raises(DnsProviderError, match="does not fit its type any more") as failed:
            await dns_world.pool.use(record)
        assert failed.value.is_final

    async def test_a_kind_that_is_not_installed_any_more_is_named(self, dns_world: Any, make_dns_world: Any) -> None:
        """After a plugin was removed or refused."""
        await dns_world.provider()
        without = make_dns_world(dns_kinds=())
        with pytest.raises(DnsProviderError, match="no installed plugin brings the type 'memory'") as failed:
            await without.opened()
        assert failed.value.is_final

    async def test_the_ttl_is_at_least_the_kind_s_lowest(self, dns_world: Any, opened: Any) -> None:
        """Services refuse what is below."""
        await dns_world.provider("slow", "slow_ttl", token_path=None, ttl=60)
        slow = await dns_world.opened("slow")
        await slow.add_txt(await slow.find_zone(NAME), NAME, ["v"])
        await opened.add_txt(await opened.find_zone(NAME), NAME, ["v"])
        assert dns_world.service.ttls == [600, 60]


class TestCircuitBreaker:
    async def test_a_provider_that_fails_again_and_again_is_left_alone_for_a_while(
        self, dns_world: Any, opened: Any
    ) -> None:
        """Hundreds of orders against a service that is down would get the account locked; with its last words."""
        dns_world.service.always["find_zone"] = TransientError("503")
        for _ in range(FAILURES_MAX):
            with pytest.raises(DnsProviderError, match="503"):
                await opened.find_zone(NAME)
        with pytest.raises(DnsProviderError, match=r"left alone for 60 s more .*503") as resting:
            await opened.find_zone(NAME)
        assert resting.value.retry_after == pytest.approx(REST_SECONDS)
        assert len(dns_world.service.asked("find_zone")) == FAILURES_MAX
        assert len(dns_world.said("dns_provider.resting")) == 1

    async def test_after_its_rest_one_failure_is_enough_and_one_success_forgives_all(
        self, dns_world: Any, opened: Any
    ) -> None:
        """It is tried carefully, then trusted again."""
        dns_world.service.always["find_zone"] = TransientError("503")
        for _ in range(FAILURES_MAX):
            with pytest.raises(DnsProviderError):
                await opened.find_zone(NAME)
        for _ in range(2):
            dns_world.clock.advance(REST_SECONDS)
            with pytest.raises(DnsProviderError, match="main: 503"):
                await opened.find_zone(NAME)
            with pytest.raises(DnsProviderError, match="left alone"):
                await opened.find_zone(NAME)
        dns_world.clock.advance(REST_SECONDS)
        dns_world.service.always.clear()
        await opened.find_zone(NAME)
        dns_world.service.script["find_zone"].append(TransientError("503"))
        with pytest.raises(DnsProviderError, match="main: 503"):
            await opened.find_zone("other.example.test")
        await opened.find_zone("other.example.test")

    async def test_refusals_do_not_open_it(self, dns_world: Any, opened: Any) -> None:
        """The service works; one zone it does not have says nothing about the next."""
        dns_world.service.script["find_zone"].extend([ZoneNotFound("none"), PermanentError("no")] * FAILURES_MAX)
        for _ in range(2 * FAILURES_MAX):
            with pytest.raises(DnsProviderError, match=r"none|no"):
                await opened.find_zone(NAME)
        assert (await opened.find_zone(NAME)).name == "example.test"

    async def test_a_rate_limit_is_obeyed_from_the_first(self, dns_world: Any, opened: Any) -> None:
        """For everybody who uses this provider, and as long as it says."""
        dns_world.service.script["find_zone"].append(RateLimited("slow down", 90))
        with pytest.raises(DnsProviderError, match="slow down") as limited:
            await opened.find_zone(NAME)
        assert limited.value.retry_after == 90
        dns_world.clock.advance(89)
        with pytest.raises(DnsProviderError, match="left alone for 1 s more"):
            await opened.find_zone("other.example.test")
        assert len(dns_world.service.asked("find_zone")) == 1
        dns_world.clock.advance(1)
        await opened.find_zone(NAME)

    async def test_a_rate_limit_of_days_is_not_believed(self, dns_world: Any, opened: Any) -> None:
        """A header in milliseconds must not switch a provider off until the next restart."""
        dns_world.service.script["find_zone"].append(RateLimited("slow down", 10**9))
        with pytest.raises(DnsProviderError):
            await opened.find_zone(NAME)
        dns_world.clock.advance(3600)
        await opened.find_zone(NAME)


class TestConcurrency:
    async def test_calls_overlap_up_to_a_limit(self, dns_world: Any, opened: Any) -> None:
        """Slow services need several at once; none likes a hundred."""
        gate = asyncio.Event()
        dns_world.service.always["find_zone"] = gate.wait
        calls = [asyncio.create_task(opened.find_zone(f"h{n}.example.test")) for n in range(30)]
        await dns_world.until(lambda: dns_world.service.busy == provider_pool.CALLS_AT_ONCE)
        for _ in range(50):
            await asyncio.sleep(0)
        assert dns_world.service.busiest == provider_pool.CALLS_AT_ONCE
        gate.set()
        await asyncio.gather(*calls)

    async def test_a_sequential_kind_gets_one_call_at_a_time(self, dns_world: Any) -> None:
        """Scripts and old APIs count on it."""
        await dns_world.provider(kind="sequential", token_path=None)
        opened = await dns_world.opened()
        await asyncio.gather(*(opened.find_zone(f"h{n}.example.test") for n in range(10)))
        assert dns_world.service.busiest == 1

    async def test_who_is_cancelled_while_waiting_leaves_the_way_free(self, dns_world: Any) -> None:
        """A torn order must not take a place with it."""
        await dns_world.provider(kind="sequential", token_path=None)
        opened = await dns_world.opened()
        dns_world.service.script["find_zone"].append(hang)
        calls = [asyncio.create_task(opened.find_zone(f"h{n}.example.test")) for n in range(3)]
        await dns_world.until(lambda: dns_world.service.busy == 1)
        for call in calls:
            call.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*calls)
        async with asyncio.timeout(5):
            assert (await opened.find_zone(NAME)).name == "example.test"


class TestZones:
    async def test_an_answer_is_kept_for_some_minutes(self, dns_world: Any, opened: Any) -> None:
        """Zones change rarely, and listing them costs pages of requests."""
        for _ in range(3):
            await opened.find_zone(NAME)
        dns_world.clock.advance(ZONE_CACHE_SECONDS)
        await opened.find_zone(NAME)
        assert dns_world.service.asked("find_zone") == [NAME, NAME]

    async def test_that_there_is_none_is_not_kept(self, dns_world: Any, opened: Any) -> None:
        """The zone is created next, and the order asked for again."""
        with pytest.raises(NoZone):
            await opened.find_zone("a.new.test")
        dns_world.service.zones["new.test"] = "Z9"
        assert (await opened.find_zone("a.new.test")).id == "Z9"

    async def test_a_zone_that_turns_out_to_be_gone_is_asked_for_anew(self, dns_world: Any, opened: Any) -> None:
        """Deleted and made again it has another id, and would be refused until the cache runs out."""
        zone = await opened.find_zone(NAME)
        dns_world.service.zones["example.test"] = "Z2"
        with pytest.raises(NoZone):
            await opened.add_txt(zone, NAME, ["v"])
        assert (await opened.find_zone(NAME)).id == "Z2"

    async def test_the_cache_does_not_grow_without_end(
        self, dns_world: Any, opened: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One entry for each of a hundred thousand names would stay for ever."""
        monkeypatch.setattr(provider_pool, "ZONE_CACHE_MAX", 5)
        for number in range(20):
            await opened.find_zone(f"h{number}.example.test")
            assert len(opened._zones) <= 5
