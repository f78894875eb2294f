"""test_schedules: schedules, groups, holds and hooks of a real daemon, through a kill; a file system that is
frozen for a cut."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import fuse, nbd
from tests.support.daemon import Daemon
from tests.support.proc import check, wait_until

HOUR_NS = 3600 * 1_000_000_000
FAKETIME = "/usr/$LIB/faketime/libfaketimeMT.so.1"  # $LIB is for the loader
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "hooks"


@pytest.mark.slow
def test_a_group_is_scheduled_kept_and_held_through_a_kill(daemon: Daemon) -> None:
    for volume in ("a", "b"):
        daemon.ok("volume", "create", volume, "--size", "8M")
    daemon.ok("group", "create", "g", "a", "b")
    daemon.ok("schedule", "add", "@g", "--every", "1s", "--keep", "last=2")
    wait_until(lambda: len(daemon.json("snapshot", "list", "@g")) == 2, "two snapshots", 30)
    daemon.ok("schedule", "pause", "g-auto")
    held = daemon.json("snapshot", "list", "@g")[0]["export"]
    daemon.ok("snapshot", "hold", held, "--tag", "audit")
    daemon.ok("schedule", "resume", "g-auto")
    daemon.kill()
    time.sleep(2)
    daemon.start()
    wait_until(lambda: len(daemon.json("snapshot", "list", "@g")) == 3, "another one", 30)
    daemon.ok("schedule", "pause", "g-auto")
    wholes = daemon.json("snapshot", "list", "@g")
    assert wholes[0]["export"] == held
    assert all([member["volume"] for member in each["members"]] == ["a", "b"] for each in wholes)
    names = {member["export"] for each in daemon.json("snapshot", "list", "@g") for member in each["members"]}
    assert nbd.export_names(daemon.nbd_socket) == names | {"a", "b"}


@pytest.mark.slow
def test_a_frozen_file_system_needs_no_recovery(daemon: Daemon, tmp_path: Path) -> None:
    """With the shipped hook; without it, the journal of a mounted file system is to be recovered."""
    daemon.ok("volume", "create", "v", "--size", "64M")
    with fuse.block_device(daemon.uri("v"), tmp_path) as disk:
        check("mkfs.ext4", "-q", disk)
        with fuse.mount(disk, tmp_path) as mounted:
            command = f"{SCRIPTS / 'fsfreeze'} {mounted}"
            daemon.ok("volume", "set", "v", "--quiesce", command, "--thaw", command)
            for number in range(20):
                (mounted / f"file{number}").write_bytes(b"x" * 100_000)
            daemon.ok("snapshot", "create", "v", "--name", "frozen")
            daemon.ok("volume", "set", "v", "--no-hooks")
            (mounted / "after").write_text("it goes on")
            daemon.ok("snapshot", "create", "v", "--name", "not")
    marks = [daemon.json("snapshot", "show", f"v@{name}")["consistency"] for name in ("frozen", "not")]
    assert marks == ["application", "crash"]
    for name, clean in (("frozen", True), ("not", False)):
        image = tmp_path / name
        nbd.copy(daemon.uri(f"v@{name}"), image)
        assert ("needs_recovery" not in check("dumpe2fs", "-h", image)) == clean
        if clean:
            check("e2fsck", "-fn", image)


@pytest.mark.slow
def test_a_clock_that_was_ahead_displaces_no_later_snapshot(make_daemon: Callable[..., Daemon]) -> None:
    """By libfaketime, for the daemon and its engine; the steady clock stays as it is."""
    daemon = make_daemon()
    daemon.stop()
    ahead = daemon.directory / "ahead"

    def set_clock(offset: str) -> None:
        new = ahead.with_suffix(".new")
        new.write_text(f"{offset}\n")
        new.rename(ahead)

    def there() -> list[bool]:
        """Of each snapshot, whether it was taken while the clock was ahead."""
        now = time.time_ns()
        return [each["created_ns"] > now + HOUR_NS for each in daemon.json("snapshot", "list", "v")]

    set_clock("+0")
    daemon.environment = {
        "LD_PRELOAD": FAKETIME,
        "FAKETIME_TIMESTAMP_FILE": str(ahead),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    daemon.start()
    daemon.ok("volume", "create", "v", "--size", "8M")
    daemon.ok("schedule", "add", "v", "--every", "1s", "--keep", "last=2")
    wait_until(lambda: there() == [False, False], "two snapshots", 30)
    set_clock("+1d")
    wait_until(lambda: there() == [True, True], "two of tomorrow", 30)
    daemon.ok("schedule", "pause", "v-auto")
    set_clock("+0")
    assert [each["future"] for each in daemon.json("snapshot", "list", "v")] == [True, True]
    daemon.ok("schedule", "resume", "v-auto")
    wait_until(lambda: there() == [False, False], "two of today", 30)
    said = [each["text"] for each in daemon.json("status")["events"] if "the clock was set" in each["text"]]
    assert ["forward" in said[0], "back" in said[1]] == [True, True]
