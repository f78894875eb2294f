"""Names for what the engine knows by number: of snapshots by epoch, of log areas, of devices.

How it works      The catalog is read before the engine is asked and again afterwards, so that a snapshot that
                  was made or deleted in between has its name. An epoch without a name is of a snapshot that
                  is deleted and kept for clones.
"""

from dataclasses import dataclass, field

from polyvol.daemon.context import Context, devices_of
from polyvol.daemon.types.logs import ChangeLogView, PlacedView, RunView
from polyvol.mapping.extent import BLOCK_SIZE
from polyvol.mapping.plans.log_rules import rule_of
from polyvol.mapping.records.log_rules import LogRule
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.change_log import ChangeLog, beginning, log_name


@dataclass
class Naming:
    """The names of one volume's objects. `snapshots`: by epoch; `devices`: by id; `areas`: the devices of
    each log area, by its number; `rules`: the log rules of snapshots that have their own, by epoch;
    `volume_rules`: those of the others; `processors`: the volume's, in order."""

    volume: Volume
    snapshots: dict[int, str] = field(default_factory=dict)
    devices: dict[int, str] = field(default_factory=dict)
    areas: dict[int, list[str]] = field(default_factory=dict)
    rules: dict[int, tuple[LogRule, ...]] = field(default_factory=dict)
    volume_rules: tuple[LogRule, ...] = ()
    processors: list[int] = field(default_factory=list)

    def begin(self, epoch: int) -> str | None:
        """The snapshot of this epoch, as names of logs have it."""
        return beginning(epoch, self.snapshots)

    def log(self, partition: int, epoch: int) -> str:
        """The name of a change log, or of the partition snapshot that it begins with."""
        return log_name(self.volume.name, self.begin(epoch), partition)

    def log_view(self, log: ChangeLog) -> ChangeLogView:
        """A change log as users see it."""
        identity = log.identity
        rules = self.rules.get(identity.begin, self.volume_rules)
        turn = self.processors.index(log.processor) if log.processor in self.processors else 0
        devices, others = rule_of(rules, identity.partition, log.processor, turn)
        return ChangeLogView(
            id=self.log(identity.partition, identity.begin),
            volume=self.volume.name,
            partition=identity.partition,
            begin=self.begin(identity.begin),
            epoch=identity.begin,
            processor=log.processor,
            rule_devices=[self.device(device) for device in devices],
            rule_any=others,
            placed=[
                PlacedView(area=area, devices=self.areas.get(area, []), blocks=blocks)
                for area, blocks in log.areas
            ],
            blocks=log.blocks,
            size=log.blocks * BLOCK_SIZE,
            zeroes=log.zeroes,
            bases=log.bases,
            runs=log.runs,
            writes=log.writes,
            written=log.written,
            ended=None if log.ended is None else self.begin(log.ended),
        )

    def run_view(self, block: int, blocks: int, area: int, device: int, offset: int) -> RunView:
        """A run of a change log as users see it."""
        return RunView(block=block, blocks=blocks, area=area, device=self.device(device), offset=offset)

    def device(self, device: int) -> str:
        """The name of a device; its number if the catalog has it no more."""
        return self.devices.get(device) or f"number {device}"


def read_names(context: Context, naming: Naming) -> Naming:
    """Add what the catalog has now."""
    catalog, volume = context.catalog, naming.volume
    with context.reading():
        naming.snapshots.update(catalog.snapshots.names_by_epoch(volume.id))
        naming.devices.update(context.device_names())
        areas = catalog.log_areas.of(volume.id)
        naming.areas.update({area.number: devices_of(area.extents, naming.devices) for area in areas})
        naming.rules.update(catalog.snapshots.rules_by_epoch(volume.id))
        naming.volume_rules = catalog.log_areas.rules(volume.id)
        every = (naming.volume_rules, *naming.rules.values())
        if any(sum(rule.rest for rule in rules) > 1 for rules in every):  # there are turns
            naming.processors = catalog.volumes.processors(volume.id)
    return naming
