"""Who waits for something, name by name: a crowd at one name does not keep the others out; opens no socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Client = TypeVar("Client")


class Crowds(Generic[Client]):
    """Clients by the name they come for, the oldest of a name in front."""

    def __init__(self) -> None:
        self._by_name: dict[str, dict[Client, None]] = {}
        self._names: dict[Client, str] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Client]:
        """All, the oldest first."""
        return iter(self._names)

    def count(self, name: str) -> int:
        """How many come for a name."""
        return len(self._by_name.get(name, ()))

    def add(self, client: Client, name: str) -> None:
        """One more comes for a name."""
        self._by_name.setdefault(name, {})[client] = None
        self._names[client] = name

    def leave(self, client: Client) -> bool:
        """The client is gone; whether it was here."""
        name = self._names.pop(client, None)
        if name is None:
            return False
        # The name's turn has passed, if it was the client's: others are in front now.
        crowd = self._by_name.pop(name)
        del crowd[client]
        if crowd:
            self._by_name[name] = crowd
        return True

    def least(self, weight: Callable[[str], int]) -> str:
        """The name of least weight; of several, the one from which nobody has left for longest. Needs somebody."""
        return min(self._by_name, key=weight)

    def largest(self) -> str:
        """The name for which most come. Needs somebody."""
        return max(self._by_name, key=self.count)

    def oldest_of(self, name: str) -> Client:
        """Who has come for a name before all others. Needs somebody who came for it."""
        return next(iter(self._by_name[name]))
