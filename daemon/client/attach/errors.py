"""Errors of attaching: what can be refused or fail on the host that gets the block device."""

from polyvol.mapping.errors import PolyvolError


class BadExport(PolyvolError):
    """Something that cannot be the name of a volume or a snapshot."""

    code = "bad-export"
    kind = "invalid"
    sentence = "{text!r} names neither a volume nor a snapshot"
    hint = "give VOLUME or VOLUME@SNAPSHOT"


class BadUri(PolyvolError):
    """An NBD URI that cannot be used."""

    code = "bad-uri"
    kind = "invalid"
    sentence = "the NBD URI {uri!r} cannot be used: {why}"
    hint = "give nbd://HOST[:PORT][/EXPORT] or nbd+unix:///[EXPORT]?socket=PATH"


class ServerUnreachable(PolyvolError):
    """Nobody answers at an NBD address, or not in time."""

    code = "nbd-unreachable"
    kind = "unavailable"
    sentence = "no NBD server answers at {address}: {why}"
    hint = "check that polyvold runs there and that this host may connect"


class ExportRefused(PolyvolError):
    """An NBD server that does not serve the requested export."""

    code = "export-refused"
    kind = "not-found"
    sentence = "{address} does not serve {export}: {why}"
    hint = "`polyvol volume list` and `polyvol snapshot list` there show what exists"


class NotNbd(PolyvolError):
    """A server that violates the protocol."""

    code = "not-nbd"
    kind = "io"
    sentence = "{address} does not follow the NBD protocol: {why}"
    hint = "check that the address is that of a polyvold"


class AnotherExport(PolyvolError):
    """An export that differs from the one that a block device was made of."""

    code = "another-export"
    kind = "invalid"
    sentence = "{export} at {address} is not what was attached: {why}"
    hint = "detach it, and attach it again if this is what is wanted"


class NeedsRoot(PolyvolError):
    """Attaching or detaching without being root."""

    code = "needs-root"
    kind = "invalid"
    sentence = "{what} needs root"
    hint = "run it as root or with sudo"


class NoNbdModule(PolyvolError):
    """A kernel without an NBD client."""

    code = "no-nbd-module"
    kind = "unavailable"
    sentence = "this kernel has no NBD client (module nbd is not available)"
    hint = "install a kernel that has it, or attach with --fuse, which needs nbdfuse and loop devices only"


class KernelRefused(PolyvolError):
    """The kernel's NBD client refused a request."""

    code = "kernel-refused"
    kind = "io"
    sentence = "the kernel refused {what}: {why}"
    hint = "the kernel's log (`dmesg`) may have details"


class ProgramFailed(PolyvolError):
    """A program that attaching needs is missing or has failed."""

    code = "program-failed"
    kind = "io"
    sentence = "{program} failed: {why}"
    hint = "check that it is installed (Debian: nbdfuse is in libnbd-bin, losetup in mount)"


class AlreadyAttached(PolyvolError):
    """A volume or snapshot that is attached, or a name that is in use."""

    code = "already-attached"
    kind = "exists"
    sentence = "{name} is attached already, as {device}"
    hint = "detach it first: `polyvol detach {name}`"


class AttachBusy(PolyvolError):
    """Another command is attaching or detaching the same volume or snapshot, and does not end."""

    code = "attach-busy"
    kind = "busy"
    sentence = "another `polyvol attach` or `polyvol detach` of {name} is still running"
    hint = "wait for it, or end it, and try again"


class DeviceDead(PolyvolError):
    """A block device that does no I/O any more, and is still in use."""

    code = "device-dead"
    kind = "busy"
    sentence = "{name} ({device}) is dead, because {why}, and is still {use}"
    hint = "end that, or detach it with --force; then attach it again"


class NotAttached(PolyvolError):
    """A name or device that is not attached by polyvol."""

    code = "not-attached"
    kind = "not-found"
    sentence = "{name} is not attached"
    hint = "`polyvol attach --list` shows what is"


class AttachedInUse(PolyvolError):
    """A block device that is mounted or otherwise in use."""

    code = "attached-in-use"
    kind = "busy"
    sentence = "{name} ({device}) is {use}"
    hint = "end that first, or give --force and lose what was not written yet"


class NotWritten(PolyvolError):
    """A block device with data that cannot be written to its volume."""

    code = "not-written"
    kind = "io"
    sentence = "not all data written to {name} ({device}) could be written to its volume: {why}"
    hint = "the device stays; check the volume with `polyvol status`, or give --force and lose the data"


class AttachFailed(PolyvolError):
    """A block device that did not appear, with the unit's reason."""

    code = "attach-failed"
    kind = "io"
    sentence = "attaching {name} failed: {why}"
    hint = "`journalctl -u polyvol-attach@{name}` has the details"


class RecordUnusable(PolyvolError):
    """The record of an attached volume cannot be read or written."""

    code = "record-unusable"
    kind = "io"
    sentence = "the record {path} cannot be used: {why}"
    hint = "remove it and attach again"
