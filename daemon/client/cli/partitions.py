"""polyvol partition: list, show; and the table of partition snapshots."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from polyvol.daemon.client.cli.client import Client, Json
from polyvol.daemon.client.cli.common import NumberType, json_option, state_dir_option
from polyvol.daemon.client.cli.logs import print_logs
from polyvol.daemon.client.cli.output import listed, print_facts, print_json, print_table, say
from polyvol.daemon.client.cli.pages import UNKNOWN, entries, known, pages, written_text
from polyvol.daemon.client.cli.times import local_option, moment, moments, zoned
from polyvol.daemon.client.cli.tree import Noun
from polyvol.mapping.sizes import SIZE_MAX, counted, exact_size, format_size
from polyvol.snapshot.errors.partitions import ReplacedBetweenPages

PARTITION = NumberType(0, SIZE_MAX)
_OWN_MAP = "its own"
_LIVE_MAP = "as the live one: not written since"
_NO_LOG = "none: not written since"
_NO_LOG_YET = "none: not written until the next snapshot"


@click.group(cls=Noun)
def partition() -> None:
    """Partitions of volumes."""


@partition.command(name="list")
@click.argument("volume")
@local_option
@json_option
@state_dir_option
def list_partitions(volume: str, as_json: bool, state_dir: Path) -> None:
    """List the partitions of a volume, as they are now."""
    partitions = entries(Client(state_dir), f"volume {volume}", "partitions", "volumes", volume, "partitions")
    if as_json:
        print_json(partitions)
        return
    last = _last_writes(partitions)
    print_table(
        (
            *("PARTITION", "PROCESSOR", "STATE", "DEVICES", "SLOTS", "ZEROES", "WRITES", "WRITTEN"),
            *(zoned("LAST WRITE"), "FROZEN MAPS", "NEWEST SNAPSHOT"),
        ),
        [
            (
                part["number"],
                part["processor"],
                part["state"],
                listed(part["devices"]),
                part["slots"],
                part["zeroes"],
                part["writes"],
                format_size(part["written"]),
                instant,
                part["frozen_maps"],
                part["newest_snapshot"],
            )
            for part, instant in zip(partitions, last, strict=True)
        ],
    )


@partition.command()
@click.argument("volume")
@click.argument("number", type=PARTITION, metavar="N")
@local_option
@json_option
@state_dir_option
def show(volume: str, number: int, as_json: bool, state_dir: Path) -> None:
    """Show one partition, its snapshots and its change logs."""
    client = Client(state_dir)
    shown = client.get("volumes", volume, "partitions", str(number))
    parts = ("volumes", volume, "partitions", str(number), "snapshots")
    snapshots = entries(client, f"volume {volume}", "partition_snapshots", *parts)
    if as_json:
        print_json({**shown, "partition_snapshots": snapshots})
        return
    last = moment(shown["last_write"]) or ("never" if shown["last_write_known"] else UNKNOWN)
    print_facts(
        [
            ("partition", f"{shown['number']} of volume {shown['volume']}"),
            ("from", exact_size(shown["offset"])),
            ("size", format_size(shown["size"])),
            ("processor", shown["processor"]),
            ("state", shown["state"]),
            ("reason", shown["reason"]),
            ("block map", _map_text(shown)),
            ("written", written_text(shown["writes"], shown["written"])),
            ("last write", last),
            ("frozen maps", counted(shown["frozen_maps"], "block map")),
            ("newest snapshot", shown["newest_snapshot"] or "none"),
        ]
    )
    say("")
    print_table(
        ("DEVICE", "OFFSET", "LENGTH"),
        [
            (extent["device"], exact_size(extent["offset"]), exact_size(extent["length"]))
            for extent in shown["extents"]
        ],
    )
    say("")
    SnapshotTable(snapshots, of_one_partition=True).say()
    say("")
    print_logs(shown["logs"])


def partition_snapshots(client: Client, shown: Json) -> Iterator[Json]:
    """The partition snapshots of a snapshot that the API has shown; ReplacedBetweenPages."""
    volume, snapshot, name = shown["volume"], shown["name"], f"snapshot {shown['export']}"
    for page in pages(client, name, "volumes", volume, "snapshots", snapshot, "partitions"):
        if page["uuid"] != shown["uuid"]:
            raise ReplacedBetweenPages(name=name)
        yield from page["partition_snapshots"]


class SnapshotTable:
    """A table of partition snapshots: of the snapshots of one partition, or of the partitions of one. It is
    made before anything is printed, because making it may fail."""

    def __init__(self, snapshots: Iterable[Json], *, of_one_partition: bool = False) -> None:
        self._first = "snapshot" if of_one_partition else "partition"
        parts, cells = [], []
        for part in snapshots:  # while polyvold makes the next page
            parts.append(part)
            cells.append(_snapshot_cells(part))
        self._rows = [
            (part[self._first], *counts, instant, *refers)
            for part, (counts, refers), instant in zip(parts, cells, _last_writes(parts), strict=True)
        ]

    def say(self) -> None:
        """Print it."""
        print_table(
            (
                self._first.upper(),
                *("PROCESSOR", "SLOTS", "ZEROES", "WRITES", "WRITTEN", "SINCE THE ONE BEFORE"),
                *(zoned("LAST WRITE"), "BLOCK MAP", "CHANGE LOG"),
            ),
            self._rows,
        )


def _snapshot_cells(part: Json) -> tuple[tuple[object, ...], tuple[str, str]]:
    """What a partition snapshot counts, and what it refers to: its block map and its change log."""
    total, since, frozen = part["total"], part["since"], part["frozen"]
    counts = (
        part["processor"],
        part["slots"],
        part["zeroes"],
        UNKNOWN if total is None else total["writes"],
        UNKNOWN if total is None else format_size(total["written"]),
        UNKNOWN if since is None else written_text(since["writes"], since["written"]),
    )
    return counts, (_OWN_MAP if frozen else _LIVE_MAP, _log_text(part["log"], own_map=frozen))


def print_shares(snapshots: Sequence[Json]) -> None:
    """The table of `snapshot list --partitions`."""
    print_table(
        ("SNAPSHOT", "EPOCH", "PARTITIONS", "WRITTEN SINCE", "PROCESSORS"),
        [
            (
                each["export"],
                each["epoch"],
                each["parts"]["partitions"],
                known(each["parts"]["written"]),
                shares_text(each["parts"]["shares"]),
            )
            for each in snapshots
        ],
    )


def shares_text(shares: Sequence[Json] | None) -> str:
    """Which processors made a snapshot: '0 (4 partitions), 1 (4 partitions)'."""
    if shares is None:
        return UNKNOWN
    return listed([f"{each['processor']} ({counted(each['partitions'], 'partition')})" for each in shares])


def _log_text(log: Json | None, *, own_map: bool) -> str:
    if log is None:
        return _NO_LOG_YET if own_map else _NO_LOG
    zeroes = f", {log['zeroes']} zero" if log["zeroes"] else ""
    bases = f", {log['bases']} at their base place" if log["bases"] else ""
    return f"{log['id']}: {counted(log['blocks'], 'block')}{zeroes}{bases}"


def _map_text(shown: Json) -> str:
    return f"{shown['slots']} blocks in slots, {shown['zeroes']} zero, {shown['bases']} at their base place"


def _last_writes(parts: Sequence[Json]) -> list[str]:
    """A column of times."""
    times = moments([part["last_write"] for part in parts])
    return [each if part["last_write_known"] else UNKNOWN for each, part in zip(times, parts, strict=True)]
