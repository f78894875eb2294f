"""What processors have recorded of cuts, compared with the catalog: for `polyvol check`.

How it works      Each processor records each cut with how many partitions of the volume it had; the catalog
                  has the same for each snapshot. What a version that did not record it has left is not
                  compared.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from polyvol.mapping.partition import Partition, partition_count
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import Volume
from polyvol.mapping.sizes import counted

if TYPE_CHECKING:
    from polyvol.engine import RecordedCuts


def share_problems(
    volume: Volume, snapshots: Iterable[SnapshotRecord], partitions: Sequence[Partition]
) -> Iterator[str]:
    """Where the catalog says of a snapshot otherwise than by its partitions, how many each processor has: a
    clause each. A partition stays with its processor."""
    for snapshot in snapshots:
        count = partition_count(snapshot.size, volume.partition_size)
        owned = Counter(partition.processor for partition in partitions[:count])
        if snapshot.shares and dict(snapshot.shares) != owned:
            name = snapshot.shown_name
            yield f"the catalog's numbers of partitions by processor are wrong for snapshot {name}"


def record_problems(snapshots: Iterable[SnapshotRecord], recorded: Iterable["RecordedCuts"]) -> Iterator[str]:
    """What differs, a clause each. `recorded`: what processors say that could be read back."""
    cuts = {
        each["processor"]: (each["recorded_from"], {cut["epoch"]: cut["partitions"] for cut in each["cuts"]})
        for each in recorded
    }
    for snapshot in snapshots:
        if not snapshot.shares:
            continue
        known = dict(snapshot.shares)
        for processor, (recorded_from, by_epoch) in sorted(cuts.items()):
            expected, found = known.get(processor, 0), by_epoch.get(snapshot.epoch)
            if found is None and expected and snapshot.epoch >= recorded_from:
                yield (
                    f"processor {processor} has no record of snapshot {snapshot.shown_name}, of which it held"
                    f" {counted(expected, 'partition')} by the catalog"
                )
            elif found and found != expected:
                yield (
                    f"processor {processor} held {counted(found, 'partition')} of snapshot"
                    f" {snapshot.shown_name} by its records, and {expected} by the catalog"
                )
