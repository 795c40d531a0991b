"""What health says of NATS and of the events that wait for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from scaivaultd.probes import of_audit, of_master_key, probes


@pytest.mark.parametrize(
    ("connected", "trouble", "blocked_by", "nats", "events"),
    [
        (True, None, None, None, None),
        (True, "full", None, "full", "full"),
        (True, "full", "timeout", "full", "full"),
        (True, None, "no stream", None, "no stream"),
        (False, None, "timeout", "refused", "timeout"),
        (False, "full", None, "refused", "full"),
    ],
)
async def test_a_server_of_our_own_that_stores_nothing_is_told_by_its_own_words(
    connected: bool, trouble: str | None, blocked_by: str | None, nats: str | None, events: str | None
) -> None:
    """It is connected and looks well, and from here nobody would know more than that it does not answer."""
    bus = SimpleNamespace(is_connected=connected, last_error="refused")
    publisher = SimpleNamespace(blocked_by=blocked_by)
    nobody = cast("Any", None)
    asked = probes(nobody, cast("Any", bus), cast("Any", publisher), nobody, lambda: trouble)
    _, of_nats, of_events, *_ = asked
    for probe, expected in ((of_nats, nats), (of_events, events)):
        component = await probe()
        assert (component.status, component.detail) == ("degraded", expected) if expected else ("ok", "")


@pytest.mark.parametrize(("trouble", "status"), [(None, "ok"), ("records cannot be written: full", "degraded")])
async def test_an_audit_log_in_trouble_is_a_degraded_daemon(trouble: str | None, status: str) -> None:
    """Certificates are renewed all the same; keys are not given out, and somebody has to look."""
    component = await of_audit(cast("Any", SimpleNamespace(trouble=trouble)))()
    assert (component.name, component.status, component.detail) == ("audit", status, trouble or "")


@pytest.mark.parametrize(
    ("trouble", "status", "detail"), [(None, "ok", "1a2b3c4d"), ("it waits", "degraded", "it waits")]
)
async def test_a_rotation_that_does_not_end_is_told(trouble: str | None, status: str, detail: str) -> None:
    """Until it ends the old master key opens the store too."""
    keys = SimpleNamespace(trouble=trouble, kid="1a2b3c4d")
    component = await of_master_key(cast("Any", keys))()
    assert (component.name, component.status, component.detail) == ("master_key", status, detail)
