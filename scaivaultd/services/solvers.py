"""The open challenge solvers, by challenge type and name, and what only one order may hold."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.model.errors import FieldError, UnsupportedChallenge
from scaivaultd.plugin import ChallengeSolver, SolverKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


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
    """What only so many responses hold at a time, by key; first come, first served."""

    def __init__(self) -> None:
        self._shares: dict[str, _Shares] = {}

    async def take(self, wanted: Mapping[str, Share], holding: AsyncExitStack) -> None:
        """Wait for all, key by key in one order for everybody so that nobody waits in a circle.

        Let go with `holding`, also what is held already when this is cancelled.
        """
        for key in sorted(wanted):
            shares = self._shares.setdefault(key, _Shares(wanted[key].capacity))
            count = min(wanted[key].count, shares.capacity)
            await shares.take(count)
            holding.callback(self._give, key, shares, count)

    def _give(self, key: str, shares: _Shares, count: int) -> None:
        shares.give(count)
        if shares.is_idle and self._shares.get(key) is shares:
            del self._shares[key]


class Share(msgspec.Struct, frozen=True):
    """How much of something is wanted, and how much there is."""

    count: int
    capacity: int


class _Shares:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = capacity
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def is_idle(self) -> bool:
        return self._free == self.capacity and not self._waiting

    async def take(self, count: int) -> None:
        if not self._waiting and self._free >= count:
            self._free -= count
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (count, granted)
        self._waiting.append(place)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.give(count)  # it came at the same moment
            elif place in self._waiting:
                self._waiting.remove(place)
                self.give(0)
            raise

    def give(self, count: int) -> None:
        self._free += count
        while self._waiting and (self._waiting[0][1].cancelled() or self._free >= self._waiting[0][0]):
            taken, granted = self._waiting.popleft()
            if not granted.cancelled():  # its task may not know yet that it does not wait any more
                self._free -= taken
                granted.set_result(None)


def _refused(pointer: str, code: str, detail: str) -> UnsupportedChallenge:
    return UnsupportedChallenge(detail, [FieldError(pointer=pointer, code=code, detail=detail)])
