"""Errors as data: each class is one way in which a request cannot be done, with its sentence and its advice.

How it works      A class gives a `code` (stable, for programs), a `kind` (what sort of failure: the daemon
                  maps it to an HTTP status), a `sentence` and a `hint`, both templates over the facts that
                  are given by keyword when it is raised. Everything that a user sees is made of these two.
Invariants        ER1 codes are unique; ER2 the facts given are exactly the fields of the templates; ER3
                  if one is raised, nothing has changed, unless the sentence says otherwise. Tests check
                  ER1 and ER2.
Errors            The classes of snapshot/ are in snapshot/errors/, those of daemon/ in daemon/errors.py and
                  next to the code that raises them; docs/errors.md lists all.
"""

from pathlib import Path
from typing import ClassVar, Literal

from polyvol.mapping.no_space import NO_SPACE
from polyvol.mapping.os_errors import advice, reason
from polyvol.mapping.sizes import exact_size

FACT_LENGTH_MAX = 400
Kind = Literal["not-found", "exists", "busy", "invalid", "corrupt", "io", "unavailable", "no-space"]


class PolyvolError(Exception):
    """The base of every error that a user can see."""

    code: ClassVar[str] = ""
    kind: Kind = "io"
    """As the class has it; where another error decides it (`kind_of`), as the error itself has it."""
    sentence: ClassVar[str] = ""
    hint: ClassVar[str] = ""
    sizes: ClassVar[tuple[str, ...]] = ()
    """Which of its facts are numbers of bytes."""

    def __init__(self, **facts: object) -> None:
        self.facts = facts
        shown = {name: self._shown(name, fact) for name, fact in facts.items()}
        self.message = self.sentence.format(**shown)
        self.advice = self.hint.format(**shown)
        super().__init__(f"{self.message}; {self.advice}" if self.advice else self.message)

    @classmethod
    def _shown(cls, name: str, fact: object) -> object:
        """A fact as sentences show it."""
        return exact_size(fact) if name in cls.sizes and isinstance(fact, int) else _shortened(fact)


def kind_of(cause: object) -> Kind:
    """What sort of failure a cause is: 'no-space' if the system has none, else the kind that one of our
    errors, or of the engine's, has; 'io' for all others."""
    if getattr(cause, "errno", 0) in NO_SPACE:
        return "no-space"
    kind: Kind = getattr(cause, "kind", "io")
    return kind


def _shortened(fact: object) -> object:
    """A fact as sentences show it: no name or path makes a sentence endless."""
    if isinstance(fact, str | Path) and len(str(fact)) > FACT_LENGTH_MAX:
        text, kept = str(fact), FACT_LENGTH_MAX // 2
        return f"{text[:kept]}...({len(text)} characters)...{text[-kept:]}"
    return fact


class BadName(PolyvolError):
    """A name that may not be given to a volume, snapshot or device."""

    code = "bad-name"
    kind = "invalid"
    sentence = "{noun} name {name!r} is not allowed"
    hint = "use 1 to 64 of the characters A-Z a-z 0-9 . _ - and begin with a letter, a digit or _"


class NameInUse(PolyvolError):
    """The name is already in use."""

    code = "name-in-use"
    kind = "exists"
    sentence = "{noun} {name} exists already"
    hint = "choose another name"


class UnknownVolume(PolyvolError):
    """No volume of this name."""

    code = "unknown-volume"
    kind = "not-found"
    sentence = "there is no volume {name!r}"
    hint = "`polyvol volume list` shows those that exist"


class CloneHasNoDevices(PolyvolError):
    """A clone that is to grow onto a device."""

    code = "clone-has-no-devices"
    kind = "invalid"
    sentence = "volume {name} is a clone: what is written to it is in its change logs"
    hint = "leave --device out; `polyvol volume add-log {name} --device` gives it more room"


class UnknownDevice(PolyvolError):
    """No device of this name."""

    code = "unknown-device"
    kind = "not-found"
    sentence = "there is no device {name!r}"
    hint = "`polyvol device list` shows those that exist, `polyvol device add` adds one"


class UnknownSnapshot(PolyvolError):
    """No snapshot of this name."""

    code = "unknown-snapshot"
    kind = "not-found"
    sentence = "there is no snapshot {name!r} of volume {volume}"
    hint = "`polyvol snapshot list {volume}` shows those that exist"


class ZeroSize(PolyvolError):
    """A size that is 0 or less."""

    code = "zero-size"
    kind = "invalid"
    sentence = "{what} has a size of {size}"
    hint = "give a size of at least {smallest}"
    sizes = ("size", "smallest")


class NotLarger(PolyvolError):
    """A volume that is to grow to what it has already, or less."""

    code = "not-larger"
    kind = "invalid"
    sentence = "volume {name} has {size} already, and {wanted} is not more"
    hint = "volumes only grow: give a larger --size"
    sizes = ("size", "wanted")


class UnalignedSize(PolyvolError):
    """A size that is not a whole number of blocks."""

    code = "unaligned-size"
    kind = "invalid"
    sentence = "{what} has a size of {size}, which is not a multiple of 4 KiB"
    hint = "use {above}"
    sizes = ("size",)


