"""polyvol volume: create, clone, set, add-log, grow, list, show, rename, delete."""

from collections.abc import Callable
from pathlib import Path

import click

from polyvol.daemon.client.attach.address import parse_uri
from polyvol.daemon.client.attach.records import Places
from polyvol.daemon.client.cli.client import Client, Json
from polyvol.daemon.client.cli.common import SIZE, Command, json_option, split_snapshot, state_dir_option
from polyvol.daemon.client.cli.hooks import hook_options, hook_text, hooks_from
from polyvol.daemon.client.cli.log_rules import (
    log_devices_option,
    place_option,
    processors_option,
    rules_text,
)
from polyvol.daemon.client.cli.output import listed, print_facts, print_json, print_table, say
from polyvol.daemon.client.cli.renaming import rename as rename_object
from polyvol.daemon.client.cli.space_output import (
    lasts_text,
    limit_text,
    live_text,
    relocation_text,
    room,
    use_text,
)
from polyvol.daemon.client.cli.times import local_option, moment
from polyvol.daemon.client.cli.tree import Noun
from polyvol.daemon.client.cli.volume_output import (
    print_bad_blocks,
    print_dropped,
    print_logs,
    print_partitions,
    print_plan,
    print_volumes,
    scrubbed,
    source_text,
)
from polyvol.daemon.errors import NotConfirmed
from polyvol.daemon.state.directory import nbd_socket
from polyvol.mapping.sizes import counted, format_size


def when_full_option(*, default: str | None = None) -> Callable[[Command], Command]:
    """--when-full, given to the command as `when_full`."""
    return click.option(
        "--when-full",
        type=click.Choice(["keep-writing", "keep-snapshots"]),
        help="When the change logs are full: drop the oldest scheduled snapshots, or refuse writes.",
        default=default,
        show_default=default is not None,
    )


def _log_limit(context: click.Context, parameter: click.Parameter, given: str | None) -> str | int | None:
    if given is None or given in ("auto", "none"):
        return given
    return SIZE.convert(given, parameter, context)


def log_limit_option(*, default: str | None = None) -> Callable[[Command], Command]:
    """--log-limit, given to the command as `log_limit`."""
    return click.option(
        "--log-limit",
        metavar="SIZE|auto|none",
        callback=_log_limit,
        help="The size up to which all its log areas together grow by themselves, if their devices have room;"
        " auto: twice its size (three times for a clone); none: they do not grow.",
        default=default,
        show_default=default is not None,
    )


def _relocation_rate(
    context: click.Context, parameter: click.Parameter, given: str | None
) -> str | int | None:
    if given is None or given in ("auto", "off"):
        return given
    return SIZE.convert(given, parameter, context)


@click.group(cls=Noun)
def volume() -> None:
    """Virtual volumes."""


@volume.command()
@click.argument("name")
@click.option("--size", type=SIZE, help="Its size, a multiple of 4096.")
@click.option("--base", metavar="DEVICE", help="An adopted device, with its data and its size.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="DEVICE",
    help="Device for its data [new files]; repeatable.",
)
@log_devices_option(help="Where its change logs lie [new files]; repeatable.")
@processors_option()
@place_option()
@click.option(
    "--partition-size", type=SIZE, default="64M", show_default=True, help="A power of two, 1M to 1G."
)
@when_full_option(default="keep-writing")
@log_limit_option(default="auto")
@click.option("--dry-run", is_flag=True, help="Show the plan; change nothing.")
@click.option("--partitions", is_flag=True, help="With --dry-run: each partition's extents and processor.")
@json_option
@state_dir_option
def create(state_dir: Path, as_json: bool, partitions: bool, **request: Json) -> None:
    """Make a volume and export it."""
    if partitions and not request["dry_run"]:
        raise click.UsageError("--partitions needs --dry-run; `polyvol volume show` shows them of a volume")
    request["devices"] = list(request["devices"])
    request["log_devices"] = list(request["log_devices"])
    request["place"] = list(request["place"])
    made = Client(state_dir).post("volumes", body=request)
    if as_json:
        print_json(made)
    elif request["dry_run"]:
        print_plan(made, partitions=partitions)
    else:
        parts = counted(made["partition_count"], "partition")
        owners = counted(len(made["processors"]), "processor")
        say(
            f"volume {made['name']}: {format_size(made['size'])}, {parts} of"
            f" {format_size(made['partition_size'])} on {owners}, devices {listed(made['devices'])}"
        )


