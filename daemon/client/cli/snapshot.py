"""polyvol snapshot: create, list, show, rename, hold, release, delete; groups are in snapshot_group.py."""

from pathlib import Path

import click

from polyvol.daemon.client.cli.client import Client, Json
from polyvol.daemon.client.cli.common import (
    json_option,
    new_snapshot_name,
    snapshot_parts,
    state_dir_option,
)
from polyvol.daemon.client.cli.deletions import delete_many
from polyvol.daemon.client.cli.log_rules import log_devices_option, rules_text
from polyvol.daemon.client.cli.output import listed, print_facts, print_json, print_table, say
from polyvol.daemon.client.cli.partitions import SnapshotTable, partition_snapshots, print_shares
from polyvol.daemon.client.cli.renaming import rename as rename_object
from polyvol.daemon.client.cli.snapshot_group import (
    create_of_group,
    list_of_group,
    print_of_group,
    warn_of_hooks,
)
from polyvol.daemon.client.cli.times import in_future, local_option, moment, moments, zoned
from polyvol.daemon.client.cli.tree import Noun
from polyvol.daemon.sizes import format_ns
from polyvol.mapping.names import is_pattern
from polyvol.mapping.sizes import format_size


@click.group(cls=Noun)
def snapshot() -> None:
    """Snapshots: volumes as they were at one instant."""


@snapshot.command()
@click.argument("volumes", nargs=-1, required=True, metavar="VOLUME...|@GROUP")
@click.option("--name", metavar="NAME", help="The same in each volume [the time, UTC].")
@click.option("--prefix", metavar="PREFIX", help="Prefix of a name that is made from the time.")
@log_devices_option(help="Where the change logs that begin with it lie [as the volume says]; repeatable.")
@click.option("--scheduled", is_flag=True, help="Mark it as scheduled: may be dropped when space runs out.")
@click.option("--require-hooks", is_flag=True, help="Take no snapshot unless all hooks succeed.")
@json_option
@state_dir_option
def create(
    volumes: tuple[str, ...],
    name: str | None,
    prefix: str | None,
    log_devices: tuple[str, ...],
    scheduled: bool,
    require_hooks: bool,
    as_json: bool,
    state_dir: Path,
) -> None:
    """Take one snapshot of each volume, all at one instant. The volumes are named, or a group's; each
    snapshot is exported."""
    if name is not None and prefix is not None:
        raise click.UsageError("give --name, or --prefix")
    body: Json = {"name": name, "prefix": prefix, "log_devices": list(log_devices), "scheduled": scheduled}
    body["require_hooks"] = require_hooks
    if any(volume.startswith("@") for volume in volumes):
        if len(volumes) > 1:
            raise click.UsageError("name volumes, or one group")
        create_of_group(Client(state_dir), volumes[0][1:], body, as_json)
        return
    for volume, at, wanted in (each.partition("@") for each in volumes):
        if at:
            form = f"{volume} --name {wanted or 'NAME'}"
            raise click.UsageError(f"name the volume alone, and the snapshot by --name: {form}")
    made = Client(state_dir).post("snapshots", body={**body, "volumes": volumes})
    if as_json:
        print_json(made)
        return
    warn_of_hooks(made)
    for each in made:
        stall, durable = format_ns(each["stall_ns"]), format_ns(each["durable_ns"])
        say(f"snapshot {each['export']}: write stall {stall}, durable after {durable}")


@snapshot.command(name="list")
@click.argument("volume", required=False, metavar="[VOLUME|@GROUP]")
@click.option(
    "--partitions", is_flag=True, help="Show how many partitions each has, and on which processors."
)
@local_option
@json_option
@state_dir_option
def list_snapshots(volume: str | None, partitions: bool, as_json: bool, state_dir: Path) -> None:
    """List the snapshots of one volume or group. Without a name, all of all volumes."""
    if volume is not None and volume.startswith("@"):
        if partitions:
            raise click.UsageError("--partitions is for the snapshots of volumes")
        list_of_group(Client(state_dir), volume[1:], as_json)
        return
    snapshots = Client(state_dir).get("snapshots", volume=volume, partitions=partitions)
    if as_json:
        print_json(snapshots)
        return
    if partitions:
        print_shares(snapshots)
        return
    created = moments([each["created"] for each in snapshots], [each["future"] for each in snapshots])
    print_table(
        ("SNAPSHOT", zoned("CREATED"), "EPOCH", "MADE BY", "HELD", "FREES", "SHARED", "STALL", "CONNECTIONS"),
        [
            (
                each["export"],
                instant,
                each["epoch"],
                each["schedule"] or each["origin"],
                listed(each["holds"]),
                "-" if each["use"] is None else format_size(each["use"]["frees"]),
                "-" if each["use"] is None else format_size(each["use"]["shared"]),
                format_ns(each["stall_ns"]),
                each["connections"],
            )
            for each, instant in zip(snapshots, created, strict=True)
        ],
    )


