"""The conformance kit: a provider that keeps the contract passes, each one that breaks it is caught where it does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scaivaultd.plugin.testing import DnsProviderContract, Rig, everything_about, traces
from tests.fakes.memory_dns import MemoryRig

ROOT = Path(__file__).parents[2]

BROKEN = {
    "Overwrites": "two_values_stand_under_one_name",
    "AddsBlindly": "adding_twice_leaves_one_value",
    "AddsTheFirstOnly": "values_of_one_call_are_all_written",
    "StopsAtWhatIsThere": "a_call_with_old_and_new_values_adds_the_new_ones",
    "RemovesAll": "removing_one_of_two_keeps_the_other",
    "MissesTheAbsent": "removing_what_is_not_there_is_no_error",
    "NeedsTheHandle": "removing_needs_no_handle",
    "RemembersInMemory": "another_instance_removes_by_the_handle",
    "TrustsTheHandle": "a_stale_handle_removes_nothing_else",
    "HandsOutObjects": "another_instance_removes_by_the_handle",
    "WritesWithoutRevision": "two_writers_lose_nothing",
    "SwallowsCancellation": "a_call_that_is_broken_off_leaves_what_can_be_cleaned_up",
    "EmptiesFirst": "a_call_that_is_broken_off_leaves_what_can_be_cleaned_up",
    "DropsQuotes": "foreign_values_are_kept[quoted]",
    "CutsLongTexts": "foreign_values_are_kept[long]",
    "TakesTheShortestZone": "the_zone_of_a_deep_name_is_the_longest_suffix",
    "ComparesTextsNotLabels": "a_name_that_only_ends_like_the_zone_is_not_in_it",
    "GuessesZones": "a_name_without_a_zone_is_refused",
    "TakesFailureForAbsence": "a_passing_fault_while_finding_the_zone_is_overcome",
    "TakesRefusalForWeather": "wrong_credentials_are_told_as_such",
    "LeaksInTheText": "wrong_credentials_are_told_as_such",
    "LeaksInTheCause": "wrong_credentials_are_told_as_such",
    "LeaksInAnAttribute": "wrong_credentials_are_told_as_such",
    "LeaksInTheLog": "adding_twice_leaves_one_value",
    "NeverForgets": "rotated_credentials_are_read_anew",
    "NeverRetries": "a_passing_fault_while_adding_is_overcome[rate_limit-any]",
    "RetriesForEver": "a_lasting_fault_is_told_as_one_that_may_pass",
    "RetriesInRetries": "a_lasting_fault_is_told_as_one_that_may_pass",
    "CallsAllFaultsPermanent": "a_lasting_fault_is_told_as_one_that_may_pass",
    "AppendsAgainAfterALostAnswer": "a_passing_fault_while_adding_is_overcome[drop_after-writes]",
    "FailsWhenItHasRemovedAlready": "a_passing_fault_while_removing_is_overcome[drop_after-writes]",
    "FailsWhereTheZoneIsGone": "removing_from_a_zone_that_is_gone_is_no_error",
    "CannotWriteTheZonesName": "the_zones_own_name_can_be_written",
    "RemovesFromNeighbours": "neighbouring_names_are_left_alone",
    "ChecksNothing": "check_tells_right_from_wrong_credentials",
    "KnowsItsOwnChangesOnly": "waiting_for_the_service_ends",
    "TellsSecretsByNothing": "a_missing_secret_is_told_by_its_reference",
    "SendsRubbish": "check_tells_right_from_wrong_credentials",
}


class TestMemory(DnsProviderContract):
    """The whole kit over a provider that keeps the contract."""

    @pytest.fixture
    def rig(self) -> Rig:
        return MemoryRig()


SUITE = """
import pytest
import scaivaultd.plugin.testing as kit
from tests.fakes import memory_dns as memory

# A provider that never stops is to be seen within a moment.
kit.PATIENT_SECONDS = 1.0
"""
CLASS = """
class Test{name}(kit.DnsProviderContract):
    cannot = frozenset({cannot!r})

    @pytest.fixture
    def rig(self):
        return memory.MemoryRig(memory.{name})
"""


def run(suite: Path) -> str:
    """What pytest says of a suite of its own process: a line for every test."""
    arguments = [
        "-p",
        "no:cacheprovider",
        "-q",
        "-rA",
        "--tb=no",
        f"--rootdir={ROOT}",
        "-c",
        str(ROOT / "pyproject.toml"),
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, str(suite)],
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
        cwd=ROOT,
    )
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def caught(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The tests that caught each broken provider."""
    suite = tmp_path_factory.mktemp("kit") / "test_broken.py"
    # Real time passes only where something hangs: one provider is enough for that.
    classes = [CLASS.format(name=name, cannot=["hang"]) for name in BROKEN]
    suite.write_text(SUITE + "\n".join(classes))
    found: dict[str, set[str]] = {name: set() for name in BROKEN}
    for name, test in re.findall(r"^(?:FAILED|ERROR) \S*::Test(\w+)::test_(\S+)", run(suite), re.MULTILINE):
        found[name].add(test)
    return found


@pytest.mark.parametrize(("name", "test"), BROKEN.items(), ids=BROKEN)
def test_each_broken_provider_is_caught_by_the_test_that_is_meant_for_it(
    caught: dict[str, set[str]], name: str, test: str
) -> None:
    """A kit that lets a fault pass is worse than none: people rely on it."""
    assert any(each == test or each.startswith(f"{test}[") for each in caught[name]), caught[name]


def test_what_a_service_cannot_do_is_skipped_with_its_reason(tmp_path: Path) -> None:
    """An exemption has to be seen in every run."""
    suite = tmp_path / "test_exempt.py"
    suite.write_text(SUITE + CLASS.format(name="MemoryProvider", cannot=["remove", "hang"]))
    told = run(suite)
    assert "TestMemoryProvider cannot 'remove': taking one value away" in told
    assert "FAILED" not in told


def test_a_misspelt_exemption_fails(tmp_path: Path) -> None:
    """It would exempt nothing, or hide what it was meant for."""
    suite = tmp_path / "test_misspelt.py"
    suite.write_text(SUITE + CLASS.format(name="MemoryProvider", cannot=["removal", "hang"]))
    assert re.search("FAILED .*test_exemptions_are_known", run(suite))


def test_importing_the_plugin_contract_imports_no_pytest() -> None:
    """The daemon runs where no test tools are."""
    code = (
        "import sys, scaivaultd.plugin, scaivaultd.plugin.http; "
        "print({'pytest', '_pytest', 'scaivaultd.plugin.testing'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_key_file_is_known_by_any_of_its_long_lines() -> None:
    """Key files leak in pieces, and with their line breaks escaped."""
    line = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"
    found = set(traces({"key": f'{{"private_key": "-----BEGIN KEY-----\\n{line}\\n-----END KEY-----"}}'}))
    assert line in found


def test_everything_about_an_exception_includes_what_is_hidden_by_from_none() -> None:
    """`from None` hides a cause from people, not from a log that renders all."""
    try:
        try:
            raise ValueError("the hidden one")
        except ValueError:
            raise KeyError("the shown one") from None
    except KeyError as error:
        told = everything_about(error)
    assert "the hidden one" in told
    assert "the shown one" in told
