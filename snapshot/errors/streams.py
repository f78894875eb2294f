"""Errors of backup streams, in the form of mapping/errors.py."""

from polyvol.mapping.errors import PolyvolError


class StreamBroken(PolyvolError):
    """A backup stream that is not what it should be."""

    code = "stream-broken"
    kind = "corrupt"
    sentence = "{name} cannot be restored: {why}"
    hint = "copy it again from where it was kept; nothing that was there before has been changed"
