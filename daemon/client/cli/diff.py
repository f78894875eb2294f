"""polyvol snapshot diff: what changed since a snapshot."""

from collections.abc import Iterator
from pathlib import Path

import click

from polyvol.daemon.client.cli.client import Client, Json
from polyvol.daemon.client.cli.common import json_option, split_snapshot, state_dir_option
from polyvol.daemon.client.cli.output import print_json, say, say_lines
from polyvol.daemon.client.cli.tree import Verb
from polyvol.daemon.errors import OtherVolume, SnapshotReplaced
from polyvol.mapping.sizes import counted, format_size


@click.command(cls=Verb)
@click.argument("since", metavar="VOLUME@A")
@click.argument("until", required=False, metavar="[VOLUME@B|VOLUME]")
@click.option("--summary", is_flag=True, help="Print totals only.")
@json_option
@state_dir_option
def diff(since: str, until: str | None, summary: bool, as_json: bool, state_dir: Path) -> None:
    """Show what changed between two snapshots. Without the second one, what changed until now.

    One line for each extent: its offset and its length, in bytes. Every change is listed; so is a block
    that was overwritten with the same data."""
    volume, older = split_snapshot(since)
    newer = _until(volume, until)
    client = Client(state_dir)
    if summary:
        total = client.get("volumes", volume, "snapshots", older, "change-total", until=newer)
        if as_json:
            print_json(total)
            return
        of = f"of {format_size(total['size'])}"
        say(f"{counted(total['extents'], 'extent')}, {format_size(total['bytes'])} {of}")
        return
    if as_json:
        extents = [extent for page in _pages(client, volume, older, newer) for extent in page["extents"]]
        print_json({"volume": volume, "since": older, "until": newer, "extents": extents})
        return
    for page in _pages(client, volume, older, newer):
        say_lines([f"{extent['offset']} {extent['length']}" for extent in page["extents"]])


def _until(volume: str, text: str | None) -> str | None:
    """The other snapshot's name; None for now."""
    if text is None or text == volume:
        return None
    other, newer = split_snapshot(text)
    if other != volume:
        raise OtherVolume(volume=volume, other=other)
    return newer


def _pages(client: Client, volume: str, older: str, newer: str | None) -> Iterator[Json]:
    start: int | None = 0
    first: Json = None
    while start is not None:
        page = client.get("volumes", volume, "snapshots", older, "changes", until=newer, start=str(start))
        first = page if first is None else first
        for name, uuid in ((older, "since_uuid"), (newer, "until_uuid")):
            if page[uuid] != first[uuid]:
                raise SnapshotReplaced(name=f"{volume}@{name}")
        yield page
        start = page["next"]
