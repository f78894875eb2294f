"""What is printed of volumes."""

from typing import Any

from polyvol.daemon.client.cli.client import Json
from polyvol.daemon.client.cli.log_rules import rules_text
from polyvol.daemon.client.cli.output import listed, print_facts, print_table, say
from polyvol.daemon.client.cli.space_output import log_use, room
from polyvol.daemon.client.cli.times import moment, moments, zoned
from polyvol.mapping.sizes import counted, exact_size, format_size


def print_volumes(volumes: list[dict[str, Any]]) -> None:
    """The table of `volume list` and `status`."""
    print_table(
        ("NAME", "STATE", "SIZE", "PROCESSORS", "CONNECTIONS", "SNAPSHOTS", "LOG USED", "ROOM", "REASON"),
        [
            (
                each["name"],
                each["state"],
                format_size(each["size"]),
                len(each["processors"]),
                each["connections"],
                len(each["snapshots"]),
                log_use(each["logs"]),
                room(each),
                each["reason"],
            )
            for each in volumes
        ],
    )


def scrubbed(view: dict[str, Any] | None) -> str | None:
    """One line on a scrub."""
    if view is None:
        return None
    bad = counted(view["bad_blocks"], "bad block")
    return f"{moment(view['ended'])}, {format_size(view['done'])} read, {bad}"


def print_bad_blocks(bad: list[dict[str, Any]]) -> None:
    """The table of bad blocks, if there are any."""
    if not bad:
        return
    say("")
    first, last = moments([each["first"] for each in bad]), moments([each["last"] for each in bad])
    print_table(
        ("BAD BLOCK", "PARTITION", "DEVICE", zoned("FIRST FOUND"), zoned("LAST FOUND"), "TIMES"),
        [
            (each["block"], each["partition"], each["device"], begin, end, each["times"])
            for each, begin, end in zip(bad, first, last, strict=True)
        ],
    )


def source_text(source: Json | None) -> str | None:
    """What a clone was made from, for people."""
    if source is None:
        return None
    deleted = " (deleted, and kept for its clones)" if source["deleted"] else ""
    return f"{source['volume']}@{source['snapshot']}{deleted}"


def print_dropped(dropped: list[dict[str, Any]]) -> None:
    """The table of snapshots that were dropped, if there are any."""
    if not dropped:
        return
    say("")
    gone = moments([each["dropped"] for each in dropped])
    made = moments([each["created"] for each in dropped])
    print_table(
        ("DROPPED FOR SPACE", zoned("DROPPED"), zoned("CREATED"), "GIVEN BACK"),
        [
            (
                each["snapshot"],
                when,
                created,
                "-" if each["freed"] is None else format_size(each["freed"]),
            )
            for each, when, created in zip(dropped, gone, made, strict=True)
        ],
    )


def print_plan(plan: dict[str, Any], *, partitions: bool) -> None:
    """What a new volume would be."""
    extents = [extent for part in plan["partitions"] for extent in part["extents"]]
    on: dict[str, int] = {}
    for extent in extents:
        on[extent["device"]] = on.get(extent["device"], 0) + extent["length"]
    print_facts(
        [
            ("volume", plan["name"]),
            ("size", format_size(plan["size"])),
            ("partitions", f"{plan['partition_count']} of {format_size(plan['partition_size'])}"),
            ("processors", listed(plan["processors"])),
            ("devices", listed([f"{device} ({format_size(size)})" for device, size in on.items()])),
            ("log rules", rules_text(plan["log_rules"])),
        ]
    )
    for each in plan["new_devices"]:
        say(f"to be made: device {each['name']}, {each['path']}, {format_size(each['size'])}")
    print_logs([{**log, "used": 0} for log in plan["logs"]], plan["log_rules"])
    if partitions:
        print_partitions(plan["partitions"])


def print_logs(logs: list[dict[str, Any]], rules: list[dict[str, Any]]) -> None:
    """The table of log areas."""
    others = (
        "the volume, after the others" if any(rule["any"] for rule in rules) else "snapshots that name it"
    )
    say("")
    print_table(
        ("LOG AREA", "DEVICES", "USED", "FOR"),
        [
            (
                log["number"],
                listed(log["devices"]),
                log_use([log]),
                "the volume" if log["default"] else others,
            )
            for log in logs
        ],
    )


def print_partitions(partitions: list[dict[str, Any]]) -> None:
    """The table of partitions."""
    say("")
    print_table(
        ("PARTITION", "PROCESSOR", "STATE", "DEVICE", "OFFSET", "LENGTH"),
        [
            (
                part["number"],
                part["processor"],
                part["state"],
                extent["device"],
                exact_size(extent["offset"]),
                exact_size(extent["length"]),
            )
            for part in partitions
            for extent in part["extents"]
        ],
    )
