"""Deleting many snapshots from the command line, by names and patterns; a bar until the space is back."""

import fnmatch
import sys
import time
from collections import Counter
from collections.abc import Sequence

import click

from polyvol.daemon.cli.client import Client, Json
from polyvol.daemon.cli.common import snapshot_parts, split_snapshot
from polyvol.daemon.cli.output import counted
from polyvol.daemon.errors import EXIT_CODE
from polyvol.daemon.sizes import format_size
from polyvol.daemon.transfer.progress import progress
from polyvol.mapping.errors import RepeatedDevice

_POLL_S = 0.1


def is_pattern(name: str) -> bool:
    """Whether a name stands for several."""
    return any(sign in name for sign in "*?[")


def delete_many(client: Client, names: Sequence[str], *, wait: bool) -> None:
    """Delete all snapshots named, volume by volume; those that stay are told, and end the program with 1."""
    wanted: dict[str, list[str]] = {}
    for name, often in Counter(names).items():
        if often > 1:
            raise RepeatedDevice(noun="snapshot", name=name)
    for name in names:
        if name.startswith("@"):
            _delete_of_group(client, name)
        else:
            volume, own_name = split_snapshot(name)
            wanted.setdefault(volume, []).append(own_name)
    stays = False
    for volume, own_names in wanted.items():
        begun = client.post("volumes", volume, "deletions", body={"names": own_names})
        for kept in begun["kept"]:
            click.echo(f"snapshot {volume}@{kept['name']} stays: {kept['reason']}", err=True)
            stays = True
        text = f"volume {volume}: {counted(begun['total'], 'snapshot')} deleted"
        if wait and begun["left"]:
            begun = _wait(client, volume, begun)
            click.echo(f"{text}, {format_size(begun['freed'])} given back")
        else:
            click.echo(text)
    if stays:
        sys.exit(EXIT_CODE)


def _delete_of_group(client: Client, name: str) -> None:
    """Delete a group's snapshots, each as a whole, that a name or pattern stands for."""
    _, group, _, pattern = snapshot_parts(name)
    taken = [each["name"] for each in client.get("groups", group, "snapshots")]
    chosen = fnmatch.filter(taken, pattern) if is_pattern(pattern) else [pattern]
    for own_name in chosen:
        client.delete("groups", group, "snapshots", own_name)
    click.echo(f"group {group}: {counted(len(chosen), 'snapshot')} deleted")


def _wait(client: Client, volume: str, begun: Json) -> Json:
    with progress(f"giving space of {volume} back", None) as advance:
        advance(0)
        while begun["left"]:
            time.sleep(_POLL_S)
            now = client.get("volumes", volume, "deletions")
            advance(now["freed"] - begun["freed"])
            begun = now
    return begun
