"""Addresses of exports: which server, on a unix socket or on TCP, and which of its exports.

Errors            BadUri, BadExport.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from polyvol.daemon.client.attach.errors import BadExport, BadUri
from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.names import check_name

NBD_PORT = 10809
EXPORT_NAME_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Address:
    """An export of a server: at `socket`, or else at `host` and `port`."""

    export: str
    socket: Path | None = None
    host: str = ""
    port: int = NBD_PORT

    @property
    def server(self) -> str:
        """The server, for a sentence."""
        if self.socket is not None:
            return str(self.socket)
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == NBD_PORT else f"{host}:{self.port}"

    @property
    def uri(self) -> str:
        """The address as a URI, which `parse_uri` reads back."""
        export = quote(self.export, safe="@")
        if self.socket is not None:
            return f"nbd+unix:///{export}?socket={quote(str(self.socket))}"
        return f"nbd://{self.server}/{export}"


def check_export(text: str) -> str:
    """The name of a volume or snapshot of ours, VOLUME or VOLUME@SNAPSHOT; else BadExport."""
    volume, at, snapshot = text.partition("@")
    try:
        check_name("volume", volume)
        if at:
            check_name("snapshot", snapshot)
    except PolyvolError:
        raise BadExport(text=text) from None
    return text


def parse_uri(uri: str, export: str) -> Address:
    """The address that a URI gives; `export` where it names no export."""
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise BadUri(uri=uri, why="it is not UTF-8") from error
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        is_port = "port" in str(error).lower()
        why = "its port is not from 1 to 65535" if is_port else "its host is not right"
        raise BadUri(uri=uri, why=why) from error
    if parts.username or parts.fragment:
        raise BadUri(uri=uri, why="it has a user or a fragment")
    name = unquote(parts.path.removeprefix("/")) or export
    if len(name.encode()) > EXPORT_NAME_BYTES_MAX or "\0" in name:
        raise BadUri(uri=uri, why="no export can have that name")
    if parts.scheme == "nbd" and parts.hostname and not parts.query:
        return Address(name, host=parts.hostname, port=NBD_PORT if port is None else port)
    if parts.scheme == "nbd+unix" and not parts.netloc:
        sockets = parse_qs(parts.query).get("socket", [])
        if len(sockets) == 1:
            return Address(name, socket=Path(os.path.abspath(sockets[0])))  # noqa: PTH100 - links stay
        raise BadUri(uri=uri, why="it has to name one socket")
    if parts.scheme in ("nbds", "nbds+unix"):
        raise BadUri(uri=uri, why="the kernel cannot encrypt NBD")
    raise BadUri(uri=uri, why="it is neither nbd:// with a host nor nbd+unix:/// with a socket")
