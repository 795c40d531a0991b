"""DNS providers: accepted when they can work, changed and deleted with care, and chosen for a name."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.errors import (
    Conflict,
    DnsProviderError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    SecretNotFound,
)
from scaivaultd.model.ids import DnsProviderId
from scaivaultd.model.resources import DnsProvider
from scaivaultd.plugin import TransientError
from tests.fakes.judging import WEB, Permitted, asked_by

CONTEXT = RequestContext(request_id="req_provider")
NAME = "_acme-challenge.www.sub.example.test"


def from_file(name: str = "filed", kind: str = "memory", **config: Any) -> DnsProvider:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return DnsProvider(
        id=DnsProviderId(f"file_{name}"),
        name=name,
        type=kind,
        config=config,
        origin="file",
        created_at=now,
        updated_at=now,
    )


async def listed(world: Any, **members: Any) -> Any:
    return await world.providers.list(m.ListDnsProviders(**members), CONTEXT)


class TestCreating:
    async def test_a_provider_is_shown_as_it_was_given(self, dns_world: Any) -> None:
        """References, no secrets; zones in the form that names are compared in."""
        reply = await dns_world.provider(zones=["Example.TEST.", "bücher.test", "example.test"], ttl=120)
        assert (reply.name, reply.type, reply.origin, reply.status) == ("main", "memory", "api", "ready")
        assert reply.zones == ["example.test", "xn--bcher-kva.test"]
        assert reply.config == {"token_path": "dns/token", "ttl": 120}
        assert (await listed(dns_world)).items == [reply]
        assert dns_world.service.token not in repr((reply, dns_world.logged))

    @pytest.mark.parametrize(
        ("members", "pointer", "says"),
        [
            ({"kind": "memry"}, "/type", "did you mean 'memory'"),
            ({"kind": "nonsense"}, "/type", "there is few_values, from_file, memory"),
            ({"tokn_path": "a/b"}, "/config/tokn_path", "did you mean 'token_path'"),
            ({"ttl": "long"}, "/config/ttl", "int"),
            ({"propagation_timeout": 0}, "/config/propagation_timeout", ">= 1"),
            ({"account_paths": {"a": 1}}, "/config/account_paths", "str"),
            ({"region": "nowhere"}, "/config", "no region nowhere"),
            ({"token_path": "No-Path"}, "/config/token_path", "no secret reference"),
            ({"token_path": "vault:a"}, "/config/token_path", "vault"),
            ({"account_paths": {"a": "No-Path"}}, "/config/account_paths/a", "no secret reference"),
            ({"zones": ["good.test", "bad..test"]}, "/zones/1", "empty label"),
            ({"challenge_alias": "not a name"}, "/config/challenge_alias", "' '"),
            ({"kind": "from_file"}, "/type", "configuration file"),
            ({"user": "me"}, "/config", "give both or none"),
        ],
    )
    async def test_what_cannot_work_is_refused_where_it_stands(
        self, dns_world: Any, members: dict[str, Any], pointer: str, says: str
    ) -> None:
        """At creation somebody is watching; at the first renewal nobody is."""
        with pytest.raises(InvalidRequest) as refused:
            await dns_world.provider(**members)
        (field,) = refused.value.fields
        assert field.pointer.startswith(pointer)
        assert says in field.detail
        assert (await listed(dns_world)).items == []

    async def test_a_missing_secret_is_named_at_once_by_its_reference(self, dns_world: Any) -> None:
        """Members of a map count as well."""
        with pytest.raises(SecretNotFound, match="infra/missing"):
            await dns_world.provider(token_path="infra/missing")
        with pytest.raises(SecretNotFound, match="infra/other"):
            await dns_world.provider(account_paths={"a": "infra/other"})
        assert (await listed(dns_world)).items == []

    async def test_a_secret_that_its_caller_may_not_use_is_not_used(self, dns_world: Any) -> None:
        """Whoever may create providers could otherwise send anybody's secret to a host of their own."""
        await dns_world.provider()
        for path in ("dns/token", "infra/other"):
            await dns_world.put_secret(path, dns_world.service.token)
        confined = asked_by(WEB, Permitted(secrets=("dns/",)))
        config = {"token_path": "dns/token", "account_paths": {"a": "infra/other"}}
        request = m.CreateDnsProvider(name="other", type="memory", config=config)
        with pytest.raises(PermissionDenied, match=r"secret\.use"):
            await dns_world.providers.create(request, confined)
        with pytest.raises(PermissionDenied, match=r"secret\.use"):
            await dns_world.providers.update(m.UpdateDnsProvider(id="main", config=config), confined)
        allowed = m.CreateDnsProvider(name="other", type="memory", config={"token_path": "dns/token"})
        assert (await dns_world.providers.create(allowed, confined)).name == "other"

    async def test_a_provider_that_is_only_tried_is_closed_again(self, dns_world: Any) -> None:
        """Every refused or accepted request would leave a session open otherwise."""
        await dns_world.provider()
        assert (dns_world.service.opened, dns_world.service.closed) == (1, 1)

    async def test_the_same_again_is_the_same_provider(self, dns_world: Any) -> None:
        """Deployment tools say what they want each time they run."""
        first = await dns_world.provider(zones=["example.test"])
        dns_world.clock.advance(60)
        assert await dns_world.provider(zones=["example.test"]) == first
        assert len((await listed(dns_world)).items) == 1

    async def test_the_name_of_another_provider_is_taken(self, dns_world: Any) -> None:
        """Requests name providers; one name must mean one."""
        await dns_world.provider()
        with pytest.raises(Conflict, match="'main'"):
            await dns_world.provider(ttl=120)

    async def test_of_two_at_once_with_one_name_one_is_refused(self, dns_world: Any) -> None:
        """The name is settled by the store, not by who looked first."""
        await dns_world.put_secret("dns/token", dns_world.service.token)
        requests = [dns_world.provider(token_path="dns/token", ttl=60 + n) for n in range(4)]
        outcomes = await asyncio.gather(*requests, return_exceptions=True)
        assert [type(each) for each in outcomes].count(Conflict) == 3
        assert len((await listed(dns_world)).items) == 1

    async def test_nothing_is_asked_of_the_service(self, dns_world: Any) -> None:
        """A service that is down for a moment does not stop anybody from configuring it; a test is another command."""
        dns_world.service.always["find_zone"] = TransientError("down")
        assert (await dns_world.provider()).status == "ready"


