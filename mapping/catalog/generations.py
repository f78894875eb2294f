"""Generations: which run of polyvold last used the catalog and each device.

How it works      Each start and each clean stop begins a generation, which has a number and a random run id,
                  and writes both into the label of each device that is there. A device's `runs` are the run
                  ids that its label may carry: the one that is known to be there and, while a label is being
                  written, the new one. So a label with any other run was written by another copy of the state
                  directory, or is an older copy of the device. The number says which of the two is older.
Invariants        GN1 a run id is in `runs` before it is written into the label.
Owner and locks   As in store.py.
Durability        When a verb returns, its change survives power loss.
"""

from collections.abc import Iterable, Mapping
from uuid import UUID

from polyvol.mapping.catalog.database import Database
from polyvol.mapping.label import NO_RUN


class Generations:
    """The generations of one catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def number(self) -> int:
        """The number of the generation that was begun last; 0: none was."""
        return int(self._database.rows("SELECT generation FROM catalog")[0]["generation"])

    def begin(self, run: UUID, carried: Mapping[int, UUID], identities: Mapping[int, str]) -> int:
        """Begin a generation; its number. `carried`: the run in the label of each device, by id, whose label
        is to be written; `identities`: what adopted devices are known by from now on."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE catalog SET generation = generation + 1")
            for device, before in carried.items():
                connection.execute(
                    "UPDATE device SET runs = ? WHERE id = ?", (pack_runs(before, run), device)
                )
            for device, identity in identities.items():
                connection.execute("UPDATE device SET identity = ? WHERE id = ?", (identity, device))
        return self.number()

    def expect(self, device: int, before: UUID, run: UUID) -> None:
        """A label that carries the run `before` is about to get `run`."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE device SET runs = ? WHERE id = ?", (pack_runs(before, run), device))

    def written(self, devices: Iterable[int], generation: int, run: UUID) -> None:
        """These devices have labels of this run, durably."""
        with self._database.transaction() as connection:
            connection.executemany(
                "UPDATE device SET generation = ?, runs = ? WHERE id = ?",
                [(generation, pack_runs(run), device) for device in devices],
            )

    def accept(self, device: int, generation: int, identity: str | None) -> int:
        """Accept a device although it is of another time: generations continue above its own. Returns the
        number of the present one."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE catalog SET generation = max(generation, ?)", (generation,))
            connection.execute("UPDATE device SET identity = ? WHERE id = ?", (identity, device))
        return self.number()


def pack_runs(*runs: UUID) -> str:
    """Run ids as the catalog has them."""
    return " ".join(str(run) for run in dict.fromkeys(runs))


def unpack_runs(text: str) -> tuple[UUID, ...]:
    """The run ids in a column of the catalog; that of a label without one, if there are none."""
    return tuple(UUID(run) for run in text.split()) or (NO_RUN,)
