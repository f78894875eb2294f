"""Errors of backup streams, in the form of mapping/errors.py."""

from polyvol.mapping.errors import PolyvolError


class StreamBroken(PolyvolError):
    """An invalid backup stream."""

    code = "stream-broken"
    kind = "corrupt"
    sentence = "{name} cannot be restored: {why}"
    hint = "copy it again from where it was kept; nothing that was there before has been changed"