@volume.command()
@click.argument("source", metavar="VOLUME@SNAPSHOT")
@click.argument("name", metavar="NEW")
@log_devices_option(help="Where its change logs lie [new files]; repeatable.")
@processors_option()
@when_full_option(default="keep-writing")
@log_limit_option(default="auto")
@json_option
@state_dir_option
def clone(source: str, name: str, as_json: bool, state_dir: Path, **request: Json) -> None:
    """Make a volume from a snapshot, at once. It shares all blocks until they are written."""
    volume_name, snapshot = split_snapshot(source)
    body = {"name": name, **request, "log_devices": list(request["log_devices"])}
    made = Client(state_dir).post("volumes", volume_name, "snapshots", snapshot, "clones", body=body)
    if as_json:
        print_json(made)
        return
    owners = counted(len(made["processors"]), "processor")
    say(f"volume {name}: {format_size(made['size'])} of {source}, on {owners}")


@volume.command(name="set")
@click.argument("name")
@when_full_option()
@log_devices_option(help="Where its change logs lie from now on, in place of all its rules; repeatable.")
@click.option(
    "--relocate",
    metavar="auto|off|RATE",
    callback=_relocation_rate,
    help="How fast blocks are brought from change logs back to their base places: as there is opportunity,"
    " not at all, or so many bytes a second.",
)
@log_limit_option()
@hook_options
@click.option("--no-hooks", is_flag=True, help="Remove the volume's hooks.")
@json_option
@state_dir_option
def set_volume(
    name: str,
    when_full: str | None,
    log_devices: tuple[str, ...],
    relocate: str | int | None,
    log_limit: str | int | None,
    no_hooks: bool,
    as_json: bool,
    state_dir: Path,
    **hooks: Json,
) -> None:
    """Change a volume's settings. They are what it does when its change logs are full, where these
    lie, how fast blocks are brought back from them, up to what size its log areas grow, and its hooks."""
    given = hooks_from(**hooks)
    if no_hooks:
        if given is not None:
            raise click.UsageError("give hooks, or --no-hooks")
        given = {}
    body = {
        "when_full": when_full,
        "hooks": given,
        "log_devices": list(log_devices) or None,
        "relocate": relocate,
        "log_limit": log_limit,
    }
    if all(each is None for each in body.values()):
        raise click.UsageError(
            "give --when-full, --log-device, --relocate, --log-limit, --quiesce, or --no-hooks"
        )
    changed = Client(state_dir).patch("volumes", name, body=body)
    if as_json:
        print_json(changed)
        return
    rules, hooked = rules_text(changed["log_rules"]), hook_text(changed["hooks"])
    say(
        f"volume {name}: when full, {changed['when_full']}; log rules: {rules};"
        f" relocation: {relocation_text(changed['relocation']) or '-'};"
        f" log limit: {limit_text(changed['log_limit'])}; hooks: {hooked or '-'}"
    )
    if log_devices and changed["snapshots"]:
        _tell_own_rules(name, changed["snapshots"][-1], Client(state_dir))


def _tell_own_rules(name: str, newest: str, client: Client) -> None:
    """Print a note if the newest snapshot has log rules, which are in force instead of the volume's."""
    shown = client.get("volumes", name, "snapshots", newest)
    if shown["log_rules"]:
        own = f"{shown['export']} has log rules of its own: {rules_text(shown['log_rules'])}"
        say(f"the new rules are in force from the next snapshot on, because {own}", err=True)


@volume.command()
@click.argument("name")
@click.option(
    "--device", "devices", multiple=True, metavar="DEVICE", help="Device to use [a new file]; repeatable."
)
@click.option(
    "--size",
    type=SIZE,
    help="Size of each new area [on a device: what is free, up to the volume's size; file: as all logs].",
)
@json_option
@state_dir_option
def add_log(name: str, devices: tuple[str, ...], size: int | None, as_json: bool, state_dir: Path) -> None:
    """Give a volume more log areas, while it is in use."""
    body = {"devices": list(devices), "size": size}
    changed = Client(state_dir).post("volumes", name, "logs", body=body)
    if as_json:
        print_json(changed)
        return
    say(f"volume {name}: {counted(len(changed['logs']), 'log area')}, {room(changed)}")


@volume.command()
@click.argument("name")
@click.option("--size", type=SIZE, required=True, help="Its size from now on, a multiple of 4096.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="DEVICE",
    help="Device for the new part [new files]; repeatable.",
)
@json_option
@state_dir_option
def grow(name: str, size: int, devices: tuple[str, ...], as_json: bool, state_dir: Path) -> None:
    """Make a volume larger, while it is in use."""
    grown = Client(state_dir).post("volumes", name, "growth", body={"size": size, "devices": devices})
    if as_json:
        print_json(grown)
        return
    parts = counted(grown["partition_count"], "partition")
    say(f"volume {name}: {format_size(grown['size'])}, {parts}, devices {listed(grown['devices'])}")
    _tell_attached(name, state_dir)


