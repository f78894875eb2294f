"""The error table: every error that a user can meet, with its HTTP status and the daemon's own classes.

How it works      The classes say code, kind, sentence and hint (mapping/errors.py has their form);
                  `http_status` maps the kind; the command line exits with EXIT_CODE after any of them.
                  `error_table` finds all classes of the project, so that a test can compare them with
                  docs/errors.md.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import polyvol.daemon.backup_errors
import polyvol.daemon.client.attach.errors
import polyvol.snapshot.errors.cuts
import polyvol.snapshot.errors.groups
import polyvol.snapshot.errors.holds
import polyvol.snapshot.errors.hooks
import polyvol.snapshot.errors.schedules
import polyvol.snapshot.errors.streams  # noqa: F401 - so that all classes are in the table
from polyvol.mapping.errors import Kind, PolyvolError, kind_of
from polyvol.mapping.sizes import counted

EXIT_CODE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
"""By SIGINT, as shells have it."""
EXIT_PIPE = 141
"""The reader of the output has ended: as shells have it for SIGPIPE."""
HTTP_STATUS: dict[Kind, int] = {
    "not-found": 404,
    "exists": 409,
    "busy": 409,
    "invalid": 400,
    "corrupt": 500,
    "io": 500,
    "unavailable": 503,
    "no-space": 507,
}


class StateLocked(PolyvolError):
    """Another daemon owns the state directory."""

    code = "state-locked"
    kind = "busy"
    sentence = "polyvold (pid {pid}) already runs on {state}"
    hint = "stop it first, or give another --state-dir"


class NoState(PolyvolError):
    """A directory that is not a state directory."""

    code = "no-state"
    kind = "not-found"
    sentence = "{state} is not a state directory: it has no catalog"
    hint = "give --state-dir the directory of a polyvold"


class StateUnusable(PolyvolError):
    """The state directory cannot be used."""

    code = "state-unusable"
    kind = "io"
    sentence = "the state directory {state} cannot be used: {why}"
    hint = "{todo}"


class StateOpen(PolyvolError):
    """Others may write to the state directory."""

    code = "state-open"
    kind = "io"
    sentence = "the state directory {state} is not used, because {path} {why}"
    hint = "make sure that nobody has changed what is there, then {command}"


class SocketUnusable(PolyvolError):
    """A socket cannot be bound."""

    code = "socket-unusable"
    kind = "io"
    sentence = "cannot listen on {address}: {why}"
    hint = "give another --nbd-socket, --nbd-listen or --state-dir"


class BadConfig(PolyvolError):
    """A configuration file or option that is not right."""

    code = "bad-config"
    kind = "invalid"
    sentence = "{where}: {why}"
    hint = "docs/operating.md lists the settings"


class BadRequest(PolyvolError):
    """A request to the API that does not have the form its description asks for."""

    code = "bad-request"
    kind = "invalid"
    sentence = "the request is not valid: {why}"
    hint = "/openapi.json describes the API"


class NoSuchPage(PolyvolError):
    """A path or method that the API does not have."""

    code = "no-such-page"
    kind = "not-found"
    sentence = "the control API has no {method} {path}"
    hint = "/openapi.json describes the API"


class VolumeInUse(PolyvolError):
    """A volume, or one of its snapshots, that clients are connected to."""

    code = "volume-in-use"
    kind = "busy"
    sentence = "volume {name} is in use by {clients}"
    hint = "disconnect {them} first; `polyvol client list` shows who is connected"


class VolumeOpen(PolyvolError):
    """A volume that is to be rolled back while clients have it open."""

    code = "volume-open"
    kind = "busy"
    sentence = "volume {name} is in use by {clients}, and would change under {them}"
    hint = (
        "disconnect {them} first, or have that done with --force;"
        " `polyvol client list` shows who is connected"
    )


class StopUnfinished(PolyvolError):
    """polyvold ends although not everything could be made durable, because a device hangs."""

    code = "stop-unfinished"
    kind = "io"
    sentence = "polyvold on {state} ends, and a device does not answer: not everything is durable"
    hint = "the next start recovers what was acknowledged; see the kernel's log (`dmesg`) for its errors"


class VolumeBusy(PolyvolError):
    """A volume that another verb has held for long, or that too many callers wait for."""

    code = "volume-busy"
    kind = "busy"
    sentence = "volume {name} has been busy with {what} for {since}"
    hint = "try again when that has ended; `polyvol status` shows what is under way, and devices with trouble"


class GroupBusy(PolyvolError):
    """A group that is to be deleted while a snapshot of it is made."""

    code = "group-busy"
    kind = "busy"
    sentence = "group {name} has been busy with {what} for {since}"
    hint = "try again when that has ended; `polyvol status` shows what is under way, and devices with trouble"


class DeviceBusy(PolyvolError):
    """A device that another verb has held for long, or that too many callers wait for."""

    code = "device-busy"
    kind = "busy"
    sentence = "device {name} has been busy with {what} for {since}"
    hint = "try again when that has ended; `polyvol status` shows what is under way, and devices with trouble"


class SnapshotInUse(PolyvolError):
    """A snapshot that clients are connected to."""

    code = "snapshot-in-use"
    kind = "busy"
    sentence = "snapshot {name} is in use by {clients}"
    hint = "disconnect {them} first; `polyvol client list` shows who is connected"


class UnknownClient(PolyvolError):
    """No connection of this id."""

    code = "unknown-client"
    kind = "not-found"
    sentence = "there is no client {id}"
    hint = "`polyvol client list` shows those that are connected"


class UnknownExport(PolyvolError):
    """No export of this name."""

    code = "unknown-export"
    kind = "not-found"
    sentence = "there is no export {name!r}"
    hint = "`polyvol volume list` and `polyvol snapshot list` show what is exported"


class VolumeNotServed(PolyvolError):
    """A volume that exists but cannot be served now."""

    code = "volume-not-served"
    kind = "unavailable"
    sentence = "volume {name} is not served: {reason}"
    hint = "`polyvol status` has the details"


class Restoring(PolyvolError):
    """A volume that is incomplete, because a backup is being restored to it."""

    code = "restoring"
    kind = "busy"
    sentence = "volume {name} is being restored from {source}"
    hint = (
        "finish that with `polyvol restore FILE {name} --resume`,"
        " or end it with `polyvol volume abandon-restore {name}`"
    )


class RestoreRunning(PolyvolError):
    """A restore that another client is writing now."""

    code = "restore-running"
    kind = "busy"
    sentence = "a restore to volume {name} is running, with {clients} connected"
    hint = "wait until it has ended, or end that `polyvol restore` first"


class RestoreEnded(PolyvolError):
    """A restore that another client has ended or begun again."""

    code = "restore-ended"
    kind = "busy"
    sentence = "this restore to volume {name} was ended in the meantime"
    hint = "`polyvol volume show {name}` shows its present state"


class NoRestore(PolyvolError):
    """A request to end a restore of a volume without one."""

    code = "no-restore"
    kind = "not-found"
    sentence = "no restore to volume {name} is incomplete"
    hint = "`polyvol volume show {name}` shows its present state"


class SnapshotWasDeleted(PolyvolError):
    """A snapshot that only an older copy of the catalog has: the journals say that it was deleted."""

    code = "snapshot-was-deleted"
    kind = "not-found"
    sentence = (
        "snapshot {name} was deleted after this copy of the catalog was made, and its blocks may have been"
        " overwritten"
    )
    hint = "delete it again: `polyvol snapshot delete {name}`, or the group's snapshot that it is part of"


class JournalsUnusable(PolyvolError):
    """A required file of a volume's journals is missing, damaged, or of another time."""

    code = "journals-unusable"
    kind = "corrupt"
    sentence = "the journals of volume {name} cannot be used: {why}"
    hint = (
        "nothing was changed; put back its newest files in volumes/ and manifests/ of the state directory,"
        " or the whole state directory from a copy, or delete the volume"
    )


