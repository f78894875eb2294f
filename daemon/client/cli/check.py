"""polyvol check: checks the state directory of a stopped daemon, without a daemon."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from polyvol.daemon.client.cli.common import json_option, state_dir_option
from polyvol.daemon.client.cli.output import print_json, say
from polyvol.daemon.client.cli.tree import Verb
from polyvol.daemon.errors import EXIT_CODE
from polyvol.mapping.sizes import counted, format_size


@click.command(cls=Verb)
@click.option("--data", is_flag=True, help="Read every block in change logs, and check it.")
@json_option
@state_dir_option
def check(data: bool, as_json: bool, state_dir: Path) -> None:
    """Check a stopped state directory. Changes nothing.

    Exit status 1 if something is wrong.
    """
    from polyvol.daemon.check import check_state  # loads the engine: only where it is needed

    view = check_state(Path(state_dir).absolute(), data=data)
    if as_json:
        print_json(asdict(view))
    else:
        for problem in view.problems:
            say(f"wrong: {problem}")
        for note in view.notes:
            say(f"note: {note}")
        for volume in view.volumes:
            read = f", {format_size(volume.checked)} read and checked" if data else ""
            say(
                f"volume {volume.name}: {counted(volume.partitions, 'partition')},"
                f" {counted(volume.snapshots, 'snapshot')}, {counted(volume.slots, 'slot')} in use{read}"
            )
        say(f"{view.state_dir}: {counted(len(view.problems), 'problem')}")
    if view.problems:
        sys.exit(EXIT_CODE)
