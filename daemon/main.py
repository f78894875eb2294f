"""polyvold: reads its settings, runs the service until a signal stops it, and reports when it serves.

SIGTERM and SIGINT stop it cleanly (exit 0). SIGHUP has it read its settings again, of which `processors` can
grow and `io-timeout` can change while it runs, and check again for missing devices. A failed start prints the
reason as one sentence (exit 1).
"""

import contextlib
import logging
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import click

from polyvol.daemon.client.cli.common import PATH
from polyvol.daemon.client.cli.ending import discard
from polyvol.daemon.client.cli.tree import Daemon, version_option
from polyvol.daemon.config import FRONTENDS, Config, load_config
from polyvol.daemon.errors import EXIT_CODE, BadConfig, StopUnfinished, SystemRefused
from polyvol.daemon.host import signals
from polyvol.daemon.host.notify import log_somewhere, notify
from polyvol.daemon.host.sockets import InheritedSockets, inherited_from_systemd
from polyvol.daemon.host.streams import open_standard_streams
from polyvol.daemon.state.directory import control_socket

FILES_MIN = 64
"""How many files a process must be able to have open to serve nothing; each device and client takes more."""


@click.command(cls=Daemon, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@version_option("polyvold")
@click.option("--config", type=PATH, help="TOML file with these options as keys.")
@click.option(
    "--state-dir",
    type=PATH,
    metavar="DIR",
    help="Directory for all state [$POLYVOL_STATE, else /var/lib/polyvol].",
)
@click.option("--nbd-socket", type=PATH, metavar="PATH", help="Unix socket for NBD [STATE/nbd.sock].")
@click.option("--nbd-listen", metavar="HOST:PORT", help="Also serve NBD on TCP.")
@click.option(
    "--processors", type=int, metavar="N", help="Number of processors, 1 to 256 [one for each core]."
)
@click.option(
    "--io-timeout",
    type=int,
    metavar="S",
    help="Seconds until a request to a device that does not answer fails; 0: never [60].",
)
@click.option("--frontend", type=click.Choice(FRONTENDS), help="NBD server to use [native].")
@click.option(
    "--accept-older-catalog",
    is_flag=True,
    help="Use an older copy of the catalog; what it lacks is lost.",
)
def cli(
    config: Path | None,
    state_dir: Path | None,
    nbd_socket: Path | None,
    nbd_listen: str | None,
    processors: int | None,
    io_timeout: int | None,
    frontend: str | None,
    accept_older_catalog: bool,
) -> None:
    """Serve polyvol's volumes and snapshots over NBD until stopped."""
    options = {
        "state-dir": state_dir,
        "nbd-socket": nbd_socket,
        "nbd-listen": nbd_listen,
        "processors": processors,
        "frontend": frontend,
        "io-timeout": io_timeout,
    }
    run(load_config(config, options), lambda: load_config(config, options), accept_older_catalog)


def run(config: Config, read_again: Callable[[], Config], accept_older_catalog: bool = False) -> None:
    """Run until SIGTERM or SIGINT; `read_again` reads the settings again when a SIGHUP asks for it. An older
    catalog is for one start, so it can be accepted by the native front end alone."""
    if accept_older_catalog and config.frontend != "native":
        raise BadConfig(where="polyvold", why="--accept-older-catalog needs the front end native")
    _refuse_few_files()
    log_somewhere()
    passed = inherited_from_systemd(control_socket(Path(os.path.abspath(config.state_dir))))  # noqa: PTH100
    if config.frontend == "nbdkit":
        from polyvol.daemon import hand_over

        hand_over.discard(passed)
        _run_nbdkit(config, passed, read_again)
    else:
        _run_native(config, passed, read_again, accept_older_catalog)


def _refuse_few_files() -> None:
    """SystemRefused if so few files can be open that a start would fail somewhere."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < FILES_MIN:
        why = f"only {files} files can be open in this process, and at least {FILES_MIN} are needed"
        raise SystemRefused(what="polyvold", why=why, todo="raise the limit on open files (`ulimit -n`)")


def _run_nbdkit(config: Config, passed: InheritedSockets, read_again: Callable[[], Config]) -> None:
    from polyvol.daemon.process.nbdkit import supervise

    supervise(config, signals.next_signal, read_again, passed)


def _run_native(
    config: Config, passed: InheritedSockets, read_again: Callable[[], Config], accept_older_catalog: bool
) -> None:
    from polyvol.daemon.process import main_loop
    from polyvol.daemon.service import Service

    service = Service(
        config.state_dir,
        processors=config.processors,
        nbd_socket=config.nbd_socket,
        nbd_listen=config.nbd_listen,
        passed=passed,
        accept_older_catalog=accept_older_catalog,
        io_timeout_s=config.io_timeout_s,
    )
    notify("STATUS=starting: taking the volumes over")
    service.start()
    try:
        announce(service.nbd_addresses)
        main_loop.run(service, read_again)
    finally:
        notify("STOPPING=1", "STATUS=stopping: making everything durable")
        try:
            service.stop()
        except StopUnfinished as error:
            # At once: waiting for the threads that hang would never end.
            logging.getLogger("polyvol").error("%s", error)
            with contextlib.suppress(OSError):
                print(error, file=sys.stderr, flush=True)
            os._exit(EXIT_CODE)


def announce(addresses: list[str]) -> None:
    """Notify systemd that volumes are served, on these NBD addresses."""
    try:
        click.echo(f"ready: NBD on {' and '.join(addresses)}")
    except OSError:  # volumes are served even if stdout is closed
        discard(sys.stdout)
    notify("READY=1")


def main() -> None:
    """The console script."""
    open_standard_streams()
    signals.block()  # first: a SIGHUP during the start waits, and does not end it
    cli(prog_name="polyvold")


if __name__ == "__main__":
    main()
