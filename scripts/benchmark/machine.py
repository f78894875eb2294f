"""machine: on what, and with which versions, something was measured."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from tests.support.proc import check, run

ROOT = Path(__file__).resolve().parents[2]


def facts() -> dict[str, Any]:
    """The machine, the kernel, the versions of everything that was measured."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "polyvol": _commit(),
        "nbdkit": _first_line("nbdkit", "--version"),
        "qemu-nbd": _first_line("qemu-nbd", "--version"),
        "nbd-server": _first_line("nbd-server", "-V"),
        "fio": _first_line("fio", "--version"),
        "libnbd": _first_line("nbdinfo", "--version"),
    }


def filesystem(path: Path) -> str:
    """What kind of file system a path is on."""
    return check("stat", "--file-system", "--format", "%T", path).strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    try:
        return check("git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=12").strip()
    except (AssertionError, subprocess.SubprocessError):
        return "unknown"


def _first_line(*command: str) -> str:
    return (run(*command).out.splitlines() or ["unknown"])[0]
