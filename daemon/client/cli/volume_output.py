"""What is printed of volumes."""

from typing import Any

from polyvol.daemon.client.cli.client import Json
from polyvol.daemon.client.cli.log_rules import rules_text
from polyvol.daemon.client.cli.output import listed, print_facts, print_table, say
from polyvol.daemon.client.cli.times import moment, moments, zoned
from polyvol.daemon.sizes import format_seconds
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


def log_use(logs: list[dict[str, Any]]) -> str:
    """How much of the change logs is used; '-' if unknown."""
    size = format_size(sum(log["size"] for log in logs))
    if any(log["used"] is None for log in logs):
        return f"unknown, of {size}"
    return f"{format_size(sum(log['used'] for log in logs))} of {size}"


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


def use_text(use: Json | None) -> str | None:
    """What a volume's change logs hold, for people."""
    if use is None:
        return None
    parts = (
        f"{format_size(use['live'])} by the volume, {format_size(use['snapshots_only'])} by snapshots alone"
    )
    return f"{format_size(use['used'])}: {parts}"


def room(shown: dict[str, Any]) -> str:
    """How much of a volume can still be redirected, and for how long at the present rate; '-' if unknown.

    Log areas that are full before the others are named, because log rules may allow no other."""
    space = shown["space"]
    if space is None:
        return "-"
    text = f"{space['level']}, {format_size(space['free'])} free"
    if space["level"] == "full":
        return text
    if space["full_after_s"] is not None:
        text += f", full in {format_seconds(space['full_after_s'])} at {format_size(space['rate'])}/s"
    full = [log for log in shown["logs"] if log["used"] is not None and log["used"] >= log["size"]]
    return "; ".join([text, *(f"area {log['number']} on {listed(log['devices'])} is full" for log in full)])


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


def relocation_text(relocation: Json | None) -> str | None:
    """The relocation setting, and what was done and goes on."""
    if relocation is None:
        return None
    rate = relocation["rate"]
    setting = "auto" if rate is None else "off" if rate == 0 else f"{format_size(rate)}/s"
    moved = f"{format_size(relocation['moved'])} moved" if relocation["moved"] else ""
    speed = f"{format_size(relocation['speed'])}/s now" if relocation["speed"] else ""
    failed = f"{counted(relocation['failed'], 'run')} failed" if relocation["failed"] else ""
    state = relocation["state"] if rate != 0 else ""
    return "; ".join(each for each in (setting, moved, speed, failed, state) if each)
