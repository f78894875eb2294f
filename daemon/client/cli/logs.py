"""polyvol log: list, show: the change logs of partitions."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import click

from polyvol.daemon.client.cli.client import Client, Json
from polyvol.daemon.client.cli.common import (
    NumberType,
    json_option,
    name_within,
    refuse_snapshot,
    state_dir_option,
)
from polyvol.daemon.client.cli.output import listed, print_facts, print_json, print_table, say
from polyvol.daemon.client.cli.pages import entries, known, known_size, pages, written_text
from polyvol.daemon.client.cli.tree import Noun
from polyvol.mapping.sizes import SIZE_MAX, exact_size, format_size


@click.group(cls=Noun)
def log() -> None:
    """Change logs of partitions."""


@log.command(name="list")
@click.argument("volume")
@click.option("--snapshot", metavar="SNAPSHOT", help="Only those that begin with this snapshot.")
@click.option("--partition", type=NumberType(0, SIZE_MAX), metavar="N", help="Only those of this partition.")
@json_option
@state_dir_option
def list_logs(
    volume: str, snapshot: str | None, partition: int | None, as_json: bool, state_dir: Path
) -> None:
    """List the change logs of a volume's partitions.

    A log begins with a snapshot, and has the blocks of its partition that were written until the next one.
    """
    refuse_snapshot(volume)
    logs = entries(
        Client(state_dir),
        f"volume {volume}",
        "logs",
        *("volumes", volume, "change-logs"),
        snapshot=name_within(volume, snapshot),
        partition=None if partition is None else str(partition),
    )
    if as_json:
        print_json(logs)
        return
    print_logs(logs)


@log.command()
@click.argument("name", metavar="VOLUME@SNAPSHOT#N|VOLUME#N")
@json_option
@state_dir_option
def show(name: str, as_json: bool, state_dir: Path) -> None:
    """Show one change log, and where its blocks are."""
    found = list(pages(Client(state_dir), f"the volume of {name}", "change-logs", name))
    shown, runs = found[0]["log"], list(chain.from_iterable(page["runs"] for page in found))
    if as_json:
        print_json({"log": shown, "runs": runs})
        return
    begin = f"snapshot {shown['volume']}@{shown['begin']}" if shown["begin"] else f"volume {shown['volume']}"
    print_facts(
        [
            ("change log", shown["id"]),
            ("begins with", begin),
            ("ended by", _ended(shown)),
            ("partition", f"{shown['partition']} of volume {shown['volume']}"),
            ("processor", shown["processor"]),
            ("devices by rule", _rule(shown)),
            ("placed on", _placed(shown)),
            ("blocks", _blocks(shown)),
            ("runs", shown["runs"]),
            ("written", written_text(shown["writes"], shown["written"])),
        ]
    )
    say("")
    print_table(
        ("BLOCK", "BLOCKS", "LOG AREA", "DEVICE", "OFFSET"),
        [
            (run["block"], run["blocks"], run["area"], run["device"], exact_size(run["offset"]))
            for run in runs
        ],
    )


def _blocks(shown: Json) -> str:
    slots = f"{shown['blocks']} in slots ({format_size(shown['size'])})"
    return f"{slots}, {shown['zeroes']} zero, {shown['bases']} at their base place"


def print_logs(logs: Sequence[Json]) -> None:
    """The table of change logs."""
    print_table(
        (
            *("CHANGE LOG", "PROCESSOR", "DEVICES BY RULE", "PLACED ON", "BLOCKS", "SIZE", "ZEROES", "BASES"),
            *("RUNS", "WRITES", "WRITTEN", "ENDED BY"),
        ),
        [
            (
                each["id"],
                each["processor"],
                _rule(each),
                _placed(each),
                each["blocks"],
                format_size(each["size"]),
                each["zeroes"],
                each["bases"],
                each["runs"],
                known(each["writes"]),
                known_size(each["written"]),
                each["ended"],
            )
            for each in logs
        ],
    )


def _rule(shown: Json) -> str:
    if not shown["rule_devices"]:
        return "any"
    return listed([*shown["rule_devices"], *(["any"] if shown["rule_any"] else [])])


def _placed(shown: Json) -> str:
    """The devices, each once, with the blocks on it."""
    on: dict[str, int] = {}
    for each in shown["placed"]:
        devices = "+".join(each["devices"])
        on[devices] = on.get(devices, 0) + each["blocks"]
    return listed([f"{devices} ({blocks})" for devices, blocks in on.items()])


def _ended(shown: Json) -> str:
    if shown["ended"] is None:
        return "nothing: it is the current one, or a rollback ended it"
    return f"snapshot {shown['volume']}@{shown['ended']}"
