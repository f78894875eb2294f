"""test_idle: a daemon that no host asks anything costs no time."""

import time
from pathlib import Path

import pytest

from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.proc import wait_until

LOOK_S = 3.0
MIB = 1 << 20


def wakes(daemon: Daemon, prefix: str) -> dict[str, int]:
    """How often each thread with such a name has slept, by its name and id."""
    found = {}
    for task in Path(f"/proc/{daemon.pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        if name.startswith(prefix):
            status = (task / "status").read_text()
            found[f"{name} {task.name}"] = int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])
    return found


@pytest.mark.slow
def test_the_engines_threads_sleep_while_nothing_is_in_flight(daemon: Daemon) -> None:
    """They sleep with volumes and open connections as well; after that, the clock of time-outs goes on."""
    daemon.make_volume("v", size="64M")
    daemon.ok("snapshot", "create", "v", "--name", "one")
    with nbd.connect(nbd.uri("v", daemon.nbd_socket)) as host:
        host.pwrite(b"x" * MIB, 0)
        host.flush()

        def idle() -> bool:
            before = wakes(daemon, "pv-")
            assert any(name.startswith("pv-watch") for name in before)
            time.sleep(LOOK_S)
            return wakes(daemon, "pv-") == before

        wait_until(idle, "the engine's sleep", 60)
        before = wakes(daemon, "pv-watch")
        assert host.pread(MIB, 0) == b"x" * MIB
        host.pwrite(b"y" * MIB, 0)
        host.flush()
        wait_until(lambda: wakes(daemon, "pv-watch") != before, "the clock's next tick", 10)
