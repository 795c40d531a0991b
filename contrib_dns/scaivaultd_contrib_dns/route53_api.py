"""Route 53's operations, at the pace it allows: what is asked, page by page, and what is sent in batches."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

from scaivaultd.plugin import (
    Clock,
    Conflict,
    LostAnswer,
    PermanentError,
    ProviderError,
    TransientError,
    Zone,
    ZoneNotFound,
)
from scaivaultd.plugin.http import Authorize, HttpAnswer, HttpApi, HttpRequest, quoted
from scaivaultd_contrib_dns.aws_errors import AccessDenied, described, error_of
from scaivaultd_contrib_dns.route53_xml import (
    Change,
    HostedZone,
    RecordSet,
    change_batch,
    change_info,
    fault,
    hosted_zone,
    plain_name,
    record_page,
    zone_page,
)

T = TypeVar("T")

VERSION = "/2013-04-01"
PAGES_MAX = 1000
REQUESTS_PER_SECOND = 4.0
ZONES_PER_PAGE = 20
SETS_PER_PAGE = 20
# The service takes 1000 changes and 32000 characters of values in a batch; foreign values may be long.
BATCH_MAX_CHANGES = 100
BATCH_MAX_CHARACTERS = 16000
HEADERS: Mapping[str, str] = {"Accept": "application/xml"}
LOST_RACE = ("not found", "not match", "already exists", "multivalue")


def route53_error(answer: HttpAnswer) -> ProviderError | None:
    """An InvalidChangeBatch is a lost race when it says so; everything else is as at all of AWS."""
    found = fault(answer.body)
    if found is None:
        return None
    if found.code != "InvalidChangeBatch":
        return error_of(found, answer)
    # Without the names: one with a label `cname` says nothing of a CNAME.
    message = re.sub(r"\S+\.\S*[a-z0-9]\S*", "", found.message.lower())
    if "cname" in message:
        # "conflicting RRSet of type CNAME ... already exists": it stays so, however often we look.
        return PermanentError(
            f"a CNAME stands at the name, so no TXT record can: set follow_cname to true, or remove it "
            f"({described(found, answer)})",
            found.code,
        )
    if any(words in message for words in LOST_RACE):
        return Conflict(described(found, answer))
    return PermanentError(described(found, answer), found.code)


class Pace:
    """Turns at a steady distance: tens of names at once would be throttled all the same, only later."""

    def __init__(self, clock: Clock, per_second: float) -> None:
        self._clock = clock
        self._distance_seconds = 1 / per_second
        self._next = -math.inf

    async def turn(self) -> None:
        """Wait for one's turn; a turn that is not taken, because of cancellation, is lost."""
        now = self._clock.monotonic()
        start = max(now, self._next)
        self._next = start + self._distance_seconds
        if start > now:
            await self._clock.sleep(start - now)

    def before(self, authorize: Authorize) -> Authorize:
        """Wait for a turn before each try of a request, then sign: signatures age."""

        async def paced(request: HttpRequest, refused: bool) -> Mapping[str, str]:
            await self.turn()
            return await authorize(request, refused)

        return paced


class Route53Api:
    """The five operations that are needed."""

    def __init__(self, api: HttpApi) -> None:
        """One for each provider instance: it keeps the batches that wait."""
        self.http = api
        self._batches: dict[str, _Batches] = {}

    async def zones_named(self, name: str) -> list[HostedZone]:
        """All zones of exactly this name, private ones too."""
        found: list[HostedZone] = []
        query: dict[str, str | int] = {"dnsname": name, "maxitems": ZONES_PER_PAGE}
        for _ in range(PAGES_MAX):
            # The listing only begins at the name, and goes on to the end of all zones.
            page = await self._get("/hostedzonesbyname", query, zone_page)
            found += [zone for zone in page.zones if zone.name == name]
            beyond = any(zone.name != name for zone in page.zones)
            if beyond or page.next_name is None or plain_name(page.next_name) != name:
                return found
            query["dnsname"] = page.next_name
            if page.next_id:
                query["hostedzoneid"] = page.next_id
        raise PermanentError(f"the service shows more than {PAGES_MAX} pages of zones named {name}")

    async def any_zone(self) -> None:
        """Ask for a zone, whichever: whether we may."""
        await self._get("/hostedzonesbyname", {"maxitems": 1}, zone_page)

    async def zone_by_id(self, zone_id: str) -> Zone:
        """The zone with an id, by rights on that zone alone.

        A zone's own name comes first in its listing, and has its SOA record: that needs no right but the one
        to list record sets, which is needed anyway.

        Raises:
            ZoneNotFound: there is no such zone, or no CA sees it.
        """
        try:
            return await self._zone_by_its_records(zone_id) or await self._described_zone(zone_id)
        except PermanentError as error:
            if error.code != "NoSuchHostedZone":
                raise
            raise ZoneNotFound(f"{error.detail}; is it the right AWS account?") from error

    async def name_servers(self, zone_id: str) -> tuple[str, ...]:
        """The name servers that a zone is to be delegated to; takes a right of its own."""
        return (await self._get(f"/hostedzone/{quoted(zone_id)}", {}, hosted_zone)).name_servers

    async def _zone_by_its_records(self, zone_id: str) -> Zone | None:
        query: dict[str, str | int] = {"maxitems": SETS_PER_PAGE}
        for _ in range(PAGES_MAX):
            page = await self._get(f"/hostedzone/{quoted(zone_id)}/rrset", query, record_page)
            for each in page.sets:
                if each.type == "SOA":
                    return Zone(name=plain_name(each.name), id=zone_id)
            # Pages can be short: on, as long as they are about the first name.
            if page.next_name is None or not page.sets or plain_name(page.next_name) != plain_name(page.sets[0].name):
                break
            query["name"] = page.next_name
            if page.next_type:
                query["type"] = page.next_type
        return None

    async def _described_zone(self, zone_id: str) -> Zone:
        found = await self._get(f"/hostedzone/{quoted(zone_id)}", {}, hosted_zone)
        if found.is_private:
            raise ZoneNotFound(f"the hosted zone {zone_id} ({found.name}) is private: no CA can see it")
        return Zone(name=found.name, id=zone_id, name_servers=found.name_servers)

    async def txt_sets(self, zone_id: str, name: str) -> list[RecordSet]:
        """The TXT sets of a name: none, one, or several with identifiers."""
        found: list[RecordSet] = []
        query: dict[str, str | int] = {"name": f"{name}.", "type": "TXT", "maxitems": SETS_PER_PAGE}
        for _ in range(PAGES_MAX):
            # A starting point, too: other types and other names follow.
            page = await self._get(f"/hostedzone/{quoted(zone_id)}/rrset", query, record_page)
            found += [each for each in page.sets if each.type == "TXT" and plain_name(each.name) == name]
            if page.next_name is None or plain_name(page.next_name) != name or page.next_type != "TXT":
                return found
            query["name"] = page.next_name
            if page.next_identifier:
                query["identifier"] = page.next_identifier
        raise PermanentError(f"the service shows more than {PAGES_MAX} pages of TXT record sets of {name}")

    async def change(self, zone_id: str, changes: Sequence[Change]) -> str:
        """Send changes, all or nothing, perhaps together with those of other names; returns the id of the change.

        Raises:
            Conflict: another writer was faster.
            LostAnswer: they may have been carried out.
            ProviderError: see `scaivaultd.plugin.errors`.
        """
        batches = self._batches.setdefault(zone_id, _Batches(zone_id, self.http))
        return await batches.send(changes)

    async def is_in_sync(self, change_id: str) -> bool:
        """Whether all servers of Route 53 have a change."""
        answer = await self.http.call(
            "GET", f"{VERSION}/change/{quoted(change_id)}", headers=HEADERS, accept=frozenset({404})
        )
        # NoSuchChange: so old that it is forgotten.
        return answer.status == 404 or _read(change_info, answer)[1] == "INSYNC"

    async def _get(self, path: str, query: Mapping[str, str | int], reader: Callable[[bytes], T]) -> T:
        return _read(reader, await self.http.call("GET", f"{VERSION}{path}", query=query, headers=HEADERS))