class ScrubRunning(PolyvolError):
    """A second scrub of one volume."""

    code = "scrub-running"
    kind = "busy"
    sentence = "volume {name} is being scrubbed already"
    hint = "`polyvol scrub {name} --stop` ends that"


class NoScrub(PolyvolError):
    """A request for a scrub that never existed."""

    code = "no-scrub"
    kind = "not-found"
    sentence = "volume {name} has not been scrubbed yet"
    hint = "`polyvol scrub {name}` does it"


class DeleteUnfinished(PolyvolError):
    """A volume that is deleted, but whose space could not be freed yet."""

    code = "delete-unfinished"
    kind = "unavailable"
    sentence = "volume {name} is deleted, but its space could not be given back yet: {reason}"
    hint = "correct that and delete it again; polyvold also retries at its next reload or start"


class EngineFailed(PolyvolError):
    """The engine refused, in its own words; `kind` is that of its error."""

    code = "engine-failed"
    sentence = "{what} failed: {why}"
    hint = "{todo}"

    def __init__(
        self, *, what: str, why: object, todo: str = "`polyvol status` shows volumes and devices"
    ) -> None:
        super().__init__(what=what, why=why, todo=todo)
        self.kind = kind_of(why)


class InternalError(PolyvolError):
    """A defect of polyvold itself; its log has the details."""

    code = "internal-error"
    kind = "io"
    sentence = "internal error in polyvold while it answered {what}"
    hint = "its log has the details"


class DaemonNotRunning(PolyvolError):
    """The command line found no running daemon."""

    code = "daemon-not-running"
    kind = "unavailable"
    sentence = "polyvold is not running on {state}: {why}"
    hint = "{todo}"


class DaemonUnreachable(PolyvolError):
    """The command line may not, or cannot, connect to the daemon."""

    code = "daemon-unreachable"
    kind = "unavailable"
    sentence = "polyvold on {state} cannot be reached: {why}"
    hint = "{todo}"


