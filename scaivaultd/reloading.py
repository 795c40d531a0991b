"""Reading the configuration again while the daemon runs: what is applied, what waits for a restart, what is wrong.

All is read, judged and prepared before anything is changed, and nothing awaits meanwhile: a configuration is in force
as a whole or not at all. What nobody follows is told as waiting for a restart, until there is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scaivaultd.api import operation_messages as om
from scaivaultd.api.messages import ComponentHealth
from scaivaultd.model.errors import StartupError
from scaivaultd.services.waiting import Signal
from scaivaultd.settings_layers import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api import messages as m
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.settings import Settings


class _Follower(msgspec.Struct, frozen=True):
    keys: tuple[str, ...]
    is_always: bool
    prepare: Callable[[Settings], Callable[[], object]]


class Reloading:
    """Reloads, for SIGHUP and for `sys.reload`."""

    def __init__(self, settings: Settings, *, read: Callable[[], Settings], log: FilteringBoundLogger) -> None:
        """`read` reads and judges the whole configuration, and raises SettingsError."""
        self._in_force = settings
        self._read = read
        self._log = log
        self._followers: list[_Follower] = []
        self._mistakes: list[str] = []
        self.begun: Signal[None] = Signal()
        self.ended: Signal[om.ReloadReply] = Signal()

    def follow(self, *keys: str, prepare: Callable[[Settings], Callable[[], object]], is_always: bool = False) -> None:
        """Have changes of `keys` applied by what `prepare` returns, which must not fail.

        `prepare` may raise StartupError, and then nothing is applied at all. With `is_always` it is asked at every
        reload: what a key names may have changed.
        """
        self._followers.append(_Follower(keys, is_always, prepare))

    def forget_followers(self) -> None:
        """What followed is gone."""
        self._followers.clear()

    @property
    def trouble(self) -> str:
        """What is wrong with the configuration that was read last; empty: nothing."""
        return "; ".join(self._mistakes)

    def reload(self) -> om.ReloadReply:
        """Read all layers again, and apply what can be applied. Blocks for as long as that takes."""
        self.begun.tell(None)
        reply = om.ReloadReply(ok=False)
        try:
            reply = self._reloaded()
        finally:
            self._mistakes = reply.mistakes
            self.ended.tell(reply)
        return reply

    def _reloaded(self) -> om.ReloadReply:
        try:
            wanted = self._read()
            changed = changed_keys(self._in_force, wanted)
            asked = [each for each in self._followers if each.is_always or changed.intersection(each.keys)]
            prepared = [each.prepare(wanted) for each in asked]
        except SettingsError as error:
            return self._refused([str(each) for each in error.mistakes])
        except StartupError as error:
            return self._refused(str(error).splitlines())
        for apply in prepared:
            apply()
        followed = {key for each in self._followers for key in each.keys}
        self._in_force = _with(self._in_force, wanted, followed)
        reply = om.ReloadReply(ok=True, changed=sorted(changed & followed), needs_restart=sorted(changed - followed))
        self._log.info("configuration.reloaded", changed=reply.changed, needs_restart=reply.needs_restart)
        return reply

    def _refused(self, mistakes: list[str]) -> om.ReloadReply:
        self._log.error("configuration.not_reloaded", mistakes=mistakes)
        return om.ReloadReply(ok=False, mistakes=mistakes)

    async def handle(self, request: m.Nothing, context: RequestContext) -> om.ReloadReply:
        """Handle `sys.reload`."""
        return self.reload()

    async def health(self) -> ComponentHealth:
        """Whether what the file says now could be used."""
        if not self._mistakes:
            return ComponentHealth(name="configuration", status="ok")
        more = f" (and {len(self._mistakes) - 1} more)" if len(self._mistakes) > 1 else ""
        detail = f"not reloaded, the one before is in force: {self._mistakes[0]}{more}"
        return ComponentHealth(name="configuration", status="degraded", detail=detail)


def changed_keys(before: Settings, after: Settings) -> set[str]:
    """The keys, as `log.level`, whose values differ; tables of an array are one key."""
    old, new = _flat(before), _flat(after)
    return {key for key in old if old[key] != new[key]}


def _flat(settings: Settings) -> Mapping[str, object]:
    flat: dict[str, object] = {}
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if isinstance(value, msgspec.Struct):
            flat |= {f"{name}.{key}": getattr(value, key) for key in value.__struct_fields__}
        else:
            flat[name] = value
    return flat


def _with(settings: Settings, wanted: Settings, keys: set[str]) -> Settings:
    """The settings, and at `keys` those that are wanted."""
    replaced: dict[str, object] = {}
    for name in settings.__struct_fields__:
        old, new = getattr(settings, name), getattr(wanted, name)
        if name in keys:
            replaced[name] = new
        elif isinstance(old, msgspec.Struct):
            own = {key: getattr(new, key) for key in old.__struct_fields__ if f"{name}.{key}" in keys}
            replaced[name] = msgspec.structs.replace(old, **own)
    return msgspec.structs.replace(settings, **replaced)
