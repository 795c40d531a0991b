"""Everything a third party's plugin needs, and nothing else of ours.

A plugin is an ordinary package with an entry point in the group `scaivaultd` that names a module
with functions marked `@hookimpl`. The hooks are in `hookspecs`; what they return is described in
`challenge`. The module may say which contract it was written for in `SCAIVAULTD_PLUGIN_API`.
"""

from scaivaultd.plugin.challenge import (
    ChallengeResponse,
    ChallengeSolver,
    Http01Responses,
    SolverContext,
    SolverKind,
)
from scaivaultd.plugin.hookspecs import ENTRY_POINT_GROUP, PLUGIN_API, hookimpl

__all__ = [
    "ENTRY_POINT_GROUP",
    "PLUGIN_API",
    "ChallengeResponse",
    "ChallengeSolver",
    "Http01Responses",
    "SolverContext",
    "SolverKind",
    "hookimpl",
]
