"""polyvol scrub: starts a scrub and watches it, stops it, or switches weekly ones on or off."""

import sys
import time
from pathlib import Path
from typing import Any

import click

from polyvol.daemon.cli.client import Client
from polyvol.daemon.cli.common import SIZE, json_option, state_dir_option
from polyvol.daemon.cli.output import counted, listed, print_json, print_table
from polyvol.daemon.errors import EXIT_CODE
from polyvol.daemon.sizes import format_size

_POLL_S = 0.2


@click.command()
@click.argument("volume", required=False)
@click.option("--rate", type=SIZE, default="64M", show_default=True, help="Bytes a second, at most.")
@click.option("--stop", is_flag=True, help="Stop the scrub that is under way.")
@click.option("--weekly", type=click.Choice(["on", "off"]), help="Scrub every volume once a week, or do not.")
@json_option
@state_dir_option
def scrub(
    volume: str | None, rate: int, stop: bool, weekly: str | None, as_json: bool, state_dir: Path
) -> None:
    """Read everything of a volume that has a checksum, and check it. Exit status 1 if something is bad.

    It goes on in the daemon if this program is ended.
    """
    client = Client(state_dir)
    if weekly is not None:
        if volume is not None or stop:
            raise click.UsageError("--weekly is for all volumes: name none, and stop none")
        settings = client.post("scrub", body={"weekly": weekly == "on"})
        print_json(settings) if as_json else click.echo(f"weekly scrubs are {weekly}")
        return
    if volume is None:
        raise click.UsageError("name a volume, or give --weekly")
    if stop:
        ended = client.delete("volumes", volume, "scrub")
    else:
        ended = _watch(client, volume, client.post("volumes", volume, "scrub", body={"rate": rate}), as_json)
    if as_json:
        print_json(ended)
    else:
        _print(ended)
    if ended["state"] == "failed" or ended["bad_blocks"]:
        sys.exit(EXIT_CODE)


def _watch(client: Client, volume: str, view: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """The scrub as it ended, with a bar meanwhile on a terminal."""
    if not sys.stderr.isatty() or as_json:
        while view["state"] == "running":
            time.sleep(_POLL_S)
            view = client.get("volumes", volume, "scrub")
        return view
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(f"scrubbing {volume}", *columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=view["total"])
        while view["state"] == "running":
            time.sleep(_POLL_S)
            view = client.get("volumes", volume, "scrub")
            # More may have been written since it began.
            progress.update(task, completed=view["done"], total=max(view["total"], view["done"]))
    return view


def _print(view: dict[str, Any]) -> None:
    skipped = f", {format_size(view['skipped'])} on missing devices left out" if view["skipped"] else ""
    click.echo(
        f"scrub of volume {view['volume']} {view['state']}: {format_size(view['done'])} read{skipped},"
        f" {counted(view['bad_blocks'], 'bad block')}"
    )
    if view["reason"]:
        click.echo(f"reason: {view['reason']}")
    if view["bad"]:
        print_table(
            ("PARTITION", "BLOCK", "DEVICE", "SEEN BY", "REASON"),
            [
                (bad["partition"], bad["block"], bad["device"], listed(bad["seen_by"]), bad["reason"])
                for bad in view["bad"]
            ],
        )
