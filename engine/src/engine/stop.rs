//! Stop: makes everything durable and ends all threads, except those that hang.
//!
//! How it works      Clones are closed before their origins, each with a last checkpoint. Slow devices are waited for,
//!                   for a short time; calls that still hang are left to the kernel, with their locks.
//! Errors            The first error of a volume; the other volumes are stopped too.

use crate::engine::Engine;
use crate::error::Result;
use crate::system::pool::Lane;
use crate::units::VolumeId;

impl Engine {
    /// Closes every volume, durably, and ends all threads. The connections are already closed. Idempotent.
    pub fn stop(&self) -> Result<()> {
        let mut stopped = self.stopped.write().expect("no holder panics");
        if std::mem::replace(&mut *stopped, true) {
            return Ok(());
        }
        drop(stopped);
        self.refuse_without_space();
        self.exports.clear();
        let ids: Vec<VolumeId> =
            self.volumes.lock().expect("no holder panics").keys().copied().collect();
        let mut result = Ok(());
        self.hurry();
        self.wait_for_answers();
        let mut hung = Vec::new();
        for id in ids.into_iter().rev() {
            let Ok(volume) = self.volume(id) else { continue };
            // Clones before their origins.
            let removed = self.remove_volume(id);
            if removed.is_err() && volume.hangs() {
                volume.flusher.stop();
                hung.push(volume.share);
            }
            result = result.and(removed);
        }
        for processor in self.processors.lock().expect("no holder panics").iter_mut() {
            processor.stop();
        }
        // Calls that hang are left to the kernel: the process, and its locks, exist until they have ended.
        let hangs = |lane| match lane {
            Lane::Device(id) | Lane::Probe(id) => {
                self.device(id).is_ok_and(|device| device.silence.hangs())
            }
            Lane::Share(share) | Lane::Files(share) => hung.contains(&share),
        };
        self.checkpoints.stop_except(&hangs);
        self.pool.stop_except(&hangs);
        drop(self.watch.lock().expect("no holder panics").take());
        self.events.close();
        result
    }
}
