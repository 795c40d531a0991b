"""Who waits, name by name."""

from __future__ import annotations

from scaivaultd.listeners.tlsalpn01_turns import Crowds


def crowds(**names: str) -> Crowds[str]:
    """Clients by name: `a="xyz"` are three that come for a."""
    made: Crowds[str] = Crowds()
    for name, clients in names.items():
        for client in clients:
            made.add(client, name)
    return made


def taken(waiting: Crowds[str], count: int) -> str:
    """Who gets the next turns when all names weigh the same."""
    turns = ""
    for _ in range(count):
        client = waiting.oldest_of(waiting.least(lambda name: 0))
        waiting.leave(client)
        turns += client
    return turns


def test_turns_go_round_by_name_and_by_age_within_one() -> None:
    """A crowd at one name must not keep the others out."""
    assert taken(crowds(a="123456", b="x", c="78"), 9) == "1x7283456"


def test_the_lightest_name_comes_first() -> None:
    """Who has none of the places needs one most."""
    waiting = crowds(a="1", b="2", c="3")
    assert waiting.least({"a": 2, "b": 1, "c": 1}.__getitem__) == "b"


def test_the_largest_crowd_and_its_oldest_are_known() -> None:
    """It is whom somebody is put out of."""
    begun = crowds(a="1", b="234", c="56")
    assert (begun.largest(), begun.oldest_of("b"), begun.count("b"), begun.count("d")) == ("b", "2", 3, 0)


def test_nothing_is_kept_of_who_has_left() -> None:
    """Leaving twice is no error, and a name costs nothing when nobody comes for it."""
    waiting = crowds(a="12", b="3")
    assert list(waiting) == ["1", "2", "3"]
    assert [waiting.leave(client) for client in "1123"] == [True, False, True, True]
    assert len(waiting) == 0
    assert repr(vars(waiting)) == repr(vars(Crowds()))