def _read(reader: Callable[[bytes], T], answer: HttpAnswer) -> T:
    """What an answer says; one that cannot be read leaves open what was done, like one that is lost."""
    try:
        return reader(answer.body)
    except TransientError as error:
        raise LostAnswer(f"HTTP {answer.status}, but {error.detail}") from None


class _Waiting(msgspec.Struct, eq=False):
    """Changes that must go together, and what became of them."""

    changes: Sequence[Change]
    change_id: str | None = None
    error: ProviderError | None = None

    @property
    def is_done(self) -> bool:
        return self.change_id is not None or self.error is not None


class _Batches:
    """One request at a time for a zone, since the service refuses more; what comes meanwhile goes together.

    Whoever has the lock sends for all who wait for it.
    """

    def __init__(self, zone_id: str, api: HttpApi) -> None:
        self._zone_id = zone_id
        self._api = api
        self._lock = asyncio.Lock()
        self._waiting: list[_Waiting] = []

    async def send(self, changes: Sequence[Change]) -> str:
        mine = _Waiting(changes=changes)
        self._waiting.append(mine)
        try:
            async with self._lock:
                while not mine.is_done:
                    await self._send_together(self._taken())
        finally:
            if mine in self._waiting:
                self._waiting.remove(mine)
        if mine.error is not None:
            raise mine.error
        assert mine.change_id is not None
        return mine.change_id

    def _taken(self) -> list[_Waiting]:
        """The first of those who wait, as many as fit into a batch, at least one."""
        changes = characters = 0
        taken: list[_Waiting] = []
        for each in self._waiting:
            changes += len(each.changes)
            characters += sum(len(value) for change in each.changes for value in change.record_set.values)
            if taken and (changes > BATCH_MAX_CHANGES or characters > BATCH_MAX_CHARACTERS):
                break
            taken.append(each)
        del self._waiting[: len(taken)]
        return taken

    async def _send_together(self, batch: list[_Waiting]) -> None:
        try:
            try:
                await self._post(batch)
            except (Conflict, PermanentError, AccessDenied) as error:
                if len(batch) == 1 or (isinstance(error, PermanentError) and error.code == "NoSuchHostedZone"):
                    _fail(batch, error)
                    return
                # One that is refused takes the others down with it: look for it by halves.
                middle = len(batch) // 2
                await self._send_together(batch[:middle])
                await self._send_together(batch[middle:])
        except ProviderError as error:
            _fail(batch, error)
        finally:
            # Broken off: the caller is gone, but the others wait, and do not know what became of theirs.
            _fail(batch, LostAnswer("another request for this zone was broken off"))

    async def _post(self, batch: list[_Waiting]) -> None:
        body = change_batch([change for each in batch for change in each.changes])
        answer = await self._api.call(
            "POST",
            f"{VERSION}/hostedzone/{quoted(self._zone_id)}/rrset/",
            body=body,
            headers={**HEADERS, "Content-Type": "application/xml"},
            repeatable=False,
        )
        change_id, _ = _read(change_info, answer)
        for each in batch:
            each.change_id = change_id


def _fail(batch: Sequence[_Waiting], error: ProviderError) -> None:
    for each in batch:
        if not each.is_done:
            each.error = error
