"""relocation: how fast blocks come home, how fast a scattered volume is read, and what it costs hosts.

How it works      Each function measures one thing on a daemon of its own, and returns figures by name, as
                  those of `alone.py` do. Everything is a share of something that was measured in the same
                  run: of `cp` of as many bytes, of the volume as it was filled in order, of the same load
                  without relocation.
Owner and locks   every process is ended by the context that started it.
Errors            AssertionError with the program's output, or if relocation does not end.
"""

import shutil
import statistics
import time
from dataclasses import replace
from pathlib import Path

from polyvol.daemon.client.cli.client import Client
from scripts.benchmark.cases import Case
from scripts.benchmark.contenders import fill, settle
from scripts.benchmark.load import Export, Sample, measure, write_region, write_scattered
from tests.support.daemon import Daemon
from tests.support.proc import check, wait_until

HOURS = 8
CHANGED_PERCENT = 4
ROUNDS = 4
LONG_S = 600.0
RESTS_S = 3.0
"""Relocation that has moved nothing for so long has come to its end."""
PIECE = 64 << 10
HOSTS_SHARE = 0.7
"""How much of the full rate slower hosts use."""
_MIX = Case("mix", "randrw", 4 << 10, 16, generator="load")
_IN_ORDER = Case("in order", "read", 128 << 10, 8, generator="load")


def _volume(daemon: Daemon, size: int) -> tuple[Export, Client]:
    """A volume, filled in order."""
    daemon.make_volume(size=str(size), processors=2)
    export = Export(daemon.nbd_socket, "v")
    write_region(export, size)
    return export, Client(daemon.state_dir)


def _snapshot(client: Client, name: str) -> None:
    client.post("snapshots", body={"volumes": ["v"], "name": name})


def _live(client: Client) -> int:
    """Bytes that the volume shows in change logs."""
    use = client.get("volumes", "v")["use"]
    assert use is not None, "the volume is not served"
    return int(use["live"])


def home(directory: Path, size: int) -> dict[str, float]:
    """The rate at which a volume comes home, in pieces of 64 KiB, over that of `cp` and sync of as much."""
    file, copy = directory / "file", directory / "copy"
    with Daemon(directory) as daemon:
        export, client = _volume(daemon, size)
        _snapshot(client, "s")
        write_scattered(export, PIECE, size // PIECE, seed=1)
        fill(file, size)
        settle(directory)
        began = time.monotonic()
        check("cp", "--reflink=never", file, copy, timeout_s=LONG_S)
        check("sync", "--file-system", copy, timeout_s=LONG_S)
        copied_s = time.monotonic() - began
        client.delete("volumes", "v", "snapshots", "s")
        began = time.monotonic()
        wait_until(lambda: _live(client) == 0, "the end of relocation", LONG_S)
        took_s = time.monotonic() - began
    for path in (file, copy):
        path.unlink()
    return {"relocation.home_share": copied_s / took_s, "relocation.home_mib_s": (size >> 20) / took_s}


def in_order(directory: Path, size: int, seconds: float) -> dict[str, float]:
    """The rate of reads in order after random overwrites under snapshots, before and after relocation, over
    that of the volume as it was filled."""
    case = replace(_IN_ORDER, region=size)
    with Daemon(directory) as daemon:
        export, client = _volume(daemon, size)

        def rate() -> float:
            settle(directory)
            return measure(case, export, daemon.pid, seconds).mib_s

        client.patch("volumes", "v", body={"relocate": "off"})
        fresh = rate()
        for hour in range(HOURS):
            _snapshot(client, f"s{hour}")
            write_scattered(export, 4096, size // 4096 * CHANGED_PERCENT // 100, seed=hour)
        _snapshot(client, "last")
        scattered = rate()
        client.patch("volumes", "v", body={"relocate": "auto"})
        _wait_until_it_rests(client)
        after = rate()
        live = _live(client)
    return {
        "relocation.read_share_before": scattered / fresh,
        "relocation.read_share": after / fresh,
        "relocation.live_share_after": live / size,
    }


def _wait_until_it_rests(client: Client) -> None:
    deadline, moved, since = time.monotonic() + LONG_S, -1, time.monotonic()
    while time.monotonic() - since < RESTS_S or moved == 0:
        now = client.get("volumes", "v")["relocation"]["moved"]
        if now != moved:
            moved, since = now, time.monotonic()
        assert time.monotonic() < deadline, "relocation does not end"
        time.sleep(0.1)


def beside_hosts(directory: Path, size: int, seconds: float) -> dict[str, float]:
    """A mixed load while blocks go home, over the same load without relocation: as fast as it can, and at 0.7
    of its full rate; medians of some rounds."""
    full = replace(_MIX, region=size)
    found = _with_and_without(directory / "full", full, size, seconds)
    slower = replace(full, generator="fio")
    place = directory / "rate"
    place.mkdir()
    with Daemon(place) as daemon:
        export, _ = _volume(daemon, size)
        rate = measure(slower, export, daemon.pid, seconds).iops
    shutil.rmtree(place)
    slower = replace(slower, rate=round(rate * HOSTS_SHARE))
    found_slower = _with_and_without(directory / "slower", slower, size, seconds)
    return {f"relocation.hosts_{name}": value for name, value in found.items()} | {
        f"relocation.slower_hosts_{name}": value for name, value in found_slower.items()
    }


def _with_and_without(directory: Path, case: Case, size: int, seconds: float) -> dict[str, float]:
    """What a load has with relocation over what it has without, and how much is moved, MiB a second."""
    found: dict[bool, list[Sample]] = {True: [], False: []}
    moved = 0
    for turn in range(ROUNDS):
        for relocates in (turn % 2 == 0, turn % 2 == 1):
            place = directory / f"{turn}-{relocates}"
            place.mkdir(parents=True)
            with Daemon(place) as daemon:
                export, client = _volume(daemon, size)
                client.patch("volumes", "v", body={"relocate": "off"})
                _snapshot(client, "s")
                write_scattered(export, PIECE, size // PIECE, seed=turn)
                client.delete("volumes", "v", "snapshots", "s")
                if relocates:
                    client.patch("volumes", "v", body={"relocate": 1 << 40})
                found[relocates].append(measure(case, export, daemon.pid, seconds))
                moved += client.get("volumes", "v")["relocation"]["moved"]
            shutil.rmtree(place)
    assert moved > 0, "nothing was relocated"

    def share(of: str) -> float:
        sums = {key: statistics.median(getattr(each, of) for each in all_) for key, all_ in found.items()}
        return float(sums[True] / sums[False])

    return {
        "iops_share": share("iops"),
        "p99_share": share("p99_us"),
        "moved_mib_s": (moved >> 20) / (ROUNDS * seconds),
    }
