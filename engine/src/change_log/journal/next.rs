//! Next: the segment that follows the newest one of a [journal](super), until it is begun or removed.
//!
//! How it works      It is requested when the newest one is half full, and prepared by a pool thread. If there is no
//!                   space for it, a small one can be requested. That is begun at once, so that the one before it can
//!                   be removed.
//! Owner and locks   the processor.

use super::{Journal, Next, Prepared};
use crate::error::Errno;

impl Journal {
    /// The number of the segment to prepare, and the incarnation of the one before it, if it is time for that.
    /// [`Journal::prepared`] ends the preparation.
    pub fn ask_next(&mut self) -> Option<(u64, u64)> {
        let wanted = self.is_half_full() && matches!(self.next, Next::Wanted);
        wanted.then(|| self.ask())
    }

    /// The same, also if it could not be prepared before.
    pub fn ask_again(&mut self) -> Option<(u64, u64)> {
        let wanted = self.is_half_full() && matches!(self.next, Next::Wanted | Next::Failed);
        wanted.then(|| self.ask())
    }

    fn is_half_full(&self) -> bool {
        self.at > self.current.length / 2
    }

    fn ask(&mut self) -> (u64, u64) {
        self.next = Next::Asked;
        (self.take_number(), self.current.header.incarnation)
    }

    /// Begins the prepared segment if it is a small one, so that the one before it can be removed.
    pub fn begin_small(&mut self) -> std::result::Result<(), Errno> {
        match &self.next {
            Next::Ready(prepared) if prepared.is_small() => self.roll(),
            _ => Ok(()),
        }
    }

    /// Whether the next one could not be prepared.
    pub fn lacks_next(&self) -> bool {
        matches!(self.next, Next::Failed)
    }

    /// Notes that a requested segment was prepared, or could not be.
    pub fn prepared(&mut self, prepared: Option<Prepared>) {
        if prepared.is_some() {
            self.no_space = None;
        }
        self.next = match prepared {
            Some(prepared) if prepared.header.number > self.current.header.number => {
                Next::Ready(prepared)
            }
            Some(late) => {
                self.remove(&late);
                Next::Wanted
            }
            None => Next::Failed,
        };
    }

    /// Whether one was requested and is not prepared yet.
    pub fn is_preparing(&self) -> bool {
        matches!(self.next, Next::Asked)
    }

    /// Removes a prepared segment that is not needed. If a file is gone, the files that the last checkpoint needs are
    /// rewritten.
    pub fn close(&mut self) {
        if self.shared.find_missing_files().now.is_some() {
            let _ = self.renew(); // where it cannot be, that checkpoint fails, or the next start says so
        }
        if let Next::Ready(prepared) = std::mem::replace(&mut self.next, Next::Wanted) {
            self.remove(&prepared);
        }
    }

    pub(super) fn remove(&self, prepared: &Prepared) {
        // If it remains, the next start removes it, because it was not begun.
        let _ = self.identity.system.remove(&self.identity.segment_path(prepared.header.number));
    }
}
