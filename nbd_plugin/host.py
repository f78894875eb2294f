"""host: polyvol's service, running inside another server's process.

How it works      nbdkit owns the process, its signals and its NBD sockets; a Host owns a Service without NBD
                  sockets of its own, which has the control socket and the engine as in polyvold. `command` is
                  how polyvold starts nbdkit with the plugin, and how a person would.
Owner and locks   `start`, then `stop`, are called once each. Everything else may be called by any thread.
Durability        `stop` leaves everything durable; the next start recovers what a killed process left.
Errors            `start` raises what the service raises: a sentence for the user. `open` raises OSError.
"""

import errno
import os
import sysconfig
from pathlib import Path

from polyvol.daemon.service import Service
from polyvol.engine import EngineError, ExportInfo, Handle

ERRNO_OF_KIND = {
    "not-found": errno.ENOENT,
    "exists": errno.EEXIST,
    "busy": errno.EBUSY,
    "invalid": errno.EINVAL,
    "corrupt": errno.EIO,
    "io": errno.EIO,
}


class Host:
    """The service of one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._service = Service(state_dir=state_dir, serve_nbd=False)

    def start(self) -> None:
        """Take the state directory over, recover its volumes and open the control socket."""
        self._service.start()

    def stop(self) -> None:
        """Stop the control socket and the engine; everything is durable on return."""
        self._service.stop()

    def exports(self) -> list[ExportInfo]:
        """What there is to connect to, by name."""
        return self._service.engine.exports()

    def default_export(self) -> str:
        """What the empty export name means: the only volume, or nothing when there are several."""
        volumes = [export["name"] for export in self.exports() if not export["read_only"]]
        return volumes[0] if len(volumes) == 1 else ""

    def open(self, name: str) -> Handle:
        """Open an export for I/O; OSError (ENOENT, EBUSY, EINVAL, EIO) when it cannot be."""
        try:
            return self._service.engine.open(name)
        except EngineError as error:
            raise OSError(error.errno or ERRNO_OF_KIND[error.kind], str(error)) from error


def plugin_path() -> Path:
    """The file to name to `nbdkit python`."""
    return Path(__file__).resolve().with_name("polyvol_plugin.py")


def command(state_dir: Path, nbd_socket: Path, *, nbdkit: str = "nbdkit") -> list[str]:
    """The command line that serves a state directory by nbdkit on one unix socket, in the foreground."""
    return [
        nbdkit,
        "--foreground",
        "--exit-with-parent",
        "--unix",
        str(nbd_socket),
        "python",
        str(plugin_path()),
        f"state-dir={state_dir}",
    ]


def environment() -> dict[str, str]:
    """The environment for `command`: this one, with the packages of this interpreter on PYTHONPATH.

    nbdkit embeds the system's interpreter, which knows nothing of the virtual environment polyvold runs in.
    """
    paths = [sysconfig.get_path("purelib"), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
