//! Hang: a device of the simulated machine that does not answer for a while: every operation on it waits, longer than
//! requests may last, while other threads have turns; then all of them continue, the last one first.

use super::disk::Disk;
use super::faults::{Injected, Role};

impl Disk {
    /// Whether a device may hang.
    pub fn may_hang(&self) -> bool {
        self.rates.hang > 0
    }

    /// Whether a fault may have been injected since `before`.
    pub fn went_wrong(&self, before: Injected) -> bool {
        self.may_hang() || self.injected.errors > before.errors
    }

    /// Whether a file's next operation waits because its device hangs. It may begin to hang now.
    pub fn hangs(&mut self, inode: usize) -> bool {
        if self.hung.is_none()
            && self.failing
            && self.inodes[inode].role != Role::State
            && self.random.chance(self.rates.hang)
        {
            self.hung = Some((inode, self.random.within(1, 400)));
            self.injected.hangs += 1;
            self.note("hangs", inode as u64, 0, 0);
        }
        let Some((hung, left)) = &mut self.hung else { return false };
        if *hung != inode {
            return false;
        }
        *left -= 1;
        if *left == 0 {
            self.end_hang();
        }
        self.maybe_crash();
        self.hung.is_some()
    }

    /// Ends the hang.
    pub fn end_hang(&mut self) {
        self.note("comes back", 0, 0, 0);
        self.hung = None;
    }
}
