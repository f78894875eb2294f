"""polyvol snapshot, where a group is named: `@GROUP`, `@GROUP@SNAPSHOT`."""

from typing import Any

import click

from polyvol.daemon.cli.client import Client, Json
from polyvol.daemon.cli.output import in_future, listed, print_facts, print_json, print_table
from polyvol.daemon.sizes import format_ns, format_size


def create_of_group(client: Client, group: str, body: Json, as_json: bool) -> None:
    """Take a snapshot of a group."""
    made = client.post("groups", group, "snapshots", body=body)
    if as_json:
        print_json(made)
        return
    stall, durable = format_ns(made["stall_ns"]), format_ns(made["durable_ns"])
    click.echo(f"snapshot {made['export']}: write stall {stall}, durable after {durable}")
    for member in made["members"]:
        click.echo(f"  {member['export']}")


def list_of_group(client: Client, group: str, as_json: bool) -> None:
    """List the snapshots of a group."""
    snapshots = client.get("groups", group, "snapshots")
    if as_json:
        print_json(snapshots)
        return
    print_table(
        ("SNAPSHOT", "CREATED", "MADE BY", "HELD", "STALL", "VOLUMES"),
        [
            (
                each["export"],
                in_future(each["created"], each["future"]),
                each["schedule"] or each["origin"],
                listed(each["holds"]),
                format_ns(each["stall_ns"]),
                listed([member["volume"] for member in each["members"]]),
            )
            for each in snapshots
        ],
    )


def print_of_group(shown: dict[str, Any], as_json: bool) -> None:
    """Show a snapshot of a group."""
    if as_json:
        print_json(shown)
        return
    print_facts(
        [
            ("snapshot", shown["export"]),
            ("cut", shown["cut"]),
            ("created", in_future(shown["created"], shown["future"])),
            ("made by", shown["schedule"] or shown["origin"]),
            ("held by", listed(shown["holds"]) if shown["holds"] else None),
            ("consistency", f"{shown['consistency']}-consistent"),
            ("write stall", format_ns(shown["stall_ns"])),
            ("durable after", format_ns(shown["durable_ns"])),
        ]
    )
    click.echo()
    print_table(
        ("MEMBER", "SIZE", "EPOCH", "CONNECTIONS", "HOOKS FAILED"),
        [
            (
                member["export"],
                format_size(member["size"]),
                member["epoch"],
                member["connections"],
                member["hook_trouble"] or "-",
            )
            for member in shown["members"]
        ],
    )
