"""The open challenge solvers, by challenge type and name, and what only one order may hold."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import msgspec

from scaivaultd.model.errors import FieldError, UnsupportedChallenge
from scaivaultd.plugin import ChallengeSolver, SolverKind

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class OpenSolver(msgspec.Struct, frozen=True, kw_only=True):
    """A solver and its kind."""

    kind: SolverKind
    solver: ChallengeSolver


class Solvers:
    """Every solver that opened."""

    def __init__(self, solvers: Sequence[OpenSolver]) -> None:
        self._solvers = {(each.kind.challenge_type, each.kind.name): each for each in solvers}
        self.claims = Claims()

    @property
    def challenge_types(self) -> list[str]:
        """The types that can be solved."""
        return sorted({challenge_type for challenge_type, _ in self._solvers})

    @property
    def names(self) -> list[str]:
        """Every solver as `type/name`."""
        return sorted("/".join(key) for key in self._solvers)

    def get(self, challenge_type: str, name: str | None) -> OpenSolver:
        """The solver of that type and name; without a name the daemon's own, or the only one.

        Raises:
            UnsupportedChallenge: there is none, or several to choose from.
        """
        of_type = {key[1]: each for key, each in self._solvers.items() if key[0] == challenge_type}
        if not of_type:
            there = ", ".join(self.challenge_types) or "none"
            raise _refused(
                "/challenge_type", "no_solver", f"no installed plugin solves {challenge_type}; there is {there}"
            )
        listed = ", ".join(sorted(of_type))
        if name is not None:
            if name not in of_type:
                raise _refused("/solver", "no_solver", f"no solver {name!r} for {challenge_type}; there is {listed}")
            return of_type[name]
        if challenge_type in of_type:
            return of_type[challenge_type]
        if len(of_type) > 1:
            raise _refused("/solver", "ambiguous", f"several solvers for {challenge_type}; name one of {listed}")
        return next(iter(of_type.values()))


class Claims:
    """Keys that one order holds at a time."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def take(self, keys: Collection[str], holding: AsyncExitStack) -> None:
        """Wait for all of them, in one order for everybody so that nobody waits in a circle; let go with `holding`,
        also of those it has when it is cancelled while it waits for more.
        """
        for key in sorted(keys):
            lock = self._locks.setdefault(key, asyncio.Lock())
            await holding.enter_async_context(lock)


def _refused(pointer: str, code: str, detail: str) -> UnsupportedChallenge:
    return UnsupportedChallenge(detail, [FieldError(pointer=pointer, code=code, detail=detail)])
