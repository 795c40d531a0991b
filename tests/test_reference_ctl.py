"""The reference page of `scaivaultctl`, and the walk over its verbs that man pages are written from."""

from __future__ import annotations

import re

from scaivaultd import ctl, reference_ctl
from scaivaultd.ctl_session import EXIT_CODES

ENTRIES = list(reference_ctl.walk())
PAGE = reference_ctl.page()


def test_the_walk_reaches_every_word_once_and_groups_come_before_their_verbs() -> None:
    """What it misses is documented nowhere."""
    words = [entry.words for entry in ENTRIES]
    assert len(set(words)) == len(words)
    assert words[0] == ()
    assert {each[0] for each in words if each} >= {"status", "token", "dns", "completion"}
    assert {each[0] for each in words if each} <= {*ctl.words(), "completion"}
    for each in words[1:]:
        assert each[:-1] in words[: words.index(each)]


def test_every_entry_stands_on_the_page_with_all_its_options() -> None:
    """Anchors are linked to."""
    for entry in ENTRIES[1:]:
        assert re.search(rf"^##+ {re.escape(' '.join(entry.words))}$", PAGE, re.MULTILINE)
        for option in entry.options:
            assert option.written.replace("|", "\\|") in PAGE


def test_a_verb_tells_its_own_options_and_not_those_of_every_verb() -> None:
    """Ten lines more in each of eighty places."""
    entry = next(each for each in ENTRIES if each.words == ("token", "ls"))
    assert [each.written for each in entry.options] == ["--all"]
    assert (entry.is_group, entry.asks_daemon) == (False, True)
    assert entry.usage == "scaivaultctl token ls [OPTIONS]"
    assert PAGE.count("--token-file FILE`") < PAGE.count("\n### ")


def test_whether_a_verb_asks_the_daemon_is_told() -> None:
    """`explain` does not; the options for it would be a puzzle."""
    asks = {entry.words: entry.asks_daemon for entry in ENTRIES}
    assert (asks[("explain",)], asks[("status",)]) == (False, True)


def test_exit_codes_and_the_environment_stand_on_the_page() -> None:
    """Scripts are written from it."""
    for code, meaning in EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in PAGE
    for name, _ in reference_ctl.ENVIRONMENT:
        assert f"`{name}`" in PAGE


def test_no_table_is_broken_by_what_stands_in_it() -> None:
    """Choices are written with bars, and bounds with `<`."""
    for line in PAGE.splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) == 3, line
            assert "<" not in re.sub(r"`[^`]*`", "", line), line
