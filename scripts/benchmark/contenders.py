"""contenders: the servers that are measured, all on files that the page cache has.

How it works      nbdkit, qemu-nbd raw, nbd-server, the limit and polyvol's volume `plain` (which adopts it as
                  its base) serve the same file, so the page cache serves all in the same way; nobody writes
                  while another is measured. The others have files of their own with the same bytes. A
                  `Standing` server runs from the start to the end and sleeps while others have their turn; a
                  `Fresh` one is made ready and started for each turn: qemu takes no internal snapshot of an
                  image that it serves, and an overlay that has been written to is no longer one. `Many` is
                  polyvol's volume that gains snapshots as the cases ask for them, with random writes between.
Owner and locks   `Contenders` ends every process that it started, by id, whatever happens.
Errors            AssertionError with the server's own output when it does not start.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from polyvol.daemon.client.cli.client import Client
from polyvol.mapping.label import DATA_OFFSET
from scripts.benchmark import cases
from scripts.benchmark.load import Export, examples, load_command, write_region, write_some
from scripts.benchmark.quiet import favour
from tests.support.daemon import Daemon
from tests.support.proc import Argument, Background, check, end_session, wait_until

LOG_SIZE = "16G"
MORE_LOG_SIZE = "8G"
WRITES_BETWEEN_SNAPSHOTS = 1000
WRITES_FROM_100_ON = 100
_PATTERN_BYTES = 16 << 20
_FRESH = "fresh"
_WHILE_S = 600


class Contender(Protocol):
    """A server in the table: `turn` gives what it serves and its process's id, ready to be measured."""

    @contextmanager
    def turn(self) -> Iterator[tuple[Export, int]]:
        """One turn."""
        ...


@dataclass
class Standing:
    """A server that runs all the time. `client`: take a snapshot before each turn, delete it afterwards.
    `writes`: an export that is written to during the turn."""

    pid: int
    export: Export
    client: Client | None = None
    writes: Export | None = None

    @contextmanager
    def turn(self) -> Iterator[tuple[Export, int]]:
        """One turn."""
        with ExitStack() as stack:
            if self.client is not None:
                self.client.post("snapshots", body={"volumes": [self.export.name], "name": _FRESH})
                stack.callback(self.client.delete, "volumes", self.export.name, "snapshots", _FRESH)
            if self.writes is not None:
                stack.enter_context(_written(self.writes))
            yield self.export, self.pid


@dataclass
class Fresh:
    """A server that is started for each turn, after `prepare`."""

    prepare: Callable[[], None]
    command: list[Argument]
    socket: Path

    @contextmanager
    def turn(self) -> Iterator[tuple[Export, int]]:
        """One turn."""
        self.socket.unlink(missing_ok=True)
        self.prepare()
        environment = {"TMPDIR": str(self.socket.parent)}
        with Background(*self.command, log=self.socket.with_suffix(".log"), env=environment) as process:
            process.wait_until(self.socket.exists, f"{self.command[0]}'s socket")
            favour(process.pid)
            yield Export(self.socket, ""), process.pid


@dataclass
class Many:
    """polyvol's volume with snapshots, at first none."""

    daemon: Daemon
    export: Export
    taken: int = 0

    def have(self, snapshots: int, region: int) -> None:
        """Take snapshots until there are so many, and have the region's bytes be newer than all of them."""
        client = Client(self.daemon.state_dir)
        older = self.taken < snapshots
        for number in range(self.taken, snapshots):
            if number:
                writes = WRITES_BETWEEN_SNAPSHOTS if number < 100 else WRITES_FROM_100_ON
                write_some(self.export, writes, seed=number)
            client.post("snapshots", body={"volumes": [self.export.name], "name": f"s{number}"})
        self.taken = max(self.taken, snapshots)
        if region and older:
            write_region(self.export, region)


