"""The verb that finds places: where a byte of a volume, or of a snapshot, is.

How it works      The engine looks it up in the block map. What a clone has of its source is looked up there,
                  and so on, until a place is found. A clone that has grown is zero behind its source's end.
Errors            UnknownVolume, UnknownSnapshot, OffsetBehindEnd, VolumeNotServed.
"""

from dataclasses import replace

from polyvol.daemon.consistent_read import reads
from polyvol.daemon.context import Context
from polyvol.daemon.partitions.naming import Naming, read_names
from polyvol.daemon.types.logs import PlaceView
from polyvol.mapping.errors import UnknownVolume
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.errors.partitions import OffsetBehindEnd
from polyvol.snapshot.snapshot import export_name


class Places:
    """The verb that finds places."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def find(self, volume_name: str, offset: int, snapshot: str | None) -> PlaceView:
        """Where the byte at `offset` of a volume, or of its snapshot, is."""
        volume, record = self._find(volume_name, snapshot)
        size = _size(volume, record)
        if offset >= size:
            name = export_name(volume.name, snapshot)
            raise OffsetBehindEnd(offset=offset, name=name, size=size, last=size - 1)
        found: list[PlaceView] = []
        where: tuple[Volume, SnapshotRecord | None] | None = (volume, record)
        while where is not None:
            found.append(self._place(*where, offset))
            where = self._source(where[0]) if found[-1].kind == "source" else None
            if where is not None and offset >= _size(*where):
                found[-1], where = replace(found[-1], kind="zero"), None
        place = found.pop()
        while found:
            place = replace(found.pop(), source=place)
        return place

    def _place(self, volume: Volume, record: SnapshotRecord | None, offset: int) -> PlaceView:
        """What the engine says of one volume; its names are those that people know."""
        context = self._context
        naming = read_names(context, Naming(volume))
        epoch = None if record is None else record.epoch
        name = export_name(volume.shown_name, None if record is None else record.shown_name)
        found_in = [record] if record is not None and not record.kept else []
        with context.engine_asked(f"looking up offset {offset} of {name}", volume, *found_in):
            found = context.engine.locate(volume.id, offset, epoch)
        read_names(context, naming)
        begin, device = found["begin"], found["device"]
        return PlaceView(
            volume=volume.shown_name,
            snapshot=None if record is None else record.shown_name,
            offset=offset,
            partition=found["partition"],
            processor=found["processor"],
            block=found["block"],
            kind=found["kind"],
            log=None if begin is None else naming.log(found["partition"], begin),
            area=found["area"],
            device=None if device is None else naming.device(device),
            device_offset=found["device_offset"],
        )

    @reads
    def _find(self, volume_name: str, snapshot: str | None) -> tuple[Volume, SnapshotRecord | None]:
        volume = self._context.find_served(volume_name, restoring=True)
        return volume, None if snapshot is None else self._context.find_undeleted(volume, snapshot)

    @reads
    def _source(self, volume: Volume) -> tuple[Volume, SnapshotRecord]:
        """The volume and the snapshot that a clone was made from, also if they are deleted and kept."""
        assert volume.source is not None, "only a clone has blocks of its source"
        source = self._context.catalog.volumes.get(volume.source.volume)
        record = None
        if source is not None:
            record = self._context.catalog.snapshots.at(source.id, volume.source.epoch)
        if source is None or record is None:  # the clone was deleted in between, and they with it
            raise UnknownVolume(name=volume.shown_name)
        return source, record


def _size(volume: Volume, record: SnapshotRecord | None) -> int:
    """The size of a volume, or of its snapshot, bytes."""
    return volume.size if record is None else record.size
