"""test_deletions: many snapshots are deleted in the background, whatever else happens.

How it works      Snapshots with blocks of their own are deleted; the daemon is killed in the middle.
                  Afterwards what is left is as it was, and the change logs hold what the volume itself sees.
"""

import random
from pathlib import Path

import pytest

from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.proc import wait_until

MIB = 1 << 20
SIZE = 64 * MIB
COUNT = 150


def filled(daemon: Daemon) -> None:
    """A volume with COUNT snapshots `auto-N` and one `kept` in the middle."""
    daemon.make_volume("v", size="64M", partition_size="4M")
    draw = random.Random(3)
    with nbd.connect(daemon.uri("v")) as handle:
        for number in range(COUNT):
            handle.pwrite(draw.randbytes(4096), 0)  # which each snapshot has for itself
            for _ in range(20):
                handle.pwrite(draw.randbytes(4096), draw.randrange(SIZE // 4096) * 4096)
            daemon.api.post("snapshots", body={"volumes": ["v"], "name": f"auto-{number}"})
            if number == COUNT // 2:
                daemon.ok("snapshot", "create", "v", "--name", "kept")


@pytest.mark.slow
def test_what_is_deleted_stays_so_and_comes_back_as_space(daemon: Daemon, tmp_path: Path) -> None:
    filled(daemon)
    contents, live = nbd.read_all(daemon.uri("v@kept")), nbd.read_all(daemon.uri("v"))
    uses = {each["name"]: each["use"] for each in daemon.snapshots("v")}
    # Nothing was written between the first two, nor after the last: none of these frees anything alone.
    shared = {"kept", f"auto-{COUNT // 2}", f"auto-{COUNT - 1}"}
    assert {name for name, use in uses.items() if use["frees"] == 0} == shared
    daemon.ok("snapshot", "delete", "v@auto-*", "--no-wait")
    daemon.kill()
    daemon.start()
    assert [each["name"] for each in daemon.snapshots("v")] == ["kept"]
    assert nbd.read_all(daemon.uri("v@kept")) == contents
    assert nbd.read_all(daemon.uri("v")) == live
    use = daemon.volume("v")["use"]
    (kept,) = daemon.snapshots("v")
    assert use["snapshots_only"] == kept["use"]["frees_log"]
    said = daemon.ok("snapshot", "delete", "v@*")
    assert said.startswith("volume v: 1 snapshot deleted")
    use = daemon.volume("v")["use"]
    assert (use["snapshots_only"], use["used"]) == (0, use["live"])
    assert nbd.read_all(daemon.uri("v")) == live


@pytest.mark.slow
def test_hosts_are_served_while_snapshots_are_deleted(daemon: Daemon) -> None:
    filled(daemon)
    expected = sum(each["use"]["frees"] for each in daemon.snapshots("v"))
    begun = daemon.api.post("volumes", "v", "deletions", body={"names": ["auto-*"]})
    assert begun["total"] == COUNT
    with nbd.connect(daemon.uri("v")) as handle:
        while daemon.api.get("volumes", "v", "deletions")["left"]:
            handle.pwrite(b"!" * 4096, 0)
            assert handle.pread(4096, 0) == b"!" * 4096
    wait_until(lambda: daemon.api.get("volumes", "v", "deletions")["left"] == 0, "all are dropped")
    assert daemon.api.get("volumes", "v", "deletions")["freed"] >= expected - 8192
    daemon.ok("snapshot", "create", "v", "--name", "next")
    assert [each["name"] for each in daemon.snapshots("v")] == ["kept", "next"]
