"""load: put one case's load on one server, and measure what both sides made of it.

How it works      fio (its NBD engine, libnbd) or the project's own generator (engine/examples/load.rs) runs
                  for the given time. The server's CPU time is what /proc/PID/stat says for all its threads
                  before and after; its peak memory is VmHWM, reset before. The client's CPU time is its
                  rusage; what else the machine was busy with is the rest of /proc/stat.
Errors            AssertionError with the program's output when a load failed or a request did.
"""

import json
import os
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benchmark.cases import DATA_BYTES, Case
from tests.support.nbd import uri
from tests.support.proc import environment, tool

ROOT = Path(__file__).resolve().parents[2]
GRACE_S = 60.0
MIX_READS_PERCENT = 70
_TICKS = os.sysconf("SC_CLK_TCK")
_RESET_PEAK = "5"


@dataclass(frozen=True)
class Export:
    """Where a server serves: a unix socket and a name."""

    socket: Path
    name: str


CLIENT_BUSY_CORES = 0.9
"""From here on a client's thread is what bounds the figure, or may be."""


@dataclass(frozen=True)
class Sample:
    """One turn's figures. CPU: `server_us` is microseconds for each request; `client_cores` and `other_cores`
    are how many cores the client, and all that was neither client nor server, kept busy."""

    requests: int
    iops: float
    mib_s: float
    p50_us: float
    p99_us: float
    p99_9_us: float
    longest_us: float
    server_us: float
    peak_mib: float
    client_cores: float
    other_cores: float


@dataclass(frozen=True)
class _Raw:
    requests: int
    seconds: float
    p50_ns: float
    p99_ns: float
    p99_9_ns: float
    longest_ns: float


def examples() -> Path:
    """Where scripts/bench has built the engine's examples."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "engine" / "target"))
    return target / "release" / "examples"


def measure(case: Case, export: Export, pid: int, seconds: float) -> Sample:
    """Put the case's load on an export served by a process, for so long."""
    assert not (case.requests and case.generator == "fio"), "fio is given a time only"
    assert not case.rate or case.generator == "fio", "only fio keeps to a rate"
    Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)
    server, client, machine, begun = server_cpu_s(pid), _children_s(), _machine_s(), time.monotonic()
    raw = _fio(case, export, seconds) if case.generator == "fio" else _load(case, export, seconds)
    took = time.monotonic() - begun
    server, client, machine = server_cpu_s(pid) - server, _children_s() - client, _machine_s() - machine
    rate = raw.requests / raw.seconds
    return Sample(
        requests=raw.requests,
        iops=rate,
        mib_s=rate * case.block / (1 << 20),
        p50_us=raw.p50_ns / 1000,
        p99_us=raw.p99_ns / 1000,
        p99_9_us=raw.p99_9_ns / 1000,
        longest_us=raw.longest_ns / 1000,
        server_us=server * 1e6 / raw.requests,
        peak_mib=peak_mib(pid),
        client_cores=client / raw.seconds,
        other_cores=max(0.0, machine - server - client) / took,
    )


def fio_time(seconds: float) -> str:
    """A length of time as fio takes it: of seconds it takes whole ones only, and for 0 it goes on."""
    return f"{round(seconds * 1000)}ms"


