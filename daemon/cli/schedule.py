"""polyvol schedule: add, list, show, pause, resume, remove."""

from pathlib import Path
from typing import Any

import click

from polyvol.daemon.cli.client import Client, Json
from polyvol.daemon.cli.common import Group, json_option, state_dir_option
from polyvol.daemon.cli.hooks import DURATION, hook_options, hook_text, hooks_from
from polyvol.daemon.cli.output import counted, in_future, listed, print_facts, print_json, print_table
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


@click.group(cls=Group)
def schedule() -> None:
    """Schedules: snapshots that polyvold takes by itself, and which of them it keeps."""


@schedule.command()
@click.argument("target", metavar="VOLUME|@GROUP")
@click.option("--every", type=DURATION, help="How often, such as 15m or 1d.")
@click.option("--cron", metavar="EXPRESSION", help="When, as five fields of cron, UTC.")
@click.option(
    "--keep",
    type=KeepType(),
    required=True,
    help="What is kept: last=N,hourly=N,daily=N,weekly=N,monthly=N or some of these.",
)
@click.option("--prefix", default="auto", show_default=True, help="What snapshots' names begin with.")
@click.option("--name", metavar="NAME", help="The schedule's [made of the target and the prefix].")
@hook_options
@click.option("--dry-run", is_flag=True, help="Show what would be kept; change nothing.")
@click.option(
    "--ahead", type=DURATION, help="How far --dry-run looks ahead [until every rule is at its full]."
)
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
    """Take snapshots of a volume or of a group by themselves."""
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
        click.echo(f"schedule {made['name']}: {made['target']} {made['timing']}, first {made['next']}")


@schedule.command(name="list")
@json_option
@state_dir_option
def list_schedules(as_json: bool, state_dir: Path) -> None:
    """List all schedules."""
    schedules = Client(state_dir).get("schedules")
    if as_json:
        print_json(schedules)
        return
    print_table(
        ("NAME", "OF", "WHEN", "KEEP", "NEXT", "SNAPSHOTS", "ERROR", "NOTE"),
        [
            (
                each["name"],
                each["target"],
                each["timing"],
                str(Keep(**each["keep"])),
                each["next"] or "paused",
                each["count"],
                each["error"] or "-",
                each["note"] or "-",
            )
            for each in schedules
        ],
    )


@schedule.command()
@click.argument("name")
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
            ("next", shown["next"] or "paused"),
            ("done until", shown["last"]),
            ("error", shown["error"]),
            ("note", shown["note"]),
            ("hooks", hook_text(shown["hooks"])),
            ("created", shown["created"]),
        ]
    )
    click.echo()
    _print_kept(shown["snapshots"])


@schedule.command()
@click.argument("name")
@state_dir_option
def pause(name: str, state_dir: Path) -> None:
    """Take no snapshots until the schedule is resumed."""
    Client(state_dir).patch("schedules", name, body={"paused": True})
    click.echo(f"schedule {name} is paused")


@schedule.command()
@click.argument("name")
@state_dir_option
def resume(name: str, state_dir: Path) -> None:
    """Go on with a schedule that was paused; what was due meanwhile is not made up."""
    shown = Client(state_dir).patch("schedules", name, body={"paused": False})
    click.echo(f"schedule {name} goes on, next {shown['next']}")


@schedule.command()
@click.argument("name")
@state_dir_option
def remove(name: str, state_dir: Path) -> None:
    """Remove a schedule; its snapshots stay until somebody deletes them."""
    removed = Client(state_dir).delete("schedules", name)
    click.echo(f"schedule {name} removed; {counted(removed['count'], 'snapshot')} of it left")


def _print_plan(plan: dict[str, Any]) -> None:
    print_facts(
        [
            ("schedule", plan["name"]),
            ("of", plan["target"]),
            ("when", plan["timing"]),
            ("keep", str(Keep(**plan["keep"]))),
            ("first runs", listed(plan["first"])),
            ("until", f"{plan['until']}, after {counted(plan['runs'], 'run')}"),
        ]
    )
    click.echo()
    _print_kept(plan["kept"])


def _print_kept(snapshots: list[dict[str, Any]]) -> None:
    print_table(
        ("INSTANT", "SNAPSHOT", "KEPT BY", "HELD"),
        [
            (
                in_future(each["instant"], each["future"]),
                each["snapshot"] or "-",
                listed(each["kept_by"]),
                listed(each["holds"]),
            )
            for each in snapshots
        ],
    )
