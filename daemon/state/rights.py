"""Who may write to the state directory: only polyvold's user and root, or polyvold does not start there.

How it works      Who can write to the catalog decides what polyvold does: which files and disks it opens,
                  and which commands it runs as hooks. So the state directory, and what polyvold keeps in it,
                  must belong to polyvold's user or to root, and nobody else can write there. Who can write to
                  a directory above it can replace it, unless that directory has the sticky bit, as /tmp has.
Errors            StateOpen. A directory above it that another user owns, or a group can write to, is only
                  warned of: whether that user and group are trusted is not known here.
"""

import logging
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from polyvol.daemon.errors import StateOpen, StateUnusable
from polyvol.daemon.host.accounts import group_name, user_name
from polyvol.mapping.os_errors import advice, reason

OTHER_STATE = "give --state-dir a directory that polyvold may write to"
_log = logging.getLogger("polyvol")


def refuse_open_to_others(state_dir: Path, own: Iterable[str]) -> None:
    """StateOpen if others than polyvold's user and root can write to the state directory, or to what is in it
    under the patterns `own`. There need not be one."""
    if os.path.lexists(state_dir) and not state_dir.is_dir():
        raise StateUnusable(state=state_dir, why="it is not a directory", todo=OTHER_STATE)
    try:
        for path in _own(state_dir, own):
            _refuse(state_dir, path)
        for path in _above(state_dir):
            _look_above(state_dir, path)
    except OSError as error:
        why = reason(error, error.filename)
        why = why if str(error.filename) in why else f"{why} ({error.filename})"
        raise StateUnusable(state=state_dir, why=why, todo=advice(error, OTHER_STATE)) from error


def _own(state_dir: Path, own: Iterable[str]) -> Iterator[Path]:
    if state_dir.exists():
        yield state_dir
        for pattern in own:
            yield from sorted(state_dir.glob(pattern))


def _above(state_dir: Path) -> list[Path]:
    """The directories through which the state directory is found: also those of symbolic links on the way,
    and where these lead."""
    found: dict[Path, None] = {}
    for path in (state_dir, *state_dir.parents):
        found.update(dict.fromkeys(path.parents))
        found.update(dict.fromkeys(Path(os.path.realpath(path)).parents))
    return [path for path in found if path.exists()]


def _refuse(state_dir: Path, path: Path) -> None:
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()):
        command = f"run this as user {user_name(status.st_uid)}, or `chown {user_name(os.geteuid())} {path}`"
        raise StateOpen(
            state=state_dir, path=path, why=f"belongs to user {user_name(status.st_uid)}", command=command
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        command = f"`chmod go-w {path}`"
        raise StateOpen(state=state_dir, path=path, why="can be written to by other users", command=command)


def _look_above(state_dir: Path, path: Path) -> None:
    status = path.stat()
    sticky = bool(status.st_mode & stat.S_ISVTX)
    if status.st_mode & stat.S_IWOTH and not sticky:
        command = f"`chmod o-w {path}`"
        raise StateOpen(state=state_dir, path=path, why="can be written to by all users", command=command)
    if status.st_uid not in (0, os.geteuid()):
        who = f"user {user_name(status.st_uid)}"
    elif status.st_mode & stat.S_IWGRP and not sticky:
        who = f"group {group_name(status.st_gid)}"
    else:
        return
    _log.warning("%s can write to %s, and so replace the state directory %s", who, path, state_dir)