def _tell_attached(name: str, state_dir: Path) -> None:
    """Print a note if the volume is attached here as a device that cannot grow with it."""
    from polyvol.daemon.client.attach import fuse  # loads udev: only where it is used

    places = Places.default()
    here = f"nbd+unix:///{name}?socket={nbd_socket(state_dir.absolute())}"
    for attached in places.names():
        now = fuse.find(places, attached)
        if now is not None and fuse.uri_of(places, attached) == parse_uri(here, name).uri:
            why = "nbdfuse cannot show a new size: to see it, detach it and attach it again"
            say(f"{attached} (/dev/{now.device}) keeps its size, because {why}", err=True)


@volume.command(name="list")
@click.option("--all", "kept", is_flag=True, help="Include deleted volumes that clones still depend on.")
@json_option
@state_dir_option
def list_volumes(kept: bool, as_json: bool, state_dir: Path) -> None:
    """List all volumes."""
    volumes = Client(state_dir).get("volumes", kept=kept)
    if as_json:
        print_json(volumes)
        return
    print_volumes(volumes)


@volume.command()
@click.argument("name")
@click.option("--partitions", is_flag=True, help="Show each partition's extents and processor.")
@local_option
@json_option
@state_dir_option
def show(name: str, partitions: bool, as_json: bool, state_dir: Path) -> None:
    """Show one volume."""
    shown = Client(state_dir).get("volumes", name, partitions=partitions)
    if as_json:
        print_json(shown)
        return
    print_facts(
        [
            ("name", shown["name"]),
            ("state", shown["state"]),
            ("reason", shown["reason"]),
            ("uuid", shown["uuid"]),
            ("size", format_size(shown["size"])),
            ("partitions", f"{shown['partition_count']} of {format_size(shown['partition_size'])}"),
            ("processors", listed(shown["processors"])),
            ("devices", listed(shown["devices"])),
            ("base", shown["base"]),
            ("source", source_text(shown["source"])),
            ("connections", shown["connections"]),
            ("snapshots", listed(shown["snapshots"])),
            ("last scrub", scrubbed(shown["last_scrub"])),
            ("when full", shown["when_full"]),
            ("room", room(shown)),
            ("lasts", lasts_text(shown["space"])),
            ("log limit", limit_text(shown["log_limit"])),
            ("relocation", relocation_text(shown["relocation"])),
            ("log rules", rules_text(shown["log_rules"])),
            ("hooks", hook_text(shown["hooks"])),
            ("held", use_text(shown["use"], snapshots=bool(shown["snapshots"]))),
            ("live data", live_text(shown["use"], clone=shown["source"] is not None)),
            ("what to do", shown["advice"]),
            ("created", moment(shown["created"])),
        ]
    )
    print_logs(shown["logs"], shown["log_rules"])
    print_bad_blocks(shown["bad_blocks"])
    print_dropped(shown["dropped"])
    say("")
    print_table(
        ("EXPORT", "ACCESS", "CONNECTIONS"),
        [
            (each["name"], "read-only" if each["read_only"] else "read-write", each["connections"])
            for each in shown["exports"]
        ],
    )
    if partitions:
        print_partitions(shown["partitions"])


@volume.command()
@click.argument("name", metavar="OLD")
@click.argument("new", metavar="NEW")
@json_option
@state_dir_option
def rename(name: str, new: str, as_json: bool, state_dir: Path) -> None:
    """Rename a volume. It, and its snapshots, must have no clients."""
    rename_object(state_dir, ("volumes", name), new, as_json)


@volume.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Really delete it, with its data and its snapshots.")
@json_option
@state_dir_option
def delete(name: str, yes: bool, as_json: bool, state_dir: Path) -> None:
    """Delete a volume and its snapshots. It must have no clients."""
    if not yes:
        raise NotConfirmed(name=name)
    deleted = Client(state_dir).delete("volumes", name)
    if as_json:
        print_json(deleted)
        return
    say(f"volume {name} deleted, with {counted(deleted['snapshots'], 'snapshot')}")


@volume.command(name="abandon-restore")
@click.argument("name")
@json_option
@state_dir_option
def abandon_restore(name: str, as_json: bool, state_dir: Path) -> None:
    """End an incomplete restore to a volume.

    The volume is again what it was before an incremental restore; one that was made for a full restore is
    deleted."""
    ended = Client(state_dir).delete("volumes", name, "restore")
    if as_json:
        print_json(ended)
    elif ended["base"] is None:
        say(f"the restore to volume {name} was abandoned, and the volume deleted")
    else:
        say(f"the restore to volume {name} was abandoned: it is what {name}@{ended['base']} shows")