class Contenders:
    """The contenders that a group of cases needs, in a directory; a context manager that ends them."""

    def __init__(self, directory: Path, wanted: set[str]) -> None:
        self.directory = directory
        self.wanted = wanted
        self.many: Many | None = None
        self._found: dict[str, Contender] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Contender:
        return self._found[name]

    def _start(self) -> None:
        data = self.directory / "data.img"
        fill(data)
        self._others(data)
        if any(name.startswith("qcow2") for name in self.wanted):
            # qemu locks what it serves or is based on.
            backing = self.directory / "backing.img"
            fill(backing)
            self._qcow2(backing)
        command: list[Argument] = ["nbdkit", "-f", "-U", self.directory / "cow.sock", "--filter=cow", "file"]
        self._fresh(cases.NBDKIT_COW, lambda: None, "cow.sock", [*command, data])
        self._polyvols(data)
        settle(self.directory)
        assert self.wanted <= self._found.keys(), f"no server is called {self.wanted - self._found.keys()}"

    def _standing(self, name: str, word: str, *command: Argument) -> None:
        if name not in self.wanted:
            return
        socket = self.directory / f"{word}.sock"
        log = self.directory / f"{word}.log"
        process = self._stack.enter_context(Background(*command, log=log))
        process.wait_until(socket.exists, f"{name}'s socket")
        favour(process.pid)
        self._found[name] = Standing(process.pid, Export(socket, ""))

    def _qemu(self, socket: str, image: Path, kind: str) -> list[Argument]:
        # Its locks would keep polyvol from adopting the file that both serve.
        options = f"driver={kind},file.driver=file,file.locking=off,file.filename={image}"
        path = self.directory / socket
        return ["qemu-nbd", "-t", "-e", "16", "--cache=writeback", "-k", path, "--image-opts", options]

    def _others(self, data: Path) -> None:
        at = self.directory
        self._standing(cases.NBDKIT, "nbdkit", "nbdkit", "-f", "-U", at / "nbdkit.sock", "file", data)
        self._standing(cases.QEMU, "qemu", *self._qemu("qemu.sock", data, "raw"))
        limit = examples() / "limit"
        self._standing(cases.LIMIT, "limit", limit, at / "limit.sock", data)
        command: list[Argument] = [limit, at / "redirect.sock", data, "redirect", at / "redirect.log"]
        self._standing(cases.LIMIT_REDIRECTING, "redirect", *command)
        if cases.LIMIT_REDIRECTING in self.wanted:
            write_region(Export(at / "redirect.sock", ""), cases.REGION_BYTES)
        config = at / "nbd-server.conf"
        lines = ["[generic]", f"unixsock = {at / 'nbd.sock'}", "[bench]", f"exportname = {data}"]
        config.write_text("\n".join([*lines, ""]))
        if cases.NBD_SERVER in self.wanted:
            pid = self._stack.enter_context(_nbd_server(config, at / "nbd-server.pid"))
            self._found[cases.NBD_SERVER] = Standing(pid, Export(at / "nbd.sock", "bench"))

    def _fresh(self, name: str, prepare: Callable[[], None], socket: str, command: list[Argument]) -> None:
        if name in self.wanted:
            self._found[name] = Fresh(prepare, command, self.directory / socket)

    def _qcow2(self, data: Path) -> None:
        if cases.QCOW2 in self.wanted:
            image = self.directory / "plain.qcow2"
            check("qemu-img", "convert", "-f", "raw", "-O", "qcow2", data, image)
            self._standing(cases.QCOW2, "qcow2", *self._qemu("qcow2.sock", image, "qcow2"))
        for name, word, more in (
            (cases.QCOW2_BACKING, "backing", ""),
            (cases.QCOW2_EXTENDED, "extended", ",extended_l2=on"),
        ):
            image = self.directory / f"{word}.qcow2"
            options = f"backing_file={data},backing_fmt=raw{more}"

            def overlay(image: Path = image, options: str = options) -> None:
                check("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, image)

            self._fresh(name, overlay, f"{word}.sock", self._qemu(f"{word}.sock", image, "qcow2"))
        if cases.QCOW2_SNAPSHOT in self.wanted:
            self._internal(data)

    def _internal(self, data: Path) -> None:
        image, pristine = self.directory / "snapshot.qcow2", self.directory / "pristine.qcow2"
        check("qemu-img", "convert", "-f", "raw", "-O", "qcow2", data, pristine)

        def snapshot() -> None:
            shutil.copyfile(pristine, image)
            check("qemu-img", "snapshot", "-c", _FRESH, image)

        command = self._qemu("snapshot.sock", image, "qcow2")
        self._fresh(cases.QCOW2_SNAPSHOT, snapshot, "snapshot.sock", command)

    def _polyvols(self, data: Path) -> None:
        native = {name for name in self.wanted if name.startswith(cases.POLYVOL)} - {cases.POLYVOL_NBDKIT}
        if native:
            daemon = self._daemon("pv")
            self._found[cases.POLYVOL] = Standing(daemon.pid, adopt(daemon, "plain", data))
            if cases.POLYVOL_OVERWRITE in native:
                # Its own: what was redirected before a snapshot is deleted is no longer overwritten in place.
                cut = self.directory / "cut.img"
                fill(cut)
                client, export = Client(daemon.state_dir), adopt(daemon, "cut", cut)
                add_log(daemon, "cut")
                self._found[cases.POLYVOL_OVERWRITE] = Standing(daemon.pid, export, client)
            if native - self._found.keys():
                self._with_snapshots(daemon)
        if cases.POLYVOL_NBDKIT in self.wanted:
            base = self.directory / "nbdkit.img"
            fill(base)
            daemon = self._daemon("pn", "--frontend", "nbdkit")
            export = adopt(daemon, "plain", base)
            pid = int(Client(daemon.state_dir).get("status")["daemon"]["pid"])
            self._found[cases.POLYVOL_NBDKIT] = Standing(pid, export)

    def _daemon(self, word: str, *arguments: Argument) -> Daemon:
        directory = self.directory / word
        directory.mkdir()
        daemon = self._stack.enter_context(Daemon(directory, *arguments))
        favour(daemon.pid)
        return daemon

    def _with_snapshots(self, daemon: Daemon) -> None:
        # Written as the other one was, its logs too: the page cache's pages depend on it, the speed on these.
        base = daemon.directory / "many.img"
        fill(base)
        export = adopt(daemon, "many", base, written=cases.DATA_BYTES)
        add_log(daemon, "many", written=cases.DATA_BYTES)
        self.many = Many(daemon, export)
        for count in cases.SNAPSHOT_COUNTS:
            self._found[cases.with_snapshots(count)] = Standing(daemon.pid, export)
        oldest = Export(export.socket, f"{export.name}@s0")
        self._found[cases.POLYVOL_OLDEST] = Standing(daemon.pid, oldest)
        self._found[cases.POLYVOL_WRITTEN] = Standing(daemon.pid, oldest, writes=export)


def adopt(daemon: Daemon, volume: str, base: Path, *options: str, written: int = 0) -> Export:
    """A volume that has this file as its base, a device with these options, and a log of its own.

    So many bytes of the log's device, from its first on, were `written` before.
    """
    daemon.ok("device", "add", base, "--name", volume, "--adopt", *options)
    _add_log_device(daemon, f"{volume}-log", written)
    daemon.ok("volume", "create", volume, "--base", volume, "--log-device", f"{volume}-log")
    return Export(daemon.nbd_socket, volume)


def add_log(daemon: Daemon, volume: str, written: int = 0) -> None:
    """More room in logs: the first is as large as the volume, and what is live and in snapshots is more."""
    _add_log_device(daemon, f"{volume}-more", written)
    daemon.ok("volume", "add-log", volume, "--device", f"{volume}-more", "--size", MORE_LOG_SIZE)


@contextmanager
def _nbd_server(config: Path, pid_file: Path) -> Iterator[int]:
    """nbd-server, which cannot stay in the foreground; its process id.

    It has a session of its own, with the children that serve its connections; their CPU time is added to its
    own when they have ended.
    """
    check("nbd-server", "-C", config, "-p", pid_file)
    wait_until(lambda: pid_file.exists() and pid_file.read_text().strip() != "", "nbd-server's process id")
    pid = int(pid_file.read_text())
    favour(pid)
    try:
        yield pid
    finally:
        end_session(pid, signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "nbd-server's end")


@contextmanager
def _written(export: Export) -> Iterator[None]:
    """Random writes to the export's first bytes, until the end."""
    settings = {"rw": "randwrite", "seconds": _WHILE_S, "blocks": cases.REGION_BYTES // 4096}
    command = [*map(str, load_command(export, **settings)), "--until-eof"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as load:
        try:
            yield
            load.communicate(timeout=_WHILE_S)
        finally:
            load.kill()
    assert load.returncode == 0, f"the writes beside the case ended with {load.returncode}"


def _add_log_device(daemon: Daemon, name: str, written: int) -> None:
    daemon.add_devices(name, size=LOG_SIZE)
    if written:
        fill(daemon.directory / f"{name}.img", written, behind=DATA_OFFSET)


def fill(path: Path, size: int = cases.DATA_BYTES, behind: int = 0) -> None:
    """A file without holes and without zeroes; in the page cache afterwards.

    `behind`: so many bytes at the beginning of a file that is there stay as they are.
    """
    pattern = os.urandom(_PATTERN_BYTES)
    with path.open("r+b" if behind else "wb") as file:
        file.seek(behind)
        for _ in range(size // _PATTERN_BYTES):
            file.write(pattern)


def settle(directory: Path) -> None:
    """Write out what is dirty in the directory's files, so that no turn pays for the one before."""
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            file = os.open(path, os.O_RDONLY)
            try:
                os.fdatasync(file)
            finally:
                os.close(file)
