"""polyvol restore: a backup onto a new volume, or an incremental one onto a volume that has its base.

How it works      daemon/transfer/restore.py says when what is checked. The volume is made, looked at and
                  snapshotted by the control API, and written by NBD.
"""

import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from polyvol.daemon.cli.client import ApiError, Client, Json
from polyvol.daemon.cli.common import state_dir_option
from polyvol.daemon.cli.exports import identity, open_export
from polyvol.daemon.errors import VolumeInUse, counted_clients
from polyvol.daemon.sizes import format_size
from polyvol.daemon.transfer.errors import (
    AlreadyRestored,
    BaseMissing,
    CannotResume,
    ChangedMeanwhile,
    ChangedSinceBase,
    NotANewVolume,
    TargetSize,
    TransferFailed,
)
from polyvol.mapping.errors import NameInUse, UnknownVolume
from polyvol.mapping.names import check_name
from polyvol.snapshot.errors import StreamBroken

if TYPE_CHECKING:
    from polyvol.snapshot.stream import StreamHeader

Extents = list[tuple[int, int]]


@dataclass
class _Source:
    """A stream behind its header. `length`: of the file; None for a pipe. `start`: where frames begin."""

    file: BinaryIO
    name: str
    header: "StreamHeader"
    length: int | None

    def rewind(self) -> None:
        """Go back to the first frame."""
        from polyvol.snapshot.stream import HEADER_BYTES

        self.file.seek(HEADER_BYTES)


@click.command()
@click.argument("source", metavar="FILE|-")
@click.argument("volume", metavar="NEW|VOLUME")
@click.option(
    "--device", "devices", multiple=True, metavar="DEVICE", help="For a new volume, as at `create`."
)
@click.option("--log-device", "log_devices", multiple=True, metavar="DEVICE", help="For a new volume too.")
@click.option("--processors", type=int, metavar="N", help="For a new volume: how many own it [all].")
@click.option("--resume", is_flag=True, help="Go on with a restore to a new volume that was interrupted.")
@state_dir_option
def restore(source: str, volume: str, resume: bool, state_dir: Path, **options: Json) -> None:
    """Restore a full backup to a new volume, or an incremental one to a volume that has its base.

    The volume then has a snapshot named as the one that was backed up, which the next one can follow."""
    check_name("volume", volume)
    client = Client(state_dir)
    began = time.monotonic()
    with _opened(source) as stream:
        check_name("snapshot", stream.header.snapshot)
        if stream.header.base_uuid is None:
            written = _restore_full(client, stream, volume, options, resume=resume)
        else:
            written = _restore_incremental(client, stream, volume)
        snapshot = stream.header.snapshot
    took = time.monotonic() - began
    click.echo(f"{volume}@{snapshot}: {format_size(written)} written, {took:.1f} s")


def _restore_full(client: Client, stream: _Source, volume: str, options: Json, *, resume: bool) -> int:
    from polyvol.daemon.transfer.restore import apply, verify

    there = _find(client, volume)
    if there is not None:
        if not resume:
            raise NotANewVolume(name=stream.name, volume=volume)
        _check_resumable(stream, there)
    if stream.length is not None:
        verify(stream.file, stream.header, stream.name, stream.length)
        stream.rewind()
    if there is None:
        size, unit = stream.header.size, stream.header.partition_size
        given = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
        client.post("volumes", body={"name": volume, "size": size, "partition_size": unit, **given})
    try:
        target = open_export(client, volume)
        try:
            written = apply(
                stream.file,
                stream.header,
                stream.name,
                target,
                compare=there is not None,
                length=stream.length,
            )
        finally:
            target.close()
    except StreamBroken:
        if there is None:
            _delete_when_left(client, volume)
        raise
    _take_snapshot(client, stream, volume)
    return written


