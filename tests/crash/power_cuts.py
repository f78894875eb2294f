"""power_cuts: many power losses of one recording, each checked.

How it works      `python -m tests.crash.power_cuts RECORDING --seed S --count N`, a program with the recorder
                  preloaded, draws N moments of the recording, makes an image of each by a drawn policy, and
                  checks it (check.py). Of some, the recovery itself is recorded and cut again; some are given
                  to a real polyvold. Each image has a name, MOMENT:POLICY:SEED:THEN, and `--image NAME` makes
                  and checks that one alone. The last line of its output is a result in JSON.
Errors            Exit code 1 when something was lost; then the result names the image and what was wrong.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.crash.check import Checker, lay_out
from tests.crash.disk import POLICIES, Disk, Tree
from tests.crash.history import Expected, Lost
from tests.crash.recorder import Control, Kind, Record, preloaded, read_log
from tests.crash.workload import VOLUME, Recording
from tests.support.daemon import Daemon
from tests.support.nbd import read_all
from tests.support.proc import Argument, run

IMAGES_AT_ONE_MOMENT = 3
RARE = (Kind.CREATE, Kind.RENAME, Kind.UNLINK)
THEN = ((250, "polyvold"), (12, "again"), (4, "empty"))
"""What is done with every so-manieth image; with all others: check."""


@dataclass(frozen=True)
class Image:
    """Which image: after this record, by this policy, drawn from this seed; and what is done with it."""

    moment: int
    policy: str
    seed: int
    then: str

    def __str__(self) -> str:
        return f"{self.moment}:{self.policy}:{self.seed}:{self.then}"

    @classmethod
    def parse(cls, text: str) -> "Image":
        """From its name."""
        moment, policy, seed, then = text.split(":")
        return cls(int(moment), policy, int(seed), then)


@dataclass
class Result:
    """What was tried: images, images of recoveries, images given to a polyvold. And what was wrong."""

    images: int = 0
    again: int = 0
    real: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)


def drawn(records: list[Record], made_at: int, seed: int, count: int) -> Iterator[Image]:
    """Images in order of their moments: one in sixteen of the time before there was a volume, five of soon
    after names have changed, which is rare."""
    draw = random.Random(seed)
    made = next((number for number, record in enumerate(records) if record.at >= made_at), 0)
    rare = [number for number, record in enumerate(records) if record.kind in RARE and number >= made]
    moments = []
    for _ in range(-(-count // IMAGES_AT_ONE_MOMENT)):
        where = draw.random()
        if where < 1 / 16 and made:
            moments.append(draw.randrange(made))
        elif where < 6 / 16 and rare:
            moments.append(min(len(records) - 1, draw.choice(rare) + int(draw.expovariate(1 / 10))))
        else:
            moments.append(draw.randrange(made, len(records)))
    moments = sorted(moments * IMAGES_AT_ONE_MOMENT)[:count]
    for number, moment in enumerate(moments, 1):
        then = next((name for every, name in THEN if number % every == 0), "check")
        yield Image(moment, draw.choice(POLICIES), draw.randrange(1 << 40), then)


class Campaign:
    """Images of one recording, in a directory of this process."""

    def __init__(self, recording: Recording, directory: Path) -> None:
        history = recording.load()
        self.records = list(read_log(recording.log))
        self.made_at = history.made_at
        self.result = Result()
        self._length = recording.log.stat().st_size
        self._boot_id = directory / "boot-id"
        self._log = directory / "log"
        self._checker = Checker(directory / "root", self._boot_id, Expected(history))
        self._control = Control()
        self._disk = Disk()
        self._next = 0
        os.environ["RECORDER_BOOT_ID"] = str(self._boot_id)

    def run(self, images: Iterator[Image], deadline: float) -> None:
        """Check these, whose moments never go back, until one fails or the time (monotonic) is over."""
        for image in images:
            if time.monotonic() > deadline:
                return
            try:
                self._check(image)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                trace = "" if isinstance(error, Lost) else traceback.format_exc()
                self.result.failures.append({"image": str(image), "wrong": said, "trace": trace})
                return

    def tree(self, image: Image) -> Tree:
        """The image's files."""
        while self._next <= image.moment:
            self._disk.apply(self.records[self._next])
            self._next += 1
        return self._disk.image(image.policy, random.Random(image.seed))

    def at(self, moment: int) -> int:
        """The log's length when this record was its last."""
        return self.records[moment + 1].at if moment + 1 < len(self.records) else self._length

    def _check(self, image: Image) -> None:
        tree = self.tree(image)
        at = self.at(image.moment)
        lay_out(tree, self._checker.root)
        self._checker.reboot()
        self.result.images += 1
        if image.then == "again":
            self._cut_recovery(tree, at, image)
        elif image.then == "polyvold":
            self._give_to_polyvold(at)
        else:
            self._checker.check(at, thorough=image.then == "empty")

    def _cut_recovery(self, tree: Tree, at: int, image: Image) -> None:
        """Record how the image is recovered and cut that: what was served once is served again."""
        self._control.begin(self._checker.root, self._log)
        try:
            with self._checker.serving() as service:
                found = self._checker.look(service, at)
        finally:
            self._control.end()
        if found is None:
            return
        records = list(read_log(self._log))
        draw = random.Random(image.seed)
        first = sum(record.kind == Kind.KNOWN for record in records)
        moments = [draw.randrange(first, len(records)) for _ in range(2)]
        disk = Disk(tree)
        for moment, record in enumerate(records):
            disk.apply(record)
            if moment not in moments:
                continue
            self.result.again += 1
            name = draw.choice(POLICIES)
            lay_out(disk.image(name, draw), self._checker.root)
            self._checker.reboot()
            try:
                with self._checker.serving() as service:
                    again = self._checker.look(service, at)
                if again != found:
                    raise Lost("what was served once is not served again")
            except Exception as error:
                raise Lost(f"after a power loss in the recovery ({moment}, {name}): {error}") from error

    def _give_to_polyvold(self, at: int) -> None:
        self.result.real += 1
        root = self._checker.root
        daemon = Daemon(root, "--processors", "2")
        daemon.environment = preloaded(self._boot_id)
        with daemon:
            exports = [each["name"] for volume in daemon.api.get("volumes") for each in volume["exports"]]
            found = {name: read_all(daemon.uri(name)) for name in exports}
        if VOLUME in found:
            self._checker.compare(found, at)
        if "panicked" in daemon.said():
            raise Lost(f"polyvold has panicked:\n{daemon.said()}")


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recording", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--image", type=Image.parse)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pv-", dir="/dev/shm") as short:
        campaign = Campaign(Recording(options.recording), Path(short))
        images = drawn(campaign.records, campaign.made_at, options.seed, options.count)
        if options.image is not None:
            images = iter([options.image])
        campaign.run(images, time.monotonic() + options.seconds)
        print(json.dumps(asdict(campaign.result)), flush=True)
    return 1 if campaign.result.failures else 0


def check_recording(
    recording: Recording,
    *,
    seed: int,
    count: int,
    seconds: float = 1e9,
    timeout_s: float = 600,
    image: str | None = None,
) -> Result:
    """Run the program on a recording; its result. `image`: that one alone."""
    with tempfile.TemporaryDirectory(prefix="pv-") as short:
        env = preloaded(Path(short) / "boot-id")
        words = ["--seed", str(seed), "--count", str(count), "--seconds", str(seconds)]
        words += [] if image is None else ["--image", image]
        command: list[Argument] = [sys.executable, "-m", __name__, recording.directory, *words]
        ended = run(*command, env=env, timeout_s=timeout_s)
    lines = ended.out.splitlines()
    if ended.rc not in (0, 1) or not lines:
        wrong = f"the checking process ended with {ended.rc}:\n{ended.out}{ended.err}"
        return Result(failures=[{"image": "", "wrong": wrong, "trace": ""}])
    result = Result(**json.loads(lines[-1]))
    if "panicked" in ended.err and not result.failures:
        result.failures.append({"image": "", "wrong": "the engine has panicked", "trace": ended.err})
    return result


if __name__ == "__main__":
    sys.exit(main())