def _fio(case: Case, export: Export, seconds: float) -> _Raw:
    settings: dict[str, object] = {
        "name": "bench",
        "ioengine": "nbd",
        "uri": uri(export.name, export.socket),
        "rw": case.pattern,
        "bs": case.block,
        "iodepth": case.depth,
        "numjobs": case.connections,
        "runtime": fio_time(seconds),
        "group_reporting": 1,
        "thread": 1,
        "output-format": "json",
    }
    if case.pattern == "randrw":
        settings["rwmixread"] = MIX_READS_PERCENT
    if case.rate:
        reads = case.rate * MIX_READS_PERCENT // 100 if case.pattern == "randrw" else case.rate
        settings["rate_iops"] = f"{reads},{case.rate - reads}" if case.pattern == "randrw" else reads
    if case.fsync:
        settings["fsync"] = case.fsync
    if case.region:
        settings["size"] = case.region
    # Without time_based a random write never comes back to a block.
    if not (case.writes and case.random and not case.region):
        settings["time_based"] = 1
    arguments = [f"--{key}={value}" for key, value in settings.items()]
    output = _run([tool("fio"), *arguments], seconds)
    job = json.loads(output[output.index("{") :])["jobs"][0]
    assert job["error"] == 0, output
    # Of a mix the latencies are those of its reads.
    side = job["read" if case.pattern in ("read", "randread", "randrw") else "write"]
    within = side["clat_ns"]["percentile"]
    requests = job["read"]["total_ios"] + job["write"]["total_ios"]
    assert requests, f"{case.title}: nothing was answered within {seconds:g} s\n{output}"
    return _Raw(
        requests=requests,
        seconds=side["runtime"] / 1000,
        p50_ns=within["50.000000"],
        p99_ns=within["99.000000"],
        p99_9_ns=within["99.900000"],
        longest_ns=side["clat_ns"]["max"],
    )


def load_command(export: Export, **settings: object) -> list[str | Path]:
    """The command line of the project's own generator; `_` for each `-`."""
    options = [text for key, value in settings.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    return [examples() / "load", "--socket", export.socket, "--export", export.name, *options]


def _load(case: Case, export: Export, seconds: float) -> _Raw:
    bound = {}
    if case.region:
        bound["blocks"] = case.region // case.block
    elif case.requests:
        bound["requests"] = case.requests // case.connections
    elif case.writes and case.random:
        # One connection's order comes back to no block before it had all; several share the blocks.
        bound["requests"] = DATA_BYTES // case.block // case.connections
    command = load_command(
        export,
        rw=case.pattern,
        block=case.block,
        depth=case.depth,
        connections=case.connections,
        seconds=seconds,
        **bound,
    )
    said: dict[str, Any] = json.loads(_run(command, seconds))
    return _Raw(
        requests=said["requests"],
        seconds=said["seconds"],
        p50_ns=said["p50_ns"],
        p99_ns=said["p99_ns"],
        p99_9_ns=said["p99_9_ns"],
        longest_ns=said["longest_ns"],
    )


def _run(command: Sequence[str | Path], seconds: float) -> str:
    """A load's output. It is one process, in this session: what favours the bench favours it."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds + GRACE_S,
            env=environment(),
        )
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"{command[0]} did not end {GRACE_S:g} s after it should have") from error
    assert done.returncode == 0, f"{command} gave {done.returncode}:\n{(done.stdout + done.stderr).decode()}"
    return done.stdout.decode()


def write_some(export: Export, requests: int, seed: int) -> None:
    """That many random 4k writes."""
    write_scattered(export, 4096, requests, seed)


def write_scattered(export: Export, block: int, requests: int, seed: int) -> None:
    """That many random writes of so many bytes, none twice at one place."""
    command = load_command(export, rw="randwrite", block=block, requests=requests, seed=seed, seconds=GRACE_S)
    _run(command, GRACE_S)


def write_region(export: Export, size: int) -> None:
    """Every block of the first bytes once."""
    block = 1 << 20
    _run(load_command(export, rw="write", block=block, requests=size // block, seconds=GRACE_S), GRACE_S)


def server_cpu_s(pid: int) -> float:
    """CPU seconds of a process, all its threads and the children that it has waited for, user and system."""
    # The name, in parentheses, may hold anything; the numbers come behind it.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def peak_mib(pid: int) -> float:
    """The most memory that a process had in use since its peak was reset."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _machine_s() -> float:
    """CPU seconds of everything on this machine: user, nice, system, interrupts, and what was stolen."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _wait, irq, softirq, stolen = fields
    return (user + nice + system + irq + softirq + stolen) / _TICKS
