"""polyvol device: add, list, show, retry, rename, remove."""

import os
from pathlib import Path
from typing import Any

import click

from polyvol.daemon.client.cli.client import Client
from polyvol.daemon.client.cli.common import SIZE, TEXT, json_option, state_dir_option
from polyvol.daemon.client.cli.output import listed, print_facts, print_json, print_table, say
from polyvol.daemon.client.cli.renaming import rename as rename_object
from polyvol.daemon.client.cli.times import local_option, moment
from polyvol.daemon.client.cli.tree import Noun
from polyvol.mapping.os_errors import reason
from polyvol.mapping.sizes import format_size


@click.group(cls=Noun)
def device() -> None:
    """Files and disks that store data."""


@device.command()
@click.argument("path", type=TEXT)
@click.option("--name", metavar="NAME", help="Its name [made from the path].")
@click.option("--size", type=SIZE, help="Size of a file to create.")
@click.option("--preallocate", is_flag=True, help="Allocate all blocks of the file now.")
@click.option("--adopt", is_flag=True, help="Use a disk or image with its data, as a volume's base.")
@click.option("--force", is_flag=True, help="Use it even if it holds data (still refused while in use).")
@click.option("--direct", is_flag=True, help="Read and write it past the page cache (O_DIRECT).")
@json_option
@state_dir_option
def add(
    path: str,
    name: str | None,
    size: int | None,
    preallocate: bool,
    adopt: bool,
    force: bool,
    direct: bool,
    as_json: bool,
    state_dir: Path,
) -> None:
    """Add a file (made if missing) or a disk. A device that was missing comes back with it."""
    body = {
        "path": os.path.abspath(path),  # noqa: PTH100 - symbolic links such as /dev/disk/by-id stay as they are
        "name": name,
        "size": size,
        "preallocate": preallocate,
        "adopt": adopt,
        "force": force,
        "direct": direct,
    }
    made = Client(state_dir).post("devices", body=body)
    if as_json:
        print_json(made)
        return
    say(f"device {made['name']}: {made['path']}, {format_size(made['size'])}, {made['role']}")


@device.command(name="list")
@json_option
@state_dir_option
def list_devices(as_json: bool, state_dir: Path) -> None:
    """List all devices."""
    devices = Client(state_dir).get("devices")
    if as_json:
        print_json(devices)
        return
    print_table(
        ("NAME", "STATE", "ROLE", "SIZE", "FREE", "VOLUMES", "PATH"),
        [
            (
                each["name"],
                each["state"],
                each["role"],
                format_size(each["size"]),
                format_size(each["free"]),
                listed(each["volumes"]),
                each["path"],
            )
            for each in devices
        ],
    )


@device.command()
@click.argument("name")
@local_option
@json_option
@state_dir_option
def show(name: str, as_json: bool, state_dir: Path) -> None:
    """Show one device."""
    shown = Client(state_dir).get("devices", name)
    if as_json:
        print_json(shown)
        return
    print_facts(
        [
            ("name", shown["name"]),
            ("state", shown["state"]),
            ("reason", shown["reason"]),
            ("path", shown["path"]),
            ("kind", shown["kind"]),
            ("role", shown["role"]),
            ("uuid", shown["uuid"]),
            ("size", format_size(shown["size"])),
            ("capacity", format_size(shown["capacity"])),
            ("free", format_size(shown["free"])),
            ("sparse", "yes" if shown["sparse"] else "no"),
            ("direct", "yes" if shown["direct"] else "no"),
            ("volumes", listed(shown["volumes"])),
            ("made for", shown["made_for"]),
            ("I/O errors", _errors(shown)),
            ("created", moment(shown["created"])),
        ]
    )


@device.command()
@click.argument("name")
@click.option("--path", type=TEXT, metavar="PATH", help="Its present path [the old one].")
@click.option("--accept", is_flag=True, help="Accept an older copy of it or of the state directory.")
@json_option
@state_dir_option
def retry(name: str, path: str | None, accept: bool, as_json: bool, state_dir: Path) -> None:
    """Reopen a missing or failed device, without a restart."""
    # Symbolic links such as /dev/disk/by-id stay as they are.
    body = {"path": None if path is None else os.path.abspath(path), "accept": accept}  # noqa: PTH100
    shown = Client(state_dir).post("devices", name, "retry", body=body)
    if as_json:
        print_json(shown)
    else:
        say(f"device {name} is back: {shown['path']}")


@device.command()
@click.argument("name", metavar="OLD")
@click.argument("new", metavar="NEW")
@json_option
@state_dir_option
def rename(name: str, new: str, as_json: bool, state_dir: Path) -> None:
    """Rename a device. It may be in use, or missing."""
    rename_object(state_dir, ("devices", name), new, as_json)


@device.command()
@click.argument("name")
@json_option
@state_dir_option
def remove(name: str, as_json: bool, state_dir: Path) -> None:
    """Remove a device that no volume uses. The file or disk itself stays."""
    removed = Client(state_dir).delete("devices", name)
    if as_json:
        print_json(removed)
    else:
        say(f"device {name} removed")


def _errors(shown: dict[str, Any]) -> str:
    """How many calls on a device have failed, and the latest reason."""
    if not shown["errors"]:
        return "0"
    return f"{shown['errors']}, the last one: {reason(OSError(shown['last_errno'], ''))}"
