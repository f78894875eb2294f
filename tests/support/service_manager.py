"""service_manager: what systemd is for a service with sockets and a store of file descriptors.

How it works      A `Manager` binds the NBD and control sockets and the notification socket, keeps what a
                  polyvold puts into its store, and passes all of it to the next one that it starts
                  (LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID). As systemd does, it keeps what it has passed until
                  it is told not to, and drops sockets whose peer has hung up.
Owner and locks   A thread reads the notification socket; one lock over the store.
Errors            AssertionError, with polyvold's own output.
"""

import array
import os
import select
import socket
import sys
import threading
from pathlib import Path
from typing import Self

from tests.support.daemon import BIN, START_S, STOP_S, Daemon
from tests.support.forks import DESCRIPTORS_MAX, ForkedBackground
from tests.support.proc import Background, wait_until

FDS_MAX = 64
_ACTIVATE = """
import fcntl, os, sys
count = int(sys.argv[1])
held = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 3 + count) for number in sys.argv[2:2 + count]]
for wanted, number in enumerate(held, 3):
    os.dup2(number, wanted, inheritable=True)
    os.close(number)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2 + count], sys.argv[2 + count:])
"""
"""Run by a Python of its own: puts the descriptors where they are looked for, then becomes polyvold."""


class Manager(Daemon):
    """One polyvold after the other, as a systemd service."""

    def __init__(self, directory: Path, *, stores: bool = True) -> None:
        super().__init__(directory)
        self.state_dir.mkdir(mode=0o750)
        self.stored: dict[str, int] = {}
        self.told: list[str] = []
        self._stores = stores
        self._lock = threading.Lock()
        self._listening = {"nbd": _listen(self.nbd_socket), "control": _listen(self.control_socket)}
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notices.bind(str(directory / "notify"))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def launch(self) -> Background:
        """Start a polyvold with all that there is for it, and do not wait."""
        assert not self.running, "the daemon runs already"
        self.told.clear()
        self._drop_hung_up()
        with self._lock:
            passed = [(name, each.fileno()) for name, each in self._listening.items()]
            passed += self.stored.items()
        environment = self.environment | {
            "NOTIFY_SOCKET": str(self.directory / "notify"),
            "LISTEN_FDS": str(len(passed)),
            "LISTEN_FDNAMES": ":".join(name for name, _ in passed),
        }
        if self._stores:
            environment["FDSTORE"] = "4096"
        numbers = [number for _, number in passed]
        program, *arguments = self.command()
        if program == BIN / "polyvold" and "nbdkit" not in arguments and len(numbers) <= DESCRIPTORS_MAX - 3:
            self._process = ForkedBackground(
                "polyvold", *arguments, log=self.log, env=environment, passed=numbers
            )
        else:
            starter = [sys.executable, "-c", _ACTIVATE, len(numbers), *numbers, program, *arguments]
            self._process = Background(*starter, log=self.log, env=environment, pass_fds=numbers)
        return self._process

    def start(self) -> None:
        """Start it and wait until it serves and has taken over what there was."""
        process = self.launch()
        process.wait_until(lambda: "READY=1" in self.told, "READY=1", START_S)
        wait_until(lambda: not self.stored, "the end of what was stored", 10)

    def events(self) -> list[str]:
        """What the running polyvold says has happened."""
        return [event["text"] for event in self.api.get("status")["events"]]

    def stop_and_keep(self) -> dict[str, int]:
        """Stop it; what it has put into the store, but for devices."""
        code = self.end()
        assert code == 0, f"polyvold ended with {code}:\n{self.said()}"
        return {name: number for name, number in self.stored.items() if not name.startswith("device-")}

    def forget_devices(self) -> None:
        """Keep no device any more, as when the service is stopped for good."""
        self._forget([name for name in self.stored if name.startswith("device-")])

    def end(self) -> int:
        """Stop it as systemd does; its exit code."""
        assert self._process is not None, "the daemon was not started"
        return self._process.stop(STOP_S)

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def __exit__(self, *arguments: object) -> None:
        try:
            super().__exit__(*arguments)  # type: ignore[arg-type]
        finally:
            self._notices.shutdown(socket.SHUT_RDWR)
            self._reader.join(10)
            for each in (self._notices, *self._listening.values()):
                each.close()
            self._forget(list(self.stored))

    def _read(self) -> None:
        while True:
            try:
                text, rights, _, _ = self._notices.recvmsg(4096, socket.CMSG_SPACE(FDS_MAX * 4))
            except OSError:
                return
            if not text:
                return
            numbers = array.array("i")
            for level, kind, data in rights:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            self._obey(text.decode().splitlines(), list(numbers))

    def _obey(self, lines: list[str], numbers: list[int]) -> None:
        self.told += lines
        name = next((line.removeprefix("FDNAME=") for line in lines if line.startswith("FDNAME=")), "stored")
        if "FDSTORE=1" in lines and self._stores:
            with self._lock:
                assert name not in self.stored, f"{name} is stored already"
                self.stored[name] = numbers.pop(0)
        if "FDSTOREREMOVE=1" in lines:
            self._forget([name])
        for number in numbers:  # a barrier's, too
            os.close(number)

    def _forget(self, names: list[str]) -> None:
        with self._lock:
            for name in names:
                number = self.stored.pop(name, None)
                if number is not None:
                    os.close(number)

    def _drop_hung_up(self) -> None:
        watch = select.poll()
        with self._lock:
            by_number = {number: name for name, number in self.stored.items()}
        for number in by_number:
            watch.register(number, 0)
        gone = [number for number, what in watch.poll(0) if what & (select.POLLHUP | select.POLLERR)]
        self._forget([by_number[number] for number in gone])


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(4096)
    return listener
