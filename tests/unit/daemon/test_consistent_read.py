"""Reading: one state for each answer, whatever other threads change, and without waiting for them."""

import shutil
import threading
import time
from pathlib import Path

import pytest

from polyvol.daemon.client.cli.client import Client
from polyvol.daemon.state.directory import refuse_own
from polyvol.mapping.catalog.database import Database
from polyvol.mapping.catalog.readers import IDLE_MAX
from polyvol.mapping.catalog.settings import Settings
from polyvol.mapping.catalog.store import Catalog
from polyvol.mapping.errors import CatalogConflict, CatalogUnreadable
from polyvol.mapping.ids import VolumeId
from tests.support.catalogs import PLAN, snapshot
from tests.unit.conftest import Daemon


def elsewhere(action: object) -> None:
    """Do something in another thread, and wait for it."""
    assert callable(action)
    thread = threading.Thread(target=action)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_all_queries_of_a_reading_see_its_begin(catalog: Catalog) -> None:
    volume = catalog.volumes.create(PLAN)
    with catalog.reading():
        assert [each.name for each in catalog.volumes.all()] == ["v"]
        elsewhere(lambda: catalog.snapshots.commit([snapshot(volume.id, "s", 1)]))
        with catalog.reading():
            assert catalog.snapshots.of(volume.id) == []
        elsewhere(lambda: catalog.volumes.forget(volume.id))
        assert [each.name for each in catalog.devices.all()] == ["v.data", "v.log"]
    assert (catalog.volumes.all(), catalog.devices.all()) == ([], [])


def test_what_a_thread_has_committed_it_reads(catalog: Catalog) -> None:
    for number in range(20):
        catalog.settings.set("n", str(number))
        assert catalog.settings.get("n") == str(number)
    with catalog._database.transaction() as connection:
        connection.execute("UPDATE setting SET value = 'within' WHERE name = 'n'")
        assert catalog.settings.get("n") == "within"
        elsewhere(
            lambda: [catalog.settings.get("n")] == ["19"] or pytest.fail("it reads what is not committed")
        )


def test_nothing_is_changed_within_a_reading(catalog: Catalog) -> None:
    with catalog.reading(), pytest.raises(RuntimeError, match="a change within a reading"):
        catalog.settings.set("n", "1")
    catalog.settings.set("n", "2")


def test_a_rule_that_is_violated_is_no_text_of_sqlite(catalog: Catalog) -> None:
    catalog.volumes.create(PLAN)
    with pytest.raises(CatalogConflict) as conflict:
        catalog.volumes.create(PLAN)
    with pytest.raises(CatalogConflict):
        catalog.groups.create("g", [VolumeId(99)])
    assert "constraint" not in str(conflict.value)


def test_connections_are_used_again_and_closed(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "a b?c#d%41.db")
    inside, over = threading.Barrier(2 * IDLE_MAX + 1), threading.Event()

    def read() -> None:
        with catalog.reading():
            inside.wait(10)
            over.wait(10)

    threads = [threading.Thread(target=read) for _ in range(2 * IDLE_MAX)]
    for thread in threads:
        thread.start()
    inside.wait(10)
    over.set()
    for thread in threads:
        thread.join()
    assert len(catalog._database._readers._idle) == IDLE_MAX
    catalog.close()
    with pytest.raises(CatalogUnreadable):
        catalog.volumes.all()
    assert not list(tmp_path.glob("*-wal"))


def test_readers_of_a_catalog_that_maps_no_file(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    database = Database(path, alone=True)
    settings = Settings(database)
    settings.set("n", "1")
    with database.reading():
        assert settings.get("n") == "1"
        elsewhere(lambda: settings.set("n", "2"))
        assert settings.get("n") == "1"
    assert settings.get("n") == "2"
    assert not Path(f"{path}-shm").exists()
    assert str(path) not in Path("/proc/self/maps").read_text()
    database.close()
    shared = Database(path)
    assert Settings(shared).get("n") == "2"
    shared.close()


@pytest.mark.parametrize(
    "parts",
    [
        ("status",),
        ("volumes",),
        ("volumes", "v"),
        ("snapshots",),
        ("volumes", "v", "snapshots", "s"),
        ("volumes", "v", "snapshots", "s", "change-total"),
        ("volumes", "v", "deletions"),
        ("devices",),
        ("groups",),
        ("groups", "g", "snapshots"),
        ("schedules",),
        ("schedules", "daily"),
    ],
)
def test_readers_wait_neither_for_a_change_nor_for_a_transaction(
    daemon: Daemon, parts: tuple[str, ...]
) -> None:
    daemon.ok("volume", "create", "v", "--size", "1M")
    daemon.ok("group", "create", "g", "v")
    daemon.ok("snapshot", "create", "v", "--name", "s")
    daemon.ok("schedule", "add", "v", "--every", "1d", "--keep", "last=2", "--name", "daily")
    context = daemon.service._context
    with context.catalog_lock, context.catalog._database.transaction() as connection:
        connection.execute("DELETE FROM schedule")
        began = time.monotonic()
        Client(daemon.state_dir).get(*parts)
        assert time.monotonic() - began < 5


def test_files_of_volumes_that_go_meanwhile_do_not_disturb_a_device_that_is_added(tmp_path: Path) -> None:
    volumes, over = tmp_path / "volumes", threading.Event()

    def churn() -> None:
        while not over.is_set():
            for number in range(20):
                (volumes / str(number) / "0").mkdir(parents=True)
            shutil.rmtree(volumes)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(100):
            refuse_own(tmp_path, tmp_path / "disk.img")
    finally:
        over.set()
        thread.join()
