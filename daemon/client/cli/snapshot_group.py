"""polyvol snapshot for groups: `@GROUP`, `@GROUP@SNAPSHOT`."""

from collections.abc import Sequence
from typing import Any

from polyvol.daemon.client.cli.client import Client, Json
from polyvol.daemon.client.cli.output import listed, print_facts, print_json, print_table, say, warn
from polyvol.daemon.client.cli.partitions import SnapshotTable, partition_snapshots
from polyvol.daemon.client.cli.times import in_future, moment, moments, zoned
from polyvol.daemon.sizes import format_ns
from polyvol.mapping.sizes import format_size


def create_of_group(client: Client, group: str, body: Json, as_json: bool) -> None:
    """Take a snapshot of a group."""
    made = client.post("groups", group, "snapshots", body=body)
    if as_json:
        print_json(made)
        return
    warn_of_hooks(made["members"])
    stall, durable = format_ns(made["stall_ns"]), format_ns(made["durable_ns"])
    say(f"snapshot {made['export']}: write stall {stall}, durable after {durable}")
    for member in made["members"]:
        say(f"  {member['export']}")


def warn_of_hooks(made: Sequence[Json]) -> None:
    """Warn of each snapshot whose hooks failed, and of what may still be quiesced."""
    for each in made:
        if each["hook_trouble"]:
            warn(f"snapshot {each['export']} is only crash-consistent, because {each['hook_trouble']}")
        if each["thaw_trouble"]:
            still = f"the application of volume {each['volume']} may still be quiesced"
            again = "it is run again when polyvold is next started"
            warn(f"{still}, because {each['thaw_trouble']}; {again}")


def list_of_group(client: Client, group: str, as_json: bool) -> None:
    """List the snapshots of a group."""
    snapshots = client.get("groups", group, "snapshots")
    if as_json:
        print_json(snapshots)
        return
    created = moments([each["created"] for each in snapshots], [each["future"] for each in snapshots])
    print_table(
        ("SNAPSHOT", zoned("CREATED"), "MADE BY", "HELD", "STALL", "VOLUMES"),
        [
            (
                each["export"],
                instant,
                each["schedule"] or each["origin"],
                listed(each["holds"]),
                format_ns(each["stall_ns"]),
                listed([member["volume"] for member in each["members"]]),
            )
            for each, instant in zip(snapshots, created, strict=True)
        ],
    )


def print_of_group(client: Client, shown: dict[str, Any], as_json: bool, *, partitions: bool) -> None:
    """Show a snapshot of a group, with the partition snapshots of its members if asked for."""
    with_parts = shown["members"] if partitions else []
    if as_json:
        for member in with_parts:
            member["partitions"] = list(partition_snapshots(client, member))
        print_json(shown)
        return
    tables = [(member["export"], SnapshotTable(partition_snapshots(client, member))) for member in with_parts]
    print_facts(
        [
            ("snapshot", shown["export"]),
            ("cut", shown["cut"]),
            ("created", in_future(moment(shown["created"]) or "-", shown["future"])),
            ("made by", shown["schedule"] or shown["origin"]),
            ("held by", listed(shown["holds"]) if shown["holds"] else None),
            ("consistency", f"{shown['consistency']}-consistent"),
            ("write stall", format_ns(shown["stall_ns"])),
            ("durable after", format_ns(shown["durable_ns"])),
        ]
    )
    say("")
    print_table(
        ("MEMBER", "SIZE", "EPOCH", "CONNECTIONS", "HOOKS FAILED"),
        [
            (
                member["export"],
                format_size(member["size"]),
                member["epoch"],
                member["connections"],
                member["hook_trouble"],
            )
            for member in shown["members"]
        ],
    )
    for export, table in tables:
        say("")
        say(f"partition snapshots of {export}:")
        table.say()
