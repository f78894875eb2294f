"""polyvol restore: a backup onto a new volume, or an incremental one onto a volume that has its base.

How it works      daemon/client/transfer/restore.py has the order of the checks. The daemon makes the volume,
                  or ends its export, and returns the name of an export for this restore alone
                  (daemon/restores/verbs.py), which is written over NBD. Then the daemon takes the snapshot
                  and exports the volume.
"""

import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import click

from polyvol.daemon.backup_errors import ChangedMeanwhile, TransferFailed
from polyvol.daemon.client.cli.client import ApiError, Client, Json
from polyvol.daemon.client.cli.common import TEXT, json_option, state_dir_option
from polyvol.daemon.client.cli.exports import open_export
from polyvol.daemon.client.cli.log_rules import log_devices_option, place_option, processors_option
from polyvol.daemon.client.cli.output import print_json, say
from polyvol.daemon.client.cli.tree import Verb
from polyvol.daemon.errors import RestoreRunning
from polyvol.mapping.names import check_name
from polyvol.mapping.os_errors import advice, reason
from polyvol.mapping.sizes import format_size
from polyvol.snapshot.errors.streams import StreamBroken

if TYPE_CHECKING:
    from polyvol.snapshot.stream import StreamHeader

Extents = list[tuple[int, int]]


@dataclass
class _Source:
    """A stream after its header. `length`: of the file; None for a pipe."""

    file: BinaryIO
    name: str
    header: "StreamHeader"
    length: int | None

    def rewind(self) -> None:
        """Go back to the first frame."""
        from polyvol.snapshot.stream import HEADER_BYTES

        self.file.seek(HEADER_BYTES)


@click.command(cls=Verb)
@click.argument("source", type=TEXT, metavar="FILE|-")
@click.argument("volume", metavar="NEW|VOLUME")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="DEVICE",
    help="For a new volume, as at `volume create`; repeatable.",
)
@log_devices_option(help="Where the change logs of a new volume lie [new files]; repeatable.")
@processors_option("For a new volume: ")
@place_option("For a new volume: ")
@click.option("--resume", is_flag=True, help="Resume an interrupted restore of the same backup.")
@json_option
@state_dir_option
def restore(source: str, volume: str, resume: bool, as_json: bool, state_dir: Path, **options: Json) -> None:
    """Restore a backup to a volume. A full one goes to a new volume, an incremental one to a volume
    that has its base.

    The volume then has a snapshot named as the one that was backed up, which the next one can follow. It
    is not exported until the restore is complete."""
    check_name("volume", volume)
    client = Client(state_dir)
    began = time.monotonic()
    with _opened(source) as stream:
        check_name("snapshot", stream.header.snapshot)
        request = _request(stream, volume, options, resume=resume)
        client.post("restores", body={**request, "dry_run": True})  # to refuse it before much is read
        if stream.header.base_uuid is None:
            written = _restore(client, stream, request)
        else:
            with _as_file(stream) as kept:
                written = _restore(client, kept, request)
        snapshot = stream.header.snapshot
    took = time.monotonic() - began
    if as_json:
        name = f"{volume}@{snapshot}"
        print_json({"snapshot": name, "written_bytes": written, "seconds": round(took, 3)})
    else:
        say(f"{volume}@{snapshot}: {format_size(written)} written, {took:.1f} s")


def _request(stream: _Source, volume: str, options: Json, *, resume: bool) -> Json:
    header = stream.header
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    return {
        "volume": volume,
        "source": stream.name,
        "stream": str(header.stream),
        "size": header.size,
        "partition_size": header.partition_size,
        "snapshot": header.snapshot,
        "snapshot_uuid": str(header.snapshot_uuid),
        "base": header.base or None,
        "base_uuid": None if header.base_uuid is None else str(header.base_uuid),
        "resume": resume,
        **given,
    }


