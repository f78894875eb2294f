"""polyvol processor: list, show."""

from pathlib import Path

import click

from polyvol.daemon.client.cli.client import Client
from polyvol.daemon.client.cli.common import NumberType, json_option, state_dir_option
from polyvol.daemon.client.cli.output import print_facts, print_json, print_table, say
from polyvol.daemon.client.cli.pages import entries, known
from polyvol.daemon.client.cli.tree import Noun
from polyvol.daemon.sizes import format_ns
from polyvol.mapping.sizes import SIZE_MAX


@click.group(cls=Noun)
def processor() -> None:
    """Processors, which own the partitions."""


@processor.command(name="list")
@json_option
@state_dir_option
def list_processors(as_json: bool, state_dir: Path) -> None:
    """List the processors, and what they have done.

    Counters begin with the start of polyvold."""
    processors = Client(state_dir).get("processors")
    if as_json:
        print_json(processors)
        return
    print_table(
        ("PROCESSOR", "PARTITIONS", "PARTS", "BY READERS", "BATCHES", "SLOW I/O", "QUEUED", "CPU"),
        [
            (
                each["processor"],
                each["partitions"],
                each["parts"],
                each["reader_parts"],
                each["batches"],
                each["slow_ios"],
                each["queued"],
                format_ns(each["cpu_ns"]),
            )
            for each in processors
        ],
    )


@processor.command()
@click.argument("number", type=NumberType(0, SIZE_MAX), metavar="P")
@click.option("--partitions", is_flag=True, help="List the partitions that it owns.")
@json_option
@state_dir_option
def show(number: int, partitions: bool, as_json: bool, state_dir: Path) -> None:
    """Show one processor, and what it owns of each volume."""
    client = Client(state_dir)
    shown = client.get("processors", str(number))
    if partitions:
        for each in shown["volumes"]:
            parts = ("processors", str(number), "volumes", each["volume"])
            each["runs"] = entries(client, f"volume {each['volume']}", "runs", *parts)
    if as_json:
        print_json(shown)
        return
    print_facts(
        [
            ("processor", shown["processor"]),
            ("partitions", shown["partitions"]),
            ("parts of requests", shown["parts"]),
            ("run by its thread", shown["own_parts"]),
            ("run by readers", shown["reader_parts"]),
            ("batches", shown["batches"]),
            ("slow I/O", shown["slow_ios"]),
            ("queued", shown["queued"]),
            ("CPU of its thread", format_ns(shown["cpu_ns"])),
        ]
    )
    say("")
    print_table(
        ("VOLUME", "PARTITIONS", "FROM", "TO", "CHANGE LOGS"),
        [
            (each["volume"], each["partitions"], each["first"], each["last"], known(each["logs"]))
            for each in shown["volumes"]
        ],
    )
    if partitions:
        say("")
        print_table(
            ("VOLUME", "PARTITION"),
            [(each["volume"], _run_text(run)) for each in shown["volumes"] for run in each["runs"]],
        )


def _run_text(run: list[int]) -> str:
    first, last = run
    return str(first) if first == last else f"{first}-{last}"
