"""The client's handshake, against servers that do as they should and servers that do not."""

import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from polyvol.daemon.client.attach import handshake
from polyvol.daemon.client.attach.address import Address, check_export, parse_uri
from polyvol.daemon.client.attach.errors import BadExport, BadUri, ExportRefused, NotNbd, ServerUnreachable
from polyvol.mapping.errors import PolyvolError

ROOT = Path(__file__).resolve().parents[4]
GREETING = struct.pack(">QQH", handshake.MAGIC, handshake.OPTION_MAGIC, 3)
SOME_UUID = "12345678-9abc-def0-1234-56789abcdef0"


def reply(kind: int, data: bytes = b"", *, option: int = handshake.OPT_GO) -> bytes:
    return struct.pack(">QIII", handshake.OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def told(size: int, flags: int) -> bytes:
    return reply(handshake.REP_INFO, struct.pack(">HQH", handshake.INFO_EXPORT, size, flags))


ACK = reply(handshake.REP_ACK)
DESCRIBED = reply(handshake.REP_INFO, struct.pack(">H", 2) + f"volume v ({SOME_UUID})".encode())
SIZES = reply(handshake.REP_INFO, struct.pack(">HIII", 3, 512, 4096, 1 << 25))


@contextmanager
def server(directory: Path, *answers: bytes, asked: bytearray | None = None) -> Iterator[Address]:
    """A server of one connection: each answer is sent once the client has said something more."""
    path = directory / "s"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(10)
    over = threading.Event()

    def serve() -> None:
        with listener.accept()[0] as peer:
            peer.settimeout(10)
            for number, answer in enumerate(answers):
                if number:
                    said = peer.recv(4096)
                    if asked is not None:
                        asked.extend(said)
                peer.sendall(answer)
            over.wait(10)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Address("v", socket=path)
    finally:
        over.set()
        thread.join()
        listener.close()


def test_an_export_is_opened_and_nothing_after_the_agreement_is_read(short_dir: Path) -> None:
    asked = bytearray()
    answer = told(1 << 30, 0x10F) + DESCRIBED + SIZES + ACK + b"next"
    with server(short_dir, GREETING, answer, asked=asked) as address:
        channel, export = handshake.open_export(address, 10)
        with channel:
            assert channel.getblocking()
            assert channel.gettimeout() is None
            assert channel.recv(10) == b"next"
    assert export == handshake.Export(1 << 30, 0x10F, 512, UUID(SOME_UUID))
    assert export.read_only
    assert export.multi_conn
    flags, magic, option, length = struct.unpack_from(">IQII", asked)
    assert (flags, magic, option, length) == (3, handshake.OPTION_MAGIC, handshake.OPT_GO, len(asked) - 20)
    assert asked[20:] == struct.pack(">I", 1) + b"v" + struct.pack(">HHH", 2, 2, 3)


REFUSING: list[tuple[list[bytes], type[PolyvolError], str]] = [
    ([b"SSH-2.0-OpenSSH_9.2p1"], NotNbd, "greeting"),
    ([struct.pack(">QQH", handshake.MAGIC, handshake.OPTION_MAGIC, 2)], NotNbd, "fixed newstyle"),
    ([GREETING, reply(handshake.REP_ERROR + 6, b"x")], ExportRefused, "no such export"),
    ([GREETING, reply(handshake.REP_ERROR + 2, b"full")], ExportRefused, "policy"),
    ([GREETING, reply(handshake.REP_ERROR + 99, b"too late today")], ExportRefused, "too late today"),
    ([GREETING, ACK], NotNbd, "size"),
    ([GREETING, told(1 << 63, 1)], NotNbd, "size"),
    ([GREETING, reply(handshake.REP_INFO, b"\0\0\0")], NotNbd, "information 0"),
    ([GREETING, reply(2)], NotNbd, "kind 2"),
    ([GREETING, reply(handshake.REP_ACK, option=99)], NotNbd, "not one to what was asked"),
    ([GREETING, b"\0" * 20], NotNbd, "not one to what was asked"),
    ([GREETING, struct.pack(">QIII", handshake.OPTION_REPLY_MAGIC, 7, 3, 1 << 31)], NotNbd, "bytes"),
    ([GREETING, DESCRIBED * 65], NotNbd, "more than 64"),
]


@pytest.mark.parametrize(("answers", "error", "words"), REFUSING)
def test_a_server_that_does_otherwise_is_refused_with_the_reason(
    short_dir: Path, answers: list[bytes], error: type[PolyvolError], words: str
) -> None:
    with server(short_dir, *answers) as address, pytest.raises(error, match=words):
        handshake.open_export(address, 10)


def test_a_server_that_says_nothing_is_given_up_in_time(short_dir: Path) -> None:
    with server(short_dir, GREETING[:5]) as address, pytest.raises(ServerUnreachable, match="too long"):
        handshake.open_export(address, 0.2)


def test_nobody_there_is_said() -> None:
    with pytest.raises(
        ServerUnreachable, match=r"at /nonexistent/s: the directory /nonexistent does not exist"
    ):
        handshake.look(Address("v", socket=Path("/nonexistent/s")), 1)
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1: nobody listens there"):
        handshake.look(Address("v", host="127.0.0.1", port=1), 1)


def test_the_numbers_are_those_of_the_server() -> None:
    wire = (ROOT / "engine/src/nbd/wire.rs").read_text()

    def number(name: str, *, module: str = "") -> int:
        text = wire[wire.index(f"pub mod {module} {{") :] if module else wire
        found = re.search(rf"pub const {name}: u\d+ = ([^;]+);", text)
        assert found, name
        return int(eval(found[1].replace("_", ""), {"__builtins__": {}}))

    assert number("MAGIC") == handshake.MAGIC
    assert number("OPTION_MAGIC") == handshake.OPTION_MAGIC
    assert number("OPTION_REPLY_MAGIC") == handshake.OPTION_REPLY_MAGIC
    assert number("GO", module="option") == handshake.OPT_GO
    assert number("INFO", module="option") == handshake.OPT_INFO
    assert number("ABORT", module="option") == handshake.OPT_ABORT
    assert number("INFO", module="option_reply") == handshake.REP_INFO
    assert number("ERR_UNKNOWN", module="option_reply") in handshake.REFUSALS
    assert number("ERR_POLICY", module="option_reply") in handshake.REFUSALS
    assert number("BLOCK_SIZE", module="info") == handshake.INFO_BLOCK_SIZE
    assert number("READ_ONLY", module="transmission_flag") == handshake.FLAG_READ_ONLY
    assert number("CAN_MULTI_CONN", module="transmission_flag") == handshake.FLAG_CAN_MULTI_CONN


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("nbd://host", Address("v", host="host")),
        ("nbd://host:1234/other", Address("other", host="host", port=1234)),
        ("nbd://[::1]:5/v%40s", Address("v@s", host="::1", port=5)),
        ("nbd+unix:///?socket=/run/a%20b", Address("v", socket=Path("/run/a b"))),
        ("nbd+unix:///v@s?socket=/run/x", Address("v@s", socket=Path("/run/x"))),
    ],
)
def test_a_uri_is_read_and_written_the_same(uri: str, address: Address) -> None:
    assert parse_uri(uri, "v") == address
    assert parse_uri(address.uri, "nothing") == address