@snapshot.command()
@click.argument("name", metavar="VOLUME@SNAPSHOT|@GROUP@SNAPSHOT")
@click.option("--partitions", is_flag=True, help="Show its partition snapshots.")
@local_option
@json_option
@state_dir_option
def show(name: str, partitions: bool, as_json: bool, state_dir: Path) -> None:
    """Show one snapshot."""
    client = Client(state_dir)
    shown = client.get(*snapshot_parts(name))
    if name.startswith("@"):
        print_of_group(client, shown, as_json, partitions=partitions)
        return
    if as_json:
        print_json({**shown, "partitions": list(partition_snapshots(client, shown))} if partitions else shown)
        return
    table = SnapshotTable(partition_snapshots(client, shown)) if partitions else None
    stalls = [f"{stall['processor']}: {format_ns(stall['stall_ns'])}" for stall in shown["stalls"]]
    print_facts(
        [
            ("snapshot", shown["export"]),
            ("uuid", shown["uuid"]),
            ("cut", shown["cut"]),
            ("created", in_future(moment(shown["created"]) or "-", shown["future"])),
            ("epoch", shown["epoch"]),
            ("size", format_size(shown["size"])),
            ("made by", shown["schedule"] or shown["origin"]),
            ("part of", shown["whole"]),
            ("held by", listed(shown["holds"]) if shown["holds"] else None),
            ("consistency", f"{shown['consistency']}-consistent"),
            ("hooks failed", shown["hook_trouble"]),
            ("clones", listed(shown["clones"]) if shown["clones"] else None),
            ("write stall", f"{format_ns(shown['stall_ns'])} (by processor: {listed(stalls)})"),
            ("durable after", format_ns(shown["durable_ns"])),
            ("log rules", rules_text(shown["log_rules"]) if shown["log_rules"] else None),
            ("space", use_text(shown["use"])),
            ("copy of", shown["copy_of"]),
            ("connections", shown["connections"]),
        ]
    )
    if table is not None:
        say("")
        table.say()


@snapshot.command()
@click.argument("name", metavar="VOLUME@SNAPSHOT|@GROUP@SNAPSHOT")
@click.option("--force", is_flag=True, help="Disconnect clients that have the volume open.")
@click.option("--no-safety", is_flag=True, help="Take no snapshot of the volume before it is rolled back.")
@click.option("--safety-name", help="Name of that snapshot.", metavar="NAME")
@json_option
@state_dir_option
def rollback(
    name: str, force: bool, no_safety: bool, safety_name: str | None, as_json: bool, state_dir: Path
) -> None:
    """Roll a volume, or all of a group, back to a snapshot. Newer snapshots stay."""
    body = {"force": force, "safety": not no_safety, "safety_name": safety_name}
    done = Client(state_dir).post(*snapshot_parts(name), "rollback", body=body)
    if as_json:
        print_json(done)
        return
    what, are = listed(done["volumes"]), "is" if len(done["volumes"]) == 1 else "are"
    kept = f"; what was there is in snapshot {done['safety']}" if done["safety"] else ""
    say(f"{what} {are} what snapshot {name} shows{kept}")


@snapshot.command()
@click.argument("name", metavar="VOLUME@OLD|@GROUP@OLD")
@click.argument("new", metavar="NEW")
@json_option
@state_dir_option
def rename(name: str, new: str, as_json: bool, state_dir: Path) -> None:
    """Rename a snapshot. It must have no clients; one of a group is renamed in all volumes."""
    parts = snapshot_parts(name)
    rename_object(state_dir, parts, new_snapshot_name(name, new), as_json)


@snapshot.command()
@click.argument("name", metavar="VOLUME@SNAPSHOT|@GROUP@SNAPSHOT")
@click.option("--tag", required=True, help="Who holds it, or why.")
@json_option
@state_dir_option
def hold(name: str, tag: str, as_json: bool, state_dir: Path) -> None:
    """Keep a snapshot from being deleted. It is kept until all its tags are released."""
    held = Client(state_dir).post(*snapshot_parts(name), "holds", body={"tag": tag})
    if as_json:
        print_json(held)
        return
    say(f"snapshot {name} is held ({listed(held['holds'])})")


@snapshot.command()
@click.argument("name", metavar="VOLUME@SNAPSHOT|@GROUP@SNAPSHOT")
@click.option("--tag", required=True, help="The tag that it was held by.")
@json_option
@state_dir_option
def release(name: str, tag: str, as_json: bool, state_dir: Path) -> None:
    """End a hold of a snapshot."""
    held = Client(state_dir).post(*snapshot_parts(name), "holds", body={"tag": tag, "release": True})
    if as_json:
        print_json(held)
        return
    rest = f"still held ({listed(held['holds'])})" if held["holds"] else "not held any more"
    say(f"snapshot {name} is {rest}")


@snapshot.command()
@click.argument("names", nargs=-1, required=True, metavar="VOLUME@SNAPSHOT|@GROUP@SNAPSHOT...")
@click.option("--no-wait", is_flag=True, help="Return before the space is freed.")
@json_option
@state_dir_option
def delete(names: tuple[str, ...], no_wait: bool, as_json: bool, state_dir: Path) -> None:
    """Delete snapshots that nobody is connected to or holds. Names may have * and ? in them."""
    client, name = Client(state_dir), names[0]
    if len(names) > 1 or is_pattern(name):
        delete_many(client, names, wait=not no_wait, as_json=as_json)
        return
    deleted = client.delete(*snapshot_parts(name))
    if as_json:
        print_json(deleted)
        return
    say(f"snapshot {name} deleted, {format_size(deleted['freed'])} given back")


def use_text(use: Json | None) -> str | None:
    """What a snapshot holds, for people."""
    if use is None:
        return None
    frees, in_logs, shared = (format_size(use[key]) for key in ("frees", "frees_log", "shared"))
    would = f"deleting it frees {frees}, of that {in_logs} in change logs"
    return f"{would}; it shares {shared} of change logs with others"
