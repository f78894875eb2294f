"""polyvol schedule: add, list, show, pause, resume, rename, remove."""

from pathlib import Path
from typing import Any

import click

from polyvol.daemon.client.cli.client import Client, Json
from polyvol.daemon.client.cli.common import json_option, state_dir_option
from polyvol.daemon.client.cli.hooks import DURATION, hook_options, hook_text, hooks_from
from polyvol.daemon.client.cli.output import listed, print_facts, print_json, print_table, say
from polyvol.daemon.client.cli.renaming import rename as rename_object
from polyvol.daemon.client.cli.times import local_option, moment, moments, zoned
from polyvol.daemon.client.cli.tree import Noun
from polyvol.mapping.sizes import counted
from polyvol.snapshot.retention import Keep, parse_keep


class KeepType(click.ParamType[Keep]):
    """Rules of retention."""

    name = "rules"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Keep:
        """The rules; a usage error if they are none."""
        if isinstance(value, Keep):
            return value
        try:
            return parse_keep(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group(cls=Noun)
def schedule() -> None:
    """Automatic snapshots, and their retention."""


@schedule.command()
@click.argument("target", metavar="VOLUME|@GROUP")
@click.option("--every", type=DURATION, help="How often, such as 15m or 1d.")
@click.option("--cron", metavar="EXPRESSION", help="When, as five fields of cron, UTC.")
@click.option(
    "--keep",
    type=KeepType(),
    required=True,
    help="Retention: last=N,hourly=N,daily=N,weekly=N,monthly=N or some of these.",
)
@click.option("--prefix", default="auto", show_default=True, help="Prefix of the snapshots' names.")
@click.option("--name", metavar="NAME", help="Its name [made of the target and the prefix].")
@hook_options
@click.option("--dry-run", is_flag=True, help="Show what would be kept; change nothing.")
@click.option(
    "--ahead", type=DURATION, help="How far --dry-run looks ahead [until every rule has deleted one]."
)
@local_option
@json_option
@state_dir_option
def add(
    target: str,
    every: int | None,
    cron: str | None,
    keep: Keep,
    dry_run: bool,
    ahead: int | None,
    as_json: bool,
    state_dir: Path,
    **more: Json,
) -> None:
    """Take snapshots of a volume or of a group automatically."""
    if (every is None) == (cron is None):
        raise click.UsageError("give either --every or --cron")
    body = {
        "target": target,
        "every_s": every,
        "cron": cron,
        "keep": keep.rules(),
        "prefix": more["prefix"],
        "name": more["name"],
        "hooks": hooks_from(more["quiesce"], more["thaw"], more["hook_timeout"], more["hook_shell"]),
        "dry_run": dry_run,
        "ahead_s": ahead,
    }
    made = Client(state_dir).post("schedules", body=body)
    if as_json:
        print_json(made)
    elif dry_run:
        _print_plan(made)
    else:
        say(f"schedule {made['name']}: {made['target']} {made['timing']}, first {moment(made['next'])}")


@schedule.command(name="list")
@local_option
@json_option
@state_dir_option
def list_schedules(as_json: bool, state_dir: Path) -> None:
    """List all schedules."""
    schedules = Client(state_dir).get("schedules")
    if as_json:
        print_json(schedules)
        return
    following = moments([each["next"] for each in schedules])
    print_table(
        ("NAME", "OF", "WHEN", "KEEP", zoned("NEXT"), "SNAPSHOTS", "ERROR", "NOTE"),
        [
            (
                each["name"],
                each["target"],
                each["timing"],
                str(Keep(**each["keep"])),
                "paused" if each["paused"] else due,
                each["count"],
                each["error"],
                each["note"],
            )
            for each, due in zip(schedules, following, strict=True)
        ],
    )


@schedule.command()
@click.argument("name")
@local_option
@json_option
@state_dir_option
def show(name: str, as_json: bool, state_dir: Path) -> None:
    """Show one schedule: its snapshots, and what keeps them."""
    shown = Client(state_dir).get("schedules", name)
    if as_json:
        print_json(shown)
        return
    print_facts(
        [
            ("name", shown["name"]),
            ("of", shown["target"]),
            ("when", shown["timing"]),
            ("keep", str(Keep(**shown["keep"]))),
            ("prefix", shown["prefix"]),
            ("next", "paused" if shown["paused"] else moment(shown["next"])),
            ("done until", moment(shown["last"])),
            ("error", shown["error"]),
            ("note", shown["note"]),
            ("hooks", hook_text(shown["hooks"])),
            ("created", moment(shown["created"])),
        ]
    )
    say("")
    _print_kept(shown["snapshots"])


@schedule.command()
@click.argument("name")
@json_option
@state_dir_option
def pause(name: str, as_json: bool, state_dir: Path) -> None:
    """Take no snapshots until the schedule is resumed."""
    shown = Client(state_dir).patch("schedules", name, body={"paused": True})
    if as_json:
        print_json(shown)
    else:
        say(f"schedule {name} is paused")


@schedule.command()
@click.argument("name")
@local_option
@json_option
@state_dir_option
def resume(name: str, as_json: bool, state_dir: Path) -> None:
    """Resume a paused schedule; missed runs are skipped."""
    shown = Client(state_dir).patch("schedules", name, body={"paused": False})
    if as_json:
        print_json(shown)
    else:
        say(f"schedule {name} is resumed, next {moment(shown['next'])}")


@schedule.command()
@click.argument("name", metavar="OLD")
@click.argument("new", metavar="NEW")
@json_option
@state_dir_option
def rename(name: str, new: str, as_json: bool, state_dir: Path) -> None:
    """Rename a schedule. Its snapshots stay its own, and keep their names."""
    rename_object(state_dir, ("schedules", name), new, as_json)


@schedule.command()
@click.argument("name")
@json_option
@state_dir_option
def remove(name: str, as_json: bool, state_dir: Path) -> None:
    """Remove a schedule; its snapshots stay."""
    removed = Client(state_dir).delete("schedules", name)
    if as_json:
        print_json(removed)
    else:
        say(f"schedule {name} removed; {counted(removed['count'], 'snapshot')} of it left")


def _print_plan(plan: dict[str, Any]) -> None:
    print_facts(
        [
            ("schedule", plan["name"]),
            ("of", plan["target"]),
            ("when", plan["timing"]),
            ("keep", str(Keep(**plan["keep"]))),
            ("first runs", listed([moment(each) for each in plan["first"]])),
            ("until", f"{moment(plan['until'])}, after {counted(plan['runs'], 'run')}"),
            ("note", plan["note"]),
        ]
    )
    say("")
    _print_kept(plan["kept"])


def _print_kept(snapshots: list[dict[str, Any]]) -> None:
    instants = moments([each["instant"] for each in snapshots], [each["future"] for each in snapshots])
    print_table(
        (zoned("INSTANT"), "SNAPSHOT", "KEPT BY", "HELD"),
        [
            (
                instant,
                each["snapshot"],
                listed(each["kept_by"]),
                listed(each["holds"]),
            )
            for each, instant in zip(snapshots, instants, strict=True)
        ],
    )
