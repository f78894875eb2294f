"""What all subcommands share: --state-dir, --json, sizes, and how errors end the program."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from polyvol.daemon.cli.client import ApiError
from polyvol.daemon.errors import EXIT_CODE, BadSnapshotName
from polyvol.daemon.sizes import parse_size
from polyvol.daemon.state import default_state_dir
from polyvol.mapping.errors import PolyvolError

Command = TypeVar("Command", bound=Callable[..., Any])


class SizeType(click.ParamType[int]):
    """A size: bytes, or with K, M, G or T."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The size in bytes; a usage error if it is none."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE = SizeType()


def state_dir_option(command: Command) -> Command:
    """--state-dir, given to the command as `state_dir`."""
    return click.option(
        "--state-dir",
        type=click.Path(path_type=Path),
        default=default_state_dir,
        show_default="$POLYVOL_STATE, else /var/lib/polyvol",
        metavar="DIR",
        help="The daemon's state directory.",
    )(command)


def json_option(command: Command) -> Command:
    """--json, given to the command as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON: sizes in bytes.")(command)


def split_snapshot(text: str) -> tuple[str, str]:
    """VOLUME and SNAPSHOT of 'VOLUME@SNAPSHOT'."""
    volume, at, snapshot = text.partition("@")
    if not at or not volume or not snapshot:
        raise BadSnapshotName(text=text)
    return volume, snapshot


def snapshot_parts(text: str) -> tuple[str, str, str, str]:
    """The API's path of the snapshot that 'VOLUME@SNAPSHOT' or '@GROUP@SNAPSHOT' names."""
    if not text.startswith("@"):
        volume, snapshot = split_snapshot(text)
        return "volumes", volume, "snapshots", snapshot
    group, at, snapshot = text[1:].partition("@")
    if not at or not group or not snapshot:
        raise BadSnapshotName(text=text)
    return "groups", group, "snapshots", snapshot


class Group(click.Group):
    """A group whose commands end with one sentence on stderr and exit 1 where something is refused."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (PolyvolError, ApiError) as error:
            click.echo(str(error), err=True)
            sys.exit(EXIT_CODE)
