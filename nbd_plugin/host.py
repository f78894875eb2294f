"""host: polyvol's service, running inside another server's process.

How it works      nbdkit owns the process, its signals and its NBD sockets; a Host owns a Service without NBD
                  sockets of its own, which has the control socket and the engine as in polyvold.
Owner and locks   `start`, then `stop`, are called once each. Everything else may be called by any thread.
Durability        `stop` leaves everything durable; the next start recovers what a killed process left.
Errors            `start` raises what the service raises: a sentence for the user. `open` raises OSError.
"""

import errno
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from polyvol.daemon.config import IO_TIMEOUT_S
from polyvol.daemon.engine_border import HandleLike
from polyvol.daemon.host.sockets import InheritedSockets
from polyvol.daemon.service import Service
from polyvol.engine import EngineError
from polyvol.nbd_plugin.peer import peer, socket_end

if TYPE_CHECKING:
    from polyvol.engine import ExportInfo

ERRNO_OF_KIND = {
    "not-found": errno.ENOENT,
    "exists": errno.EEXIST,
    "busy": errno.EBUSY,
    "invalid": errno.EINVAL,
    "corrupt": errno.EIO,
    "io": errno.EIO,
}


class Host:
    """The service of one state directory. `addresses` are nbdkit's, for `polyvol status`;
    `control_fd` is a control socket that listens already, `lock_fd` the state directory's lock."""

    def __init__(
        self,
        state_dir: Path,
        processors: int | None,
        addresses: Sequence[str],
        control_fd: int | None = None,
        lock_fd: int | None = None,
        io_timeout_s: int = IO_TIMEOUT_S,
    ) -> None:
        self._clients: dict[HandleLike, int] = {}
        self._service = Service(
            state_dir,
            processors=processors,
            serve_nbd=False,
            frontend="nbdkit",
            nbd_addresses=addresses,
            io_timeout_s=io_timeout_s,
            passed=InheritedSockets(
                None if control_fd is None else socket.socket(fileno=control_fd), lock=lock_fd
            ),
        )

    def start(self) -> None:
        """Lock the state directory, recover its volumes and open the control socket."""
        self._service.start()

    def reload(self, processors: int | None, io_timeout_s: int | None) -> None:
        """Have at least so many processors and this time-out, and look again for devices that are missing;
        PolyvolError. None leaves a setting as it is."""
        self._service.reload(processors, io_timeout_s=io_timeout_s)

    def stop(self) -> None:
        """Stop the control socket and the engine; everything is durable on return."""
        self._service.stop()

    def exports(self) -> "Sequence[ExportInfo]":
        """All exports, by name."""
        return self._service.exports()

    def default_export(self) -> str:
        """What the empty export name means: the only volume, or nothing when there are several."""
        volumes = [export["name"] for export in self.exports() if not export["read_only"]]
        return volumes[0] if len(volumes) == 1 else ""

    def open(self, name: str) -> HandleLike:
        """Open an export for I/O, for the client of this thread's connection; OSError (ENOENT, EBUSY, EINVAL,
        EIO) when it cannot be."""
        try:
            handle = self._service.engine.open(name)
        except EngineError as error:
            raise OSError(error.errno or ERRNO_OF_KIND[error.kind], str(error)) from error
        whose = peer()
        self._clients[handle] = self._service.clients.came(name, handle, whose, socket_end(whose))
        return handle

    def close(self, handle: HandleLike) -> None:
        """Handle a client's disconnect."""
        handle.close()
        self._service.clients.left(self._clients.pop(handle, 0))
