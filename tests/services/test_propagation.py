"""When a value counts as visible: every policy, two clean rounds, and a text that helps when it is not."""

from __future__ import annotations

from typing import Any

import pytest

from scaivaultd.model.dns import PropagationOverride, PropagationPolicy, ServerVerdict
from scaivaultd.model.errors import DnsPropagationTimeout
from scaivaultd.services.propagation import SETTLE_SECONDS, Propagation, is_visible

NAME = "_acme-challenge.example.test"
ONE, TWO, THREE = "192.0.2.1", "192.0.2.2", "192.0.2.3"


def verdict(answer: Any) -> ServerVerdict:
    return ServerVerdict(server="ns1", address=ONE, answer=answer)


@pytest.fixture
def wait(service: Any, name_servers: Any, clock: Any) -> Any:
    """Wait for one value that is in DNS, by a policy; returns the verdicts of every round."""
    service.sets[NAME] = ["v"]
    name_servers.zones["example.test"] = (ONE, TWO, THREE)

    async def waited(*wanted: str, **policy: Any) -> list[Any]:
        route = await name_servers.route(NAME)
        rounds: list[Any] = []
        await Propagation(name_servers, clock).wait(
            NAME, route, PropagationPolicy(**policy), lambda: list(wanted or ("v",)), rounds.append
        )
        return rounds

    return waited


class TestOneRound:
    @pytest.mark.parametrize(
        ("answers", "visibility", "visible"),
        [
            ("complete complete complete", "all", True),
            ("complete complete absent", "all", False),
            ("complete complete partial", "all", False),
            ("complete unreachable", "all", False),
            ("complete skipped", "all", True),
            ("skipped skipped", "all", False),
            ("", "all", False),
            ("complete complete absent", "quorum", True),
            ("complete absent", "quorum", False),
            ("complete skipped skipped skipped", "quorum", True),
            ("complete absent skipped skipped", "quorum", False),
            ("skipped", "quorum", False),
            ("", "quorum", False),
            ("complete complete", "resolvers", True),
            ("complete failed", "resolvers", False),
        ],
    )
    def test_it_is_clean_by_the_policy(self, answers: str, visibility: Any, visible: bool) -> None:
        """A CA asks any of the servers; one that cannot be asked from here counts neither way."""
        assert is_visible([verdict(each) for each in answers.split()], visibility) is visible


class TestWaiting:
    async def test_two_clean_rounds_are_needed(self, wait: Any, name_servers: Any, clock: Any) -> None:
        """An address may stand for several machines, and the next one may lag."""
        rounds = await wait()
        assert [[each.answer for each in one] for one in rounds] == [["complete"] * 3] * 2
        assert clock.slept == [SETTLE_SECONDS]

    async def test_one_bad_round_begins_the_count_anew(self, wait: Any, name_servers: Any) -> None:
        """Clean, not, clean is what a set of machines behind one address looks like while it changes."""
        name_servers.rounds.extend([{}, {TWO: "absent"}, {}, {TWO: "absent"}])
        assert len(await wait()) == 6

    async def test_every_wanted_value_is_asked_for_in_each_round(self, wait: Any, service: Any) -> None:
        """Wildcard and apex: a server with one of two values is not ready."""
        service.sets[NAME] = ["v"]
        with pytest.raises(DnsPropagationTimeout, match="says partial"):
            await wait("v", "w", timeout=10)
        service.sets[NAME] = ["v", "w"]
        assert len(await wait("v", "w")) == 2

    async def test_pauses_grow_up_to_the_interval(self, wait: Any, name_servers: Any, clock: Any) -> None:
        """Quick at first for quick servers, polite to slow ones."""
        name_servers.rounds.extend([{ONE: "absent"}] * 12)
        await wait(interval=5.0)
        pauses = clock.slept[:-1]
        assert pauses == sorted(pauses)
        assert pauses[0] <= 0.5
        assert pauses[-1] == 5.0

    async def test_a_first_clean_round_at_the_last_moment_is_confirmed(self, wait: Any, name_servers: Any) -> None:
        """After five minutes nobody wants to fail for half a second."""
        lag: list[Any] = [{ONE: "absent"}] * 7
        name_servers.rounds.extend(lag)
        with pytest.raises(DnsPropagationTimeout):
            await wait(timeout=3.0, interval=1.0)
        name_servers.rounds.clear()
        name_servers.rounds.extend(lag[: len(lag) - 2])
        assert await wait(timeout=3.0, interval=1.0)

    async def test_quorum_goes_on_without_the_laggard(self, wait: Any, name_servers: Any) -> None:
        """Some secondaries never converge."""
        name_servers.shows[THREE] = "absent"
        assert len(await wait(visibility="quorum")) == 2
        name_servers.shows[TWO] = "unreachable"
        with pytest.raises(DnsPropagationTimeout, match="policy quorum"):
            await wait(visibility="quorum", timeout=5)

    async def test_resolvers_are_asked_instead_of_the_servers(self, wait: Any, name_servers: Any) -> None:
        """Where a firewall lets nothing else out."""
        await wait(visibility="resolvers", resolvers=("198.51.100.1", "198.51.100.2:5353"))
        assert {addresses for _, addresses, _ in name_servers.looks} == {("198.51.100.1", "198.51.100.2:5353")}

    async def test_a_delay_waits_and_asks_nobody(self, wait: Any, name_servers: Any, clock: Any) -> None:
        """For those who know their provider, and nothing else."""
        assert await wait(visibility="delay", delay=42) == []
        assert (clock.slept, name_servers.looks) == ([42], [])

    async def test_skip_does_nothing(self, wait: Any, name_servers: Any, clock: Any) -> None:
        """For tests, and for providers that are never wrong."""
        assert await wait(visibility="skip") == []
        assert (clock.slept, name_servers.looks) == ([], [])


