"""alone: figures of polyvol that stand by themselves, without another server beside them.

How it works      Each function measures one thing on a daemon (or a program) of its own in a directory and
                  returns figures by name: `targets.py` looks for some of the names, all are printed and kept.
                  `Scale` says how large: small for --quick, as targets have it else.
                  Bytes written: what the daemon has given to write calls (wchar of /proc/PID/io: data,
                  logs, all it says), and the pages of files mapped from its state directory, its journals,
                  that became dirty (/proc/PID/smaps), whole pages each once. (write_bytes there is of no use
                  for data: the kernel counts all of a large page of its cache for one block.)
                  Wake-ups: voluntary context switches of each thread, the engine's known by name.
Owner and locks   every process is ended by the context that started it.
Errors            AssertionError with the program's output.
"""

import json
import re
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from polyvol.daemon.client.cli.client import Client
from scripts.benchmark import relocation
from scripts.benchmark.cases import Case
from scripts.benchmark.contenders import adopt, fill, settle
from scripts.benchmark.cuts import measure_cuts, measure_rate
from scripts.benchmark.load import Export, examples, fio_time, measure, write_some
from scripts.benchmark.quiet import favour
from scripts.benchmark.targets import percentile
from tests.support.daemon import Daemon
from tests.support.direct import drop_pages
from tests.support.fuse import disk_file
from tests.support.proc import Background, check

BLOCK = 4096
_PYTHON_THREADS = ("polyvold", "python", "asyncio", "ThreadPool", "Thread-")
_SYNCS = "fsync,fdatasync,msync,sync_file_range,syncfs"
_LONG_S = 900.0
_DIRECT_DEPTH = 32
_DIRECT_TURNS = 5
_DIRECT_SHARE = 0.6
"""Of the scale's seconds, for each of the turns."""
_IDLE_TURNS = 3
"""Long enough, at full scale, to see what comes every ten seconds."""


@dataclass(frozen=True)
class Scale:
    """How large the measurements are; `bytes_changed` is shared out among 100 snapshots."""

    cuts: int
    seconds: float
    bytes_changed: int
    recovery_blocks: int
    trim_gib: int
    direct_bytes: int
    blocks_written: int
    relocated: int


QUICK = Scale(20, 1.0, 64 << 20, 100_000, 16, 512 << 20, 2_000, 128 << 20)
FULL = Scale(200, 5.0, 10 << 30, 5_000_000, 1024, 4 << 30, 50_000, 1 << 30)


def cuts(directory: Path, scale: Scale) -> dict[str, float]:
    """The stall of cuts under load, milliseconds, and how many there can be in a second."""
    found = measure_cuts(directory / "one", scale.cuts)
    stalls = [cut.stall_ms for cut in found.cuts]
    rate = measure_rate(directory / "many", scale.seconds)
    # Of fewer it would be the longest.
    tail = {"cuts.stall_ms.p99": percentile(stalls, 0.99)} if scale.cuts >= 100 else {}
    return {
        "cuts.stall_ms.median": found.median("stall_ms"),
        **tail,
        "cuts.around_ms.median": found.median("around_ms"),
        "cuts.iops": found.iops,
        "cuts.per_second": rate,
    }


