"""waiting_client: a client that reads and writes 4 KiB every few milliseconds; it tells its worst waits.

How it works      It runs as a program of its own, so that what a test does beside it takes no time from it:
                  `WaitingClient` starts it. A line on its input has it print, as one line of JSON, the worst
                  waits since the last line.
Errors            Where the server answers with an error or not at all, it ends with a traceback; the test
                  sees no line.
"""

import json
import select
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, Self

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.raw_nbd import FLUSH, READ, WRITE, Peer, request

BLOCK = 4096
BLOCKS = 64
PAUSE_S = 0.003


class Waits(NamedTuple):
    """The worst waits, in milliseconds, and how many requests there were."""

    read_ms: float
    write_ms: float
    connect_ms: float
    requests: int

    @property
    def worst_ms(self) -> float:
        """The worst of all."""
        return max(self.read_ms, self.write_ms, self.connect_ms)


class WaitingClient:
    """The client's program, on an export of the server at `path`.

    `verbs`: some of "r" (read), "w" (write), "f" (flush) and "c" (a new connection).
    """

    def __init__(self, path: Path, export: str, verbs: str = "rwc") -> None:
        command = [sys.executable, __file__, str(path), export, verbs]
        self.program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.waits()  # it runs

    def waits(self) -> Waits:
        """The worst waits since this was last asked."""
        assert self.program.stdin
        assert self.program.stdout
        self.program.stdin.write("\n")
        self.program.stdin.flush()
        ready, _, _ = select.select([self.program.stdout], [], [], 60)
        assert ready, "the client got no answer for a minute"
        return Waits(*json.loads(self.program.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.program.kill()
        self.program.communicate()


def timed_ms(peer: Peer, command: int, offset: int, length: int, data: bytes = b"") -> float:
    """Make a request and take its answer; how long that took."""
    begun = time.monotonic()
    peer.socket.sendall(request(command, offset, length) + data)
    assert peer.reply().error == 0
    return (time.monotonic() - begun) * 1000


def main(path: Path, export: str, verbs: str) -> None:
    """The program."""
    worst = [0.0, 0.0, 0.0]
    count = 0
    peer = Peer(path).enter(export)
    while True:
        if "r" in verbs:
            worst[0] = max(worst[0], timed_ms(peer, READ, count % BLOCKS * BLOCK, BLOCK))
        if "w" in verbs:
            offset = count * 7 % BLOCKS * BLOCK
            worst[1] = max(worst[1], timed_ms(peer, WRITE, offset, BLOCK, struct.pack(">Q", count) * 512))
        if "f" in verbs:
            worst[1] = max(worst[1], timed_ms(peer, FLUSH, 0, 0))
        if "c" in verbs and count % 16 == 0:
            begun = time.monotonic()
            with Peer(path) as other:
                other.enter(export)
            worst[2] = max(worst[2], (time.monotonic() - begun) * 1000)
        count += 1
        if select.select([sys.stdin], [], [], PAUSE_S)[0]:
            if not sys.stdin.readline():
                return
            print(json.dumps([*worst, count]), flush=True)
            worst, count = [0.0, 0.0, 0.0], 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
