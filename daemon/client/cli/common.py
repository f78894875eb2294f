"""What all subcommands share: --state-dir, --json, sizes, paths, the names of volumes and snapshots."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from polyvol.daemon.client.cli.client import Client
from polyvol.daemon.errors import BadSnapshotName, OtherVolume
from polyvol.daemon.state.directory import default_state_dir
from polyvol.mapping.errors import UnknownVolume
from polyvol.mapping.sizes import SIZE_MAX, format_size, parse_size

Command = TypeVar("Command", bound=Callable[..., Any])


class SizeType(click.ParamType[int]):
    """A size: bytes, or with K, M, G, T or P; from `least` to `most`."""

    name = "size"

    def __init__(self, least: int = 0, most: int = SIZE_MAX) -> None:
        self.least = least
        self.most = most

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The size in bytes; a usage error if it is none."""
        if isinstance(value, int):
            return value
        try:
            size = parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not self.least <= size <= self.most:
            between = f"{format_size(self.least)} to {format_size(self.most)}"
            self.fail(f"{str(value)!r} is not from {between}", param, ctx)
        return size


SIZE = SizeType()


class NumberType(click.ParamType[int]):
    """A whole number from `least` to `most`; SIZE_MAX stands for no limit that users need to know."""

    name = "number"

    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self.most = most

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number; a usage error if it is none, or out of range."""
        text = str(value)
        if text.isascii() and text.isdecimal() and len(text) < 20 and self.least <= int(text) <= self.most:
            return int(text)
        limits = f"from {self.least} to {self.most}" if self.most < SIZE_MAX else f"of at least {self.least}"
        self.fail(f"{text[:40]!r} is not a whole number {limits}", param, ctx)


class PathType(click.ParamType[Path]):
    """A path of this machine. It is not checked here: its user reports what is wrong with it."""

    name = "path"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path; a usage error if it is empty."""
        text = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
        if not text:
            self.fail("it is empty, and a path is needed", param, ctx)
        return Path(text)


PATH = PathType()


class TextType(click.ParamType[str]):
    """A path or URI as it was given."""

    name = "text"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text; a usage error if it is empty."""
        if not value:
            self.fail("it is empty, and a path is needed", param, ctx)
        return str(value)


TEXT = TextType()


def state_dir_option(command: Command) -> Command:
    """--state-dir, given to the command as `state_dir`."""
    return click.option(
        "--state-dir",
        type=PATH,
        default=default_state_dir,
        show_default="$POLYVOL_STATE, else /var/lib/polyvol",
        metavar="DIR",
        help="The daemon's state directory.",
    )(command)


def json_option(command: Command) -> Command:
    """--json, given to the command as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON: sizes in bytes.")(command)


def split_snapshot(text: str) -> tuple[str, str]:
    """VOLUME and SNAPSHOT of 'VOLUME@SNAPSHOT'; a group's snapshot is refused."""
    if text.startswith("@"):
        why = "this is for the snapshot of one volume, and that is a group's"
        raise BadSnapshotName(text=text, why=why, form="VOLUME@SNAPSHOT")
    return _split(text, "VOLUME@SNAPSHOT")


def older_name(volume: str, text: str) -> str:
    """The name of the older snapshot that --since gives, alone or as VOLUME@SNAPSHOT; OtherVolume."""
    if "@" not in text:
        return text
    other, name = split_snapshot(text)
    if other != volume:
        raise OtherVolume(volume=volume, other=other)
    return name


def name_within(volume: str, snapshot: str | None) -> str | None:
    """The name of a snapshot of this volume, given alone or as VOLUME@SNAPSHOT."""
    return None if snapshot is None else snapshot.removeprefix(f"{volume}@")


def refuse_snapshot(volume: str) -> None:
    """Refuse VOLUME@SNAPSHOT where a volume is named alone, and its snapshot by --snapshot; UsageError."""
    name, at, snapshot = volume.partition("@")
    if at:
        raise click.UsageError(
            f"name the volume alone, and the snapshot by --snapshot: {name} --snapshot {snapshot or 'NAME'}"
        )


def snapshot_parts(text: str) -> tuple[str, str, str, str]:
    """The API's path of the snapshot that 'VOLUME@SNAPSHOT' or '@GROUP@SNAPSHOT' names."""
    if text.startswith("@"):
        group, snapshot = _split(text[1:], "@GROUP@SNAPSHOT", text)
        return "groups", group, "snapshots", snapshot
    volume, snapshot = _split(text, "VOLUME@SNAPSHOT or @GROUP@SNAPSHOT")
    return "volumes", volume, "snapshots", snapshot


def new_snapshot_name(old: str, text: str) -> str:
    """The name of a snapshot, given alone or with the prefix of `old`; BadSnapshotName."""
    if "@" not in text:
        return text
    target = old.rpartition("@")[0]
    other, _, name = text.rpartition("@")
    if other != target or not name:
        why = f"a renamed snapshot stays one of {target}"
        raise BadSnapshotName(text=text, why=why, form=f"the new name alone, or {target}@NEW")
    return name


def present_name(client: Client, uuid: str, known: str) -> str:
    """The name that the volume of this UUID has now; UnknownVolume, by the `known` name, if it is gone."""
    for each in client.get("volumes"):
        if each["uuid"] == uuid:
            name: str = each["name"]
            return name
    raise UnknownVolume(name=known)


def _split(text: str, form: str, whole: str | None = None) -> tuple[str, str]:
    target, at, snapshot = text.partition("@")
    noun = "group" if whole is not None else "volume"
    if not at:
        why = f"it names a {noun} alone" if target else f"the name of the {noun} is missing"
    elif not target:
        why = f"the name of the {noun} is missing"
    elif not snapshot:
        why = "nothing follows the @"
    elif "@" in snapshot:
        why = "it has one @ too many"
    else:
        return target, snapshot
    raise BadSnapshotName(text=whole or text, why=why, form=form)
