"""What is generated or repeated somewhere stays equal to what it repeats."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from scaivaultd import plugin, reference, reference_providers
from scaivaultd.api.commands import COMMANDS
from scaivaultd.model.errors import WIRE_ERRORS, ScaivaultError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", sorted(reference.pages()))
def test_the_reference_pages_are_up_to_date(name: str) -> None:
    """`make docs` writes them; a page that lies is worse than none."""
    assert (ROOT / "docs/reference" / name).read_text() == reference.pages()[name]


def test_the_pages_of_the_providers_are_up_to_date() -> None:
    """Each kind has its page, and no page is left of a kind that is gone."""
    written = {path.name: path.read_text() for path in (ROOT / "docs/providers").glob("*.md")}
    assert written == reference_providers.provider_pages()


def test_every_provider_page_says_all_that_people_need() -> None:
    """Settings without a meaning, or credentials with more rights than needed, end in a ticket."""
    for kind in reference_providers.kinds():
        page = reference_providers.page(kind)
        for part in ("## Example", "## Settings", "## Rights", "## Limits", "## Troubleshooting"):
            assert part in page, kind.name
        assert [line for line in page.splitlines() if line.startswith("| `") and line.endswith("|  |")] == [], kind.name


@pytest.mark.parametrize("name", plugin.__all__)
def test_every_public_name_of_the_plugin_contract_is_documented(name: str) -> None:
    """A stranger has nothing but the documentation."""
    guide = (ROOT / "docs/how-to/write-a-plugin.md").read_text()
    assert re.search(rf"\b{name}\b", guide)


def locked() -> dict[str, Version]:
    lines = re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    return {name.lower().replace("_", "-"): Version(version) for name, version in lines}


def wanted() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    return [Requirement(each) for group in [*groups, *project["dependency-groups"].values()] for each in group]


@pytest.mark.parametrize("requirement", wanted(), ids=str)
def test_the_lock_satisfies_every_requirement(requirement: Requirement) -> None:
    """`make lock` resolves anew; an unlocked dependency would be fetched unverified or not at all."""
    assert requirement.specifier.contains(locked()[requirement.name.lower()])


def test_the_lock_names_packages_and_hashes_only() -> None:
    """No index or mirror may be written into it, and every file is pinned by its hash."""
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert "--index-url" not in text
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=[A-Za-z0-9])", text.strip()))


def test_every_error_that_reaches_a_caller_is_in_the_closed_list() -> None:
    """A code that is not listed is not documented and not explained."""

    def below(kind: type[ScaivaultError]) -> set[str]:
        codes = {kind.code} if hasattr(kind, "code") else set()
        return codes.union(*(below(each) for each in kind.__subclasses__()))

    assert below(ScaivaultError) == {error.code for error in WIRE_ERRORS}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.name)
def test_every_example_is_a_valid_request(command: object) -> None:
    """Examples are copied; they have to work."""
    import msgspec

    from scaivaultd.api.commands import Command
    from scaivaultd.api.dispatch import decode

    assert isinstance(command, Command)
    decode(msgspec.json.encode(command.example), command.request)
