"""The tree of commands: nouns and verbs, the aliases `ls` and `rm`, and options before the verb.

How it works      A noun has `ls` where it has `list`, and `rm` where it has `delete` or `remove`; help shows
                  the alias next to the verb. The options that most verbs have (--state-dir, --json, --local)
                  can also be given before the noun or before the verb. They are stored there, and passed to
                  the verb as if they had been given after it.
Invariants        VN1 if an option is given more than once, the last one counts, wherever it is; VN2 a default
                  of a verb never replaces a value given before the verb; VN3 an option before a verb
                  that does not have it is refused, as it is after that verb.
Errors            click.UsageError.
"""

from collections.abc import Callable
from typing import Any

import click

from polyvol.daemon.client.cli.common import PATH, Command as AnyCommand
from polyvol.daemon.client.cli.ending import Command, Group
from polyvol.daemon.client.cli.output import say
from polyvol.daemon.version import version_text

ALIASES = {"ls": ("list",), "rm": ("delete", "remove")}
"""By alias: the verbs that it can stand for."""
_GIVEN = "polyvol.given"


class _Shown(click.Command):
    """A command whose help has examples."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the examples."""
        from polyvol.daemon.client.cli.examples import EXAMPLES  # only help needs them

        examples = EXAMPLES.get(ctx.command_path, ())
        if examples:
            formatter.write("\nExamples:\n")
            for example in examples:
                formatter.write(f"  {example}\n")


class Verb(_Shown):
    """A verb."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, and add the options given before the verb."""
        rest = super().parse_args(ctx, args)
        for option, value in ctx.meta.get(_GIVEN, {}).items():
            self._take_over(ctx, option, value)
        return rest

    def _take_over(self, ctx: click.Context, option: str, value: object) -> None:
        parameter = next((each for each in self.params if option in each.opts), None)
        if parameter is None or parameter.name is None:
            raise click.UsageError(f"`{ctx.command_path}` has no option {option}", ctx)
        if ctx.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE:
            return  # VN1
        if parameter.expose_value:
            ctx.params[parameter.name] = value
        elif parameter.callback is not None:
            parameter.callback(ctx, parameter, value)


class Noun(_Shown, click.Group):
    """A group of commands."""

    command_class = Verb
    shows_options = False
    """Whether help names the options that can be given before the verb."""

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401
        super().__init__(*arguments, **named)
        self.params += common_options(hidden=not self.shows_options)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name or alias."""
        names = (cmd_name, *ALIASES.get(cmd_name, ()))
        return next((self.commands[name] for name in names if name in self.commands), None)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's own, but an alias is called by the verb's name in help and errors."""
        name, command, rest = super().resolve_command(ctx, args)
        return name if command is None else command.name, command, rest

    def alias_of(self, verb: str) -> str | None:
        """The alias of one of the verbs; None if it has none."""
        names = (alias for alias, verbs in ALIASES.items() if verb in verbs and alias not in self.commands)
        return next(names, None)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands, each with its alias."""
        shown = {name: self.commands[name] for name in self.list_commands(ctx)}
        named = {name: ", ".join(filter(None, (name, self.alias_of(name)))) for name in shown}
        room = formatter.width - 6 - max((len(name) for name in named.values()), default=0)
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (named[name], command.get_short_help_str(room))
                    for name, command in shown.items()
                    if not command.hidden
                ]
            )


class Root(Group, Noun):
    """The program polyvol."""

    shows_options = True


class Daemon(Command, _Shown):
    """The program polyvold."""


def version_option(program: str) -> Callable[[AnyCommand], AnyCommand]:
    """--version."""

    def show(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            say(version_text(program))
            ctx.exit()

    return click.option(
        "--version",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show the version, with its commit and build.",
    )


def common_options(*, hidden: bool) -> list[click.Parameter]:
    """The options that can be given before the verb."""

    def option(name: str, what: str, **kind: Any) -> click.Option:  # noqa: ANN401
        text = f"{what} (also after the command)."
        return click.Option([name], help=text, expose_value=False, callback=_remember, hidden=hidden, **kind)

    return [
        option("--state-dir", "The daemon's state directory", type=PATH, metavar="DIR"),
        option("--json", "Print JSON", is_flag=True),
        option("--local", "Show local times", is_flag=True),
    ]


def _remember(ctx: click.Context, parameter: click.Parameter, value: object) -> None:
    if value:
        ctx.meta.setdefault(_GIVEN, {})[parameter.opts[0]] = value
