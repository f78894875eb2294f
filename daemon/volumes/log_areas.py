"""The verbs of log areas and log rules: add, set, and queries of their use.

How it works      add: plan (pure); make the sparse file if no device was named, recorded as 'adding'; record
                  the areas in the catalog; pass them to the engine, which uses them at once. Rules are
                  recorded, in one transaction with the areas that they need, and are then set in the engine.
Owner and locks   The caller holds the volume's lock. An area is planned and recorded under one hold of
                  `catalog_lock`, unless a file is made for it alone.
Durability        Once an area is recorded, the next start serves it. A file whose area was not is removed
                  then.
Errors            mapping/errors.py, VolumeNotServed, EngineFailed; what was begun is undone.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

from polyvol.daemon.context import Context, devices_of
from polyvol.daemon.devices import files as device_files
from polyvol.daemon.devices.health import unusable_devices
from polyvol.daemon.fill_level import FillLevel
from polyvol.daemon.isolation import isolate
from polyvol.daemon.types.log_areas import LogAdd, LogRuleView, LogView, SpaceView
from polyvol.mapping.extent import Extent, total
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.plans.inventory import Inventory, NewDevice, SpaceAllocator
from polyvol.mapping.plans.log_areas import AddedAreas, plan_added_areas, plan_missing_areas
from polyvol.mapping.plans.log_growth import plan_step, step_size
from polyvol.mapping.plans.log_rules import (
    bind_rules,
    keeping_to,
    named_devices,
    parse_rules,
    refuse_unused,
    with_device,
    written,
)
from polyvol.mapping.records.devices import Device
from polyvol.mapping.records.log_areas import LogArea
from polyvol.mapping.records.log_rules import ANY, LogRule
from polyvol.mapping.records.volumes import Volume
from polyvol.mapping.sizes import exact_size
from polyvol.mapping.specs import log_spec, volume_rules

if TYPE_CHECKING:
    from polyvol.engine import VolumeRules


class LogAreas:
    """The verbs of log areas and log rules."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._underway: set[int] = set()
        """Devices that are being made now. Changed under `catalog_lock`."""

    def settle(self, volume: Volume) -> None:
        """Remove files that were being made for this volume, for a log or for growth, and are not used. The
        caller holds its lock."""
        self._settle({volume.id: volume})

    def settle_all(self) -> None:
        """At start: the same for all volumes that are not being removed."""
        volumes = self._context.catalog.volumes.all()
        self._settle({volume.id: volume for volume in volumes if volume.state == "ready"})

    def half_made(self) -> set[int]:
        """The ids of the volumes that have such files."""
        context = self._context
        with context.catalog_lock:
            return {
                device.made_for
                for device in context.catalog.devices.all()
                if device.made_for is not None and device.state == "adding"
                if device.id not in self._underway
            }

    def _settle(self, volumes: dict[int, Volume]) -> None:
        with self._context.catalog_lock:
            underway = set(self._underway)
        for device in self._context.catalog.devices.all():
            volume = None if device.made_for is None else volumes.get(device.made_for)
            if volume is not None and device.state == "adding" and device.id not in underway:
                what = f"removing file {device.path}, which was half made for volume {volume.name},"
                with isolate(self._context, what, volume=volume.name):
                    self.unmake_file(device)

    def add(self, volume: Volume, request: LogAdd) -> None:
        """Give a volume that is served more log areas, while it is in use. The caller holds its lock."""
        context, name = self._context, volume.name
        rules = context.catalog.log_areas.rules(volume.id)

        def plan(room: int, there: Inventory) -> AddedAreas:
            planned = plan_added_areas(volume, request.devices, request.size, room, there)
            partitions = partial(context.catalog.volumes.partitions, volume.id)
            refuse_unused(name, rules, partitions, [extents[0].device for extents in planned.extents])
            return planned

        areas = self._add(volume, plan, join_rules=True)
        more = exact_size(sum(total(area.extents) for area in areas))
        context.events.add("info", f"volume {name} has {more} more space for change logs", volume=name)

    def grow(self, volume: Volume, devices: Sequence[int], *, file: bool) -> list[LogArea]:
        """Give a volume that is served one more log area, as large as a step of its growth is, on one of
        these devices (ids), which its log rules allow; if they have no room, and `file`, on a sparse file
        made for it. None if neither is possible within its limit. The caller holds its lock, or its
        `room`."""

        def plan(present: int, there: Inventory) -> AddedAreas:
            size = step_size(present, volume.log_bound)
            extents = plan_step(size, devices, there)
            if extents or not file or not size:
                return AddedAreas((extents,) if extents else (), None)
            return plan_added_areas(volume, (), size, present, there)

        return self._add(volume, plan, join_rules=False)

    def _add(
        self, volume: Volume, plan: Callable[[int, Inventory], AddedAreas], *, join_rules: bool
    ) -> list[LogArea]:
        """Plan, make and use more log areas; `plan` is given the bytes of those that there are. `join_rules`:
        their devices join the rules for the rest."""
        context = self._context
        self.settle(volume)
        table = context.catalog.log_areas
        before = table.rules(volume.id)
        made, areas, rules = None, list[LogArea](), before
        with context.catalog_lock:
            room = sum(total(area.extents) for area in table.of(volume.id))
            planned = plan(room, inventory(context))
            if not planned.extents:
                return []
            if planned.new_device is None:
                areas, rules = self._record(volume, planned.extents, before, join_rules=join_rules)
            else:
                made = self.record_file(volume, planned.new_device)
        try:
            if made is not None:
                self.make_file(made)
                with context.catalog_lock:
                    areas, rules = self._record(volume, planned.extents, before, made, join_rules=join_rules)
            self._use(volume, areas, before, rules)
        except BaseException:
            self.done_with([] if made is None else [made])
            if made is not None:
                with isolate(context, f"removing file {made.path} again", volume=volume.name):
                    self.unmake_file(made)
            raise
        self.done_with([] if made is None else [made])
        return areas

    def _record(
        self,
        volume: Volume,
        planned: Iterable[tuple[Extent, ...]],
        rules: tuple[LogRule, ...],
        made: Device | None = None,
        *,
        join_rules: bool,
    ) -> tuple[list[LogArea], tuple[LogRule, ...]]:
        """Record areas of these extents, in the file that was made for them, if one was, and with
        `join_rules` the rules that name their devices for the rest, if there are such rules; returns both.
        Under `catalog_lock`."""
        extents = list(planned)
        if made is not None:
            extents = [tuple(Extent(made.id, each.offset, each.length) for each in area) for area in extents]
        for area in extents if join_rules else ():
            rules = with_device(rules, area[0].device)
        table = self._context.catalog.log_areas
        return table.add(volume, extents, rules, None if made is None else made.id), rules

    def check_rules(self, volumes: Sequence[Volume], texts: Sequence[str]) -> None:
        """Refuse log rules that these volumes cannot have together."""
        self._plan_rules(volumes, texts)

    def set_rules(self, volume: Volume, texts: Sequence[str]) -> None:
        """Give a volume that is served these log rules, and an area on each device that they name. The caller
        holds its lock."""
        table = self._context.catalog.log_areas
        with self._context.catalog_lock:
            ((rules, missing),) = self._plan_rules([volume], texts)
            before = table.rules(volume.id)
            areas = table.add(volume, missing, rules)
        self._use(volume, areas, before, rules)
        names = self._context.device_names()
        shown = ", ".join(written(rule, names) for rule in rules) or ANY
        own = [each for each in self._context.catalog.snapshots.with_kept(volume.id)[-1:] if each.log_rules]
        since = f"the next snapshot on, because {own[0].shown_name} has its own" if own else "now on"
        text = f"volume {volume.name} has the log rules {shown} from {since}"
        self._context.events.add("info", text, volume=volume.name)

    def rules_of_snapshot(
        self, volumes: Sequence[Volume], texts: Sequence[str]
    ) -> dict[VolumeId, tuple[LogRule, ...]]:
        """The log rules of a snapshot of these volumes, by volume. Each volume gets an area on each device
        that the rules name; its own rules then name the areas that it had. The caller holds the locks."""
        table = self._context.catalog.log_areas
        recorded: list[tuple[Volume, list[LogArea], tuple[LogRule, ...], tuple[LogRule, ...]]] = []
        planned: list[tuple[tuple[LogRule, ...], list[tuple[Extent, ...]]]] = []
        try:
            with self._context.catalog_lock:
                planned = self._plan_rules(volumes, texts)
                for volume, (_, missing) in zip(volumes, planned, strict=True):
                    if not missing:
                        continue
                    before = table.rules(volume.id)
                    rules = keeping_to(before, [area.device for area in table.of(volume.id)])
                    recorded.append((volume, table.add(volume, missing, rules), before, rules))
            while recorded:
                self._use(*recorded.pop(0))
        except BaseException:
            for volume, areas, before, _ in recorded:
                what = f"forgetting new log areas of volume {volume.name}"
                with isolate(self._context, what, volume=volume.name), self._context.catalog_lock:
                    table.forget(volume.id, areas, before)
            raise
        return {volume.id: rules for volume, (rules, _) in zip(volumes, planned, strict=True)}

    def _plan_rules(
        self, volumes: Sequence[Volume], texts: Sequence[str]
    ) -> list[tuple[tuple[LogRule, ...], list[tuple[Extent, ...]]]]:
        """The rules for each volume, and the extents of the areas that it lacks for them."""
        catalog, there = self._context.catalog, inventory(self._context)
        wanted, allocator = parse_rules(texts), SpaceAllocator(there)
        plans = []
        for volume in volumes:
            owners = catalog.volumes.processors(volume.id)
            rules = bind_rules(volume.name, wanted, volume.partition_count, owners, there)
            present = catalog.log_areas.of(volume.id)
            plans.append((rules, plan_missing_areas(allocator, volume, named_devices(wanted), present)))
        return plans

    def views(self, volume: Volume, names: dict[int, str], *, serving: bool) -> list[LogView]:
        """Each log area of a volume; its use, while it is served."""
        use: dict[int, tuple[int, int]] = {}
        if serving:
            with contextlib.suppress(self._context.engine_error):  # it may be deleted by now
                stats = self._context.engine.volume_stats(volume.id)
                use = {log["number"]: (log["used_bytes"], log["claimed_bytes"]) for log in stats["logs"]}
        table = self._context.catalog.log_areas
        rules = table.rules(volume.id)
        return [area_view(area, rules, names, use) for area in table.of(volume.id)]

    def space(self, volume: Volume) -> SpaceView | None:
        """The use of all log areas of a volume; None if the volume was deleted."""
        with contextlib.suppress(self._context.engine_error):
            found = self._context.engine.space(volume.id)
            fill_level = self._context.fill_levels.get(volume.id) or FillLevel()
            return fill_level.view(found["used_bytes"], found["size_bytes"])
        return None

    def _use(
        self,
        volume: Volume,
        areas: Sequence[LogArea],
        before: Sequence[LogRule],
        rules: Sequence[LogRule],
    ) -> None:
        """Have the engine use areas that are recorded, and follow the volume's new rules; `before`: its old
        ones. Areas that the engine refuses are forgotten, and the volume has its old rules again."""
        context = self._context
        known = context.catalog.log_areas.of(volume.id)
        done = 0

        def specs(wanted: Sequence[LogRule], without: Sequence[LogArea]) -> "VolumeRules":
            there = [each for each in known if each not in without]
            return volume_rules(context.catalog, volume, wanted, there)

        try:
            with context.engine_errors(f"setting the log areas and log rules of volume {volume.name}"):
                for area in areas:
                    given = specs(rules if area == areas[-1] else before, areas[done + 1 :])
                    context.engine.add_log(volume.id, log_spec(area), given)
                    done += 1
                if not areas:
                    context.engine.set_log_rules(volume.id, specs(rules, ()))
        except BaseException:
            with context.catalog_lock:
                context.catalog.log_areas.forget(volume.id, areas[done:], before)
            raise
        if volume.id in context.refusing:
            context.ask_when_full(volume)  # writes that were refused may have room now, or get some

    def record_file(self, volume: Volume, new: NewDevice) -> Device:
        """Record a sparse file that is to be made; it is 'adding' until what is on it is recorded. Under
        `catalog_lock`, with its plan."""
        now = self._context.clock()
        device = self._context.catalog.devices.add(
            Device(0, uuid4(), new.name, new.path, "file", False, new.size, True, volume.id, "adding", now)
        )
        self._underway.add(device.id)
        return device

    def make_file(self, device: Device) -> None:
        """Make a file that is recorded."""
        device_files.make(self._context, device, self._context.path(device))

    def done_with(self, devices: Iterable[Device]) -> None:
        """These are no longer being made: those that are not recorded can be settled."""
        with self._context.catalog_lock:
            self._underway -= {device.id for device in devices}

    def unmake_file(self, device: Device) -> None:
        """Remove a file that was made for nothing."""
        device_files.unmake(self._context, device)
        with self._context.catalog_lock:
            self._context.catalog.devices.forget(device.id)


