"""daemon: a real polyvold on its own state directory, and the CLI for it.

How it works      A Daemon starts `polyvold` (forks.py; the installed program where it has an environment of
                  its own, or runs behind nbdkit) and waits until its control
                  socket answers. The state directory is short and under /tmp, because a unix socket's path
                  may have at most 107 bytes and pytest's own directories are longer than that.
Owner and locks   The fixture that made a Daemon closes it: the process is stopped, its exit code asserted
                  to be 0, its state directory removed. `kill` and `restart` may be called in between.
Errors            AssertionError with the daemon's own output.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from polyvol.daemon.client.cli.client import Client
from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.sizes import parse_size
from tests.support import forks
from tests.support.forks import ForkedBackground
from tests.support.nbd import uri
from tests.support.proc import TIMEOUT_S, Argument, Background, Result

BIN = Path(sys.executable).parent
START_S = 60.0
STOP_S = 60.0


def flip(path: Path, at: int) -> None:
    """Flip the lowest bit of the byte at this offset of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory with a path short enough for sockets, removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="pv-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Daemon:
    """One polyvold. Use it as a context manager, or through the fixtures of conftest.py."""

    def __init__(self, directory: Path, *arguments: Argument, env: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.move(directory / "state")
        self.log = directory / "polyvold.log"
        self.arguments = arguments
        self.environment = dict(env or {})
        self._process: Background | None = None

    def move(self, state_dir: Path) -> None:
        """Have its state elsewhere; it does not run."""
        self.state_dir = state_dir
        self.nbd_socket = state_dir / "nbd.sock"
        self.control_socket = state_dir / "control.sock"

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self._process is not None, "the daemon was not started"
        return self._process.pid

    @property
    def served_by(self) -> int:
        """The process that serves: with `--frontend nbdkit` that is nbdkit."""
        pid: int = self.api.get("status")["daemon"]["pid"]
        return pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.rc is None

    def said(self) -> str:
        """All that the daemon has written."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def command(self) -> list[Argument]:
        """What `start` starts."""
        return [BIN / "polyvold", "--state-dir", self.state_dir, *self.arguments]

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.launch().wait_until(
            lambda: self.control_socket.exists() and self._answers(), "polyvold's answer", START_S
        )

    def launch(self) -> Background:
        """Start it, and do not wait."""
        assert not self.running, "the daemon runs already"
        program, *arguments = self.command()
        if program == BIN / "polyvold" and not self.environment and "nbdkit" not in arguments:
            self._process = ForkedBackground("polyvold", *arguments, log=self.log)
        else:
            self._process = Background(program, *arguments, log=self.log, env=self.environment)
        return self._process

    def _answers(self) -> bool:
        try:
            self.api.get("status")
        except PolyvolError:
            return False
        return True

    def end(self) -> int:
        """Stop it as systemd does; its exit code."""
        assert self._process is not None, "the daemon was not started"
        return self._process.stop(STOP_S)

    def stop(self) -> None:
        """Stop it as systemd does, and see that it ended well."""
        code = self.end()
        assert code == 0, f"polyvold ended with {code}:\n{self.said()}"

    def kill(self) -> None:
        """End it at once, by SIGKILL."""
        assert self._process is not None, "the daemon was not started"
        self._process.kill()

    def restart(self) -> None:
        """Stop it if it runs, and start it on the same state."""
        if self.running:
            self.stop()
        self.start()

    def cli(self, *arguments: Argument, timeout_s: float = TIMEOUT_S) -> Result:
        """Run `polyvol` on this daemon's state directory, whatever the result."""
        env = {"POLYVOL_STATE": str(self.state_dir)}
        return forks.run("polyvol", *arguments, env=env, timeout_s=timeout_s)

    def ok(self, *arguments: Argument, timeout_s: float = TIMEOUT_S) -> str:
        """Run `polyvol` and have it succeed; its output."""
        result = self.cli(*arguments, timeout_s=timeout_s)
        said = f"{result.out}{result.err}\npolyvold said:\n{self.said()}"
        assert result.rc == 0, f"polyvol {' '.join(map(str, arguments))} gave {result.rc}:\n{said}"
        return result.out

    def ok_to(self, file: Path, *arguments: Argument) -> str:
        """Run the installed `polyvol` in the daemon's directory with its standard output in a file, and have
        it succeed; what it says on stderr."""
        command = [str(word) for word in (BIN / "polyvol", *arguments, "--state-dir", self.state_dir)]
        with file.open("wb") as output:
            result = subprocess.run(
                command,
                cwd=self.directory,
                stdout=output,
                stderr=subprocess.PIPE,
                timeout=TIMEOUT_S,
                text=True,
                check=True,
            )
        return result.stderr

    def json(self, *arguments: Argument) -> Any:
        """What `polyvol ... --json` says."""
        return json.loads(self.ok(*arguments, "--json"))

    def refused(self, *arguments: Argument, rc: int = 1) -> str:
        """Run `polyvol` and have it refuse: that exit code, nothing on stdout, one sentence on stderr."""
        result = self.cli(*arguments)
        assert result.rc == rc, f"polyvol {arguments} gave {result.rc}:\n{result.out}{result.err}"
        assert result.out == ""
        assert "Traceback" not in result.err
        assert result.err.strip(), "refused without a message"
        return result.err

    @property
    def api(self) -> Client:
        """The control API without starting `polyvol` for each call."""
        return Client(self.state_dir)

    def volume(self, name: str) -> Any:
        """What `polyvol volume show --json` says, without starting it."""
        return self.api.get("volumes", name)

    def snapshots(self, volume: str | None = None) -> Any:
        """What `polyvol snapshot list --json` says of a volume or all, without starting it."""
        return self.api.get("snapshots", volume=volume)

    def everything(self) -> Any:
        """All that the daemon has, but for estimates, which move with the clock, and what is done in the
        background."""
        told = self.api.get("status")
        for volume in told["volumes"]:
            for moving in ("space", "use", "relocation", "advice"):
                del volume[moving]
        return told["volumes"], told["devices"], self.snapshots()

    def uri(self, export: str) -> str:
        """The NBD address of an export."""
        return uri(export, self.nbd_socket)

    def add_devices(self, *names: str, size: str = "1G") -> None:
        """Add sparse files as devices."""
        for name in names:
            path = str(self.directory / f"{name}.img")
            self.api.post("devices", body={"path": path, "name": name, "size": parse_size(size)})

    def create_on_two_devices(self, size: str) -> None:
        """Create volume v on devices a and b, with a partition of 1 MiB for each of two processors in turn,
        and a change log on device log."""
        places = ("--device", "a", "--device", "b", "--log-device", "log")
        options = ("--partition-size", "1M", "--processors", "2")
        self.ok("volume", "create", "v", "--size", size, *options, *places)

    def make_volume(self, name: str = "v", *, size: str = "256M", processors: int = 2, **options: str) -> str:
        """A volume over two sparse devices of its own with a change-log device; the volume's name."""
        devices = [f"{name}-0", f"{name}-1", f"{name}-log"]
        self.add_devices(*devices, size="4G")
        body = {"name": name, "size": parse_size(size), "processors": processors, **options}
        if "partition_size" in options:
            body["partition_size"] = parse_size(options["partition_size"])
        body |= {"devices": devices[:2], "log_devices": devices[2:]}
        self.api.post("volumes", body=body)
        return name

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it, whatever happened; a clean end is asserted unless the test failed anyway."""
        if self._process is None:
            return
        if kind is None and self.running:
            try:
                self.stop()
            finally:
                self._process.kill()
            return
        if kind is not None:
            sys.stderr.write(f"polyvold said:\n{self.said()}\n")
            if self.running:
                os.kill(self.pid, signal.SIGTERM)
        self._process.__exit__(kind, error, trace)
