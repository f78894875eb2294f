"""All commands of polyvol as one tree. A command imports only what it needs, so it starts quickly."""

from pathlib import Path

import click

from polyvol.daemon.client.cli.attach import attach, detach
from polyvol.daemon.client.cli.backup import backup, copy_changed
from polyvol.daemon.client.cli.catalog import catalog
from polyvol.daemon.client.cli.check import check
from polyvol.daemon.client.cli.client import Client, Json
from polyvol.daemon.client.cli.clients import client
from polyvol.daemon.client.cli.common import json_option, state_dir_option
from polyvol.daemon.client.cli.debug import debug
from polyvol.daemon.client.cli.device import device
from polyvol.daemon.client.cli.diff import diff
from polyvol.daemon.client.cli.group import group
from polyvol.daemon.client.cli.in_use import in_use
from polyvol.daemon.client.cli.locate import locate
from polyvol.daemon.client.cli.logs import log
from polyvol.daemon.client.cli.output import listed, print_facts, print_json, print_table, say
from polyvol.daemon.client.cli.partitions import partition
from polyvol.daemon.client.cli.processors import processor
from polyvol.daemon.client.cli.restore import restore
from polyvol.daemon.client.cli.schedule import schedule
from polyvol.daemon.client.cli.scrub import scrub
from polyvol.daemon.client.cli.snapshot import snapshot
from polyvol.daemon.client.cli.space_output import print_space
from polyvol.daemon.client.cli.support_bundle import support_bundle
from polyvol.daemon.client.cli.times import local_option, moments, zoned
from polyvol.daemon.client.cli.tree import Root, version_option
from polyvol.daemon.client.cli.volume import volume
from polyvol.daemon.client.cli.volume_output import print_volumes
from polyvol.daemon.sizes import format_seconds
from polyvol.daemon.version import Build, build_text

_EVENTS_SHOWN = 5
_LONG_S = 3
"""From how many seconds on what is under way is shown to people."""


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@version_option("polyvol")
def cli() -> None:
    """Virtual volumes on several processors, served over NBD, with snapshots of one instant."""


@cli.command()
@local_option
@json_option
@state_dir_option
def status(as_json: bool, state_dir: Path) -> None:
    """Show the daemon, its volumes and its devices."""
    shown = Client(state_dir).get("status")
    if as_json:
        print_json(shown)
        return
    daemon = shown["daemon"]
    up = format_seconds(int(daemon["uptime_s"]))
    print_facts(
        [
            ("polyvold", f"pid {daemon['pid']}, version {daemon['version']}, up {up}"),
            ("build", build_text(Build(**daemon["build"])) if "build" in daemon else None),
            ("state", daemon["state_dir"]),
            ("front-end", daemon["frontend"]),
            ("NBD", listed(daemon["nbd"])),
            ("processors", daemon["processors"]),
            ("connections", daemon["connections"]),
        ]
    )
    say("")
    print_volumes(shown["volumes"])
    print_space(shown["volumes"])
    say("")
    print_table(
        ("DEVICE", "STATE", "I/O ERRORS", "PATH", "REASON"),
        [
            (each["name"], each["state"], each["errors"], each["path"], each["reason"])
            for each in shown["devices"]
        ],
    )
    for operation in shown["operations"]:
        if operation["seconds"] >= _LONG_S:
            say("")
            say(_busy(operation))
    for note in shown["notes"]:
        say("")
        say(f"note: {note}")
    if shown["events"]:
        say("")
        latest = shown["events"][-_EVENTS_SHOWN:]
        times = moments([each["time"] for each in latest])
        print_table(
            (zoned("EVENT"), "LEVEL", "WHAT"),
            [(time, each["level"], each["text"]) for time, each in zip(times, latest, strict=True)],
        )


cli.add_command(device)
cli.add_command(client)
cli.add_command(volume)
volume.add_command(locate)
cli.add_command(partition)
cli.add_command(processor)
cli.add_command(log)
cli.add_command(snapshot)
snapshot.add_command(diff)
cli.add_command(group)
cli.add_command(schedule)
cli.add_command(attach)
cli.add_command(detach)
cli.add_command(in_use)
cli.add_command(scrub)
cli.add_command(check)
cli.add_command(catalog)
cli.add_command(support_bundle)
cli.add_command(backup)
cli.add_command(restore)
cli.add_command(copy_changed)
cli.add_command(debug)


def _busy(operation: Json) -> str:
    """An operation under way, for people."""
    noun = "volume" if operation["volumes"] else "device"
    names = operation["volumes"] or operation["devices"]
    many = "" if len(names) == 1 else "s"
    waiting = f", {operation['waiting']} waiting" if operation["waiting"] else ""
    since = format_seconds(int(operation["seconds"]))
    return f"busy: {operation['what']} of {noun}{many} {listed(names)} for {since}{waiting}"
