//! What relocation could bring home, against the places of the reference.

use super::{BLOCKS, Twin};
use crate::block_map::homeward::Homeward;
use crate::block_map::place::Place;
use crate::block_map::tree::Map;
use crate::block_map::usage::Memory;
use crate::units::Epoch;

impl Twin {
    /// What relocation could move is what the live map has in slots and no frozen map at the base place; a pin keeps
    /// what its snapshot has in the same slots.
    pub(super) fn check_homeward(&mut self) {
        let frozen: Vec<&Map> = self.versions.frozen().iter().map(|one| &one.map).collect();
        let free: Vec<u32> = (0..BLOCKS)
            .filter(|block| self.live[*block as usize].is_slot())
            .filter(|block| frozen.iter().all(|map| map.place(*block) != Place::BASE))
            .collect();
        let pins: Vec<Epoch> = self.snapshots.keys().copied().take(2).collect();
        for pinned in [&[], &pins[..]] {
            let of = |block: &&u32| {
                let place = self.live[**block as usize];
                pinned.iter().any(|epoch| self.snapshots[epoch][**block as usize] == place)
            };
            let kept = free.iter().filter(of).count() as u64;
            let expected = Homeward { home: free.len() as u64 - kept, pinned: kept };
            for mut memory in [Memory::default(), self.memory.clone()] {
                assert_eq!(memory.homeward(&self.versions, pinned), expected);
                assert_eq!(memory.homeward(&self.versions, pinned), expected, "from the cache");
                if pinned.is_empty() {
                    self.memory = memory;
                }
            }
        }
    }
}