def _restore_incremental(client: Client, stream: _Source, volume: str) -> int:
    from polyvol.daemon.transfer.restore import apply, uncovered, verify

    header = stream.header
    with _as_file(stream) as kept:
        covered = verify(kept.file, header, kept.name, kept.length or 0)
        kept.rewind()
        there = _find(client, volume)
        if there is None:
            raise UnknownVolume(name=volume)
        base = _base(client, stream, there)
        if uncovered(_changes(client, volume, base, None), covered) is not None:
            raise ChangedSinceBase(volume=volume, base=base, name=stream.name)
        target = open_export(client, volume)
        try:
            written = apply(kept.file, header, kept.name, target, compare=False, length=kept.length)
        finally:
            target.close()
    _take_snapshot(client, stream, volume)
    if uncovered(_changes(client, volume, base, header.snapshot), covered) is not None:
        client.delete("volumes", volume, "snapshots", header.snapshot)
        raise ChangedMeanwhile(volume=volume, base=base, name=stream.name)
    return written


def _base(client: Client, stream: _Source, there: Json) -> str:
    """The name of the snapshot that an incremental stream follows, on a volume that can take it (T1)."""
    header, volume = stream.header, there["name"]
    if there["size"] != header.size:
        raise TargetSize(target=volume, found=there["size"], source=stream.name, size=header.size)
    base = None
    for snapshot in client.get("snapshots", volume=volume):
        if identity(snapshot) == header.snapshot_uuid:
            raise AlreadyRestored(volume=volume, name=stream.name, snapshot=snapshot["name"])
        if snapshot["name"] == header.snapshot:
            raise NameInUse(noun="snapshot", name=snapshot["export"])
        if identity(snapshot) == header.base_uuid:
            base = str(snapshot["name"])
    if base is None:
        raise BaseMissing(name=stream.name, base=header.base, uuid=header.base_uuid, volume=volume)
    _check_unused(there)
    return base


def _check_resumable(stream: _Source, there: Json) -> None:
    why = None
    if there["size"] != stream.header.size:
        why = f"it has {there['size']} bytes, not {stream.header.size}"
    elif there["snapshots"]:
        why = "it has snapshots"
    if why is not None:
        raise CannotResume(volume=there["name"], name=stream.name, why=why)
    _check_unused(there)


def _check_unused(there: Json) -> None:
    clients = sum(export["connections"] for export in there["exports"] if export["name"] == there["name"])
    if clients:
        raise VolumeInUse(name=there["name"], **counted_clients(clients))


def _take_snapshot(client: Client, stream: _Source, volume: str) -> None:
    header = stream.header
    body = {"volumes": [volume], "name": header.snapshot, "copy_of": str(header.snapshot_uuid)}
    client.post("snapshots", body=body)


def _find(client: Client, volume: str) -> Json | None:
    for there in client.get("volumes"):
        if there["name"] == volume:
            return there
    return None


def _changes(client: Client, volume: str, since: str, until: str | None) -> Extents:
    extents: Extents = []
    start: int | None = 0
    while start is not None:
        page = client.get("volumes", volume, "snapshots", since, "changes", until=until, start=str(start))
        extents += [(extent["offset"], extent["length"]) for extent in page["extents"]]
        start = page["next"]
    return extents


def _delete_when_left(client: Client, volume: str) -> None:
    """Delete a volume of ours, once the daemon has seen that we have left it."""
    for _ in range(100):
        with suppress(ApiError):
            client.delete("volumes", volume)
            return
        time.sleep(0.05)


@contextmanager
def _opened(source: str) -> Iterator[_Source]:
    from polyvol.snapshot.stream import read_header

    if source == "-":
        name = "the standard input"
        yield _Source(sys.stdin.buffer, name, read_header(sys.stdin.buffer, name), None)
        return
    path = Path(source)
    try:
        with path.open("rb") as file:
            told = path.stat()
            length = told.st_size if stat.S_ISREG(told.st_mode) else None
            yield _Source(file, source, read_header(file, source), length)
    except OSError as error:
        raise TransferFailed(what=f"reading {source}", why=error.strerror or error) from error


@contextmanager
def _as_file(stream: _Source) -> Iterator[_Source]:
    """The stream as something that can be read twice."""
    if stream.length is not None:
        yield stream
        return
    with tempfile.TemporaryFile(prefix="polyvol-restore-") as file:
        file.write(stream.header.to_bytes())
        shutil.copyfileobj(stream.file, file, 1 << 20)
        length = file.tell()
        kept = _Source(file, stream.name, stream.header, length)
        kept.rewind()
        yield kept
