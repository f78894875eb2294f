"""test_space: change logs that fill up under several clients: who is refused, what is dropped, what stays.

How it works      A volume of 96 MiB on four processors with a change log of 64 MiB. Each of four clients
                  writes its own blocks, over and over, and remembers what was acknowledged; what was refused
                  may be old or new, and nothing else. Afterwards everything is read back, the snapshots too.
"""

import errno
import random
import threading
import time
from collections.abc import Iterable
from typing import Any

import pytest

from tests.support import fio, nbd
from tests.support.daemon import Daemon
from tests.support.proc import wait_until

MIB = 1 << 20
SIZE = 96 * MIB
BLOCK = 64 << 10
CLIENTS = 4
PROCESSORS = 4


class Client:
    """A client with blocks of its own: every CLIENTS-th one, each at its latest version."""

    def __init__(self, daemon: Daemon, number: int) -> None:
        self.number = number
        self.blocks = range(number, SIZE // BLOCK, CLIENTS)
        self.versions = dict.fromkeys(self.blocks, 0)
        self.doubtful: dict[int, int] = {}
        """Writes that were refused, by block: the version that may be there in part."""
        self.refused = 0
        self._turn = 0
        self._address = daemon.uri("v")

    def write(self, blocks: Iterable[int]) -> None:
        """Write these of the blocks; a refusal because no space is left is counted."""
        with nbd.connect(self._address) as handle:
            for block in blocks:
                self._turn += 1
                try:
                    handle.pwrite(content(block, self._turn), block * BLOCK)
                except nbd.NbdError as error:
                    if error.errnum != errno.ENOSPC:
                        raise
                    self.refused += 1
                    self.doubtful[block] = self._turn
                else:
                    self.versions[block] = self._turn
                    self.doubtful.pop(block, None)


def content(block: int, version: int) -> bytes:
    return random.Random(block * 1_000_003 + version).randbytes(BLOCK) if version else bytes(BLOCK)


class Clients:
    """All clients of the volume."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.all = [Client(daemon, number) for number in range(CLIENTS)]

    def start(self, share: float = 1.0, *, begin: float = 0.0) -> list[threading.Thread]:
        """Have every client write from `begin` on so much of its blocks."""
        threads = []
        for client in self.all:
            count = len(client.blocks)
            blocks = client.blocks[int(count * begin) : int(count * (begin + share))]
            threads.append(threading.Thread(target=client.write, args=(blocks,)))
        for thread in threads:
            thread.start()
        return threads

    def write(self, share: float = 1.0, *, begin: float = 0.0) -> int:
        """The same, to the end; how many writes were refused."""
        before = self.refused
        for thread in self.start(share, begin=begin):
            thread.join(120)
            assert not thread.is_alive(), "a write waits for ever"
        return self.refused - before

    @property
    def refused(self) -> int:
        return sum(client.refused for client in self.all)

    def versions(self) -> dict[int, int]:
        """What each block holds."""
        return {block: version for client in self.all for block, version in client.versions.items()}

    def check(self) -> None:
        """Everything that was acknowledged is read back."""
        read = nbd.read_all(self.daemon.uri("v"))
        doubtful = {block: version for client in self.all for block, version in client.doubtful.items()}
        for block, version in self.versions().items():
            found = read[block * BLOCK : (block + 1) * BLOCK]
            if block not in doubtful:
                assert found == content(block, version), f"block {block} is not version {version}"
                continue
            old, new = content(block, version), content(block, doubtful[block])
            for at in range(0, BLOCK, 4096):
                assert found[at : at + 4096] in (old[at : at + 4096], new[at : at + 4096]), f"block {block}"

    def check_snapshot(self, name: str, versions: dict[int, int]) -> None:
        read = nbd.read_all(self.daemon.uri(f"v@{name}"))
        for block, version in versions.items():
            found = read[block * BLOCK : (block + 1) * BLOCK]
            assert found == content(block, version), f"{name}: block {block}"


def make(daemon: Daemon, *options: str, log: str = "65M") -> Clients:
    daemon.add_devices("data", size="200M")
    daemon.add_devices("log", size=log)
    daemon.ok(
        *("volume", "create", "v", "--size", "96M", "--device", "data", "--log-device", "log"),
        *("--processors", str(PROCESSORS), "--partition-size", "4M", *options),
    )
    return Clients(daemon)


def snapshot(daemon: Daemon, clients: Clients, name: str, *options: str) -> dict[int, int]:
    daemon.ok("snapshot", "create", "v", "--name", name, *options)
    return clients.versions()


def space(daemon: Daemon) -> Any:
    return daemon.volume("v")["space"]


def snapshots(daemon: Daemon) -> list[str]:
    return [each["name"] for each in daemon.snapshots("v")]


def told(daemon: Daemon, words: str) -> list[str]:
    """The events with these words."""
    texts = [each["text"] for each in daemon.api.get("status")["events"]]
    return [text for text in texts if words in text]


@pytest.fixture
def daemon(make_daemon: Any) -> Daemon:
    made: Daemon = make_daemon("--processors", str(PROCESSORS))
    return made


@pytest.mark.slow
def test_writes_go_on_while_there_are_scheduled_snapshots_to_drop(daemon: Daemon) -> None:
    clients = make(daemon)
    assert clients.write() == 0
    by_hand = snapshot(daemon, clients, "hand")
    assert clients.write(0.25) == 0
    snapshot(daemon, clients, "auto1", "--scheduled")
    assert clients.write(0.25) == 0
    snapshot(daemon, clients, "auto2", "--scheduled")
    reader = nbd.nbd_handle()
    reader.connect_uri(daemon.uri("v@auto2"))
    assert clients.write(0.25) == 0
    assert snapshots(daemon) == ["hand", "auto2"], "auto1 made the room"
    snapshot(daemon, clients, "auto3", "--scheduled")
    assert clients.write(0.25) == 0
    assert snapshots(daemon) == ["hand", "auto2"], "auto3 did, as auto2 is being read"
    # What only snapshots by hand, and those that are read, hold back cannot be used.
    assert clients.write() > 0
    assert snapshots(daemon) == ["hand", "auto2"]
    clients.check()
    clients.check_snapshot("hand", by_hand)
    shown = daemon.volume("v")
    assert {each["snapshot"] for each in shown["dropped"]} == {"auto1", "auto3"}
    assert "auto1" in daemon.ok("volume", "show", "v")
    assert told(daemon, "v@auto1, made by a schedule, was dropped")
    assert told(daemon, "no snapshot may be dropped")
    assert "v@auto1, made by a schedule, was dropped" in daemon.said()
    # As soon as nobody reads it, it may go.
    reader.shutdown()
    wait_until(lambda: clients.write(0.05) == 0, "auto2 to be dropped", 30)
    assert snapshots(daemon) == ["hand"]
    daemon.restart()
    assert daemon.volume("v")["dropped"][0]["snapshot"] == "auto2"
    clients.check()
    clients.check_snapshot("hand", by_hand)


@pytest.mark.slow
def test_snapshots_are_kept_where_that_was_asked_for(daemon: Daemon) -> None:
    clients = make(daemon, "--when-full", "keep-snapshots")
    assert clients.write() == 0
    kept = snapshot(daemon, clients, "auto", "--scheduled")
    assert clients.write(0.25) == 0
    time.sleep(2.5)  # so that it is seen growing
    assert clients.write(0.25, begin=0.25) == 0
    assert space(daemon)["level"] == "low"
    wait_until(lambda: bool(told(daemon, "are at 75%")), "the warning", 10)
    assert space(daemon)["rate"] > 0
    assert space(daemon)["full_after_s"] is not None
    assert clients.write(0.5, begin=0.5) > 0
    assert snapshots(daemon) == ["auto"]
    found = space(daemon)
    assert found["free"] < BLOCK, "all processors' slots were used"
    clients.check()
    clients.check_snapshot("auto", kept)
    assert found["level"] == ("full" if found["free"] == 0 else "critical")
    last = "are full" if found["free"] == 0 else "are at 100%"
    wait_until(lambda: bool(told(daemon, last)), "the warning", 10)
    assert len(told(daemon, "the change logs of volume v are")) == 2, "each level is told once"
    assert "are at 75%" in daemon.said()
    daemon.kill()
    daemon.start()
    clients.check()
    assert space(daemon)["free"] == found["free"], "no slot was lost"
    daemon.ok("volume", "set", "v", "--when-full", "keep-writing")
    assert clients.write() == 0
    assert snapshots(daemon) == []
    clients.check()


@pytest.mark.slow
def test_deleting_a_snapshot_makes_room_for_writes_at_once(daemon: Daemon) -> None:
    clients = make(daemon)
    clients.write()
    snapshot(daemon, clients, "hand")
    assert clients.write() > 0
    daemon.ok("snapshot", "delete", "v@hand")
    assert clients.write() == 0
    snapshot(daemon, clients, "again")
    assert clients.write(0.5) == 0
    clients.check()


@pytest.mark.slow
def test_a_log_is_added_under_load_and_stays(daemon: Daemon) -> None:
    clients = make(daemon)
    clients.write()
    by_hand = snapshot(daemon, clients, "hand")
    assert clients.write(0.6) == 0
    daemon.add_devices("more", size="65M")
    threads = clients.start(0.4, begin=0.6)
    daemon.ok("volume", "add-log", "v", "--device", "more")
    for thread in threads:
        thread.join(120)
    # The new log has what was free on its device.
    assert space(daemon)["size"] == 128 * MIB
    clients.write()
    assert clients.write() == 0
    clients.check()
    daemon.kill()
    daemon.start()
    clients.check()
    clients.check_snapshot("hand", by_hand)
    logs = daemon.volume("v")["logs"]
    assert [log["devices"] for log in logs] == [["log"], ["more"]]
    assert all(log["default"] for log in logs)
    # Without a device, a file is made, and goes with the volume.
    daemon.ok("volume", "add-log", "v", "--size", "32M")
    assert space(daemon)["size"] == 160 * MIB
    assert (daemon.state_dir / "devices" / "v.log").exists()
    snapshot(daemon, clients, "more")
    clients.write(0.2)
    clients.check()
    assert "needs" in daemon.refused("volume", "add-log", "v", "--device", "more", "--size", "64M")
    daemon.ok("volume", "delete", "v", "--yes")
    assert not list((daemon.state_dir / "devices").iterdir())
    daemon.ok("device", "remove", "more")


@pytest.mark.slow
def test_a_log_is_added_while_fio_writes_and_verifies(daemon: Daemon) -> None:
    make(daemon)
    daemon.ok("snapshot", "create", "v", "--name", "hand")
    done = threading.Event()

    def grow() -> None:
        for number in range(3):
            daemon.ok("volume", "add-log", "v", "--size", f"{16 * (number + 1)}M")
        done.set()

    thread = threading.Thread(target=grow)
    thread.start()
    # Slow enough for the logs to be added long before they are needed: 64 MiB take four seconds.
    fio.load(daemon.uri("v"), size="96M", bs="16k", depth=32, rate="16M")
    thread.join(30)
    assert done.is_set()
    assert space(daemon)["used"] == 96 * MIB
