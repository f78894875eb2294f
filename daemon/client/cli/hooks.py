"""The options of hooks, which volumes and schedules share, and durations."""

from collections.abc import Callable
from typing import Any

import click

from polyvol.daemon.client.cli.client import Json
from polyvol.daemon.client.cli.common import Command
from polyvol.mapping.records.hooks import HOOK_TIMEOUT_S
from polyvol.snapshot.timing import parse_duration


class DurationType(click.ParamType[int]):
    """A duration: a whole number with s, m, h, d or w."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The duration in seconds; a usage error if it is none."""
        if isinstance(value, int):
            return value
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = DurationType()


def hook_options(command: Command) -> Command:
    """--quiesce, --thaw, --hook-timeout and --hook-shell, as `hooks_from` takes them."""
    options: list[Callable[[Command], Command]] = [
        click.option(
            "--quiesce",
            metavar="CMD",
            help="Command to run before each cut, to make it application-consistent.",
        ),
        click.option("--thaw", metavar="CMD", help="Command to run after each cut, also after a failed one."),
        click.option(
            "--hook-timeout",
            type=DURATION,
            default=f"{HOOK_TIMEOUT_S}s",
            show_default=True,
            help="Time from the start of --quiesce to the cut, at most; then --thaw is run.",
        ),
        click.option("--hook-shell", is_flag=True, help="Have /bin/sh run the commands."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def hooks_from(quiesce: str | None, thaw: str | None, hook_timeout: int, hook_shell: bool) -> Json:
    """The body of hooks; None if none are given."""
    if quiesce is None and thaw is None:
        return None
    return {"quiesce": quiesce, "thaw": thaw, "timeout_s": hook_timeout, "shell": hook_shell}


def hook_text(hooks: dict[str, Any] | None) -> str | None:
    """One line on hooks."""
    if hooks is None:
        return None
    how = ", by /bin/sh" if hooks["shell"] else ""
    thaw = f", thaw {hooks['thaw']}" if hooks["thaw"] else ""
    return f"quiesce {hooks['quiesce']}{thaw}, time-out {hooks['timeout_s']} s{how}"
