"""Space output: what `status` and `volume show` print of log areas: who holds what, what comes back, and how
long the free space lasts."""

from typing import Any

from polyvol.daemon.client.cli.client import Json
from polyvol.daemon.client.cli.output import listed, print_table, say
from polyvol.daemon.sizes import format_seconds
from polyvol.mapping.sizes import counted, format_size

_HOUR_S = 3600


def log_use(logs: list[dict[str, Any]]) -> str:
    """How much of the change logs is used; '-' if unknown."""
    size = format_size(sum(log["size"] for log in logs))
    if any(log["used"] is None for log in logs):
        return f"unknown, of {size}"
    return f"{format_size(sum(log['used'] for log in logs))} of {size}"


def use_text(use: Json | None, *, snapshots: bool) -> str | None:
    """What a volume's change logs hold, for people; `snapshots`: whether it has any."""
    if use is None:
        return None
    rest = "snapshots alone" if snapshots or not use["snapshots_only"] else "deleted snapshots"
    parts = f"{format_size(use['live'])} by the volume, {format_size(use['snapshots_only'])} by {rest}"
    return f"{format_size(use['used'])}: {parts}"


def live_text(use: Json | None, *, clone: bool) -> str | None:
    """What becomes of the data of a volume itself that is in its change logs, for people."""
    if use is None or not use["live"]:
        return None
    if clone:
        return f"{format_size(use['live'])} stays: a clone has no base places"
    parts = [f"{format_size(use['comes_back'])} can come back to base places"]
    if use["snapshots_keep"]:
        parts.append(f"{format_size(use['snapshots_keep'])} stays: snapshots need its base places")
    if use["clones_keep"]:
        parts.append(f"{format_size(use['clones_keep'])} stays: clones pin it")
    return ", ".join(parts)


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


def lasts_text(space: Json | None) -> str | None:
    """For how long what is free in log areas lasts, for people; None for a volume that is not served."""
    if space is None:
        return None
    if space["redirected_per_hour"] is None:
        return "unknown until some minutes are measured"
    measured = space["measured_s"]
    whole = measured >= _HOUR_S * 59 // 60
    span = "the last hour" if whole else f"the last {format_seconds(measured)}"
    rates = (
        f"{format_size(space['redirected_per_hour'])} an hour redirected,"
        f" {format_size(space['freed_per_hour'])} freed"
    )
    if space["lasts_s"] is None:
        return f"as long as it goes on as in {span}: {rates}"
    return f"for about {format_seconds(space['lasts_s'])} at the rate of {span}: {rates}"


def limit_text(limit: Json | None) -> str:
    """Up to what size log areas grow, for people."""
    if limit is None or not limit["bytes"]:
        return "none: log areas do not grow by themselves"
    auto = " (auto)" if limit["auto"] else ""
    return f"log areas grow up to {format_size(limit['bytes'])}{auto}"


def to_go(relocation: dict[str, Any]) -> str:
    """What relocation can still move, and how long that takes, for people; '' if that is nothing."""
    if not relocation["left"]:
        return ""
    text = f"{format_size(relocation['left'])} to go"
    return text if relocation["eta_s"] is None else f"{text}, about {format_seconds(relocation['eta_s'])}"


def print_space(volumes: list[dict[str, Any]]) -> None:
    """The table of `status` that says who holds what volumes have in change logs."""
    rows = [each for each in volumes if each["use"] is not None and each["use"]["used"]]
    if not rows:
        return
    say("")
    print_table(
        ("VOLUME", "ITS OWN DATA", "SNAPSHOTS ALONE", "COMES BACK", "RELOCATION", "FREE SPACE LASTS"),
        [
            (
                each["name"],
                format_size(each["use"]["live"]),
                format_size(each["use"]["snapshots_only"]),
                format_size(each["use"]["comes_back"]),
                relocation_text(each["relocation"]),
                lasts_text(each["space"]),
            )
            for each in rows
        ],
    )


def relocation_text(relocation: Json | None) -> str | None:
    """The relocation setting, what was moved, and what relocation does now."""
    if relocation is None:
        return None
    rate = relocation["rate"]
    setting = "auto" if rate is None else "off" if rate == 0 else f"{format_size(rate)}/s"
    moved = f"{format_size(relocation['moved'])} moved" if relocation["moved"] else ""
    speed = f"{format_size(relocation['speed'])}/s now" if relocation["speed"] else ""
    failed = f"{counted(relocation['failed'], 'run')} failed" if relocation["failed"] else ""
    written = relocation["amplification"]
    amplified = f"{written:.2f} bytes moved for each byte written" if written else ""
    state = relocation["state"] if rate != 0 else ""
    return "; ".join(
        each for each in (setting, moved, amplified, speed, to_go(relocation), failed, state) if each
    )