def deleting(directory: Path, scale: Scale) -> dict[str, float]:
    """Deleting the middle one of 100 snapshots: seconds until the call is back, and what it gave back."""
    with Daemon(directory) as daemon:
        export = volume_with_changes(daemon, 100, scale.bytes_changed // BLOCK // 100)
        began = time.monotonic()
        Client(daemon.state_dir).delete("volumes", export.name, "snapshots", "s50")
        return {"delete.middle_of_100_s": time.monotonic() - began}


def volume_with_changes(daemon: Daemon, snapshots: int, writes: int) -> Export:
    """A volume with so many snapshots, and so many random writes of a block after each."""
    daemon.make_volume(size="4G", processors=2)
    # Room for all of it: the volume's own log device is small.
    daemon.add_devices("more", size="32G")
    daemon.ok("volume", "add-log", "v", "--device", "more", "--size", "16G")
    export, client = Export(daemon.nbd_socket, "v"), Client(daemon.state_dir)
    for number in range(snapshots):
        client.post("snapshots", body={"volumes": ["v"], "name": f"s{number}"})
        write_some(export, writes, seed=number)
    return export


def recovery(directory: Path, scale: Scale) -> dict[str, float]:
    """Seconds until a volume with redirected blocks is served again, after a kill and after a clean stop."""
    gib = max(1, scale.recovery_blocks * 4 * BLOCK >> 30)
    options = ("--blocks", scale.recovery_blocks, "--volume-gib", gib)
    said = check(examples() / "recovery", directory / "recovery", *options, timeout_s=_LONG_S)
    killed, stopped = re.findall(r"served after ([0-9.]+) s", said)
    return {
        "recovery.blocks": scale.recovery_blocks,
        "recovery.after_kill_s": float(killed),
        "recovery.after_stop_s": float(stopped),
    }


def trim(directory: Path, scale: Scale) -> dict[str, float]:
    """TRIM of a whole volume, half of it redirected; its time counts for the target at 1 TiB only."""
    command = (examples() / "trim", directory / "trim", "--volume-gib", scale.trim_gib)
    said = json.loads(check(*command, timeout_s=_LONG_S))
    word = "trim" if scale.trim_gib == FULL.trim_gib else "small_trim"
    return {f"{word}.gib": scale.trim_gib} | {f"{word}.{name}": float(value) for name, value in said.items()}


def file_system(directory: Path, scale: Scale) -> dict[str, float]:
    """Seconds that mkfs.xfs takes on an empty volume of 1 TiB, through nbdfuse."""
    del scale
    with Daemon(directory) as daemon:
        for name in ("a", "b"):
            daemon.add_devices(name, size="600G")
        daemon.add_devices("log", size="8G")
        devices = ["--device", "a", "--device", "b", "--log-device", "log"]
        daemon.ok("volume", "create", "wide", "--size", "1T", *devices)
        with disk_file(daemon.uri("wide"), directory) as path:
            began = time.monotonic()
            check("mkfs.xfs", "-q", "-f", path, timeout_s=_LONG_S)
            took = time.monotonic() - began
            with path.open("rb") as disk:
                assert disk.read(4) == b"XFSB", "mkfs.xfs left no file system"
            return {"mkfs_xfs.1_tib_s": took}


def amplification(directory: Path, scale: Scale) -> dict[str, float]:
    """Bytes written for each byte of the host: in place without a snapshot, and after a cut."""
    with Daemon(directory) as daemon:
        base = directory / "base.img"
        fill(base)
        export = adopt(daemon, "plain", base)
        found = {"amplification.in_place": _written_share(daemon, export, scale.blocks_written, seed=1)}
        Client(daemon.state_dir).post("snapshots", body={"volumes": [export.name], "name": "s"})
        found["amplification.overwrite"] = _written_share(daemon, export, scale.blocks_written, seed=1)
        return found


def _written_share(daemon: Daemon, export: Export, blocks: int, seed: int) -> float:
    settle(daemon.directory)
    before = _bytes_written(daemon)
    write_some(export, blocks, seed)
    return (_bytes_written(daemon) - before) / (blocks * BLOCK)


def _bytes_written(daemon: Daemon) -> int:
    of_process = Path(f"/proc/{daemon.pid}")
    mapped = dirty_bytes((of_process / "smaps").read_text(), f"{daemon.state_dir}/")
    return handed_bytes((of_process / "io").read_text()) + mapped


def handed_bytes(text: str) -> int:
    """What /proc/PID/io says a process has handed to write calls."""
    lines = dict(line.split(": ") for line in text.splitlines())
    return int(lines["wchar"])


def dirty_bytes(smaps: str, directory: str) -> int:
    """What is dirty of the files mapped from below a directory, as /proc/PID/smaps says."""
    found, inside = 0, False
    for line in smaps.splitlines():
        fields = line.split(maxsplit=5)
        if re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", fields[0]):
            inside = len(fields) == 6 and fields[5].startswith(directory)
        elif inside and fields[0] in ("Shared_Dirty:", "Private_Dirty:"):
            found += int(fields[1]) << 10
    return found


def syncs(directory: Path, scale: Scale) -> dict[str, float]:
    """System calls that sync, for each fsync of the host: in place and after a cut. strace counts them."""
    count = max(20, scale.blocks_written // 100)
    with Daemon(directory) as daemon:
        base = directory / "base.img"
        fill(base, 64 << 20)
        export = adopt(daemon, "plain", base)
        in_place = _syncs_for(daemon, export, count)
        Client(daemon.state_dir).post("snapshots", body={"volumes": [export.name], "name": "s"})
        redirected = _syncs_for(daemon, export, count)
    return {
        "syncs.in_place": in_place,
        "syncs.redirected": redirected,
        "syncs.ratio": redirected / in_place,
    }


def _syncs_for(daemon: Daemon, export: Export, count: int) -> float:
    counts = daemon.directory / "strace.txt"
    log = daemon.directory / "strace.log"
    log.unlink(missing_ok=True)
    command = ("strace", "-f", "-c", "-e", f"trace={_SYNCS}", "-o", counts, "-p", daemon.pid)
    with Background(*command, log=log) as tracer:
        tracer.wait_until(lambda: "attached" in tracer.said(), "strace's attachment")
        uri = f"nbd+unix:///{export.name}?socket={export.socket}"
        options = ["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1", f"--number_ios={count}"]
        check("fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", "--thread=1", *options)
        tracer.signal(signal.SIGINT)
        tracer.wait()
    return traced_calls(counts.read_text()) / count


def traced_calls(text: str) -> int:
    """The calls that `strace -c` has counted, all together."""
    rows = (line.split() for line in text.splitlines())
    return sum(int(row[3]) for row in rows if len(row) >= 5 and row[-1] in _SYNCS.split(","))


def idle(directory: Path, scale: Scale) -> dict[str, float]:
    """Wake-ups of a daemon that nobody asks anything, for each kind of thread, and its resident memory."""
    with Daemon(directory) as daemon:
        daemon.make_volume()
        write_some(Export(daemon.nbd_socket, "v"), 1000, seed=1)
        # What the writes left to do is done, and the API's last connection gone.
        time.sleep(max(1.0, scale.seconds))
        seconds, before = _IDLE_TURNS * scale.seconds, switches(daemon.pid)
        time.sleep(seconds)
        after = switches(daemon.pid)
        found = {"engine": 0, "python": 0}
        for thread, (name, count) in after.items():
            kind = "python" if name.startswith(_PYTHON_THREADS) else "engine"
            found[kind] += count - before.get(thread, (name, 0))[1]
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        resident = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert resident, status
        return {
            "idle.seconds": seconds,
            "idle.engine_wakeups": found["engine"],
            "idle.python_wakeups_per_s": found["python"] / seconds,
            "idle.resident_mib": int(resident[1]) / 1024,
        }


def switches(pid: int) -> dict[int, tuple[str, int]]:
    """Name and voluntary context switches of each thread of a process, by the thread's id."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        text = (task / "status").read_text()
        fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        found[int(task.name)] = (fields["Name"], int(fields["voluntary_ctxt_switches"]))
    return found


def direct(directory: Path, scale: Scale) -> dict[str, float]:
    """4k random reads, depth 32, that the disk has to answer: polyvol's over fio's on the file, O_DIRECT.

    Medians of the turns. `limit_ratio`: what a bare server reaches that reads past the page cache and
    never sleeps. `batch_ratio`: what fio itself reaches if it submits only when all have completed.
    `cached`: through the page cache, which has nothing when a turn begins; no block is read twice.
    """
    base, through, socket = directory / "base.img", directory / "through.img", directory / "limit.sock"
    seconds = scale.seconds * _DIRECT_SHARE
    for path in (base, through):
        fill(path, scale.direct_bytes)
    settle(directory)
    limit = Background(examples() / "limit", socket, base, "direct", log=directory / "limit.log")
    turns = []
    with Daemon(directory) as daemon, limit as process:
        process.wait_until(socket.exists, "the limit's socket")
        favour(process.pid)
        past, cached = adopt(daemon, "past", base, "--direct"), adopt(daemon, "through", through)
        case = Case("direct", "randread", BLOCK, _DIRECT_DEPTH)
        for _ in range(_DIRECT_TURNS):
            drop_pages(base)
            ours = measure(case, past, daemon.pid, seconds)
            bare = measure(case, Export(socket, ""), process.pid, seconds)
            theirs, batches = (_fio_direct(base, seconds, least) for least in (1, _DIRECT_DEPTH))
            drop_pages(through)
            other = measure(case, cached, daemon.pid, seconds)
            ratios = (ours.iops / theirs, bare.iops / theirs, batches / theirs)
            both = (ours.iops, ours.server_us, other.iops, other.server_us)
            turns.append((*ratios, theirs, *both))
    names = "ratio limit_ratio batch_ratio fio_iops iops server_us cached_iops cached_server_us"
    medians = map(statistics.median, zip(*turns, strict=True))
    return {f"direct.{name}": value for name, value in zip(names.split(), medians, strict=True)}


def _fio_direct(path: Path, seconds: float, least: int) -> float:
    """Reads a second that fio makes of a file past the page cache, 4k each, waiting for so many at a time."""
    options = ["--rw=randread", "--bs=4k", f"--iodepth={_DIRECT_DEPTH}", "--direct=1", "--time_based=1"]
    options += [f"--iodepth_batch={least}", f"--iodepth_batch_complete_min={least}", "--readonly"]
    options += [f"--filename={path}", f"--runtime={fio_time(seconds)}", "--output-format=json"]
    said = check("fio", "--name=bench", "--ioengine=libaio", *options, timeout_s=_LONG_S)
    return float(json.loads(said[said.index("{") :])["jobs"][0]["read"]["iops"])


def relocating(directory: Path, scale: Scale) -> dict[str, float]:
    """What comes home: how fast, what it is good for, and what hosts feel of it."""
    for name in ("home", "order", "hosts"):
        (directory / name).mkdir(parents=True)
    return {
        **relocation.home(directory / "home", scale.relocated),
        **relocation.in_order(directory / "order", scale.relocated, scale.seconds),
        **relocation.beside_hosts(directory / "hosts", scale.relocated, scale.seconds),
    }


Measurement = Callable[[Path, Scale], dict[str, float]]

ALONE: tuple[tuple[str, str, bool, Measurement], ...] = (
    ("cuts", "write", True, cuts),
    ("idle", "write", True, idle),
    ("write amplification", "read", True, amplification),
    ("syncs", "read", True, syncs),
    ("TRIM", "write", True, trim),
    ("direct reads", "read", True, direct),
    ("recovery", "write", True, recovery),
    ("mkfs.xfs", "write", False, file_system),
    ("deleting a snapshot", "read", False, deleting),
    ("relocation", "read", False, relocating),
)
"""Name, where its files are, whether --quick has it, the function."""
