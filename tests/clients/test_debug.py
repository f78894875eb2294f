"""test_debug: what can be seen of a daemon whose disk hangs while a client writes and a command waits.

Errors            Skipped where there is no /dev/fuse, nbdfuse or nbdkit.
"""

import json
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.clients.test_hung_requests import BLOCK, MIB, SOON_S, errno_of, fuse_disk
from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.proc import pause, wait_until

SECRET = b"what a user has written"


def in_flight(daemon: Daemon) -> list[dict[str, Any]]:
    """Parts of volume `hung` with a thread of the pool, that have been there for some time."""
    shown = daemon.json("debug", "processors")
    shares = [share for each in shown["processors"] for share in each["shares"]]
    assert all(each["answered"] for each in shown["processors"])
    return [
        one
        for share in shares
        if share["volume"] == "hung" and share["reserved"]["count"]
        for one in share["in_flight"]
        if one["place"] == "pool" and (one["oldest_ms"] or 0) >= 250
    ]


@pytest.mark.slow
def test_a_disk_that_hangs_can_be_seen_from_outside(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    with fuse_disk(daemon) as (path, process):
        daemon.ok("device", "add", path, "--name", "h", "--force")
        daemon.ok("volume", "create", "hung", "--size", "64M", "--device", "h", "--log-device", "h")
        with nbd.connect(daemon.uri("hung")) as client:
            client.pwrite(SECRET * 1000, 0)
            client.flush()
            pause(process.pid)
            write = threading.Thread(target=errno_of, args=(client.pwrite, SECRET * 1000, MIB))
            write.start()
            wait_until(lambda: in_flight(daemon) != [], "a write in flight", SOON_S)
            verb = threading.Thread(target=daemon.cli, args=("snapshot", "create", "hung"))
            verb.start()
            wait_until(lambda: daemon.json("status")["operations"] != [], "the command", SOON_S)
            table = daemon.ok("debug", "processors")
            assert any(line.split()[1:2] == ["hung"] for line in table.split("IN FLIGHT")[1].splitlines())
            file = daemon.directory / "dump.json"
            daemon.ok("debug", "dump", file)
            text = file.read_text()
            os.kill(process.pid, signal.SIGCONT)
            write.join(SOON_S)
            verb.join(SOON_S)
            assert client.pread(BLOCK, 0) == (SECRET * 1000)[:BLOCK]
    found = json.loads(text)
    assert [(each["noun"], each["names"], each["what"]) for each in found["locks"]] == [
        ("volume", ["hung"], "snapshot create")
    ]
    holder = next(each for each in found["threads"] if each["thread"] == found["locks"][0]["thread"])
    assert any(frame.endswith(" take") for frame in holder["frames"])
    lanes = [lane for pool in found["engine"]["pools"] for lane in pool["lanes"]]
    assert any((lane["kind"], lane["device"]) == ("device", "h") and lane["running"] for lane in lanes)
    assert [each["checkpoint_failures"] for each in found["engine"]["flushers"]] == [0]
    assert [each["export"] for each in found["connections"]] == ["hung"]
    assert found["connections"][0]["in_flight"] == 1
    assert SECRET.decode() not in text
