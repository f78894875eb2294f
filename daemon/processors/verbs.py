"""The verbs of processors: list and show.

How it works      The engine counts what processors do; the catalog has which partitions they own.
Errors            UnknownProcessor, UnknownVolume, BadRequest.
"""

from typing import TYPE_CHECKING

from polyvol.daemon.consistent_read import reads
from polyvol.daemon.context import Context
from polyvol.daemon.partitions.counts import count_logs
from polyvol.daemon.partitions.pages import checked
from polyvol.daemon.types.processors import (
    ProcessorDetailView,
    ProcessorPartitionsView,
    ProcessorView,
    ProcessorVolumeView,
)
from polyvol.snapshot.errors.partitions import UnknownProcessor

if TYPE_CHECKING:
    from polyvol.engine import ProcessorStats


class Processors:
    """The verbs of processors."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @reads
    def list_all(self) -> list[ProcessorView]:
        """All processors, by number."""
        return [_view(entry) for entry in self._context.stats()["processors"]]

    @reads
    def show(self, number: int) -> ProcessorDetailView:
        """One processor, with what it has of each volume."""
        context, view = self._context, _view(self._find(number))
        volumes = {volume.id: volume for volume in context.catalog.volumes.all()}
        views = []
        for volume, (count, first, last) in context.catalog.volumes.of_processor(number).items():
            logs = count_logs(context, volumes[volume], by="processor")
            views.append(
                ProcessorVolumeView(
                    volume=volumes[volume].shown_name,
                    partitions=count,
                    first=first,
                    last=last,
                    logs=None if logs is None else logs[number],
                )
            )
        return ProcessorDetailView(
            **{name: getattr(view, name) for name in ProcessorView.__dataclass_fields__}, volumes=views
        )

    @reads
    def partitions(self, number: int, volume_name: str, first: int, count: int) -> ProcessorPartitionsView:
        """A page of the partitions of one volume that a processor owns."""
        checked(first, count)
        self._find(number)
        volume = self._context.find_volume(volume_name)
        numbers = self._context.catalog.volumes.numbers_of_processor(volume.id, number, first, count + 1)
        return ProcessorPartitionsView(
            processor=number,
            volume=volume.name,
            uuid=str(volume.uuid),
            runs=_runs(numbers[:count]),
            next=numbers[count] if len(numbers) > count else None,
        )

    def _find(self, number: int) -> "ProcessorStats":
        for entry in self._context.stats()["processors"]:
            if entry["processor"] == number:
                return entry
        raise UnknownProcessor(processor=number)


def _view(entry: "ProcessorStats") -> ProcessorView:
    return ProcessorView(
        processor=entry["processor"],
        partitions=entry["partitions"],
        parts=entry["parts"],
        own_parts=entry["parts"] - entry["reader_parts"],
        reader_parts=entry["reader_parts"],
        batches=entry["batches"],
        slow_ios=entry["slow_ios"],
        queued=entry["queued"],
        cpu_ns=entry["cpu_ns"],
    )


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Numbers in order as runs of consecutive ones: the first and the last of each."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs
