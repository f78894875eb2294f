"""sim_checks: what the sim engine refuses: arguments that the contract in engine.pyi does not allow."""

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyvol.engine import ErrorKind, LogRule, VolumeRules, VolumeSpec

BLOCK = 4096
CHUNK = 4 << 20


class EngineError(Exception):
    """As polyvol.engine's."""

    def __init__(self, kind: "ErrorKind", message: str, number: int = 0) -> None:
        super().__init__(message)
        self.kind = kind
        self.errno = number


def check(condition: bool, kind: "ErrorKind", message: str) -> None:
    if not condition:
        raise EngineError(kind, message)


def check_spec(spec: "VolumeSpec", processors: int, devices: set[int]) -> None:
    size, partition_size = spec["size"], spec["partition_size"]
    check(size > 0 and size % BLOCK == 0, "invalid", "size")
    check(len(spec["partitions"]) == -(-size // partition_size), "invalid", "number of partitions")
    for number, partition in enumerate(spec["partitions"]):
        check(partition["processor"] < processors, "invalid", "processor")
        length = 0
        for extent in partition["extents"]:
            check(extent["device"] in devices, "not-found", f"device {extent['device']} is not open")
            check(extent["offset"] % BLOCK == 0, "invalid", "offset of an extent")
            check(extent["length"] % BLOCK == 0 and extent["length"] > 0, "invalid", "length of an extent")
            length += extent["length"]
        whole = min(partition_size, size - number * partition_size)
        check(length == (whole if spec["source"] is None else 0), "invalid", "extents' sum")
    numbers = {log["number"] for log in spec["logs"]}
    check(bool(numbers), "invalid", "no log area")
    check_rules(spec["log_rules"], numbers, "invalid")
    for log in spec["logs"]:
        check(1 <= log["number"] <= 4095, "invalid", "log number")
        for extent in log["extents"]:
            check(extent["device"] in devices, "not-found", f"device {extent['device']} is not open")
            check(extent["length"] % CHUNK == 0 and extent["length"] > 0, "invalid", "length of a log extent")
    for snapshot in spec["snapshots"]:
        check_rules(snapshot["log_rules"], numbers, "invalid")
        check(snapshot["epoch"] < spec["next_epoch"], "invalid", "snapshot's epoch")


def check_rules(rules: "list[LogRule]", numbers: Collection[int], kind: "ErrorKind" = "not-found") -> None:
    """Log rules of a volume with log areas of these numbers."""
    for rule in rules:
        check(set(rule["logs"]) <= set(numbers), kind, "a log rule names no area of the volume")
        check(len(set(rule["logs"])) == len(rule["logs"]), kind, "a log rule names an area twice")
        check(bool(rule["logs"]) or rule["any"], kind, "a log rule allows no area")
        check(rule["partitions"] is None or rule["processors"] is None, kind, "two selectors")
        first, last = rule["partitions"] or (0, 0)
        check(0 <= first <= last, kind, "a log rule's partitions")
        check(rule["processors"] is None or bool(rule["processors"]), kind, "a log rule's processors")


def check_volume_rules(rules: "VolumeRules", numbers: Collection[int]) -> None:
    """Log rules of a volume with log areas of these numbers, and of its snapshots."""
    for each in (rules["log_rules"], *(snapshot["log_rules"] for snapshot in rules["snapshots"])):
        check_rules(each, numbers)


def devices_of(spec: "VolumeSpec") -> set[int]:
    extents = [extent for item in [*spec["partitions"], *spec["logs"]] for extent in item["extents"]]
    return {extent["device"] for extent in extents}