class TestChanging:
    async def test_what_is_not_given_stays(self, dns_world: Any) -> None:
        """An update of the zones must not lose the credentials."""
        made = await dns_world.provider(zones=["example.test"])
        changed = await dns_world.providers.update(m.UpdateDnsProvider(id="main", zones=["other.test"]), CONTEXT)
        assert (changed.id, changed.name, changed.config) == (made.id, made.name, made.config)
        assert changed.zones == ["other.test"]

    async def test_a_config_is_replaced_as_a_whole_and_judged_again(self, dns_world: Any) -> None:
        """Half of an old config under half of a new one would be nobody's intention."""
        await dns_world.provider(ttl=120)
        with pytest.raises(InvalidRequest):
            await dns_world.providers.update(m.UpdateDnsProvider(id="main", config={"tll": 1}), CONTEXT)
        assert (await dns_world.providers.find("main")).config["ttl"] == 120
        changed = await dns_world.providers.update(m.UpdateDnsProvider(id="main", config={"ttl": 300}), CONTEXT)
        assert changed.config == {"ttl": 300}

    async def test_a_renamed_provider_leaves_its_name_to_others(self, dns_world: Any) -> None:
        """The old name is free, the new one taken."""
        made = await dns_world.provider("old")
        await dns_world.providers.update(m.UpdateDnsProvider(id=made.id, name="new"), CONTEXT)
        with pytest.raises(NotFound):
            await dns_world.providers.find("old")
        assert (await dns_world.providers.find("new")).id == made.id
        other = await dns_world.provider("old")
        with pytest.raises(Conflict):
            await dns_world.providers.update(m.UpdateDnsProvider(id=other.id, name="new"), CONTEXT)
        assert (await dns_world.providers.find("old")).id == other.id

    async def test_a_deleted_provider_is_gone_and_its_name_free(self, dns_world: Any) -> None:
        """Also what it had open is closed."""
        made = await dns_world.provider()
        await dns_world.opened()
        await dns_world.providers.delete(m.DnsProviderById(id="main"), CONTEXT)
        await dns_world.until(lambda: dns_world.service.closed == 2)
        with pytest.raises(NotFound):
            await dns_world.providers.get(m.DnsProviderById(id=made.id), CONTEXT)
        assert (await dns_world.provider()).id != made.id

    async def test_a_provider_with_values_in_dns_is_not_deleted(self, dns_world: Any, respond_with: Any) -> None:
        """Nobody could take them away any more."""
        await dns_world.provider()
        response = respond_with()
        await dns_world.records.put(response, "v1")
        with pytest.raises(Conflict, match=r"1 values in DNS .*_acme-challenge\.example\.test"):
            await dns_world.providers.delete(m.DnsProviderById(id="main"), CONTEXT)
        await dns_world.records.remove(response, "v1")
        await dns_world.idle()
        await dns_world.providers.delete(m.DnsProviderById(id="main"), CONTEXT)


