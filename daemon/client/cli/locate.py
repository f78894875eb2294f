"""polyvol volume locate: where a byte of a volume or snapshot is."""

from collections.abc import Iterator
from pathlib import Path

import click

from polyvol.daemon.client.cli.client import Client, Json
from polyvol.daemon.client.cli.common import SIZE, json_option, name_within, refuse_snapshot, state_dir_option
from polyvol.daemon.client.cli.output import print_facts, print_json
from polyvol.daemon.client.cli.tree import Verb
from polyvol.mapping.sizes import exact_size


@click.command(cls=Verb)
@click.argument("volume")
@click.argument("offset", type=SIZE)
@click.option("--snapshot", metavar="SNAPSHOT", help="In this snapshot [in the volume, as it is now].")
@json_option
@state_dir_option
def locate(volume: str, offset: int, snapshot: str | None, as_json: bool, state_dir: Path) -> None:
    """Show where a byte of a volume is. OFFSET is in bytes, or with a unit such as 64M."""
    refuse_snapshot(volume)
    name = name_within(volume, snapshot)
    found = Client(state_dir).get("volumes", volume, "place", offset=str(offset), snapshot=name)
    if as_json:
        print_json(found)
        return
    print_facts(
        [
            ("offset", f"{exact_size(offset)} of {_whose(found)}"),
            ("partition", found["partition"]),
            ("processor", found["processor"]),
            ("block", f"{found['block']} of the partition"),
            *_places(found),
        ]
    )


def _places(found: Json) -> Iterator[tuple[str, object]]:
    """The place, and those that lead to it."""
    place = found
    while place["kind"] == "source":
        place = place["source"]
        yield "source", f"{_whose(place)}, partition {place['partition']} on processor {place['processor']}"
    if place["kind"] == "log":
        yield "place", f"change log {place['log']}, in log area {place['area']}"
    else:
        yield "place", {"base": "its base place", "zero": "none: the block is zero"}[place["kind"]]
    if place["device"] is not None:
        yield "device", place["device"]
        yield "at", exact_size(place["device_offset"])


def _whose(place: Json) -> str:
    if place["snapshot"] is None:
        return f"volume {place['volume']}"
    return f"snapshot {place['volume']}@{place['snapshot']}"
