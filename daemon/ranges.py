"""Ranges: how large numbers and how long lists of a request may be; the verbs check what makes sense."""

from typing import Annotated

from pydantic import Field

NUMBER_MAX = (1 << 63) - 1
"""The largest number that the catalog and the engine can have."""
NAMES_MAX = 1024
"""The most volumes, or devices, that one request can name."""
Number = Annotated[int, Field(ge=-NUMBER_MAX, le=NUMBER_MAX)]
Processors = Number | Annotated[tuple[Number, ...], Field(max_length=256)]
"""How many processors, or which."""
Names = Annotated[tuple[str, ...], Field(max_length=NAMES_MAX)]