class SizeTooLarge(PolyvolError):
    """A size beyond what is supported."""

    code = "size-too-large"
    kind = "invalid"
    sentence = "{what} has a size of {size}, more than the {largest} that are possible here"
    hint = "give a smaller size; a larger --partition-size lets a volume be larger"
    sizes = ("size", "largest")


class BadPartitionSize(PolyvolError):
    """A partition size that is not a power of two in its range."""

    code = "bad-partition-size"
    kind = "invalid"
    sentence = "a partition size of {size} is not a power of two from 1 MiB to 1 GiB"
    hint = "use 64M if in doubt"
    sizes = ("size",)


class BadProcessors(PolyvolError):
    """A number of processors out of range."""

    code = "bad-processors"
    kind = "invalid"
    sentence = "{count} is not a possible number of processors"
    hint = "give a number from 1 to 256"


class BaseFixesSize(PolyvolError):
    """--base given together with what it decides itself."""

    code = "base-fixes-size"
    kind = "invalid"
    sentence = "a volume on --base {device} takes its size and its data from that device"
    hint = "leave out --size, --device, and device= in --place"


class SizeMissing(PolyvolError):
    """A volume without a size and without a base."""

    code = "size-missing"
    kind = "invalid"
    sentence = "volume {name} has no size"
    hint = "give --size, or --base with an adopted device"


class DeviceTooSmall(PolyvolError):
    """Not enough free space on the devices named."""

    code = "device-too-small"
    kind = "invalid"
    sentence = "{what} needs {needed}, and {devices} has {free} free"
    hint = "name more or larger devices; `polyvol device add` adds one"
    sizes = ("needed", "free")


class RepeatedDevice(PolyvolError):
    """The same thing named twice in one request."""

    code = "named-twice"
    kind = "invalid"
    sentence = "{noun} {name} is named twice"
    hint = "name it once"


class TooManyLogs(PolyvolError):
    """A volume that has used up its numbers of log areas."""

    code = "too-many-logs"
    kind = "invalid"
    sentence = "volume {name} has had 4095 log areas, and their numbers are never used again"
    hint = "name a log device that the volume has a log area on already"


class DeviceAdopted(PolyvolError):
    """An adopted device named where a labelled one is needed."""

    code = "device-adopted"
    kind = "invalid"
    sentence = "device {name} was adopted with its data and belongs completely to one volume"
    hint = "use it with --base, or name a device that was added without --adopt"


class DeviceNotAdopted(PolyvolError):
    """--base names a device that was not adopted."""

    code = "device-not-adopted"
    kind = "invalid"
    sentence = "device {name} was not adopted, so there is no data on it to base a volume on"
    hint = "use it with --device, or add a disk or image with `polyvol device add --adopt`"


class DeviceInUse(PolyvolError):
    """The device holds data of volumes."""

    code = "device-in-use"
    kind = "busy"
    sentence = "device {name} is used by volume {volumes}"
    hint = "delete the volume first"


class DeviceNotDirect(PolyvolError):
    """A file or disk that is to be used past the page cache, and cannot be."""

    code = "device-not-direct"
    kind = "invalid"
    sentence = "{path} cannot be used past the page cache: {why}"
    hint = "leave out --direct"


class DeviceNotReady(PolyvolError):
    """The device is in the catalog but cannot be used now."""

    code = "device-not-ready"
    kind = "unavailable"
    sentence = "device {name} cannot be used: {reason}"
    hint = "correct that, then `polyvol device retry {name}`"


class DeviceStillFaulty(PolyvolError):
    """The device was reopened, and failed again at once."""

    code = "device-still-faulty"
    kind = "io"
    sentence = "device {name} was reopened and is still faulty: {reason}"
    hint = "see the kernel's log (`dmesg`) for the device's errors, then try again"


class DevicePathInUse(PolyvolError):
    """The same file or disk is a device already."""

    code = "device-path-in-use"
    kind = "exists"
    sentence = "{path} is device {name} already"
    hint = "`polyvol device show {name}` shows it"


class DeviceMissing(PolyvolError):
    """A device's file or disk is not there."""

    code = "device-missing"
    kind = "not-found"
    sentence = "{path} does not exist"
    hint = "give --size to have a file made there, or correct the path"


class DeviceUnusable(PolyvolError):
    """A path that cannot be a device."""

    code = "device-unusable"
    kind = "invalid"
    sentence = "{path} cannot be used as a device: {why}"
    hint = "give the path of a regular file or a block device that polyvold may read and write"


class UnsafeLink(PolyvolError):
    """A path through a symbolic link that others than root and polyvold's user could have put there."""

    code = "unsafe-link"
    kind = "invalid"
    sentence = "{path} goes through the symbolic link {link}, which others can replace"
    hint = "give the path that the link leads to"


class DeviceSizeGiven(PolyvolError):
    """--size or --preallocate for something that has its size already."""

    code = "device-size-given"
    kind = "invalid"
    sentence = "{path} exists and has a size of its own, {size}"
    hint = "leave out --size and --preallocate"
    sizes = ("size",)


