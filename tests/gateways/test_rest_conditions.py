"""Entity tags: strong where something is changed, weak where something is only looked at."""

from __future__ import annotations

import pytest

from scaivaultd.gateways.rest_conditions import conditions_of, etag_of

TAG = etag_of(b"one")


def test_other_bytes_have_another_tag() -> None:
    """A strong tag promises it, and the same bytes have the same after a restart."""
    assert etag_of(b"one") == TAG != etag_of(b"two")
    assert TAG.startswith('"')
    assert TAG.endswith('"')


@pytest.mark.parametrize(
    ("fields", "etag", "holds"),
    [
        ([], None, True),
        ([TAG], TAG, True),
        ([f'"x", {TAG}'], TAG, True),
        (['"x"', TAG], TAG, True),
        (["*"], TAG, True),
        (["*"], None, False),
        ([TAG], None, False),
        (['"x"'], TAG, False),
        ([f"W/{TAG}"], TAG, False),
    ],
)
def test_if_match_is_strong(fields: list[str], etag: str | None, holds: bool) -> None:
    """RFC 9110 section 13.1.1."""
    assert conditions_of(fields, []).matches(etag) is holds


@pytest.mark.parametrize(
    ("fields", "etag", "holds"),
    [
        ([], TAG, True),
        ([TAG], TAG, False),
        ([f"W/{TAG}"], TAG, False),
        (['"x"'], TAG, True),
        (["*"], TAG, False),
        (["*"], None, True),
    ],
)
def test_if_none_match_is_weak(fields: list[str], etag: str | None, holds: bool) -> None:
    """RFC 9110 section 13.1.2."""
    assert conditions_of([], fields).is_news(etag) is holds


@pytest.mark.parametrize("field", ["abc", '"a', '"a" "b"', '*, "a"', "", 'w/"a"', '"a",'])
def test_what_is_no_tag_is_refused(field: str) -> None:
    """A condition that was not understood must not count as none."""
    with pytest.raises(ValueError, match="entity tags"):
        conditions_of([field], [])


def test_no_condition_is_no_condition() -> None:
    """Else every change would look first."""
    assert not conditions_of([], [])
    assert conditions_of(["*"], [])
    assert conditions_of([], ["*"])
