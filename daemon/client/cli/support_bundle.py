"""polyvol support-bundle: everything that helps with a bug report, in one file, without data of volumes.

How it works      Each part (support_parts.py) is collected by its own thread, for a bounded time; one that
                  fails or takes too long is listed with the reason, and the others continue. So a bundle can
                  be made when polyvold does not run, or does not answer. The file is made as FILE.partial and
                  gets its name when it is durable (transfer/file.py). README.txt says what is in it.
Errors            FileExists, FileBusy, TransferFailed, WrongOption.
"""

import io
import os
import platform
import re
import tarfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from polyvol.daemon.client.cli.common import PATH, NumberType, json_option, state_dir_option
from polyvol.daemon.client.cli.ending import as_error
from polyvol.daemon.client.cli.output import print_json, print_table, say
from polyvol.daemon.client.cli.tree import Verb
from polyvol.mapping.sizes import format_size

if TYPE_CHECKING:
    from polyvol.daemon.client.cli.support_parts import Part

TIMEOUT_S = 10
TIMEOUT_MAX_S = 600
PART_BYTES_MAX = 32 << 20
_LOOK = (
    "Look through it before you send it to somebody: it has the names of volumes, snapshots, devices, groups"
    " and schedules, of hosts and users, paths, addresses of clients, log lines, and what hooks have printed."
    " It has nothing of what volumes store, no environment, and no commands of hooks."
)


@dataclass(frozen=True, slots=True)
class Collected:
    """The result of a part: its size in the bundle, in bytes, or why it is missing."""

    name: str
    what: str
    size: int | None
    absent: str | None


@click.command(name="support-bundle", cls=Verb)
@click.argument("file", type=PATH, required=False, metavar="[FILE|-]")
@click.option(
    "--timeout",
    type=NumberType(1, TIMEOUT_MAX_S),
    default=TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long each part may take.",
)
@json_option
@state_dir_option
def support_bundle(file: Path | None, timeout: int, as_json: bool, state_dir: Path) -> None:
    """Collect what a bug report needs in one file. It has no data of volumes.

    It works also when polyvold does not run or does not answer. As root it finds out more. FILE is a tar
    archive [polyvol-support-HOST-TIME.tar.gz in the working directory]; -: the standard output. A file that
    exists is not replaced."""
    from polyvol.daemon.client.cli.support_parts import parts
    from polyvol.daemon.client.transfer.file import OUTPUT, OUTPUT_NAME, refuse_own_files

    name = _name()
    path = Path(f"{name}.tar.gz") if file is None else file
    refuse_own_files(path)
    found, size = _write(path, name, parts(state_dir, timeout), timeout)
    to_output = path == OUTPUT
    if as_json:
        facts = {
            "path": str(path),
            "bytes": size,
            "parts": [each.name for each in found if each.absent is None],
            "absent": {each.name: each.absent for each in found if each.absent is not None},
        }
        print_json(facts, err=to_output)
        return
    there = [_row(each) for each in found if each.absent is None]
    print_table(("PART", "SIZE", "WHAT"), there, err=to_output)
    absent = [(each.name, each.absent) for each in found if each.absent is not None]
    if absent:
        say("", err=to_output)
        print_table(("NOT THERE", "WHY"), absent, err=to_output)
    say("", err=to_output)
    say(f"{OUTPUT_NAME if to_output else path}: {format_size(size)}", err=to_output)
    say(_LOOK, err=to_output)


def _row(each: Collected) -> tuple[str, str, str]:
    return each.name, format_size(each.size or 0), each.what


def _name() -> str:
    """The name of the bundle: the host, and the time in UTC."""
    host = re.sub(r"[^A-Za-z0-9.-]", "_", platform.node()) or "host"
    return f"polyvol-support-{host}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"


def _write(path: Path, name: str, wanted: "list[Part]", timeout_s: float) -> tuple[list[Collected], int]:
    """Make the bundle; the result of each part, and the bundle's size."""
    from polyvol.daemon.client.transfer.file import file_errors, new_file_or_output

    found = []
    with new_file_or_output(path, "a support bundle") as new:
        with (
            open(new.fd, "wb", closefd=False) as opened,
            file_errors(new.partial),
            tarfile.open(fileobj=opened, mode="w:gz") as archive,
        ):
            for part in wanted:
                text, absent = _collect(part, timeout_s)
                if text is not None:
                    _add(archive, f"{name}/{part.name}", text)
                size = None if text is None else len(text)
                found.append(Collected(part.name, part.what, size, absent))
            _add(archive, f"{name}/README.txt", _readme(found))
        total = os.fstat(new.fd).st_size
    return found, total


def _collect(part: "Part", timeout_s: float) -> tuple[bytes | None, str | None]:
    """A part's bytes, or why it is not there."""
    from polyvol.daemon.client.cli.support_parts import Absent, clean, written

    texts: list[bytes] = []
    errors: list[str] = []

    def run() -> None:
        try:
            value = part.collect()
            text = clean(value) if isinstance(value, str) else written(value)
            texts.append(text.encode(errors="backslashreplace"))
        except Absent as absent:
            errors.append(str(absent))
        except BaseException as error:  # whatever it is, the other parts continue
            errors.append(as_error(error, "polyvol").message)

    thread = threading.Thread(target=run, name=f"part-{part.name}", daemon=True)
    thread.start()
    thread.join(timeout_s + 1)
    if texts:
        text = texts[0]
        if len(text) > PART_BYTES_MAX:
            text = text[-PART_BYTES_MAX:]  # the end of a log is what matters
        return text, None
    return None, clean(errors[0]) if errors else f"it took longer than {timeout_s} s"


def _add(archive: tarfile.TarFile, name: str, text: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(text), 0o600, int(time.time())
    archive.addfile(entry, io.BytesIO(text))


def _readme(found: list[Collected]) -> bytes:
    there = [f"  {each.name}: {each.what}" for each in found if each.absent is None]
    absent = [f"  {each.name}: {each.absent}" for each in found if each.absent is not None]
    lines = [
        "A support bundle of polyvol.",
        "",
        _LOOK,
        "",
        "In it:",
        *there,
        "",
        "Not there:",
        *(absent or ["  -"]),
    ]
    return ("\n".join(lines) + "\n").encode(errors="backslashreplace")
