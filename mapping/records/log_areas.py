"""Log areas as the catalog knows them."""

from dataclasses import dataclass

from polyvol.mapping.extent import Extent


@dataclass(frozen=True, slots=True)
class LogArea:
    """Space of a volume on one device, from which its change logs take runs of slots: `number` is never used
    again."""

    number: int
    extents: tuple[Extent, ...]

    @property
    def device(self) -> int:
        """The id of the device that it lies on."""
        return self.extents[0].device
