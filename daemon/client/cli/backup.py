"""polyvol backup, polyvol copy-changed: contents of snapshots to files, streams and older copies."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from polyvol.daemon.backup_errors import WrongOption
from polyvol.daemon.client.cli.client import Client
from polyvol.daemon.client.cli.common import (
    PATH,
    TEXT,
    json_option,
    older_name,
    split_snapshot,
    state_dir_option,
)
from polyvol.daemon.client.cli.exports import Opened, identity, opened_snapshot
from polyvol.daemon.client.cli.output import print_json, say
from polyvol.daemon.client.cli.tree import Verb
from polyvol.mapping.sizes import format_size

if TYPE_CHECKING:
    from polyvol.snapshot.stream import StreamHeader


@click.command(cls=Verb)
@click.argument("name", metavar="VOLUME@SNAPSHOT")
@click.option("--since", metavar="A", help="Only what changed since this older snapshot.")
@click.option(
    "-o", "--output", type=PATH, required=True, metavar="FILE|-", help="File to write; -: standard output."
)
@click.option("--raw", is_flag=True, help="A plain sparse image instead of a stream.")
@click.option("--resume", is_flag=True, help="Resume an interrupted backup.")
@json_option
@state_dir_option
def backup(
    name: str, since: str | None, output: Path, raw: bool, resume: bool, as_json: bool, state_dir: Path
) -> None:
    """Write a snapshot to a file or a pipe. With --since, what changed since an older one."""
    from polyvol.daemon.client.transfer.backup import backup_to_file, backup_to_pipe, new_header
    from polyvol.daemon.client.transfer.copy import copy_raw
    from polyvol.daemon.client.transfer.file import OUTPUT, refuse_own_files, signals_as_errors

    volume, own_name = split_snapshot(name)
    since = None if since is None else older_name(volume, since)
    to_pipe = output == OUTPUT
    _check_options(since=since, raw=raw, resume=resume, to_pipe=to_pipe)
    refuse_own_files(output)
    began = time.monotonic()
    with opened_snapshot(Client(state_dir), volume, own_name, since) as opened:
        if raw:
            with signals_as_errors():
                read, holes = copy_raw(opened.export, output)
            if as_json:
                print_json({**_facts(name, since, read, began), "hole_bytes": holes})
            else:
                say(f"{name}: {format_size(read)} and {format_size(holes)} of holes, {_rate(read, began)}")
            return
        header = new_header(_header(opened))
        if to_pipe:
            written = backup_to_pipe(opened.export, header)
        else:
            written = backup_to_file(opened.export, header, output, resume=resume)
    if as_json:
        facts = _facts(name, since, written.read_bytes, began)
        facts |= {"stream_bytes": written.stream_bytes, "resumed_at": written.resumed_at}
        print_json(facts, err=to_pipe)
        return
    of = name if since is None else f"{name} since {since}"
    into = f"{format_size(written.read_bytes)} read, {format_size(written.stream_bytes)} written"
    gone_on = f", resumed at {format_size(written.resumed_at)}" if written.resumed_at else ""
    say(f"{of}: {into}{gone_on}, {_rate(written.read_bytes, began)}", err=to_pipe)


@click.command(name="copy-changed", cls=Verb)
@click.argument("name", metavar="VOLUME@SNAPSHOT")
@click.option(
    "--since", metavar="A", required=True, help="The older snapshot, which the target is a copy of."
)
@click.argument("target", type=TEXT)
@json_option
@state_dir_option
def copy_changed(name: str, since: str, target: str, as_json: bool, state_dir: Path) -> None:
    """Bring an older copy up to date. Only what changed since is read and written.

    TARGET is an NBD URI, a disk or a file, of the volume's size and with the contents of snapshot A."""
    from polyvol.daemon.client.transfer import copy
    from polyvol.daemon.client.transfer.target import open_target

    volume, own_name = split_snapshot(name)
    since = older_name(volume, since)
    began = time.monotonic()
    with opened_snapshot(Client(state_dir), volume, own_name, since) as opened:
        to = open_target(target)
        try:
            read, zeros = copy.copy_changed(opened.export, to)
        finally:
            to.close()
    if as_json:
        print_json({**_facts(name, since, read, began), "target": target, "zero_bytes": zeros})
        return
    made = f"{format_size(read)} copied, {format_size(zeros)} made zeros"
    say(f"{name} since {since}: {made}, {_rate(read, began)}")


def _facts(name: str, since: str | None, read: int, began: float) -> dict[str, Any]:
    """What --json says of every transfer; times in seconds."""
    took = round(time.monotonic() - began, 3)
    return {"snapshot": name, "since": since, "read_bytes": read, "seconds": took}


def _check_options(*, since: str | None, raw: bool, resume: bool, to_pipe: bool) -> None:
    if raw and (since is not None or resume or to_pipe):
        todo = "leave out --raw, or use `polyvol copy-changed` for what changed since"
        raise WrongOption(what="--raw makes a whole image in a new file", todo=todo)
    if to_pipe and resume:
        raise WrongOption(what="a backup to a pipe cannot be resumed", todo="leave out --resume")
    if to_pipe and sys.stdout.isatty():
        raise WrongOption(what="a backup is not for a terminal", todo="redirect it, or give -o FILE")


def _header(opened: Opened) -> "StreamHeader":
    from polyvol.snapshot.stream import StreamHeader

    shown, newer, older = opened.volume, opened.newer, opened.older
    return StreamHeader(
        stream=UUID(int=0),
        size=newer["size"],
        partition_size=shown["partition_size"],
        instant_ns=newer["created_ns"],
        volume_uuid=UUID(shown["uuid"]),
        volume=shown["name"],
        snapshot_uuid=identity(newer),
        snapshot=newer["name"],
        base_uuid=None if older is None else identity(older),
        base="" if older is None else older["name"],
        base_size=0 if older is None else older["size"],
    )


def _rate(done: int, began: float) -> str:
    took = max(time.monotonic() - began, 0.001)
    return f"{took:.1f} s, {format_size(int(done / took))}/s"
