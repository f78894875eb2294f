"""polyvol scrub: starts a scrub and watches it, stops it, or switches weekly ones on or off."""

import sys
import time
from pathlib import Path
from typing import Any

import click

from polyvol.daemon.client.cli.client import ApiError, Client
from polyvol.daemon.client.cli.common import SizeType, json_option, present_name, state_dir_option
from polyvol.daemon.client.cli.output import listed, print_json, print_table, say
from polyvol.daemon.client.cli.tree import Verb
from polyvol.daemon.client.transfer.progress import progress
from polyvol.daemon.errors import EXIT_CODE
from polyvol.daemon.sizes import SCRUB_RATE_MAX, SCRUB_RATE_MIN
from polyvol.mapping.sizes import counted, format_size

_POLL_S = 0.2
_RATE = SizeType(SCRUB_RATE_MIN, SCRUB_RATE_MAX)


@click.command(cls=Verb)
@click.argument("volume", required=False)
@click.option("--rate", type=_RATE, default="64M", show_default=True, help="Bytes a second, at most.")
@click.option("--stop", is_flag=True, help="Stop the scrub that is under way.")
@click.option("--weekly", type=click.Choice(["on", "off"]), help="Weekly scrubs of all volumes, on or off.")
@json_option
@state_dir_option
def scrub(
    volume: str | None, rate: int, stop: bool, weekly: str | None, as_json: bool, state_dir: Path
) -> None:
    """Read and check everything that has a checksum. Exit status 1 if something is bad.

    It continues in polyvold if this command is ended.
    """
    client = Client(state_dir)
    if weekly is not None:
        if volume is not None or stop:
            raise click.UsageError("--weekly is for all volumes: name none, and stop none")
        settings = client.post("scrub", body={"weekly": weekly == "on"})
        if as_json:
            print_json(settings)
        else:
            say(f"weekly scrubs are {weekly}")
        return
    if volume is None:
        raise click.UsageError("name a volume, or give --weekly")
    if stop:
        ended = client.delete("volumes", volume, "scrub")
    else:
        uuid = client.get("volumes", volume)["uuid"]
        begun = client.post("volumes", volume, "scrub", body={"rate": rate})
        ended = _watch(client, volume, uuid, begun)
    if as_json:
        print_json(ended)
    else:
        _print(ended)
    if ended["state"] == "failed" or ended["bad_blocks"]:
        sys.exit(EXIT_CODE)


def _watch(client: Client, volume: str, uuid: str, view: dict[str, Any]) -> dict[str, Any]:
    """Wait for the end of the scrub, with a progress bar on a terminal; the view at its end."""
    started = view["started"]
    with progress(f"scrubbing {volume}", view["total"]) as advance:
        done = 0
        while view["state"] == "running":
            time.sleep(_POLL_S)
            now = _scrub_of(client, volume)
            if now is None or now["started"] != started:  # the name may be another volume's
                volume = present_name(client, uuid, volume)
                now = client.get("volumes", volume, "scrub")
            view = now
            advance(view["done"] - done)
            done = view["done"]
    return view


def _scrub_of(client: Client, volume: str) -> dict[str, Any] | None:
    """The scrub of the volume of this name; None if there is none."""
    try:
        view: dict[str, Any] = client.get("volumes", volume, "scrub")
    except ApiError as error:
        if error.code not in ("unknown-volume", "no-scrub"):
            raise
        return None
    return view


def _print(view: dict[str, Any]) -> None:
    skipped = f", {format_size(view['skipped'])} on missing devices left out" if view["skipped"] else ""
    say(
        f"scrub of volume {view['volume']} {view['state']}: {format_size(view['done'])} read{skipped},"
        f" {counted(view['bad_blocks'], 'bad block')}"
    )
    if view["reason"]:
        say(f"reason: {view['reason']}")
    if view["bad"]:
        print_table(
            ("PARTITION", "BLOCK", "DEVICE", "SEEN BY", "REASON"),
            [
                (bad["partition"], bad["block"], bad["device"], listed(bad["seen_by"]), bad["reason"])
                for bad in view["bad"]
            ],
        )
