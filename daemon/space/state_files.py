"""Files of the state directory that another program removes, moves, replaces or truncates while polyvold
runs.

How it works      The engine checks the files of each volume's journals before a flush succeeds, and rewrites
                  a damaged one (docs/decisions/0040). This module requests the check every two seconds, also
                  without flushes, and reports the result: an event for a file that was rewritten,
                  `context.file_trouble` for one that could not be. A missing directory of a volume is made
                  again first, but only while the state directory itself is at its path: one that was moved
                  away is not made again there, so that it can be moved back.
Owner and locks   `look` is called by one thread.
Errors            None.
"""

import contextlib
from pathlib import Path

from polyvol.daemon.context import Context
from polyvol.mapping.durable import sync_directory
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.records.volumes import Volume

HOW = "was removed, moved, replaced or truncated by somebody else"


class StateFiles:
    """The watch over journals and manifests."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._identity = _identity(context.state_dir)
        self._gone: dict[VolumeId, str] = {}

    def is_moved(self) -> bool:
        """Whether the state directory is not at its path any more."""
        return self._identity is not None and _identity(self._context.state_dir) != self._identity

    def moved_sentence(self) -> str:
        """What is to be said of that."""
        directory = self._context.state_dir
        return (
            f"the state directory {directory} {HOW}: flushes, snapshots and changes fail; move it back, and"
            " do not stop polyvold before"
        )

    def look(self) -> None:
        """Have the engine check the files, and report the result."""
        context, before = self._context, self._gone
        self._gone = {}
        moved = self.is_moved()
        volumes = {volume.id: volume for volume in context.catalog.volumes.all()}
        for volume in volumes.values():
            if not moved:
                with contextlib.suppress(OSError):  # later writes there fail, and report it
                    self._make_directories(volume)
            with contextlib.suppress(context.engine_error):  # it is not served, or was deleted in between
                gone, replaced = context.engine.renew_missing_files(volume.id)
                for path in replaced:
                    text = f"{path} {HOW}; what it held was written again, and nothing is lost"
                    context.events.add("warning", text, volume=volume.name)
                if gone:
                    self._gone[volume.id] = gone[0]
        trouble = {
            identity: f"{path} {HOW}, and what it held cannot be written again yet: flushes fail"
            for identity, path in self._gone.items()
            if identity in before  # the engine had time to write it again since the look before
        }
        for identity in trouble.keys() - context.file_trouble.keys():
            name = volumes[identity].name
            context.events.add("warning", f"volume {name}: {trouble[identity]}", volume=name)
        context.file_trouble = trouble

    def _make_directories(self, volume: Volume) -> None:
        """Make the directories of a volume's journals and manifests that are gone."""
        context = self._context
        if context.is_served(volume):
            for path in (context.volume_directory(volume), context.manifest_directory(volume)):
                if not path.exists():
                    path.parent.mkdir(mode=0o700, exist_ok=True)
                    path.mkdir(mode=0o700)
                    sync_directory(path.parent)
                    sync_directory(context.state_dir)


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        found = directory.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
