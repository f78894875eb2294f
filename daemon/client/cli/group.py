"""polyvol group: create, join, leave, list, show, rename, delete."""

from pathlib import Path

import click

from polyvol.daemon.client.cli.client import Client, Json
from polyvol.daemon.client.cli.common import json_option, state_dir_option
from polyvol.daemon.client.cli.output import listed, print_facts, print_json, print_table, say
from polyvol.daemon.client.cli.renaming import rename as rename_object
from polyvol.daemon.client.cli.times import local_option, moment
from polyvol.daemon.client.cli.tree import Noun


@click.group(cls=Noun)
def group() -> None:
    """Named sets of volumes. A snapshot of one is of all of them at one instant."""


def _print(shown: Json, as_json: bool) -> None:
    if as_json:
        print_json(shown)
    else:
        say(f"group {shown['name']}: volumes {listed(shown['volumes'])}")


@group.command()
@click.argument("name")
@click.argument("volumes", nargs=-1, metavar="VOLUME...")
@json_option
@state_dir_option
def create(name: str, volumes: tuple[str, ...], as_json: bool, state_dir: Path) -> None:
    """Make a group of volumes."""
    _print(Client(state_dir).post("groups", body={"name": name, "volumes": volumes}), as_json)


@group.command()
@click.argument("name")
@click.argument("volumes", nargs=-1, required=True, metavar="VOLUME...")
@json_option
@state_dir_option
def join(name: str, volumes: tuple[str, ...], as_json: bool, state_dir: Path) -> None:
    """Put volumes into a group; its snapshots stay as they are."""
    _print(Client(state_dir).patch("groups", name, body={"join": volumes}), as_json)


@group.command()
@click.argument("name")
@click.argument("volumes", nargs=-1, required=True, metavar="VOLUME...")
@json_option
@state_dir_option
def leave(name: str, volumes: tuple[str, ...], as_json: bool, state_dir: Path) -> None:
    """Take volumes out of a group; its snapshots stay as they are."""
    _print(Client(state_dir).patch("groups", name, body={"leave": volumes}), as_json)


@group.command(name="list")
@json_option
@state_dir_option
def list_groups(as_json: bool, state_dir: Path) -> None:
    """List all groups."""
    groups = Client(state_dir).get("groups")
    if as_json:
        print_json(groups)
        return
    print_table(
        ("NAME", "VOLUMES", "SNAPSHOTS", "SCHEDULES"),
        [
            (each["name"], listed(each["volumes"]), len(each["snapshots"]), listed(each["schedules"]))
            for each in groups
        ],
    )


@group.command()
@click.argument("name")
@local_option
@json_option
@state_dir_option
def show(name: str, as_json: bool, state_dir: Path) -> None:
    """Show one group."""
    shown = Client(state_dir).get("groups", name)
    if as_json:
        print_json(shown)
        return
    print_facts(
        [
            ("name", shown["name"]),
            ("uuid", shown["uuid"]),
            ("volumes", listed(shown["volumes"])),
            ("snapshots", listed(shown["snapshots"])),
            ("schedules", listed(shown["schedules"])),
            ("created", moment(shown["created"])),
        ]
    )


@group.command()
@click.argument("name", metavar="OLD")
@click.argument("new", metavar="NEW")
@json_option
@state_dir_option
def rename(name: str, new: str, as_json: bool, state_dir: Path) -> None:
    """Rename a group. Its snapshots and schedules stay its own."""
    rename_object(state_dir, ("groups", name), new, as_json)


@group.command()
@click.argument("name")
@json_option
@state_dir_option
def delete(name: str, as_json: bool, state_dir: Path) -> None:
    """Delete a group that has no snapshots. Its schedules go too, its volumes stay."""
    deleted = Client(state_dir).delete("groups", name)
    if as_json:
        print_json(deleted)
        return
    gone = f", with schedule {listed(deleted['schedules'])}" if deleted["schedules"] else ""
    say(f"group {name} deleted{gone}")