class TestFromTheFile:
    async def test_they_are_listed_first_and_usable(self, make_dns_world: Any) -> None:
        """One list for operators, wherever a provider comes from; and the file may have kinds that callers may not."""
        world = make_dns_world(from_file=[from_file(kind="from_file")])
        await world.provider()
        items = (await listed(world)).items
        assert [(each.name, each.origin, each.status) for each in items] == [
            ("filed", "file", "ready"),
            ("main", "api", "ready"),
        ]
        assert (await (await world.opened("filed")).find_zone("a.example.test")).name == "example.test"

    async def test_callers_cannot_change_delete_or_shadow_them(self, make_dns_world: Any) -> None:
        """The file is the administrator's word."""
        world = make_dns_world(from_file=[from_file()])
        other = await world.provider("other")
        for attempt in (
            world.providers.update(m.UpdateDnsProvider(id="filed", zones=["a.test"]), CONTEXT),
            world.providers.update(m.UpdateDnsProvider(id=other.id, name="filed"), CONTEXT),
            world.providers.delete(m.DnsProviderById(id="file_filed"), CONTEXT),
            world.provider("filed"),
        ):
            with pytest.raises(Conflict, match="configuration file"):
                await attempt

    async def test_an_unusable_one_is_logged_at_start_and_shown_as_such(self, make_dns_world: Any) -> None:
        """The daemon runs on without it; somebody must be able to see why."""
        world = make_dns_world(from_file=[from_file(kind="gone"), from_file("good")])
        world.providers.report_unusable()
        (said,) = world.said("dns_provider.unusable")
        assert said["dns_provider"] == "filed"
        assert "'gone'" in said["detail"]
        assert [each.status for each in (await listed(world)).items] == ["unusable", "ready"]

    @pytest.mark.parametrize("member", ["token", "token_path"])
    async def test_a_secret_written_into_the_file_is_not_shown_to_callers(
        self, make_dns_world: Any, member: str
    ) -> None:
        """The file may be read by its owner only; the list by everybody with the right to list."""
        pasted = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
        world = make_dns_world(from_file=[from_file(**{member: pasted})])
        world.providers.report_unusable()
        (item,) = (await listed(world)).items
        assert item.status == "unusable"
        assert pasted not in repr((item, world.logged))

    async def test_another_file_takes_the_place_of_the_one_before(self, make_dns_world: Any) -> None:
        """After a reload; a provider that says the same is the same, and stays open."""
        kept, changed = from_file("kept"), from_file("changed")
        world = make_dns_world(from_file=[kept, changed, from_file("gone")])
        later = datetime(2026, 2, 1, tzinfo=UTC)
        new = [
            msgspec.structs.replace(each, created_at=later, updated_at=later)
            for each in (kept, msgspec.structs.replace(changed, zones=("a.test",)), from_file("new", kind="nowhere"))
        ]
        world.providers.use_file(new, ())
        items = {each.name: each for each in (await listed(world)).items}
        assert items.keys() == {"kept", "changed", "new"}
        assert (items["kept"].updated_at, items["changed"].updated_at) == (kept.updated_at, later)
        assert items["changed"].created_at == changed.created_at
        assert [each["dns_provider"] for each in world.said("dns_provider.unusable")] == ["new"]