def _restore(client: Client, stream: _Source, request: Json) -> int:
    """Restore a stream, which is checked first if it can be read twice; bytes written."""
    from polyvol.daemon.client.transfer.restore import apply, verify

    volume, covered = request["volume"], None
    if stream.length is not None:
        covered = verify(stream.file, stream.header, stream.name, stream.length)
        stream.rewind()
    begun = client.post("restores", body=request)
    try:
        target = open_export(client, begun["export"], volume)
        try:
            written = apply(
                stream.file,
                stream.header,
                stream.name,
                target,
                compare=begun["resumed"],
                length=stream.length,
            )
        finally:
            target.close()
    except StreamBroken:
        if not begun["resumed"]:
            _abandon(client, volume)
        raise
    if begun["base"] is not None and covered is not None:
        _check_changes(client, stream, volume, begun["base"], covered)
    client.post("volumes", volume, "restore", "completion", body={"export": begun["export"]})
    return written


def _check_changes(client: Client, stream: _Source, volume: str, base: str, covered: Extents) -> None:
    """ChangedMeanwhile if the volume differs from its base where the stream has nothing."""
    from polyvol.daemon.client.transfer.restore import uncovered

    if uncovered(_changes(client, volume, base), covered) is not None:
        raise ChangedMeanwhile(volume=volume, name=stream.name)


def _changes(client: Client, volume: str, since: str) -> Extents:
    extents: Extents = []
    start: int | None = 0
    while start is not None:
        page = client.get("volumes", volume, "snapshots", since, "changes", start=str(start))
        extents += [(extent["offset"], extent["length"]) for extent in page["extents"]]
        start = page["next"]
    return extents


def _abandon(client: Client, volume: str) -> None:
    """End a restore that this command began, once the daemon has noticed the closed connection."""
    for _ in range(100):
        try:
            client.delete("volumes", volume, "restore")
        except ApiError as error:
            if error.code != RestoreRunning.code:
                raise
        else:
            return
        time.sleep(0.05)


@contextmanager
def _opened(source: str) -> Iterator[_Source]:
    from polyvol.snapshot.stream import read_header

    path = None if source == "-" else Path(source)
    try:
        if path is None:
            name = "the standard input"
            yield _Source(sys.stdin.buffer, name, read_header(sys.stdin.buffer, name), None)
            return
        with path.open("rb") as file:
            told = path.stat()
            length = told.st_size if stat.S_ISREG(told.st_mode) else None
            name = _readable(os.path.abspath(source))  # noqa: PTH100 - links stay
            yield _Source(file, name, read_header(file, source), length)
    except OSError as error:  # only reading the source raises a bare OSError
        raise TransferFailed.of(f"reading {source if path else 'the standard input'}", error, path) from error


def _readable(path: str) -> str:
    """A path for people; what is not UTF-8 in it is replaced."""
    return os.fsencode(path).decode(errors="replace")


@contextmanager
def _as_file(stream: _Source) -> Iterator[_Source]:
    """The stream as something that can be read twice."""
    if stream.length is not None:
        yield stream
        return
    with _temporary_file() as file:
        with _temporary_errors():
            file.write(stream.header.to_bytes())
        while piece := stream.file.read(1 << 20):
            with _temporary_errors():
                file.write(piece)
        with _temporary_errors():
            file.flush()
        kept = _Source(file, stream.name, stream.header, file.tell())
        kept.rewind()
        yield kept


@contextmanager
def _temporary_file() -> Iterator[BinaryIO]:
    with _temporary_errors():
        file = cast(BinaryIO, tempfile.TemporaryFile(prefix="polyvol-restore-"))  # noqa: SIM115
    try:
        yield file
    finally:
        with suppress(OSError):  # closing retries a write whose failure was already reported
            file.close()


@contextmanager
def _temporary_errors() -> Iterator[None]:
    """OSError as TransferFailed, with the directory of temporary files, which its user can choose."""
    try:
        yield
    except OSError as error:
        try:
            directory = tempfile.gettempdir()
        except OSError:
            todo = "give one that can be written in $TMPDIR"
            why = "there is no directory for temporary files"
            raise TransferFailed(what="keeping the backup in a file", why=why, todo=todo) from error
        what = f"keeping the backup in a temporary file in {directory}"
        todo = f"{advice(error)}, or set $TMPDIR to another directory"
        raise TransferFailed(what=what, why=reason(error), todo=todo) from error
