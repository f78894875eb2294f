"""Errors of partitions, of their change logs, and of processors, in the form of mapping/errors.py."""

from polyvol.mapping.errors import PolyvolError


class UnknownPartition(PolyvolError):
    """A number that no partition of a volume, or of a snapshot, has."""

    code = "unknown-partition"
    kind = "not-found"
    sentence = "{name} has no partition {partition}: they are numbered from 0 to {last}"
    hint = "`polyvol partition list {volume}` shows those that exist"


class UnknownProcessor(PolyvolError):
    """A number that no processor has."""

    code = "unknown-processor"
    kind = "not-found"
    sentence = "there is no processor {processor}"
    hint = "`polyvol processor list` shows those that exist"


class UnknownChangeLog(PolyvolError):
    """A change log that does not exist."""

    code = "unknown-change-log"
    kind = "not-found"
    sentence = "there is no change log {name}: {why}"
    hint = "`polyvol log list {volume}` shows those that exist"


class BadLogName(PolyvolError):
    """A text that is no name of a change log."""

    code = "bad-log-name"
    kind = "invalid"
    sentence = "{text!r} does not name a change log"
    hint = "give VOLUME@SNAPSHOT#PARTITION, such as db@monday#7, or VOLUME#PARTITION"


class OffsetBehindEnd(PolyvolError):
    """An offset behind the last byte of a volume or of a snapshot."""

    code = "offset-behind-end"
    kind = "invalid"
    sentence = "offset {offset} is behind the end of {name}, which has {size}"
    hint = "give an offset from 0 to {last}"
    sizes = ("size",)


class ReplacedBetweenPages(PolyvolError):
    """A volume or snapshot that was deleted, and made again by the same name, while its parts were listed."""

    code = "replaced-between-pages"
    kind = "busy"
    sentence = "{name} was deleted in the meantime, and another one has its name"
    hint = "repeat the command if the new one is meant"