class DeviceNotEmpty(PolyvolError):
    """A file or disk with data on it, not adopted."""

    code = "device-not-empty"
    kind = "invalid"
    sentence = "{path} has data on it"
    hint = "use --adopt to take it with its data, or --force to overwrite it"


class DeviceHasContents(PolyvolError):
    """A disk or file with a file system or the like on it, not adopted."""

    code = "device-has-contents"
    kind = "invalid"
    sentence = "{path} has {contents} on it"
    hint = "use --adopt to take it with its data, or --force to overwrite it"


class DiskInUse(PolyvolError):
    """A disk that is mounted, part of something, or opened by somebody alone."""

    code = "disk-in-use"
    kind = "busy"
    sentence = "{path} is {use}"
    hint = "end that first"


class ForeignLabel(PolyvolError):
    """A file or disk that carries a label that is not ours to overwrite."""

    code = "foreign-label"
    kind = "invalid"
    sentence = "{path} carries the label of {owner}"
    hint = "if nothing on it is needed any more, add it with --force"


class DeviceUnaligned(PolyvolError):
    """An adopted device whose size is not a whole number of blocks."""

    code = "device-unaligned"
    kind = "invalid"
    sentence = "{path} has a size of {size}, which is not a multiple of 4 KiB"
    hint = "make it {above} (for a file: truncate -s {above})"
    sizes = ("size",)


class DeviceIo(PolyvolError):
    """The operating system refused something on a device's file or disk."""

    code = "device-io"
    kind = "io"
    sentence = "{what} {path} failed: {why}"
    hint = "{todo}"

    def __init__(self, *, what: str, path: Path, why: object) -> None:
        error = why if isinstance(why, OSError) else OSError(str(why))
        todo = advice(error, "see the kernel's log (`dmesg`) for errors of the device")
        super().__init__(what=what, path=path, why=reason(error, path), todo=todo)


class LabelDamaged(PolyvolError):
    """A label that cannot be read back right."""

    code = "label-damaged"
    kind = "corrupt"
    sentence = "the label on {path} is damaged: {why}"
    hint = "if nothing on it is needed any more, add it with --force"


class CatalogVersion(PolyvolError):
    """A catalog of another version, left untouched."""

    code = "catalog-version"
    kind = "invalid"
    sentence = (
        "the catalog {path} has format version {version}, and this polyvold knows versions 1 to {latest}"
    )
    hint = "use the polyvold that wrote it, or a newer one"


class CatalogFailed(PolyvolError):
    """The catalog could not be written, or read by a change; nothing of the change was recorded."""

    code = "catalog-failed"
    kind = "io"
    sentence = "the catalog {path} cannot be read or written: {why}"
    hint = "check that its file system has free space and no errors, then try again"


class CatalogConflict(PolyvolError):
    """A change that refers to what is gone, or to a name that is taken, since its verb looked."""

    code = "catalog-conflict"
    kind = "busy"
    sentence = "the object was changed by another command in the meantime, so nothing was done"
    hint = "look at its present state, then try again"


class CatalogUnreadable(PolyvolError):
    """A catalog that cannot be read now; what it holds may be right."""

    code = "catalog-unreadable"
    kind = "io"
    sentence = "the catalog {path} cannot be read: {why}"
    hint = "nothing was changed; check its file system and disk for errors (`dmesg`), then try again"


class StateFull(PolyvolError):
    """No room in the state directory for what has to be recorded; nothing of the change was recorded."""

    code = "state-full"
    kind = "no-space"
    sentence = "no space is left on the file system of {path}: {what}"
    hint = (
        "free at least {need} there or raise its quota; remove files if `df -i` shows that it has room for no"
        " more"
    )


class CatalogDamaged(PolyvolError):
    """A catalog that SQLite cannot read, whose checksums do not match, or that is none."""

    code = "catalog-damaged"
    kind = "corrupt"
    sentence = "the catalog {path} cannot be used: {why}"
    hint = "nothing was changed; restore the state directory from a copy"


class CatalogMissing(PolyvolError):
    """No catalog, or an empty one, where there has been one."""

    code = "catalog-missing"
    kind = "corrupt"
    sentence = "the catalog {path} is {how}, but {trace} shows that this state directory was used"
    hint = "put the catalog back; for a new state directory, move what is left of this one away"


class CatalogOlder(PolyvolError):
    """A catalog that lacks what was committed to it."""

    code = "catalog-older"
    kind = "corrupt"
    sentence = (
        "the catalog {path} is an older copy, or its -wal file is missing or damaged: it has {commits}"
        " commits, and {mark} says {marked}"
    )
    hint = (
        "put the newest catalog back with its -wal file; `polyvold --accept-older-catalog` uses this one and"
        " gives up what it lacks"
    )


class CatalogUnmarked(PolyvolError):
    """The mark cannot say whether the catalog is the newest."""

    code = "catalog-unmarked"
    kind = "corrupt"
    sentence = "nothing says whether the catalog {path} is its newest copy: {mark} {why}"
    hint = "put {mark} back; if no older catalog was put here, start `polyvold --accept-older-catalog` once"
