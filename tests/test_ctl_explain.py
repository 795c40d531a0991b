"""`scaivaultctl explain` and `commands`: no daemon is needed to understand one."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaivaultd.acme.causes import _REMEDIES as ADVISED
from scaivaultd.model.errors import WIRE_ERRORS
from scaivaultd.model.explanations import ACME_PROBLEMS, REASONS
from tests.fakes import ctl

PAGE = (Path(__file__).parents[1] / "docs/reference/errors.md").read_text()


def test_every_error_has_its_reasons() -> None:
    """An advice without the reason is a rite."""
    assert set(REASONS) == {error.code for error in WIRE_ERRORS}
    assert all(REASONS.values())


def test_every_problem_that_orders_advise_on_is_explained() -> None:
    """The CLI and the orders speak of the same things."""
    assert set(ADVISED) <= {each.name for each in ACME_PROBLEMS}


@pytest.mark.parametrize("code", [*(error.code for error in WIRE_ERRORS), *(each.name for each in ACME_PROBLEMS)])
def test_each_is_explained_with_what_to_do_and_where_more_stands(code: str) -> None:
    """In 80 columns; the page has that anchor."""
    ended = ctl.run("explain", code)
    assert ended.code == 0
    assert "What to do:" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80
    assert f"docs/reference/errors.md#{code.lower()}" in ended.out
    assert f"\n## {code}\n" in PAGE


@pytest.mark.parametrize("text", ["caa", "CAA", "urn:ietf:params:acme:error:caa"])
def test_a_problem_of_the_ca_is_found_by_its_name_or_its_type(text: str) -> None:
    """It is pasted from a log, or typed from memory."""
    assert ctl.run("explain", text, "--json").json["code"] == "caa"


@pytest.mark.parametrize("text", ["rateLimited", "ratelimited", "urn:ietf:params:acme:error:rateLimited"])
def test_the_cas_rate_limit_is_not_ours(text: str) -> None:
    """`rate_limited` is the daemon's own."""
    assert ctl.run("explain", text, "--json").json["of"] == "CA"
    assert ctl.run("explain", "rate_limited", "--json").json["of"] == "daemon"
    assert ctl.run("explain", "urn:scaivault:error:rate_limited", "--json").json["of"] == "daemon"


def test_all_are_listed() -> None:
    """For whoever does not know what to ask for."""
    listed = {row["code"] for row in ctl.run("explain", "--json").json}
    assert {error.code for error in WIRE_ERRORS} | {each.name for each in ACME_PROBLEMS} == listed
    assert ctl.run("explain").out.startswith("CODE")


def test_an_unknown_one_is_wrong_usage_with_those_that_look_like_it() -> None:
    """A letter is easily lost."""
    ended = ctl.run("explain", "secret_notfound")
    assert (ended.code, ended.out) == (2, "")
    assert "'secret_not_found'" in ended.err
    assert "lists them" in ctl.run("explain", "xyzzy").err
