"""Loaded by schemathesis: what random requests must not do to the daemon that is asked."""

from __future__ import annotations

import os
from typing import Any

import schemathesis

# The token that it asks with: whoever revokes that one sees nothing but 401 from then on.
_OWN = os.environ["SCAIVAULTD_TEST_TOKEN_ID"], os.environ["SCAIVAULTD_TEST_TOKEN_NAME"]
_WAITS = ("wait", "wait_seconds", "wait_end_seconds", "timeout_seconds")
_LONGEST_WAIT_SECONDS = 0.2


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Leave the own token alone."""
    values = [str(each) for each in (case.path_parameters or {}).values()]
    return not any(own in value for value in values for own in _OWN)


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    """Wait shortly where waiting is right; what is wrong stays wrong."""
    for part in (case.query, case.body):
        for name in _WAITS if isinstance(part, dict) else ():
            value = part.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and _LONGEST_WAIT_SECONDS < value <= 60:
                part[name] = _LONGEST_WAIT_SECONDS
    return case
