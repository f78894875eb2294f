"""agent: inside the virtual machine, runs the shell scripts that come through a virtio-serial port.

How it works      A line of JSON {"id", "script", "timeout_s"} comes in, {"id", "rc", "out"} goes back when
                  the script has ended; several may run side by side. The first line out says which boot this
                  is. What is run and what it said goes to the console too, where the console log keeps it.
Errors            A script that takes too long is killed; its rc is 124.
"""

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any, BinaryIO

PORT = Path("/dev/virtio-ports/polyvol.agent")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CONSOLE_BYTES_MAX = 6000

_lock = threading.Lock()


def console(text: str) -> None:
    """Put text on the machine's console."""
    with Path("/dev/console").open("w", errors="replace") as out:
        out.write(text[-CONSOLE_BYTES_MAX:] + "\n")


def answer(port: BinaryIO, message: dict[str, Any]) -> None:
    """Send one line; the port takes as much at a time as it likes."""
    left = memoryview(json.dumps(message).encode() + b"\n")
    with _lock:
        while left:
            left = left[os.write(port.fileno(), left) :]


def run(port: BinaryIO, request: dict[str, Any]) -> None:
    """Run one script and send its result."""
    console(f"### {request['id']}: {request['script'].strip()}")
    try:
        done = subprocess.run(
            ["/bin/bash", "-c", f"set -euo pipefail\n{request['script']}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=request["timeout_s"],
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8", "HOME": "/root"},
        )
        rc, out = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        rc, out = 124, (error.stdout or b"") + b"\n(took too long)\n"
    text = out.decode(errors="replace")
    console(f"{text}### {request['id']}: exit status {rc}")
    answer(port, {"id": request["id"], "rc": rc, "out": text})


def main() -> None:
    """Serve the port for ever."""
    with PORT.open("r+b", buffering=0) as raw:
        port: BinaryIO = raw
        answer(port, {"boot": BOOT_ID.read_text().strip()})
        pending = b""
        while True:
            pending += os.read(raw.fileno(), 1 << 16)
            *lines, pending = pending.split(b"\n")
            for line in filter(None, lines):
                threading.Thread(target=run, args=(port, json.loads(line)), daemon=True).start()


if __name__ == "__main__":
    main()