def inventory(context: Context) -> Inventory:
    """What there is to plan with."""
    with context.reading():
        names = {volume.id: volume.name for volume in context.catalog.volumes.all()}
        users = context.catalog.devices.users()
        return Inventory(
            devices={device.name: device for device in context.catalog.devices.all()},
            unusable=unusable_devices(context),
            used=context.catalog.devices.used_extents,
            volumes_on=lambda device: [names[user] for user in users.get(device, ())],
            volume_names=set(names.values()),
            load=context.catalog.volumes.processor_load(),
            processors=context.default_processors,
        )


def area_view(
    area: LogArea, rules: Sequence[LogRule], names: dict[int, str], use: dict[int, tuple[int, int]]
) -> LogView:
    """A log area of a volume with these rules, as a user sees it; `use`: what is used and what is claimed, by
    number."""
    used, claimed = use.get(area.number, (None, None))
    return LogView(
        number=area.number,
        default=any(area.device in rule.devices for rule in rules) or not any(rule.rest for rule in rules),
        devices=devices_of(area.extents, names),
        size=total(area.extents),
        used=used,
        claimed=claimed,
    )


def rule_views(rules: Iterable[LogRule], names: dict[int, str]) -> list[LogRuleView]:
    """Log rules as a user sees them."""
    return [
        LogRuleView(
            rule=written(rule, names),
            partitions=None if rule.partitions is None else list(rule.partitions),
            processor=rule.processor,
            devices=[names[device] for device in rule.devices],
            any=rule.others,
        )
        for rule in rules
    ]
