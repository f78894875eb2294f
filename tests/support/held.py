"""held: a `polyvol` that stops at a point until the test resumes it, so that the test can act there.

How it works      `Held` starts this file by the test's Python, with the point and how often to pass it
                  before. There the command makes the file `held` and waits for the file `go`. Points: the
                  first NBD connection ("connect"), a read or write of an export ("pread", "pwrite"), a
                  request to the daemon ("restores", "completion": the last word of its path), what was
                  written being read back ("read_back"), and the rename to FILE ("rename").
Owner and locks   The test that makes a Held ends it, as a context manager.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

WAIT_S = 60.0


class Held:
    """`polyvol ARGUMENTS`, which stops at `point` when it was passed `passes` times."""

    def __init__(
        self, state_dir: Path, scratch: Path, point: str, *arguments: str | Path, passes: int = 0
    ) -> None:
        from tests.support.proc import wait_until

        scratch.mkdir()
        self._go = scratch / "go"
        command = [sys.executable, __file__, str(scratch), point, str(passes), *map(str, arguments)]
        env = {**os.environ, "POLYVOL_STATE": str(state_dir)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
        held = scratch / "held"
        wait_until(lambda: held.exists() or self.process.poll() is not None, f"the command to reach {point}")
        assert held.exists(), f"it did not reach {point}: {self.process.communicate()}"

    def kill(self, number: int = signal.SIGKILL) -> int:
        """End it by a signal, where it is; its exit status."""
        self.process.send_signal(number)
        self._go.touch()
        return self.process.wait(WAIT_S)

    def go(self) -> tuple[int, str]:
        """Let it go on to its end: its exit status, and what it said on stderr."""
        self._go.touch()
        _, said = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, said.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def main() -> None:
    """Become the command."""
    sys.path.pop(0)  # this folder has an nbd.py of its own
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the parent of the tests may ignore it, as nohup does
    scratch, point, passes, *arguments = sys.argv[1:]
    _patch(point, _Stop(Path(scratch), int(passes)))
    from polyvol.daemon.client.cli.main import main as polyvol

    sys.argv = ["polyvol", *arguments]
    polyvol()


class _Stop:
    def __init__(self, scratch: Path, passes: int) -> None:
        self._scratch = scratch
        self._left = passes

    def __call__(self) -> None:
        self._left -= 1
        if self._left >= 0:
            return
        (self._scratch / "held").touch()
        while not (self._scratch / "go").exists():
            time.sleep(0.005)


def _patch(point: str, stop: _Stop) -> None:
    from polyvol.daemon.client.cli import client
    from polyvol.daemon.client.transfer import backup, copy, file
    from polyvol.daemon.client.transfer.client import NbdExport

    def before(owner: Any, name: str, when: Callable[..., bool] = lambda *_: True) -> None:
        original = getattr(owner, name)

        def stopped(*arguments: Any, **named: Any) -> Any:
            if when(*arguments):
                stop()
            return original(*arguments, **named)

        setattr(owner, name, stopped)

    if point == "connect":
        before(NbdExport, "__init__")
    elif point in ("pread", "pwrite"):
        before(NbdExport, point)
    elif point == "read_back":
        before(backup, "_read_back")
        before(copy, "_read_back")
    elif point == "rename":
        before(file, "_rename")
    else:
        before(client.Client, "post", lambda *parts: parts[-1] == point)


if __name__ == "__main__":
    main()
