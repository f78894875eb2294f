"""polyvol catalog: backup.

How it works      A running polyvold returns its catalog as one file, of one state. If none runs, the lock of
                  the state directory is held, so that none starts, and the files are read: the WAL is merged
                  into a copy, and a catalog that a start would refuse is refused here too. The file is read
                  back and checked before it gets its name (transfer/file.py).
Errors            FileExists, FileBusy, TransferFailed, WrongOption; CatalogDamaged and others of the catalog;
                  those of the client.
"""

import os
from contextlib import suppress
from pathlib import Path

import click

from polyvol.daemon.client.cli.client import READ_S, Client
from polyvol.daemon.client.cli.common import PATH, json_option, state_dir_option
from polyvol.daemon.client.cli.output import print_json, say
from polyvol.daemon.client.cli.tree import Noun
from polyvol.daemon.client.cli.unreachable import may_run
from polyvol.daemon.errors import DaemonNotRunning
from polyvol.mapping.sizes import format_size


@click.group(cls=Noun)
def catalog() -> None:
    """The catalog: the record of volumes, devices and snapshots."""


@catalog.command()
@click.argument("file", type=PATH, metavar="FILE|-")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@json_option
@state_dir_option
def backup(file: Path, force: bool, as_json: bool, state_dir: Path) -> None:
    """Copy the catalog to a file, also while polyvold runs. -: to the standard output.

    It has no data of volumes. docs/operating.md says how to restore it, and what an older catalog lacks."""
    from polyvol.daemon.client.transfer.file import OUTPUT, OUTPUT_NAME, refuse_own_files

    refuse_own_files(file)
    data, running = copy_of_catalog(state_dir)
    version = _write(file, data, replace=force)
    to_output = file == OUTPUT
    if as_json:
        facts = {"path": str(file), "bytes": len(data), "format": version, "polyvold_runs": running}
        print_json(facts, err=to_output)
        return
    of = "" if running else ", of a polyvold that does not run"
    size, where = format_size(len(data)), OUTPUT_NAME if to_output else file
    text = f"catalog of {state_dir}: {size}, format {version}, written to {where} and checked{of}"
    say(text, err=to_output)


def copy_of_catalog(state_dir: Path, read_s: float = READ_S) -> tuple[bytes, bool]:
    """The catalog as one file, and whether a polyvold has returned it, within `read_s`."""
    if may_run(state_dir):
        with suppress(DaemonNotRunning):
            return Client(state_dir, read_s=read_s).get_file("catalog", "copy"), True
    from polyvol.daemon.check import copy_catalog  # slow to load: only if no polyvold runs

    return copy_catalog(state_dir.absolute()), False


def _write(path: Path, data: bytes, *, replace: bool) -> int:
    """Write the file, read it back and examine it, and give it its name; the format of the catalog."""
    from polyvol.daemon.client.transfer.file import file_errors, new_file_or_output
    from polyvol.mapping.catalog.database import LATEST_VERSION
    from polyvol.mapping.catalog.examine import Examiner, format_version, reading

    with new_file_or_output(path, "a catalog", replace=replace) as file:
        with file_errors(file.partial):
            with open(file.fd, "wb", closefd=False) as opened:
                opened.write(data)
            os.fsync(file.fd)
        Examiner(file.partial, LATEST_VERSION, None).examine(file.partial)
        with reading(file.partial, file.partial) as connection:
            version = format_version(connection)
    return version
