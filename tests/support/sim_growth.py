"""sim_growth: the sim engine's part in a volume's growth, its log areas and rules, and in going back to a
snapshot."""

from typing import TYPE_CHECKING, Any

from tests.support.sim_checks import check, check_spec, check_volume_rules

if TYPE_CHECKING:
    from polyvol.engine import LogSpec, VolumeRules, VolumeSpec


def _set_rules(spec: "VolumeSpec", rules: "VolumeRules") -> None:
    spec["log_rules"] = rules["log_rules"]
    wanted = {each["epoch"]: each["log_rules"] for each in rules["snapshots"]}
    for snapshot in spec["snapshots"]:
        snapshot["log_rules"] = wanted.get(snapshot["epoch"], snapshot["log_rules"])


class SimGrowth:
    """What a sim engine can do besides."""

    processors: int
    devices: dict[int, int]
    volumes: dict[int, Any]
    world: Any
    _exports: dict[str, Any]

    def _begin(self, name: str, *arguments: object) -> None:
        raise NotImplementedError

    def _volume(self, volume: int) -> Any:
        raise NotImplementedError

    def grow_volume(self, spec: "VolumeSpec") -> None:
        self._begin("grow_volume", spec["id"], spec["size"])
        check(spec["id"] in self.volumes, "not-found", f"volume {spec['id']} is not served")
        check_spec(spec, self.processors, set(self.devices))
        old = self.volumes[spec["id"]].spec
        check(spec["size"] > old["size"], "invalid", "it would not be larger")
        for was, now in zip(old["partitions"], spec["partitions"], strict=False):
            check(was["processor"] == now["processor"], "invalid", "another processor")
            check(now["extents"][: len(was["extents"])] == was["extents"], "invalid", "other extents")
        spec["log_rules"] = old["log_rules"]  # these are set by themselves
        self.volumes[spec["id"]].spec = spec

    def add_log(self, volume: int, log: "LogSpec", rules: "VolumeRules") -> None:
        self._begin("add_log", volume, log["number"], rules)
        target = self._volume(volume)
        check(log["number"] not in target.logs, "exists", "the log is there")
        for extent in log["extents"]:
            check(extent["device"] in self.devices, "not-found", "the log's device is not open")
        check_volume_rules(rules, {*target.logs, log["number"]})
        target.logs[log["number"]] = sum(extent["length"] for extent in log["extents"])
        target.spec["logs"].append(log)
        _set_rules(target.spec, rules)

    def set_log_rules(self, volume: int, rules: "VolumeRules") -> None:
        self._begin("set_log_rules", volume, rules)
        target = self._volume(volume)
        check_volume_rules(rules, target.logs)
        _set_rules(target.spec, rules)

    def roll_back(self, volume: int, at: int, to: int) -> None:
        self._begin("roll_back", volume, at, to)
        stored = self.volumes[volume].stored
        check(stored.epoch == at, "invalid", f"epoch {stored.epoch} is not {at}")
        check(to in stored.snapshots, "invalid", f"no epoch {to}")
        live = [name for name, one in self._exports.items() if (one.volume, one.epoch) == (volume, None)]
        check(not live, "busy", f"export {live} shows the live volume")
        stored.go_back(at, to)

    def relieve(self, volume: int) -> None:
        self._begin("relieve", volume)

    def renew_missing_files(self, volume: int) -> tuple[list[str], list[str]]:
        """The daemon asks every few seconds, so it is not noted."""
        return [], []

    def cover_rollbacks(self, volume: int) -> None:
        self._begin("cover_rollbacks", volume)

    def unneeded_rollback(self, volume: int) -> int | None:
        self._begin("unneeded_rollback", volume)
        return next(iter(self.world.unneeded.get(volume, [])), None)

    def forget_rollback(self, volume: int, at: int) -> int:
        self._begin("forget_rollback", volume, at)
        check(at in self.world.unneeded.get(volume, []), "busy", f"the rollback at {at} is needed")
        self.world.unneeded[volume].remove(at)
        return 0

    def disconnect(self, export: str) -> None:
        self._begin("disconnect", export)
        if export in self._exports:
            self._exports[export].connections = 0


def apply_rollbacks(stored: Any, spec: "VolumeSpec") -> None:
    """Have a volume that is taken over be what the catalog says."""
    for rollback in spec["rollbacks"]:
        if rollback["at"] > stored.rolled_back:
            stored.go_back(rollback["at"], rollback["to"])


def size_of(spec: "VolumeSpec", epoch: int | None) -> int:
    """The size of a volume, or of its snapshot as far as that is known, bytes."""
    known = {snapshot["epoch"]: snapshot["size"] for snapshot in spec["snapshots"]}
    return spec["size"] if epoch is None else known.get(epoch, spec["size"])
