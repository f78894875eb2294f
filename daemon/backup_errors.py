"""Errors of backups, restores and copies; their form is that of mapping/errors.py."""

from pathlib import Path

from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.os_errors import DEFAULT_ADVICE, advice, reason


class LibnbdMissing(PolyvolError):
    """libnbd's Python module is not installed."""

    code = "libnbd-missing"
    kind = "unavailable"
    sentence = "libnbd's Python module is not installed"
    hint = (
        "install Debian's python3-libnbd, which PyPI does not have; "
        "a virtual environment sees it if it was made with --system-site-packages"
    )


class TransferFailed(PolyvolError):
    """An NBD server, a file or a disk failed in the middle."""

    code = "transfer-failed"
    kind = "io"
    sentence = "{what} failed: {why}"
    hint = "{todo}"

    def __init__(self, *, what: str, why: object, todo: str = DEFAULT_ADVICE) -> None:
        super().__init__(what=what, why=why, todo=todo)

    @classmethod
    def of(cls, what: str, error: OSError, path: Path | str | None = None) -> "TransferFailed":
        """The error for a call that failed, on this path if one is given."""
        return cls(what=what, why=reason(error, path), todo=advice(error))


class FileExists(PolyvolError):
    """A backup file that already exists."""

    code = "file-exists"
    kind = "exists"
    sentence = "{path} exists already{more}"
    hint = "{todo}"


class FileBusy(PolyvolError):
    """A backup file that another backup is writing."""

    code = "file-busy"
    kind = "busy"
    sentence = "{path} is being written by another backup"
    hint = "wait until that has ended, or choose another name"


class NothingToResume(PolyvolError):
    """Asked to resume something that is not this backup."""

    code = "nothing-to-resume"
    kind = "invalid"
    sentence = "{path} is not the beginning of this backup: {why}"
    hint = "remove it and leave out --resume"


class TargetSize(PolyvolError):
    """A target whose size differs from that of the data to be written."""

    code = "target-size"
    kind = "invalid"
    sentence = "{target} has {found}, and {source} has {size}"
    hint = "give a target of the same size"
    sizes = ("found", "size")


class BaseMissing(PolyvolError):
    """An incremental backup whose base snapshot is missing."""

    code = "base-missing"
    kind = "not-found"
    sentence = "{name} follows snapshot {base} ({uuid}), which volume {volume} does not have"
    hint = "restore the backup of that snapshot first, or give a volume that has it"


class ChangedSinceBase(PolyvolError):
    """A volume that has changed since the base of an incremental backup."""

    code = "changed-since-base"
    kind = "busy"
    sentence = "volume {volume} has changed since its snapshot {base}, which {name} follows"
    hint = "roll it back to {base} first, or restore to another volume"


class ChangedMeanwhile(PolyvolError):
    """Restored data that differs from the backup."""

    code = "changed-meanwhile"
    kind = "busy"
    sentence = "volume {volume} has changed where {name}, which is being restored to it, has nothing"
    hint = "end the restore with `polyvol volume abandon-restore {volume}`, and restore again"


class AlreadyRestored(PolyvolError):
    """A backup whose snapshot the volume already has."""

    code = "already-restored"
    kind = "exists"
    sentence = "volume {volume} already has what {name} contains, as snapshot {snapshot}"
    hint = "restore the next one, or to another volume"


class NotANewVolume(PolyvolError):
    """A full backup for a volume that exists."""

    code = "not-a-new-volume"
    kind = "exists"
    sentence = "{name} is a full backup, and volume {volume} exists already"
    hint = "name a new volume"


class CannotResume(PolyvolError):
    """A volume to which no restore of this backup was begun."""

    code = "cannot-resume"
    kind = "invalid"
    sentence = "a restore of {name} to volume {volume} cannot be resumed: {why}"
    hint = "{todo}"


class WrongOption(PolyvolError):
    """Options that do not go together."""

    code = "wrong-option"
    kind = "invalid"
    sentence = "{what}"
    hint = "{todo}"
