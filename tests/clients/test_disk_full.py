"""test_disk_full: the disk under sparse devices, or under the journals, has no space left.

How it works      Devices, or the whole state directory, are on a small tmpfs, which a ballast file fills. The
                  writes that need space there fail with ENOSPC, and nothing else does; when the ballast goes,
                  or a snapshot is deleted, they succeed. The daemon lives all the time, and is killed at the
                  end.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import nbd
from tests.support.daemon import Daemon, short_directory
from tests.support.proc import check, run, wait_until

MIB = 1 << 20


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """A tmpfs of this size at `directory`."""
    directory.mkdir()
    if run("mount", "-t", "tmpfs", "-o", f"size={size}", "none", directory).rc != 0:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        yield directory
    finally:
        check("umount", "--lazy", directory)


def fill_up(disk: Path, name: str = "ballast") -> Path:
    """A file that takes all that is left of a disk."""
    ballast = disk / name
    with ballast.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                return ballast


def block(number: int, version: int) -> bytes:
    return (number * 65537 + version).to_bytes(4, "little") * 1024


class Volume:
    """A client of volume `v`, and what each of its 4 KiB blocks holds."""

    def __init__(self, daemon: Daemon) -> None:
        self.versions: dict[int, int] = {}
        self._daemon = daemon
        self._connect()

    def _connect(self) -> None:
        self.handle = nbd.nbd_handle()
        self.handle.connect_uri(self._daemon.uri("v"))

    def write(self, number: int, version: int) -> bool:
        """Write a block; False if there was no space."""
        try:
            self.handle.pwrite(block(number, version), number * 4096)
        except nbd.NbdError as error:
            if error.errnum != errno.ENOSPC:
                raise
            return False
        self.versions[number] = version
        return True

    def write_until_refused(self, numbers: range, version: int) -> int:
        """Write these blocks; which was the first that had no space."""
        return next((number for number in numbers if not self.write(number, version)), numbers.stop)

    def check(self, name: str = "v", versions: dict[int, int] | None = None) -> None:
        """Everything is read back."""
        with nbd.connect(self._daemon.uri(name)) as handle:
            for number, version in (self.versions if versions is None else versions).items():
                assert handle.pread(4096, number * 4096) == block(number, version), f"{name}: {number}"

    def restart(self) -> None:
        """Kill the daemon, start it again, and connect."""
        self._daemon.kill()
        self._daemon.start()
        self._connect()


def make(daemon: Daemon, data: Path, log: Path) -> Volume:
    for name, path, size in (("data", data, "65M"), ("log", log, "65M")):
        daemon.ok("device", "add", path, "--name", name, "--size", size)
    daemon.ok(
        *("volume", "create", "v", "--size", "64M", "--processors", "2", "--partition-size", "1M"),
        *("--device", "data", "--log-device", "log"),
    )
    return Volume(daemon)


@pytest.mark.slow
def test_a_full_disk_under_a_sparse_change_log_refuses_only_what_needs_it(daemon: Daemon) -> None:
    with small_disk(daemon.directory / "disk", "24M") as disk:
        volume = make(daemon, daemon.directory / "data.img", disk / "log.img")
        for number in range(1000):
            assert volume.write(number, 1)
        daemon.ok("snapshot", "create", "v", "--name", "s")
        kept = dict(volume.versions)
        for number in range(100):
            assert volume.write(number, 2)
        daemon.ok("snapshot", "create", "v", "--name", "t")
        ballast = fill_up(disk)
        assert volume.write_until_refused(range(200, 1000), 3) < 1000
        # Reads, flushes, cuts, deletes go on; nothing was dropped, as the log itself is not full.
        volume.check()
        volume.handle.flush()
        daemon.ok("snapshot", "create", "v", "--name", "u")
        daemon.ok("snapshot", "delete", "v@u")
        volume.check("v@s", kept)
        used = daemon.volume("v")["space"]["used"]
        assert not volume.write(999, 4)
        assert daemon.volume("v")["space"]["used"] == used, "slots were not given back"
        assert [each["name"] for each in daemon.snapshots("v")] == ["s", "t"]
        ballast.unlink()
        assert volume.write_until_refused(range(200, 1000), 5) == 1000
        volume.check()
        volume.restart()
        volume.check()
        volume.check("v@s", kept)
        volume.handle.shutdown()


@pytest.mark.slow
def test_deleting_a_snapshot_makes_room_on_a_full_disk(daemon: Daemon) -> None:
    with small_disk(daemon.directory / "disk", "24M") as disk:
        volume = make(daemon, daemon.directory / "data.img", disk / "log.img")
        for number in range(2048):
            assert volume.write(number, 1)
        for version in (2, 3):
            daemon.ok("snapshot", "create", "v", "--name", f"s{version}")
            for number in range(2048):
                assert volume.write(number, version)
        daemon.ok("snapshot", "create", "v", "--name", "last")
        fill_up(disk)
        refused = volume.write_until_refused(range(2048), 4)
        assert refused < 2048
        # What only this one saw is version 2, 8 MiB of the log.
        daemon.ok("snapshot", "delete", "v@s3")
        wait_until(lambda: volume.write(refused, 4), "room", 10)
        assert volume.write_until_refused(range(1500), 4) == 1500
        volume.check()
        volume.restart()
        volume.check()
        volume.handle.shutdown()


def test_blocks_freed_in_a_change_log_make_room_for_others_without_a_flush(daemon: Daemon) -> None:
    with small_disk(daemon.directory / "disk", "24M") as disk:
        volume = make(daemon, disk / "data.img", disk / "log.img")
        for number in range(2048):
            assert volume.write(number, 1)
        daemon.ok("snapshot", "create", "v", "--name", "s")
        for number in range(1024):
            assert volume.write(number, 2)
        # Scattered: no chunk of the change log becomes empty.
        for number in (number for number in range(1024) if number % 4):
            volume.handle.trim(4096, number * 4096)
            del volume.versions[number]
        fill_up(disk)
        # These are written for the first time, at their base places.
        wait_until(lambda: volume.write(8000, 3), "room", 15)
        assert volume.write_until_refused(range(8001, 8500), 3) == 8500
        volume.check()
        volume.restart()
        volume.check()
        volume.handle.shutdown()


@contextmanager
def on_a_small_disk() -> Iterator[tuple[Daemon, Path]]:
    """A daemon with its state directory on a small disk, and small journals; and room elsewhere."""
    small = {"POLYVOL_SEGMENT_BYTES": "65536"}
    with (
        short_directory() as directory,
        small_disk(directory / "disk", "40M") as disk,
        Daemon(disk, env=small) as daemon,
    ):
        yield daemon, directory


@pytest.mark.slow
def test_a_journal_that_cannot_go_on_refuses_writes_until_there_is_space() -> None:
    with on_a_small_disk() as (daemon, elsewhere):
        volume = make(daemon, elsewhere / "data.img", elsewhere / "log.img")
        for number in range(4000):
            assert volume.write(number, 1)
        daemon.ok("snapshot", "create", "v", "--name", "s")
        kept = dict(volume.versions)
        ballast = fill_up(daemon.directory)
        # Somebody takes the room that is kept for journals, too.
        (daemon.state_dir / "reserve.journals").unlink()
        second = fill_up(daemon.directory, "more-ballast")
        # Records fill what is left of the journals, then there is no next one.
        refused = [number for number in range(4000) if not volume.write(number, 2)]
        assert 0 < len(refused) < 4000, "64 KiB of journal on each processor hold over a thousand records"
        used = daemon.volume("v")["space"]["used"]
        assert used == (4000 - len(refused)) * 4096, "slots without a record were given back"
        # A cut may find room in the catalog or not; if not, it says so and leaves nothing.
        cut = daemon.cli("snapshot", "create", "v", "--name", "u")
        assert cut.rc == 0 or "no space left" in cut.err.lower().replace("is ", ""), cut.err
        volume.check()
        volume.check("v@s", kept)
        volume.handle.flush()
        assert daemon.running
        ballast.unlink()
        second.unlink()
        for number in refused:
            assert volume.write(number, 3)
        daemon.ok("snapshot", "create", "v", "--name", "t")
        volume.check()
        volume.restart()
        volume.check()
        volume.check("v@s", kept)
        daemon.ok("snapshot", "delete", "v@s")
        volume.handle.shutdown()
