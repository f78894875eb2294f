"""raw_nbd: a peer that sends an NBD server exactly the bytes of a test.

How it works      Functions make options and requests, which may lie; `Peer` is a socket that sends and takes.
Errors            AssertionError where the server says something else than the protocol does.
"""

import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

PATIENCE_S = 20.0
OPTION_MAGIC = 0x49484156454F5054
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
CHUNK_MAGIC = 0x668E33EF
REP_ACK = 1
OPT_EXPORT_NAME, OPT_LIST, OPT_GO, OPT_STRUCTURED, OPT_SET_CONTEXT = 1, 3, 7, 8, 10
READ, WRITE, FLUSH, TRIM, ZERO, STATUS = 0, 1, 3, 4, 6, 7
MIB = 1 << 20


def option(number: int, data: bytes = b"", length: int | None = None) -> bytes:
    """An option, whose length may be a lie."""
    return struct.pack(">QII", OPTION_MAGIC, number, len(data) if length is None else length) + data


def go(export: str) -> bytes:
    """The option that enters transmission."""
    name = export.encode()
    return option(OPT_GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))


def choose_contexts(export: str, *queries: str) -> bytes:
    """The option that selects metadata contexts."""
    said = [text.encode() for text in (export, *queries)]
    strings = [struct.pack(">I", len(text)) + text for text in said]
    return option(OPT_SET_CONTEXT, strings[0] + struct.pack(">I", len(queries)) + b"".join(strings[1:]))


def choose_allocation(export: str) -> bytes:
    """The options that make BLOCK_STATUS possible."""
    return option(OPT_STRUCTURED) + choose_contexts(export, "base:allocation")


def request(command: int, offset: int, length: int, *, cookie: int = 1, flags: int = 0) -> bytes:
    """A request's header."""
    return struct.pack(">IHHQQI", REQUEST_MAGIC, flags, command, cookie, offset, length)


class Reply(NamedTuple):
    """The answer to one request."""

    cookie: int
    error: int
    data: bytes


class Peer:
    """A raw socket to the server."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(str(path))  # blocking: with a timeout a full backlog would be an error
            self.socket.settimeout(PATIENCE_S)
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def take(self, length: int) -> bytes:
        """Exactly so many bytes."""
        data = bytearray()
        while len(data) < length:
            piece = self.socket.recv(length - len(data))
            assert piece, "the server closed"
            data += piece
        return bytes(data)

    def greet(self) -> None:
        """Take the greeting and answer it."""
        assert self.take(18).startswith(b"NBDMAGIC")
        self.socket.sendall(struct.pack(">I", 3))

    def answers(self) -> int:
        """Take the replies to one option; the last one's kind."""
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            self.take(length)
            if kind == REP_ACK or kind >> 31:
                return int(kind)

    def enter(self, export: str) -> Self:
        """Begin transmission, with everything that can be negotiated."""
        self.greet()
        self.socket.sendall(choose_allocation(export) + go(export))
        assert [self.answers() for _ in range(3)] == [REP_ACK] * 3
        return self

    def reply(self) -> Reply:
        """Take one answer, whole, of a connection with structured replies."""
        magic, head, *_ = struct.unpack(">II", self.take(8))
        if magic == SIMPLE_REPLY_MAGIC:
            return Reply(struct.unpack(">Q", self.take(8))[0], head, b"")
        assert magic == CHUNK_MAGIC
        cookie, length = struct.unpack(">QI", self.take(12))
        flags, kind = divmod(head, 1 << 16)
        payload = self.take(length)
        assert flags == 1, "more than one chunk"
        error = struct.unpack(">I", payload[:4])[0] if kind >> 15 else 0
        return Reply(cookie, error, payload)

    def pour(self, data: bytes) -> None:
        """Send as much as the server takes now."""
        self.socket.setblocking(False)
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while data:
                data = data[self.socket.send(data) :]
