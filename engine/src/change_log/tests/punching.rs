//! Punching: which slots are backed, and that what is punched is not used, whatever happens at the same time.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use proptest::prelude::*;

use super::Scratch;
use super::slots::{numbers, owners, space, take};
use crate::block_map::place::Place;
use crate::change_log::chunks::CHUNK_SLOTS;
use crate::change_log::punching::Punching;
use crate::change_log::slots::Slots;
use crate::change_log::space::LogArea;
use crate::units::{BLOCK_SIZE, SlotIndex};

const CHUNKS: u64 = 4;

/// The file of the only log area, and what its slots must have.
struct Area {
    log: Arc<LogArea>,
    file: std::fs::File,
}

impl Area {
    fn new(scratch: &Scratch, log: Arc<LogArea>) -> Area {
        let path = scratch.0.join("log0");
        let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        Area { log, file }
    }

    fn write(&self, place: Place, count: u32) {
        for number in 0..count {
            let slot = place.step(number).slot_number();
            self.file.write_all_at(&contents(slot), slot.0 * BLOCK_SIZE).unwrap();
        }
    }

    fn check(&self, place: Place, count: u32) {
        let mut found = contents(SlotIndex(0));
        for number in 0..count {
            let slot = place.step(number).slot_number();
            self.file.read_exact_at(&mut found, slot.0 * BLOCK_SIZE).unwrap();
            assert_eq!(found, contents(slot), "slot {} was used", slot.0);
        }
    }

    /// Bytes for which its device has space.
    fn stored(&self) -> u64 {
        self.file.sync_all().unwrap();
        self.file.metadata().unwrap().blocks() * 512
    }

    /// Sweeps until there is nothing to do.
    fn sweep_all(&self, sweeps: u8) {
        let take = |chunk| Punching::take(&self.log, chunk, sweeps);
        for _ in 0..100 {
            if !self.log.needs_sweep() {
                return;
            }
            let device = Arc::clone(self.log.next_swept());
            self.log.sweep(&device, || false, take);
        }
        panic!("sweeps never end");
    }
}

fn contents(slot: SlotIndex) -> Vec<u8> {
    vec![slot.0 as u8 | 1; BLOCK_SIZE as usize]
}

#[derive(Clone, Debug)]
enum Op {
    Take { owner: usize, want: u32, lean: bool },
    Free { owner: usize, pick: prop::sample::Index, part: prop::sample::Index },
    Visit { chunk: u64, sweeps: u8 },
    Punch,
    End,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let pick = any::<prop::sample::Index>;
    let want = prop_oneof![1..20u32, 1..700u32];
    let op = prop_oneof![
        3 => (0..2usize, want, any::<bool>()).prop_map(|(owner, want, lean)| Op::Take { owner, want, lean }),
        3 => (0..2usize, pick(), pick()).prop_map(|(owner, pick, part)| Op::Free { owner, pick, part }),
        2 => (0..CHUNKS, 0..2u8).prop_map(|(chunk, sweeps)| Op::Visit { chunk, sweeps }),
        2 => Just(Op::Punch),
        2 => Just(Op::End),
    ];
    prop::collection::vec(op, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn backed_slots_are_those_that_were_freed_and_not_punched_and_a_punch_meets_no_write(ops in ops()) {
        let scratch = Scratch::new();
        let space = space(&scratch, &[CHUNKS]);
        let area = Area::new(&scratch, space.log(1).unwrap());
        area.sweep_all(0);
        let mut owners = owners::<2>();
        let (mut backed, mut used) = (BTreeSet::new(), 0);
        let mut punchings: Vec<Punching> = Vec::new();
        for op in ops {
            match op {
                Op::Take { owner, want, lean } => {
                    let (slots, runs) = &mut owners[owner];
                    area.log.set_lean(lean);
                    let Some(taken) = take(&space, slots, want) else { continue };
                    let before = backed.len();
                    for (place, count) in &taken {
                        for slot in numbers(*place, *count) {
                            backed.remove(&slot);
                        }
                        area.write(*place, *count);
                    }
                    if lean {
                        let of_backed = (want as usize).min(before);
                        prop_assert_eq!(before - backed.len(), of_backed, "backed ones come first");
                    }
                    used += u64::from(want);
                    runs.extend(taken);
                }
                Op::Free { owner, pick, part } => {
                    let (slots, runs) = &mut owners[owner];
                    if runs.is_empty() { continue }
                    let (place, count) = runs.swap_remove(pick.index(runs.len()));
                    area.check(place, count);
                    let kept = part.index(count as usize) as u32;
                    if kept > 0 {
                        runs.push((place, kept));
                    }
                    slots.free_now(place.step(kept), count - kept, &mut Vec::new());
                    backed.extend(numbers(place.step(kept), count - kept));
                    used -= u64::from(count - kept);
                }
                Op::Visit { chunk, sweeps } => {
                    let of = |slot: &u64| Place::from_raw(*slot).unwrap().slot_number().chunk().0 == chunk;
                    let some = backed.iter().any(of);
                    let taken = Punching::take(&area.log, chunk, sweeps);
                    prop_assert!(some || taken.is_none());
                    if let Some(taken) = taken {
                        backed.retain(|slot| !of(slot));
                        punchings.push(taken);
                    }
                }
                Op::Punch => punchings.iter().for_each(|punching| punching.punch()),
                Op::End => drop(punchings.pop()),
            }
            prop_assert_eq!(area.log.usage().used, used);
            for slot in 0..area.log.size() {
                let place = Place::slot(1, SlotIndex(slot));
                let wanted = backed.contains(&place.raw());
                prop_assert_eq!(area.log.slots.is_backed(SlotIndex(slot)), wanted, "slot {}", slot);
            }
        }
        drop(punchings);
        area.log.set_lean(false);
        for (slots, runs) in &mut owners {
            for (place, count) in runs.drain(..) {
                area.check(place, count);
                slots.free_now(place, count, &mut Vec::new());
            }
        }
        area.sweep_all(0);
        prop_assert_eq!(area.log.free(), CHUNKS * CHUNK_SLOTS);
        prop_assert_eq!(area.log.returning(), 0);
        prop_assert_eq!(area.log.slots.claimed() <= 4, true, "all but active chunks are empty");
    }
}

/// Slots of which each eighth is used, the others freed.
fn scattered(
    area: &Area,
    slots: &mut Slots,
    space: &crate::change_log::space::Space,
) -> Vec<(Place, u32)> {
    let all: Vec<_> = (0..2048).flat_map(|_| take(space, slots, 1).unwrap()).collect();
    all.iter().for_each(|(place, count)| area.write(*place, *count));
    let (kept, freed): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(place, _)| place.slot_number().0.is_multiple_of(8));
    freed.iter().for_each(|(place, count)| slots.free_now(*place, *count, &mut Vec::new()));
    kept
}

