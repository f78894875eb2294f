"""test_renames: real clients of volumes and snapshots that are renamed, on both front-ends.

How it works      Each volume has its number in its first block, so a client can tell which volume it is
                  connected to, whatever name that has.
"""

import random
import threading
import time
from collections.abc import Callable

import pytest

from polyvol.daemon.client.cli.client import ApiError
from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.proc import wait_until

FRONT_ENDS = ((), ("--frontend", "nbdkit"))
BLOCK = 4096
RACE_S = 4.0


def number(handle: object) -> int:
    """Which volume this is."""
    data: bytes = handle.pread(BLOCK, 0)  # type: ignore[attr-defined]
    return data[0]


def numbered(daemon: Daemon, name: str, which: int) -> None:
    daemon.api.post("volumes", body={"name": name, "size": 1 << 20, "partition_size": 1 << 20})
    with nbd.connect(daemon.uri(name)) as handle:
        handle.pwrite(bytes([which]) * BLOCK, 0)
        handle.flush()


def rename(daemon: Daemon, *path: str) -> str | None:
    """Rename; the code of the refusal, if it is refused."""
    try:
        daemon.api.post(*path[:-1], "rename", body={"name": path[-1]})
    except ApiError as error:
        return error.code
    return None


@pytest.mark.parametrize("front_end", FRONT_ENDS, ids=("native", "nbdkit"))
@pytest.mark.slow
def test_clients_find_what_was_renamed_by_its_new_name_alone(
    make_daemon: Callable[..., Daemon], front_end: tuple[str, ...]
) -> None:
    daemon = make_daemon(*front_end)
    numbered(daemon, "a", 1)
    daemon.ok("snapshot", "create", "a", "--name", "s")
    with nbd.connect(daemon.uri("a")) as handle:
        assert rename(daemon, "volumes", "a", "b") == "volume-in-use"
        assert rename(daemon, "volumes", "a", "snapshots", "s", "t") is None
        handle.pwrite(bytes([2]) * BLOCK, 0)
        handle.flush()
    with nbd.connect(daemon.uri("a@t")) as handle:
        assert rename(daemon, "volumes", "a", "b") == "volume-in-use"
        assert rename(daemon, "volumes", "a", "snapshots", "t", "u") == "snapshot-in-use"
        assert number(handle) == 1
    assert rename(daemon, "volumes", "a", "b") is None
    for _ in range(2):
        for gone in ("a", "a@s", "a@t", "b@s"):
            with pytest.raises(nbd.NbdError), nbd.connect(daemon.uri(gone)):
                pass
        with nbd.connect(daemon.uri("b")) as live, nbd.connect(daemon.uri("b@t")) as snapshot:
            assert (number(live), number(snapshot)) == (2, 1)
        daemon.restart()


def test_a_snapshot_that_a_client_compares_with_is_not_renamed(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    numbered(daemon, "a", 1)
    daemon.ok("snapshot", "create", "a", "--name", "s")
    with nbd.connect(daemon.uri("a"), contexts=("qemu:dirty-bitmap:s",)) as handle:
        assert handle.can_meta_context("qemu:dirty-bitmap:s")
        assert rename(daemon, "volumes", "a", "snapshots", "s", "t") == "snapshot-in-use"
    assert rename(daemon, "volumes", "a", "snapshots", "s", "t") is None
    with nbd.connect(daemon.uri("a"), contexts=("qemu:dirty-bitmap:t",)) as handle:
        assert handle.can_meta_context("qemu:dirty-bitmap:t")


@pytest.mark.slow
@pytest.mark.parametrize("front_end", FRONT_ENDS, ids=("native", "nbdkit"))
def test_no_client_is_ever_connected_to_another_volume_than_the_one_of_the_name(
    make_daemon: Callable[..., Daemon], front_end: tuple[str, ...]
) -> None:
    """While a client is connected, its volume keeps the name by which it connected."""
    daemon = make_daemon(*front_end)
    names = ("a", "b", "c")
    uuids = {}
    for which, name in enumerate(names[:2], start=1):
        numbered(daemon, name, which)
        daemon.ok("snapshot", "create", name, "--name", "s")
        uuids[daemon.volume(name)["uuid"]] = which
    until, wrong, connected, renamed = time.monotonic() + RACE_S, list[str](), [0], [0]

    def rename_often() -> None:
        draw = random.Random(1)
        while time.monotonic() < until:
            old, new = draw.sample(names, 2)
            renamed[0] += rename(daemon, "volumes", old, new) is None

    def connect_often(seed: int) -> None:
        draw = random.Random(seed)
        while time.monotonic() < until and not wrong:
            name, end = draw.choice(names), draw.choice(("", "@s"))
            try:
                with nbd.connect(daemon.uri(name + end)) as handle:
                    found = number(handle)
                    now = {uuids[each["uuid"]]: each["name"] for each in daemon.api.get("volumes")}
                    again = number(handle)
                    if (now[found], again) != (name, found):
                        wrong.append(f"{name}{end} is volume {found}, then {again}; the API says {now}")
                    connected[0] += 1
            except nbd.NbdError:
                continue

    threads = [threading.Thread(target=rename_often)]
    threads += [threading.Thread(target=connect_often, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert connected[0] > 5
    assert renamed[0] > 2
    assert {each["name"] for each in daemon.api.get("volumes")} < set(names)
    for name in {each["name"] for each in daemon.api.get("volumes")}:
        with nbd.connect(daemon.uri(name)) as live, nbd.connect(daemon.uri(f"{name}@s")) as snapshot:
            assert number(live) == number(snapshot)


@pytest.mark.slow
def test_a_scrub_is_followed_to_the_new_name_of_its_volume(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    for name in ("a", "b"):
        daemon.ok("volume", "create", name, "--size", "4M", "--partition-size", "1M")
    daemon.ok("snapshot", "create", "a", "--name", "s")
    with nbd.connect(daemon.uri("a")) as handle:
        handle.pwrite(b"x" * (4 << 20), 0)
        handle.flush()
    said: list[str] = []
    scrub = threading.Thread(target=lambda: said.append(daemon.ok("scrub", "a", "--rate", "1M")))
    scrub.start()
    wait_until(lambda: _scrubs(daemon, "a"), "the scrub", 20)
    assert rename(daemon, "volumes", "a", "c") is None
    assert rename(daemon, "volumes", "b", "a") is None
    scrub.join(60)
    assert said
    assert "scrub of volume c done: 4 MiB read" in said[0]


def _scrubs(daemon: Daemon, name: str) -> bool:
    try:
        return bool(daemon.api.get("volumes", name, "scrub")["state"] == "running")
    except ApiError:
        return False