class DaemonVersion(PolyvolError):
    """A daemon of another version, which does not understand the command line or is not understood by it."""

    code = "daemon-version"
    kind = "unavailable"
    sentence = "polyvold on {state} (version {theirs}) and this polyvol (version {ours}) differ: {why}"
    hint = "restart polyvold, so that both are the same version"


class NotText(PolyvolError):
    """An argument that is not UTF-8, as names and paths in the control API have to be."""

    code = "not-text"
    kind = "invalid"
    sentence = "'{text}' is not valid UTF-8"
    hint = "give a name or path that is, for instance a link to it"


class OutputFailed(PolyvolError):
    """What the command line prints could not be written."""

    code = "output-failed"
    kind = "io"
    sentence = "the standard output cannot be written: {why}"
    hint = "{todo}; a change that was asked for has been made"


class UsageWrong(PolyvolError):
    """A command that is not written as its --help says."""

    code = "usage"
    kind = "invalid"
    sentence = "{what}"
    hint = "`{command} --help` shows the usage"


class SystemRefused(PolyvolError):
    """The operating system refused something that the command line needs."""

    code = "system-refused"
    kind = "io"
    sentence = "{what} failed: {why}"
    hint = "{todo}"


class CommandDefect(PolyvolError):
    """A defect of the command line itself."""

    code = "command-defect"
    kind = "io"
    sentence = "internal error in {program} ({where})"
    hint = "report it with what it prints when POLYVOL_TRACEBACK=1 is set in its environment"


class NotConfirmed(PolyvolError):
    """A request that cannot be undone, without --yes."""

    code = "not-confirmed"
    kind = "invalid"
    sentence = "deleting volume {name} deletes its data and its snapshots for good"
    hint = "give --yes to do it"


class BadSnapshotName(PolyvolError):
    """A text that is not the name of a snapshot, where one is required."""

    code = "bad-snapshot-name"
    kind = "invalid"
    sentence = "{text!r} does not name a snapshot: {why}"
    hint = "give {form}"


class NoMatch(PolyvolError):
    """A pattern that no snapshot matches."""

    code = "no-match"
    kind = "not-found"
    sentence = "no snapshot matches {text!r}"
    hint = "`polyvol snapshot list {target}` shows those that exist"


class OtherVolume(PolyvolError):
    """Two snapshots that are to be compared, and are of two volumes."""

    code = "other-volume"
    kind = "invalid"
    sentence = "{other} is another volume than {volume}, and only snapshots of one can be compared"
    hint = "name two snapshots of one volume"


class SnapshotReplaced(PolyvolError):
    """A snapshot that was deleted, and made again by the same name, while a command used it."""

    code = "snapshot-replaced"
    kind = "busy"
    sentence = "snapshot {name} was deleted in the meantime, and another one has its name"
    hint = "repeat the command if the new one is meant"


class FrontendFailed(PolyvolError):
    """nbdkit could not be started."""

    code = "frontend-failed"
    kind = "io"
    sentence = "the front-end nbdkit could not be started: {why}"
    hint = "install nbdkit and nbdkit-plugin-python, or use --frontend native"


def log_failure(log: logging.Logger, what: str, error: Exception) -> None:
    """Log the exception of a daemon thread during `what`: a sentence, or for a defect its traceback."""
    if isinstance(error, PolyvolError):
        log.warning("%s: %s", what, error)
    else:
        log.error("%s", what, exc_info=error)


def http_status(error: PolyvolError) -> int:
    """The HTTP status of an error."""
    return HTTP_STATUS[error.kind]


def error_table() -> list[type[PolyvolError]]:
    """Every error class of the project, by code."""

    def below(parent: type[PolyvolError]) -> Iterator[type[PolyvolError]]:
        for child in parent.__subclasses__():
            yield child
            yield from below(child)

    return sorted(set(below(PolyvolError)), key=lambda error: error.code)


@contextmanager
def engine_errors(what: str, engine_error: type[Exception], *, starting: bool = False) -> Iterator[None]:
    """Convert the engine's errors into EngineFailed, of the same kind; `what`: the action. `starting`:
    nothing is served yet, so only threads, memory or descriptors can be lacking."""
    try:
        yield
    except engine_error as error:
        if starting:
            todo = (
                "check that polyvold's limits on threads, memory and open files (`ulimit -a`) are high enough"
            )
            raise EngineFailed(what=what, why=error, todo=todo) from error
        raise EngineFailed(what=what, why=error) from error


def counted_clients(count: int) -> dict[str, str]:
    """The facts `clients` and `them` of the errors above."""
    return {
        "clients": counted(count, "client"),
        "them": "it" if count == 1 else "them",
    }


def shown(template: str) -> str:
    """A sentence's or a hint's template as docs/errors.md shows it."""
    return re.sub(r"\{(\w+)(!r)?\}", r"*\1*", template)
