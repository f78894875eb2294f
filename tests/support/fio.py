"""fio: load on an export, verified: fio with its NBD engine.

How it works      A job writes blocks that carry a checksum of themselves and reads them back. `load` runs
                  one to its end; `loading` runs one beside the test, which must not fail when it ends.
Errors            AssertionError with fio's output when a block was not what had been written, or an I/O
                  failed.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.proc import Argument, Background, check


def job(
    address: str, *, rw: str = "randwrite", size: str = "64M", depth: int = 16, **more: Argument | None
) -> list[str]:
    """fio's command line for one job; `more` are further settings of fio, `__` for each `-`; None leaves one
    out."""
    settings: dict[str, Argument | None] = {
        "name": "load",
        "ioengine": "nbd",
        "uri": address,
        "rw": rw,
        "bs": "4k",
        "size": size,
        "iodepth": depth,
        "verify": "crc32c",
        "verify_fatal": 1,
        "do_verify": 1,
        "verify_state_save": 0,
        "output-format": "json",
    }
    settings |= {key.replace("__", "-"): value for key, value in more.items()}
    return ["fio", *(f"--{key}={value}" for key, value in settings.items() if value is not None)]


def parse(output: str) -> Any:
    """The first job's figures; fio may print warnings before its JSON."""
    return json.loads(output[output.index("{") :])["jobs"][0]


def load(address: str, *, timeout_s: float = 300, **settings: Any) -> Any:
    """Run one job to its end; its figures as fio's JSON has them."""
    figures = parse(check(*job(address, **settings), timeout_s=timeout_s))
    assert figures["error"] == 0, figures
    return figures


@contextmanager
def loading(address: str, log: Path, *, timeout_s: float = 300, **settings: Any) -> Iterator[Background]:
    """Run one job beside the body of the `with`; then wait for its end and see that it had no fault."""
    with Background(*job(address, **settings), log=log) as process:
        yield process
        assert process.wait(timeout_s) == 0, process.said()
        assert parse(process.said())["error"] == 0, process.said()