class TestFinding:
    async def test_id_and_name_find_the_same(self, dns_world: Any) -> None:
        """People remember names, programs ids."""
        made = await dns_world.provider()
        for key in ("main", made.id):
            assert (await dns_world.providers.get(m.DnsProviderById(id=key), CONTEXT)).id == made.id

    async def test_a_name_that_is_nearly_right_is_suggested(self, dns_world: Any) -> None:
        """A typing error in a request is the most likely cause."""
        await dns_world.provider("production")
        with pytest.raises(NotFound, match="did you mean 'production'"):
            await dns_world.providers.find("prodution")
        with pytest.raises(NotFound, match=r"no DNS provider '\.\./x'"):
            await dns_world.providers.find("../x")


class TestChoosing:
    async def test_the_longest_zone_wins(self, dns_world: Any) -> None:
        """A delegated sub-zone is where the world asks; configured and discovered zones compare alike."""
        await dns_world.provider("parent", zones=["example.test"])
        await dns_world.provider("child", zones=["sub.example.test", "other.test"])
        await dns_world.provider("asked")
        assert (await dns_world.providers.choose(NAME)).name == "child"
        dns_world.service.zones["www.sub.example.test"] = "Z2"
        dns_world.clock.advance(600)  # what the provider said of its zones is kept for so long
        assert (await dns_world.providers.choose(NAME)).name == "asked"

    async def test_a_zone_is_a_suffix_of_labels_not_of_letters(self, dns_world: Any) -> None:
        """`notexample.test` is somebody else's."""
        await dns_world.provider(zones=["example.test"])
        assert (await dns_world.providers.choose("example.test")).name == "main"
        with pytest.raises(DnsProviderError):
            await dns_world.providers.choose("_acme-challenge.notexample.test")

    async def test_a_tie_is_an_error_that_lists_the_candidates(self, dns_world: Any) -> None:
        """A guess would write to the wrong account and time out."""
        await dns_world.provider("b", zones=["example.test"])
        await dns_world.provider("a")
        with pytest.raises(DnsProviderError, match=r"several DNS providers serve example\.test: a, b") as refused:
            await dns_world.providers.choose(NAME)
        assert refused.value.is_final

    async def test_nobody_is_an_error_that_lists_who_there_is(self, dns_world: Any) -> None:
        """And it is final: waiting brings no provider."""
        with pytest.raises(DnsProviderError, match="none is configured"):
            await dns_world.providers.choose(NAME)
        await dns_world.provider(zones=["other.test"])
        with pytest.raises(DnsProviderError, match=r"no DNS provider serves a zone of .* \(main\)") as refused:
            await dns_world.providers.choose(NAME)
        assert refused.value.is_final

    async def test_one_that_could_not_be_asked_is_the_answer_when_nobody_else_is(self, dns_world: Any) -> None:
        """`nobody serves it` would be wrong while the only one is down, and would end the order."""
        await dns_world.provider()
        dns_world.service.always["find_zone"] = TransientError("503 from the service")
        with pytest.raises(DnsProviderError, match="main: 503 from the service") as failed:
            await dns_world.providers.choose(NAME)
        assert not failed.value.is_final
        await dns_world.provider("fixed", zones=["example.test"])
        assert (await dns_world.providers.choose(NAME)).name == "fixed"

    async def test_a_kind_that_takes_every_name_is_chosen_by_its_zones_only(self, dns_world: Any) -> None:
        """Its yes means nothing; it would make every other provider ambiguous."""
        await dns_world.provider("any", "takes_all")
        with pytest.raises(DnsProviderError, match="no DNS provider serves"):
            await dns_world.providers.choose(NAME)
        assert dns_world.service.asked("find_zone") == []
        await dns_world.provider("some", "takes_all", zones=["sub.example.test"])
        assert (await dns_world.providers.choose(NAME)).name == "some"