@pytest.mark.parametrize(
    "uri",
    [
        *("http://host/v", "nbd:///v", "nbd+unix:///v", "nbd://host:99999/v", "nbd://me@host/v", "host"),
        *("nbds://host/v", "nbd+unix://host/v?socket=/x", "nbd://host/v?socket=/x", "nbd://[::1/v"),
        *("nbd://\udcff/v", "nbd://host/\udcff", "nbd+unix:///v?socket=/\udcff"),
    ],
)
def test_what_is_no_uri_is_refused(uri: str) -> None:
    with pytest.raises(BadUri):
        parse_uri(uri, "v")


@pytest.mark.parametrize("host", ["a" * 64, "a..b"])
def test_a_host_that_cannot_be_is_told(host: str) -> None:
    with pytest.raises(ServerUnreachable, match="no host can have that name"):
        handshake.look(parse_uri(f"nbd://{host}/v", "v"), 10)


@pytest.mark.parametrize("name", ["", "@s", "v@", "v@s@t", "../v", "v/w", "v w", "-v", "v@.s", "a" * 65])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(BadExport):
        check_export(name)


def test_names_are_names() -> None:
    assert [check_export(name) for name in ("v", "a-b.c@2026-01-01")] == ["v", "a-b.c@2026-01-01"]
