"""polyvold started by systemd's own systemd-socket-activate, when the first client comes."""

from pathlib import Path

import pytest

from tests.support import nbd
from tests.support.daemon import BIN, Daemon
from tests.support.proc import Argument, Background, listens, wait_until


@pytest.mark.parametrize("frontend", ["native", "nbdkit"])
def test_the_first_client_starts_polyvold_and_is_served(short_dir: Path, frontend: str) -> None:
    daemon = Daemon(short_dir)
    daemon.state_dir.mkdir(mode=0o750)
    command: list[Argument] = ["systemd-socket-activate", "--fdname=nbd:control", "-l", daemon.nbd_socket]
    command += ["-l", daemon.control_socket, BIN / "polyvold", "--state-dir", daemon.state_dir]
    with Background(*command, "--frontend", frontend, log=daemon.log) as started:
        started.wait_until(lambda: listens(daemon.control_socket), "the control socket", 20)
        told = daemon.api.get("status")["daemon"]
        assert told["frontend"] == frontend
        assert told["nbd"] == [f"nbd+unix:///?socket={daemon.nbd_socket}"]
        daemon.make_volume("v", size="8M", partition_size="1M")
        with nbd.connect(daemon.uri("v")) as handle:
            handle.pwrite(b"polyvol!" * 512, 4096)
            assert handle.pread(8, 4096) == b"polyvol!"
        assert started.stop() == 0
    assert daemon.nbd_socket.is_socket()  # it is not polyvold's to remove
    wait_until(lambda: not daemon.state_dir.joinpath("lock").read_text(), "the end of the hold", 10)