#[test]
fn what_is_freed_here_and_there_goes_back_to_the_disk() {
    let scratch = Scratch::new();
    let space = space(&scratch, &[CHUNKS]);
    let area = Area::new(&scratch, space.log(1).unwrap());
    let mut slots = Slots::default();
    let kept = scattered(&area, &mut slots, &space);
    let before = area.stored();
    assert!(before >= 2048 * BLOCK_SIZE, "{before} bytes");
    area.sweep_all(2);
    kept.iter().for_each(|(place, count)| area.check(*place, *count));
    let after = area.stored();
    assert!(after <= (256 + 16) * BLOCK_SIZE, "{after} bytes are stored");
}

#[test]
fn a_chunk_in_which_something_happens_is_left_alone() {
    let scratch = Scratch::new();
    let space = space(&scratch, &[CHUNKS]);
    let area = Area::new(&scratch, space.log(1).unwrap());
    let mut slots = Slots::default();
    let runs = take(&space, &mut slots, 2).unwrap();
    let (place, _) = runs[0];
    let chunk = place.slot_number().chunk().0;
    slots.free_now(place, 1, &mut Vec::new());
    let visit = || Punching::take(&area.log, chunk, 2).is_some();
    assert!(!visit() && !visit());
    slots.free_now(place.step(1), 1, &mut Vec::new());
    assert!(!visit() && !visit() && visit() && !visit());
}

#[test]
fn a_survey_finds_what_was_free_before_a_start() {
    let scratch = Scratch::new();
    let space = space(&scratch, &[CHUNKS]);
    let area = Area::new(&scratch, space.log(1).unwrap());
    let kept = scattered(&area, &mut Slots::default(), &space);
    drop(space);
    // The next start: the maps refer to what was kept.
    let other = Scratch::new();
    let again = self::space(&other, &[CHUNKS]);
    std::fs::copy(scratch.0.join("log0"), other.0.join("log0")).unwrap();
    let area = Area::new(&other, again.log(1).unwrap());
    // As a copy may have no holes, all of it has data.
    let mut whole = vec![0; (CHUNKS * CHUNK_SLOTS * BLOCK_SIZE) as usize];
    area.file.read_exact_at(&mut whole, 0).unwrap();
    area.file.write_all_at(&whole, 0).unwrap();
    for (place, _) in &kept {
        let (chunk, slot) = place.slot_number().chunk();
        let mut bits = Box::new([0; 16]);
        bits[slot as usize / 64] = 1 << (slot % 64);
        area.log.slots.allocate_exactly(chunk, 0, &bits).unwrap();
    }
    assert!(!area.log.is_surveyed() && area.stored() >= whole.len() as u64);
    area.sweep_all(0);
    kept.iter().for_each(|(place, count)| area.check(*place, *count));
    let after = area.stored();
    assert!(after <= (256 + 16) * BLOCK_SIZE, "{after} bytes are stored");
}
