"""test_full_state: the file system of the state directory fills up, is full at a start, or breaks.

How it works      The state directory is on a small file system, devices are elsewhere. What must hold: what
                  was acknowledged stays; what cannot be recorded fails with one sentence or ENOSPC; the
                  daemon lives; deleting works and gives room back; with room, all goes on without a restart.
"""

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import nbd
from tests.support.daemon import Daemon, short_directory
from tests.support.file_systems import fill, fill_metadata, fill_with_files, small
from tests.support.proc import Background, check, run, wait_until

BLOCK = 4096


def block(number: int, version: int) -> bytes:
    return (number * 65537 + version).to_bytes(4, "little") * 1024


@contextmanager
def on(kind: str, size: str = "300M", **env: str) -> Iterator[tuple[Daemon, Path, Path]]:
    """A daemon with its state directory on a small file system, volume `v` with its devices elsewhere, the
    file system, and a folder elsewhere."""
    with short_directory() as elsewhere, small(elsewhere, kind, size) as disk:
        daemon = Daemon(disk, env=env)
        daemon.log = elsewhere / "polyvold.log"
        with daemon:
            for name in ("data", "log"):
                daemon.ok("device", "add", elsewhere / f"{name}.img", "--name", name, "--size", "129M")
            daemon.ok(
                *("volume", "create", "v", "--size", "64M", "--processors", "1"),
                *("--device", "data", "--log-device", "log"),
            )
            yield daemon, disk, elsewhere


def launched(daemon: Daemon) -> tuple[Background, str]:
    """A start, and what it has said until it served or ended."""
    daemon.log.unlink(missing_ok=True)
    started = daemon.launch()
    started.wait_until(lambda: "ready" in started.said() or started.rc is not None, "an answer")
    return started, started.said()


