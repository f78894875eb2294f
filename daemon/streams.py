"""Standard streams: descriptors 0, 1 and 2 are open, whoever has started the program."""

import os


def open_standard_streams() -> None:
    """Open on /dev/null those that are closed; else a file of ours gets one of these numbers, and what is
    printed goes into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free: this one