class TestGivingUp:
    async def test_the_text_names_the_servers_that_disagree_and_what_they_say(
        self, wait: Any, name_servers: Any, clock: Any
    ) -> None:
        """Whoever runs the second server must be told; whoever runs the first must not be woken."""
        name_servers.shows[TWO] = "absent"
        name_servers.shows[THREE] = "refused"
        with pytest.raises(DnsPropagationTimeout) as failed:
            await wait(timeout=30)
        assert failed.value.detail == (
            f"{NAME} does not show its TXT values after 30 s (policy all): 2 of 3 addresses disagree: "
            f"ns2.example.test ({TWO}): says absent; ns3.example.test ({THREE}): says refused"
        )
        assert [each.address for each in failed.value.verdicts] == [TWO, THREE]
        assert clock.monotonic() == pytest.approx(30)

    async def test_addresses_that_cannot_be_asked_are_not_blamed(self, wait: Any, name_servers: Any) -> None:
        """A host without IPv6 says nothing about the server's."""
        name_servers.shows.update({ONE: "absent", TWO: "skipped"})
        with pytest.raises(DnsPropagationTimeout, match="1 of 2 addresses disagree") as failed:
            await wait(timeout=5)
        assert TWO not in failed.value.detail

    async def test_no_server_at_all_is_said_as_such(self, wait: Any, name_servers: Any) -> None:
        """Silence is not consent."""
        name_servers.shows.update(dict.fromkeys((ONE, TWO, THREE), "skipped"))
        with pytest.raises(DnsPropagationTimeout, match=r"no name server could be asked from here$") as failed:
            await wait(timeout=5)
        assert failed.value.verdicts == ()
        name_servers.zones["example.test"] = ()
        with pytest.raises(DnsPropagationTimeout, match="no name server could be asked"):
            await wait(timeout=5)

    async def test_a_crowd_of_servers_is_cut_short(self, wait: Any, name_servers: Any) -> None:
        """An error is read by people; the verdicts have them all."""
        addresses = tuple(f"192.0.2.{n}" for n in range(1, 11))
        name_servers.zones["example.test"] = addresses
        name_servers.shows.update(dict.fromkeys(addresses, "absent"))
        with pytest.raises(DnsPropagationTimeout, match=r"10 of 10 .*; and 4 more$") as failed:
            await wait(timeout=5)
        assert len(failed.value.verdicts) == 10


class TestOverride:
    def test_a_request_changes_what_it_names_and_nothing_else(self) -> None:
        """The provider's settings are the default, member by member."""
        policy = PropagationPolicy(visibility="quorum", timeout=60, interval=2, resolvers=("192.0.2.9",))
        changed = PropagationOverride(timeout=5, on_failure="continue", resolvers=()).applied_to(policy)
        assert changed == PropagationPolicy(
            visibility="quorum", timeout=5, interval=2, resolvers=(), on_failure="continue"
        )
