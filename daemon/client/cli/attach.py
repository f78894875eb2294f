"""polyvol attach and polyvol detach: volumes and snapshots as block devices of this host."""

import dataclasses
import logging
import sys
from pathlib import Path

import click

from polyvol.daemon.client.attach.address import check_export, parse_uri
from polyvol.daemon.client.attach.errors import NotAttached
from polyvol.daemon.client.attach.records import Places, Wanted
from polyvol.daemon.client.cli.common import NumberType, json_option, state_dir_option
from polyvol.daemon.client.cli.output import print_json, print_table, say, warn
from polyvol.daemon.client.cli.tree import Verb
from polyvol.daemon.host.notify import log_to_journal
from polyvol.daemon.state.directory import nbd_socket
from polyvol.mapping.sizes import format_size

CONNECTIONS_MAX = 16


class DeviceType(click.ParamType[str]):
    """A device of the kernel's NBD client, or a loop device."""

    name = "device"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The path; a usage error if it is none of these."""
        text = str(value)
        for stem in ("/dev/nbd", "/dev/loop"):
            if text.startswith(stem) and text.removeprefix(stem).isdecimal():
                return text
        self.fail(f"{text!r} is not /dev/nbdN (with --fuse: /dev/loopN)", param, ctx)


@click.command(cls=Verb)
@click.argument("name", required=False, metavar="VOLUME[@SNAPSHOT]")
@click.option("--uri", metavar="URI", help="Remote export: nbd://HOST[:PORT][/EXPORT].")
@click.option(
    "--connections",
    type=NumberType(1, CONNECTIONS_MAX),
    default=4,
    show_default=True,
    metavar="N",
    help=f"How many connections to the server, 1 to {CONNECTIONS_MAX}.",
)
@click.option("--device", type=DeviceType(), metavar="/dev/nbdN", help="Device to use [any free one].")
@click.option(
    "--block-size",
    type=click.Choice(["512", "4096"]),
    default="512",
    show_default=True,
    help="Bytes of a sector.",
)
@click.option(
    "--dead-timeout",
    type=NumberType(1, 86400),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="How long requests wait for the daemon to come back before they fail.",
)
@click.option(
    "--timeout",
    type=NumberType(1, 86400),
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="How long a request may go unanswered before it is sent on another connection.",
)
@click.option("--fuse", is_flag=True, help="Use nbdfuse and a loop device, where the kernel has no NBD.")
@click.option("--watch", is_flag=True, help="Supervise it in the foreground, for polyvol-attach@.service.")
@click.option("--list", "listed", is_flag=True, help="List what is or should be attached.")
@json_option
@state_dir_option
@click.pass_context
def attach(
    ctx: click.Context,
    name: str | None,
    uri: str | None,
    connections: int,
    device: str | None,
    block_size: str,
    dead_timeout: int,
    timeout: int,
    fuse: bool,
    watch: bool,
    listed: bool,
    as_json: bool,
    state_dir: Path,
) -> None:
    """Make a block device of a volume or snapshot. It is there again after a reboot, until it is
    detached."""
    if listed:
        if name is not None:
            raise click.UsageError(f"--list takes no name, and {name!r} was given.", ctx)
        _list(as_json)
        return
    if name is None:
        raise click.UsageError("Missing argument 'VOLUME[@SNAPSHOT]'.", ctx)
    check_export(name)
    if watch:
        _watch(name)
        return
    if device is not None and device.startswith("/dev/loop") != fuse:
        raise click.UsageError(f"--device {device} does not go with{'' if fuse else 'out'} --fuse.", ctx)
    here = f"nbd+unix:///?socket={nbd_socket(state_dir.absolute())}"
    wanted = Wanted(
        name=name,
        uri=parse_uri(uri or here, name).uri,
        kind="fuse" if fuse else "nbd",
        connections=connections,
        device=device,
        block_size=int(block_size),
        timeout_s=timeout,
        dead_timeout_s=dead_timeout,
    )
    from polyvol.daemon.client.attach import verbs  # loads netlink and udev: only where they are used

    path, looked_after = verbs.attach(Places.default(), wanted)
    if as_json:
        print_json({"name": name, "device": str(path), "at_boot": looked_after})
        return
    if not looked_after:
        warn("no systemd with polyvol-attach@.service here: attached once, until a reboot")
    say(str(path))


@click.command(cls=Verb)
@click.argument("name", metavar="VOLUME[@SNAPSHOT]|DEVICE")
@click.option("--force", is_flag=True, help="Detach it even if it is in use; unwritten data is lost.")
@json_option
def detach(name: str, force: bool, as_json: bool) -> None:
    """End a block device that `polyvol attach` has made. It does not come back at the next boot."""
    from polyvol.daemon.client.attach import verbs

    ended = verbs.detach(Places.default(), name, force=force)
    if as_json:
        print_json({"name": ended.name, "forced": force, "was": ended.uses, "dead": ended.dead})
        return
    how = " by force: what was not written is lost" if force else ""
    if ended.uses:
        how = f" by force; it was {' and '.join(ended.uses)}: what was not written is lost, and its I/O fails"
        how += f"; /dev/{ended.device} ends when that does"
    elif ended.dead is not None and not force:
        what = "writes that no flush followed are on the volume unless its server has lost them"
        warn(f"{ended.name} was dead, because {ended.dead}: {what}")
    say(f"{ended.name} detached{how}")


def _list(as_json: bool) -> None:
    from polyvol.daemon.client.attach import verbs

    views = verbs.list_all(Places.default())
    if as_json:
        print_json([dataclasses.asdict(view) for view in views])
        return
    print_table(
        ("NAME", "STATE", "DEVICE", "BY", "SIZE", "ACCESS", "AT BOOT", "USE", "FROM"),
        [
            (
                view.name,
                view.state,
                view.device,
                view.kind,
                "-" if view.size is None else format_size(view.size),
                "-" if view.read_only is None else "read-only" if view.read_only else "read-write",
                "yes" if view.boot else "no",
                view.use,
                view.uri,
            )
            for view in views
        ],
    )
    for view in views:
        if view.trouble is not None:
            say(f"{view.name}: {view.trouble}", err=True)


def _watch(name: str) -> None:
    from polyvol.daemon.client.attach import watch

    places = Places.default()
    wanted = places.wanted(name)
    if wanted is None:
        raise NotAttached(name=name)
    if not log_to_journal("polyvol-attach"):
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s: %(message)s")
    watch.watch(places, wanted)