class Client:
    """A client of volume `v`, and what it was told is written."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.acknowledged: dict[int, int] = {}
        self.tried: dict[int, set[int]] = {}
        self.connect()

    def connect(self) -> None:
        self.handle = nbd.nbd_handle()
        self.handle.connect_uri(self.daemon.uri("v"))

    def write(self, number: int, version: int) -> int:
        """Write a block; 0, or the error."""
        try:
            self.handle.pwrite(block(number, version), number * BLOCK)
        except nbd.NbdError as error:
            self.tried.setdefault(number, set()).add(version)
            return int(error.errnum)
        self.acknowledged[number] = version
        self.tried.pop(number, None)
        return 0

    def flush(self) -> int:
        try:
            self.handle.flush()
        except nbd.NbdError as error:
            return int(error.errnum)
        return 0

    def check(self) -> None:
        """Everything that was acknowledged is there, or a later write that has failed."""
        with nbd.connect(self.daemon.uri("v")) as handle:
            for number, version in self.acknowledged.items():
                wanted = {block(number, each) for each in (version, *self.tried.get(number, ()))}
                assert bytes(handle.pread(BLOCK, number * BLOCK)) in wanted, number


@contextmanager
def mounted_read_only(disk: Path) -> Iterator[None]:
    """A read-only mount in the place of a file system that is in use for writing."""
    check("mount", "--bind", disk, disk)
    check("mount", "-o", "remount,bind,ro", disk)
    try:
        yield
    finally:
        check("umount", "--lazy", disk)


def share_files(kind: str, disk: Path) -> None:
    """Have another name for all bytes of the state directory, so that the next store copies them."""
    if kind == "btrfs-snapshot":
        check("btrfs", "subvolume", "snapshot", disk, disk / "snapshot")
    elif kind == "xfs":
        check("cp", "-a", "--reflink=always", disk / "state" / "volumes", disk / "copy")
        check("cp", "-a", "--reflink=always", disk / "state" / "manifests", disk / "copy")
    os.sync()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["btrfs", "btrfs-snapshot", "xfs"])
def test_a_full_file_system_that_copies_on_write_is_an_error_and_no_signal(kind: str) -> None:
    with on(kind.partition("-")[0]) as (daemon, disk, _):
        client = Client(daemon)
        for number in range(3000):
            assert client.write(number, 1) == 0
        daemon.ok("snapshot", "create", "v", "--name", "s")
        for number in range(500):
            assert client.write(number, 2) == 0
        assert client.flush() == 0
        share_files(kind, disk)
        ballast = fill(disk)
        os.sync()
        errors = set()
        for version in (3, 4, 5):
            for number in range(0, 3000, 10):
                errors |= {client.write(number, version)}
                if errors != {0}:
                    break
            errors |= {client.write(number, version) for number in range(1, 3000, 300)}
            errors |= {client.flush()}
            assert daemon.running, "SIGBUS"
        assert errors <= {0, errno.ENOSPC}, errors
        assert errno.ENOSPC in errors, "the test does not fill it"
        client.check()
        ballast.unlink()
        os.sync()
        wait_until(lambda: client.write(7, 6) == 0 and client.flush() == 0, "room", 20)
        assert {client.write(number, 7) for number in range(0, 3000, 7)} == {0}
        daemon.ok("snapshot", "create", "v", "--name", "t")
        client.check()
        daemon.kill()
        daemon.start()
        client.check()


def test_a_journal_that_somebody_makes_shorter_costs_an_error_and_no_daemon(daemon: Daemon) -> None:
    daemon.add_devices("d")
    daemon.make_volume(size="64M", processors=1)
    client = Client(daemon)
    for number in range(100):
        assert client.write(number, 1) == 0
    daemon.ok("snapshot", "create", "v", "--name", "s")
    for number in range(50):
        assert client.write(number, 2) == 0
    (journal,) = daemon.state_dir.glob("volumes/*/*.journal")
    os.truncate(journal, BLOCK)
    errors = [client.write(number, 3) for number in range(200)]
    assert errors[0] == errno.EIO, "it is not stored, and that is said"
    assert set(errors[1:]) == {0}, "a new segment was begun"
    wait_until(lambda: client.flush() == 0, "the checkpoint that makes the lost records unnecessary", 10)
    client.check()
    daemon.kill()
    daemon.start()
    client.check()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_start_on_a_full_file_system_serves_or_says_so_in_one_sentence(end: str) -> None:
    with on("tmpfs", "40M") as (daemon, disk, elsewhere):
        client = Client(daemon)
        for number in range(100):
            assert client.write(number, 1) == 0
        daemon.ok("snapshot", "create", "v", "--name", "s")
        assert client.write(0, 2) == 0
        getattr(daemon, end)()
        images = [elsewhere / "data.img", elsewhere / "log.img"]
        (elsewhere / "kept").mkdir()
        check("cp", "-a", disk / "state", *images, elsewhere / "kept")
        served = 0
        for leave in (0, 1, 2, 3, 4, 6, 8, 16, 24, 32, 48, 64, 96, 128, 256, 2048):
            check("rm", "-rf", *disk.iterdir())
            check("cp", "-a", elsewhere / "kept" / "state", disk)
            check("cp", "-a", *(elsewhere / "kept" / image.name for image in images), elsewhere)
            (disk / "state" / "reserve").unlink(missing_ok=True)
            fill(disk, leave=leave * BLOCK)
            started, said = launched(daemon)
            for word in ("Traceback", "copy", "damaged"):
                assert word not in said, said
            if started.rc is None:
                view = daemon.volume("v")
                if view["state"] == "not-served":
                    assert "no space left" in view["reason"]
                else:
                    served += 1
                    client.check()
                assert started.stop() in (0, 1), started.said()
                assert "Traceback" not in started.said(), started.said()
            else:
                assert "no space is left on the file system of" in said, (leave, said)
                assert said.count("\n") == 1, said
            checked = daemon.cli("check")
            assert checked.rc == 0, (leave, checked.out, checked.err)
        assert served >= 2, "it never started"
        (disk / "ballast").unlink()
        daemon.start()
        client.check()


@pytest.mark.slow
def test_a_start_with_the_reserve_serves_although_the_file_system_is_full() -> None:
    with on("tmpfs", "40M") as (daemon, disk, _):
        client = Client(daemon)
        assert client.write(0, 1) == 0
        fill(disk)
        daemon.kill()
        fill(disk)
        daemon.start()
        client.check()
        assert daemon.volume("v")["state"] == "degraded"
        assert "no space is left" in daemon.volume("v")["reason"]
        (disk / "ballast").unlink()
        wait_until(lambda: daemon.volume("v")["state"] == "serving", "room", 20)
        client.connect()
        assert {client.write(number, 2) for number in range(2000)} == {0}


@pytest.mark.slow
def test_the_first_volumes_of_a_start_leave_room_for_the_others() -> None:
    segment = 2 << 20
    with on("tmpfs", "40M", POLYVOL_SEGMENT_BYTES=str(segment)) as (daemon, disk, _):
        names = ["v", *(f"v{number}" for number in range(4))]
        for name in names[1:]:
            daemon.ok("volume", "create", name, "--size", "8M", "--processors", "1", "--device", "data")
        daemon.stop()
        fill(disk, leave=2 * segment + (128 << 10))  # for two whole segments and a small one
        daemon.start()
        assert {name: daemon.volume(name)["state"] for name in names} == dict.fromkeys(names, "degraded")
        (disk / "ballast").unlink()
        wait_until(lambda: daemon.volume("v")["state"] == "serving", "room", 20)
        client = Client(daemon)
        assert {client.write(number, 2) for number in range(4000)} == {0}


@pytest.mark.slow
def test_a_start_on_a_full_file_system_serves_however_many_journals_there_are() -> None:
    segment = 64 << 10
    with on("tmpfs", "64M", POLYVOL_SEGMENT_BYTES=str(segment)) as (daemon, disk, elsewhere):
        daemon.ok("device", "add", elsewhere / "large.img", "--name", "large", "--size", "1G")
        names = [f"v{number}" for number in range(6)]
        for name in names:
            daemon.ok(
                *("volume", "create", name, "--size", "16M", "--partition-size", "1M"),
                *("--processors", "16", "--device", "large"),
            )
        journals = sum(1 for _ in daemon.state_dir.glob("volumes/*/*.journal"))
        reserve = daemon.state_dir / "reserve"
        wait_until(lambda: reserve.stat().st_size > journals * segment > 4 << 20, "the reserve", 20)
        fill(disk)
        daemon.kill()
        fill(disk)
        daemon.start()
        assert {name: daemon.volume(name)["state"] for name in names} == dict.fromkeys(names, "degraded")


@pytest.mark.parametrize("what", ["start", "check"])
def test_a_read_only_file_system_is_said_in_one_sentence(what: str) -> None:
    with on("tmpfs", "40M") as (daemon, disk, _):
        daemon.stop()
        check("mount", "-o", "remount,ro", disk)
        if what == "check":
            daemon.ok("check")
            return
        daemon.log.unlink()
        started = daemon.launch()
        assert started.wait() == 1
        assert "its file system is read-only" in started.said()
        assert started.said().count("\n") == 1, started.said()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "xfs", "btrfs"])
def test_deleting_works_on_a_full_file_system_and_gives_room_back(kind: str) -> None:
    with on(kind, "64M" if kind in ("tmpfs", "ext4") else "300M") as (daemon, disk, elsewhere):
        client = Client(daemon)
        daemon.ok("device", "add", elsewhere / "more.img", "--name", "more", "--size", "16M")
        daemon.ok("volume", "create", "w", "--size", "16M", "--processors", "1", "--device", "data")
        daemon.ok("schedule", "add", "v", "--name", "n", "--every", "1h", "--keep", "last=3")
        for name in ("a", "b", "c"):
            daemon.ok("snapshot", "create", "v", "--name", name)
            assert {client.write(number, ord(name)) for number in range(300)} == {0}
        daemon.ok("snapshot", "hold", "v@c", "--tag", "t")
        fill(disk)
        wait_until(lambda: "no space is left" in " ".join(daemon.json("status")["notes"]), "status", 20)
        status = daemon.json("status")
        assert any("no space is left" in event["text"] for event in status["events"])
        assert daemon.volume("v")["state"] == "degraded"
        # What takes room is refused in one sentence, until the catalog's log has no room.
        for turn in range(200):
            made = daemon.cli("snapshot", "create", "v", "--name", f"x{turn}")
            if made.rc != 0:
                assert re.search("no space (is )?left", made.err, re.IGNORECASE), made.err
                assert made.err.count("\n") == 1, made.err
                assert "os error" not in made.err, made.err
                assert "free" in made.err, made.err
                break
        for verb in (
            ("snapshot", "delete", "v@a"),
            ("snapshot", "release", "v@c", "--tag", "t"),
            ("snapshot", "delete", "v@b", "v@c"),
            ("schedule", "remove", "n"),
            ("volume", "set", "v", "--when-full", "keep-snapshots"),
            ("device", "remove", "more"),
            ("volume", "delete", "w", "--yes"),
        ):
            daemon.ok(*verb)
            fill(disk)
        client.check()
        (disk / "ballast").unlink()
        wait_until(lambda: daemon.volume("v")["state"] == "serving", "room", 20)
        assert {client.write(number, 9) for number in range(3000)} == {0}
        daemon.ok("snapshot", "create", "v", "--name", "after")
        client.check()
        assert json.loads(daemon.ok("status", "--json"))["notes"] == []
        assert run("test", "-s", daemon.state_dir / "reserve").rc == 0


@pytest.mark.slow
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_file_system_without_room_for_more_files_serves_and_starts(end: str) -> None:
    with on("ext4-few-files", "64M") as (daemon, disk, _):
        client = Client(daemon)
        assert {client.write(number, 1) for number in range(100)} == {0}
        daemon.ok("snapshot", "create", "v", "--name", "a")
        assert {client.write(number, 2) for number in range(50)} == {0}
        files = fill_with_files(disk)
        wait_until(lambda: "room for more files" in " ".join(daemon.json("status")["notes"]), "a note", 20)
        getattr(daemon, end)()
        fill_with_files(disk)
        daemon.start()
        client.check()
        daemon.ok("snapshot", "delete", "v@a")
        run("rm", "-rf", files)
        wait_until(lambda: not daemon.json("status")["notes"], "room", 20)
        daemon.ok("snapshot", "create", "v", "--name", "b")
        client.check()


@pytest.mark.slow
def test_a_btrfs_without_room_for_metadata_serves_and_starts() -> None:
    with on("btrfs-metadata", "160M") as (daemon, disk, _):
        client = Client(daemon)
        daemon.ok("snapshot", "create", "v", "--name", "a")
        assert {client.write(number, 2) for number in range(50)} == {0}
        files = fill_metadata(disk)
        daemon.kill()
        daemon.start()
        client.check()
        daemon.ok("snapshot", "delete", "v@a")
        run("rm", "-rf", files)
        os.sync()
        wait_until(lambda: not daemon.json("status")["notes"], "room", 20)
        daemon.ok("snapshot", "create", "v", "--name", "b")
        client.check()


@pytest.mark.slow
def test_writes_go_on_when_each_journal_has_one_full_segment_and_there_is_no_room() -> None:
    with on("tmpfs", "40M", POLYVOL_SEGMENT_BYTES=str(2 << 20)) as (daemon, disk, _):
        client = Client(daemon)
        daemon.ok("snapshot", "create", "v", "--name", "only")
        wait_until(lambda: (daemon.state_dir / "reserve.journals").exists(), "the reserve", 20)
        fill(disk)
        # Twice what a segment holds: a block that was redirected is redirected again, each with a record.
        for version in range(1, 6):
            assert {client.write(number, version) for number in range(8192)} == {0}
        assert client.flush() == 0
        fill(disk)
        daemon.ok("snapshot", "delete", "v@only")
        assert {client.write(number, 99) for number in range(100)} == {0}
        client.check()
        (disk / "ballast").unlink()
        wait_until(lambda: daemon.json("status")["notes"] == [], "room", 20)
        assert (daemon.state_dir / "reserve.journals").exists()
        daemon.kill()
        daemon.start()
        client.check()


@pytest.mark.slow
def test_a_file_system_that_becomes_read_only_is_said_and_goes_on_by_itself() -> None:
    with on("tmpfs", "40M") as (daemon, disk, _):
        daemon.ok("snapshot", "create", "v", "--name", "a")
        with mounted_read_only(disk):
            wait_until(lambda: "is read-only" in " ".join(daemon.json("status")["notes"]), "a note", 20)
        wait_until(lambda: daemon.json("status")["notes"] == [], "writing", 20)
        daemon.ok("snapshot", "create", "v", "--name", "c")
