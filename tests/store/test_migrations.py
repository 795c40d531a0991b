"""Stores that earlier versions have written: opened by this one, with all that is in them.

`version_1` is a state directory of the first schema: two accounts, one of which is being registered, certificates, one
of which was renewed, orders, keys, a secret, a token, a policy, a DNS provider, events that were not carried out yet,
and the audit log.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.api.audit import verify_kept
from scaivaultd.model.sealing import SEALING_KEY
from scaivaultd.model.storage import ABSENT, Put
from scaivaultd.services import audit_anchors, documents
from scaivaultd.services.documents import KEYS, SECRETS, Shelf, digest
from scaivaultd.services.sealed_values import SEALED
from scaivaultd.store.audit_file import AuditFiles
from scaivaultd.store.master_key import load_master_key
from scaivaultd.store.sealing import EnvelopeSealer
from scaivaultd.store.sqlite import SqliteStore
from scaivaultd.store.sqlite_schema import MIGRATIONS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from structlog.typing import FilteringBoundLogger

VERSION_1 = Path(__file__).parent / "version_1"
EVENTS = ["account.created", "certificate.issued", "certificate.issued", "certificate.renewed"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(VERSION_1, tmp_path / "state")
    (tmp_path / "state/master.key").chmod(0o600)
    return tmp_path / "state"


@pytest.fixture
async def store(folder: Path, clock: Any, log: FilteringBoundLogger) -> AsyncIterator[SqliteStore]:
    """The store as this version opens it."""
    store = await SqliteStore.open(folder / "store.db", clock=clock, log=log)
    yield store
    await store.close()


async def _sealer(store: SqliteStore, folder: Path) -> EnvelopeSealer:
    key = load_master_key(f"file:{folder / 'master.key'}", environment={}, credentials_directory=None)
    record = await store.get(SEALING_KEY)
    assert record is not None
    return EnvelopeSealer.unlock(key, record.document)


def _schema(path: Path) -> list[tuple[str, str, str]]:
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'")
        return sorted((kind, name, " ".join((sql or "").split())) for kind, name, sql in found)


def test_the_file_is_of_the_first_schema() -> None:
    """It is worth nothing once somebody has opened it with a later version."""
    with closing(sqlite3.connect(f"{(VERSION_1 / 'store.db').as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)


async def test_it_becomes_what_a_new_store_is(
    store: SqliteStore, folder: Path, tmp_path: Path, clock: Any, log: FilteringBoundLogger
) -> None:
    """Two ways to the same schema, or a bug is met in one of them only."""
    await (await SqliteStore.open(tmp_path / "new.db", clock=clock, log=log)).close()
    await store.close()
    assert _schema(folder / "store.db") == _schema(tmp_path / "new.db")
    with closing(sqlite3.connect(folder / "store.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


async def test_every_document_can_be_read(store: SqliteStore, log: FilteringBoundLogger) -> None:
    """A field that was renamed or made to be required would hide a certificate."""
    shelves = [each for each in vars(documents).values() if isinstance(each, Shelf)]
    counted = 0
    for shelf in shelves:
        page = await shelf.page(store, where={}, cursor=None, limit=1000)
        assert page.unreadable == ()
        counted += len(page.items)
    assert counted >= 25


async def test_every_sealed_value_opens(store: SqliteStore, folder: Path) -> None:
    """Keys that do not are lost."""
    sealer = await _sealer(store, folder)
    opened = []

    def note(sealed: bytes, place: str, field: str) -> bytes:
        opened.append(sealer.open(sealed, place, field))
        return sealed

    for each in SEALED:
        for item in (await each.shelf.page(store, where={}, cursor=None, limit=1000)).items:
            each.rewrapped(item.value, note)
    secret = await SECRETS.get(store, digest("infra/api-key"))
    assert secret is not None
    assert sealer.open(secret.value.sealed, SECRETS.key(digest("infra/api-key")), "value.1") == b"fixture secret value"
    assert len(opened) >= 7
    assert len((await KEYS.page(store, where={}, cursor=None, limit=100)).items) == 5


async def test_events_that_wait_are_carried_out_yet(store: SqliteStore) -> None:
    """Whoever follows them would miss a certificate; and the same event keeps its id."""
    pending = await store.pending_events()
    assert [each.event.type for each in pending] == EVENTS
    await store.forget_events([pending[0].sequence])
    assert [each.event.type for each in await store.pending_events()] == EVENTS[1:]


async def test_the_audit_log_still_fits_its_anchors(store: SqliteStore, folder: Path) -> None:
    """An upgrade must not look like somebody's work."""
    book = await audit_anchors.load(store, await _sealer(store, folder))
    assert book is not None
    lines = AuditFiles(folder / "audit", file_bytes=1 << 20, keep=0).read()
    report = verify_kept(lines, begin=book.begin, anchors=book.all)
    assert report.broken is None
    assert report.sound == 12


async def test_it_is_written_to_as_any_other(store: SqliteStore) -> None:
    """Revisions go on growing from where they were."""
    node = await store.get("meta/node")
    assert node is not None
    revisions = await store.commit([Put(key="meta/new", document=b"{}", expect_revision=ABSENT)])
    assert revisions["meta/new"] > node.revision


async def test_opening_it_again_changes_nothing(folder: Path, clock: Any, log: FilteringBoundLogger) -> None:
    """The steps that it has taken are not taken twice."""
    for _ in range(2):
        store = await SqliteStore.open(folder / "store.db", clock=clock, log=log)
        assert len(await store.pending_events()) == len(EVENTS)
        await store.close()
