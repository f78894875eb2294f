"""Records of attached volumes: what the administrator wants, and the result at this boot.

How it works      One JSON file for each, by name: /etc/polyvol/attached/NAME.json says how it is to be
                  attached, at every boot, until it is detached; /run/polyvol/attached/NAME.json says which
                  device it is now. Both belong to root; the daemon, which may run on another machine, does
                  not use them.
Owner and locks   A command that attaches or detaches a name holds /run/polyvol/attached/NAME.command.lock
                  from before its first check until its end. The unit's process acts while the command waits
                  for it, so the process that makes or ends the device holds NAME.device.lock. Programs that
                  are run under the locks inherit them, so the locks outlive a killed command.
Durability        A record is written to a temporary file, synced, and renamed.
Errors            RecordUnusable.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from polyvol.daemon.client.attach.errors import AttachBusy, RecordUnusable
from polyvol.mapping.durable import replace_file, sync_directory
from polyvol.mapping.os_errors import reason

ROOT_VARIABLE = "POLYVOL_ATTACH_ROOT"
"""Another root than / for /etc/polyvol, /run/polyvol and /dev/polyvol: for tests."""
Kind = Literal["nbd", "fuse"]
LOCK_S = 240.0
"""How long a lock is waited for: longer than what its holder may wait for."""
_POLL_S = 0.05
_held: set[int] = set()
"""The descriptors of the locks that this process holds."""


def held() -> tuple[int, ...]:
    """The locks' descriptors, for programs to inherit."""
    return tuple(_held)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How a volume or snapshot is to be attached. `device`: such as '/dev/nbd0', None for any that is free;
    times in seconds, `block_size` in bytes."""

    name: str
    uri: str
    kind: Kind = "nbd"
    connections: int = 4
    device: str | None = None
    block_size: int = 512
    timeout_s: int = 10
    dead_timeout_s: int = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """What is attached: `device` such as 'nbd0'; `pid`: of nbdfuse; `uuid`: that of the volume or snapshot,
    if the server gave it; `uri`: where its export is; `lost`: why writes to it failed, if the kernel has
    reported that, which it does once."""

    name: str
    device: str
    kind: Kind
    size: int
    flags: int
    uuid: str | None = None
    pid: int | None = None
    uri: str | None = None
    lost: str | None = None


Record = TypeVar("Record", Wanted, Attached)


@dataclass(frozen=True, slots=True)
class Places:
    """Where records, links, and what nbdfuse shows are."""

    root: Path

    @classmethod
    def default(cls) -> "Places":
        """The host's, or those below $POLYVOL_ATTACH_ROOT."""
        return cls(Path(os.environ.get(ROOT_VARIABLE) or "/"))

    def link(self, name: str) -> Path:
        """The link to the block device."""
        return self.root / "dev/polyvol" / name

    def fuse_file(self, name: str) -> Path:
        """The file that nbdfuse shows; the udev rule knows the directory."""
        return self.root / "run/polyvol/fuse" / name

    def log(self, name: str) -> Path:
        """What nbdfuse has said."""
        return self.root / "run/polyvol/attached" / f"{name}.log"

    def wanted(self, name: str) -> Wanted | None:
        """How this name is to be attached, or None."""
        return _read(self._path(Wanted, name), Wanted)

    def now(self, name: str) -> Attached | None:
        """What was attached by this name when the record was written, or None."""
        return _read(self._path(Attached, name), Attached)

    def names(self) -> list[str]:
        """All names that there is a record of."""
        found = {
            path.stem for kind in (Wanted, Attached) for path in self._path(kind, "x").parent.glob("*.json")
        }
        return sorted({*found, *(path.name for path in self.fuse_file("x").parent.glob("*"))})

    @contextlib.contextmanager
    def lock(self, name: str, what: Literal["command", "device"]) -> Iterator[None]:
        """Hold a lock of a name; AttachBusy if another process keeps it for LOCK_S seconds."""
        path = self.root / "run/polyvol/attached" / f"{name}.{what}.lock"
        deadline = time.monotonic() + LOCK_S
        while (descriptor := _locked(path)) is None:
            if time.monotonic() >= deadline:
                raise AttachBusy(name=name)
            time.sleep(_POLL_S)
        _held.add(descriptor)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is held: a waiter then retries
            _held.remove(descriptor)
            os.close(descriptor)

    def sweep(self) -> None:
        """Remove lock files that killed commands left and no process holds."""
        for path in self._path(Attached, "x").parent.glob("*.lock"):
            descriptor = _locked(path)
            if descriptor is not None:
                path.unlink(missing_ok=True)
                os.close(descriptor)

    def write(self, record: Wanted | Attached) -> None:
        """Write a record."""
        path = self._path(type(record), record.name)
        text = json.dumps(dataclasses.asdict(record), indent=2) + "\n"
        new = path.with_suffix(".new")
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            replace_file(path, new, text.encode(), mode=0o666)
        except OSError as error:
            raise RecordUnusable(path=path, why=reason(error)) from error

    def forget(self, kind: type[Wanted] | type[Attached], name: str) -> None:
        """Remove a record, if it exists."""
        path = self._path(kind, name)
        try:
            path.with_suffix(".new").unlink(missing_ok=True)  # of a `write` that was killed
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                sync_directory(path.parent)  # otherwise it could be attached again after a power loss
        except OSError as error:
            raise RecordUnusable(path=path, why=reason(error)) from error

    def _path(self, kind: type[Wanted] | type[Attached], name: str) -> Path:
        directory = "etc/polyvol/attached" if kind is Wanted else "run/polyvol/attached"
        return self.root / directory / f"{name}.json"


def _locked(path: Path) -> int | None:
    """The descriptor of the lock at this path if the lock was free; otherwise None."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RecordUnusable(path=path, why=reason(error)) from error
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
    os.close(descriptor)
    return None


def _read(path: Path, kind: type[Record]) -> Record | None:
    try:
        values: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return kind(**values)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordUnusable(path=path, why=reason(error)) from error
    except (ValueError, TypeError) as error:
        raise RecordUnusable(path=path, why=f"it is not what polyvol writes: {error}") from error
