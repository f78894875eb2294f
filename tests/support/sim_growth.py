"""sim_growth: the sim engine's part in a volume's growth."""

from typing import TYPE_CHECKING, Any

from tests.support.sim_checks import check, check_spec

if TYPE_CHECKING:
    from polyvol.engine import VolumeSpec


class SimGrowth:
    """What a sim engine can do besides."""

    processors: int
    devices: dict[int, int]
    volumes: dict[int, Any]

    def _begin(self, name: str, *arguments: object) -> None:
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
        self.volumes[spec["id"]].spec = spec


def size_of(spec: "VolumeSpec", epoch: int | None) -> int:
    """The size of a volume, or of its snapshot as far as that is known, bytes."""
    known = {snapshot["epoch"]: snapshot["size"] for snapshot in spec["snapshots"]}
    return spec["size"] if epoch is None else known.get(epoch, spec["size"])
