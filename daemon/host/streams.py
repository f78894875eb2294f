"""Standard streams: descriptors 0, 1 and 2 are open, however the program was started.

How it works      A descriptor that was closed would become one of our files, and what is printed would go to
                  it. It is opened on /dev/null so that its use fails: reading the standard input, and writing
                  the standard output. The standard error discards all. A character that the encoding of this
                  locale lacks is written as an escape.
"""

import io
import os
import sys


def open_standard_streams() -> None:
    """Open those that are closed."""
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # it gets the lowest number that is free: this one
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
