//! Relocation of either kind, without regard for hosts.

use std::time::Duration;

use polyvol_engine::engine::Engine;
use polyvol_engine::engine::relocate::{Bounds, Kind, Relocation, Scattered};

/// Brings blocks of a volume home, or moves away what snapshots see there; at most so many bytes.
pub fn relocate(engine: &Engine, volume: u64, bytes: u64, away: bool) -> Relocation {
    let kind = if away { Kind::Away(Scattered { runs: 1, cold: false }) } else { Kind::Home };
    let bounds = Bounds { bytes, time: Duration::from_secs(20), urgent: true, kind };
    engine.relocate(volume, bounds).unwrap()
}
