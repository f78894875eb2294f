"""Processors, as the API shows them. Durations are nanoseconds."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ProcessorView:
    """A processor: the partitions that it owns, and what it has done since polyvold was started. Of its
    `parts` of requests, its own thread ran `own_parts`, and readers of connections ran `reader_parts` on its
    behalf, because it was idle. `batches`: how often it took parts from its queue; `slow_ios`: how many had
    to wait for a device; `queued`: how much is in its queue now; `cpu_ns`: CPU time of its own thread."""

    processor: int
    partitions: int
    parts: int
    own_parts: int
    reader_parts: int
    batches: int
    slow_ios: int
    queued: int
    cpu_ns: int


@dataclass(frozen=True, kw_only=True)
class ProcessorVolumeView:
    """What a processor has of one volume: how many partitions, the lowest and the highest number of them, and
    how many change logs it maintains for them (null while the volume is not served)."""

    volume: str
    partitions: int
    first: int
    last: int
    logs: int | None


@dataclass(frozen=True, kw_only=True)
class ProcessorDetailView(ProcessorView):
    """A processor, with what it has of each volume."""

    volumes: list[ProcessorVolumeView]


@dataclass(frozen=True, kw_only=True)
class ProcessorPartitionsView:
    """Some partitions of a volume that a processor owns, by number, as runs (the first and the last one).
    `next`: where the next page begins; null: this was the last."""

    processor: int
    volume: str
    uuid: str
    runs: list[tuple[int, int]]
    next: int | None
