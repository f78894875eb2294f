//! Space: the use of log areas, and events, as Python dictionaries.

use std::sync::atomic::Ordering;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::change_log::chunks::CHUNK_BYTES;
use crate::engine::usage::VolumeUse;
use crate::events::Event;
use crate::units::BLOCK_SIZE;
use crate::volume::Volume;

/// A `SpaceStats`.
pub fn space<'py>(py: Python<'py>, volume: &Volume) -> PyResult<Bound<'py, PyDict>> {
    let found = volume.space.usage();
    let dict = PyDict::new(py);
    dict.set_item("size_bytes", found.size * BLOCK_SIZE)?;
    dict.set_item("used_bytes", found.used * BLOCK_SIZE)?;
    let waited = volume.space_waiters.waited();
    dict.set_item("starving", waited != 0)?;
    let logs = volume.space.logs();
    let starved = logs.iter().filter(|log| log.bit() & waited != 0).map(|log| log.number);
    dict.set_item("starved_areas", starved.collect::<Vec<u16>>())?;
    let errnos = volume.shares.iter().map(|one| one.stats.checkpoint_errno.load(Ordering::Relaxed));
    dict.set_item("checkpoint_errno", errnos.max().unwrap_or(0))?;
    Ok(dict)
}

/// A `VolumeUse`.
pub fn snapshot_use<'py>(py: Python<'py>, found: &VolumeUse) -> PyResult<Bound<'py, PyDict>> {
    let snapshots = PyList::empty(py);
    for (epoch, held) in &found.snapshots {
        let entry = PyDict::new(py);
        entry.set_item("epoch", epoch)?;
        entry.set_item("log_bytes", held.slots * BLOCK_SIZE)?;
        entry.set_item("only_log_bytes", held.only_slots * BLOCK_SIZE)?;
        entry.set_item("only_base_bytes", held.only_bases * BLOCK_SIZE)?;
        snapshots.append(entry)?;
    }
    let dict = PyDict::new(py);
    dict.set_item("live_log_bytes", found.live_slots * BLOCK_SIZE)?;
    dict.set_item("snapshots", snapshots)?;
    Ok(dict)
}

/// The `LogStats` of all logs.
pub fn logs<'py>(py: Python<'py>, volume: &Volume) -> PyResult<Bound<'py, PyList>> {
    let logs = PyList::empty(py);
    for log in volume.space.logs() {
        let entry = PyDict::new(py);
        entry.set_item("number", log.number)?;
        entry.set_item("size_bytes", log.chunks * CHUNK_BYTES)?;
        entry.set_item("used_bytes", log.slots.used() * BLOCK_SIZE)?;
        entry.set_item("claimed_bytes", log.slots.claimed() * CHUNK_BYTES)?;
        logs.append(entry)?;
    }
    Ok(logs)
}

/// An `EngineEvent`.
pub fn event(py: Python<'_>, event: Event) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    match event {
        Event::LogFull(volume) => {
            dict.set_item("kind", "log-full")?;
            dict.set_item("volume", volume)?;
        }
        Event::JournalFull(volume) => {
            dict.set_item("kind", "journal-full")?;
            dict.set_item("volume", volume)?;
        }
        Event::CheckpointFailed(volume) => {
            dict.set_item("kind", "checkpoint-failed")?;
            dict.set_item("volume", volume)?;
        }
        Event::CheckpointWritten(volume) => {
            dict.set_item("kind", "checkpoint-written")?;
            dict.set_item("volume", volume)?;
        }
        Event::DeviceSilent(device) => {
            dict.set_item("kind", "device-silent")?;
            dict.set_item("device", device)?;
        }
        Event::DeviceAnswers(device) => {
            dict.set_item("kind", "device-answers")?;
            dict.set_item("device", device)?;
        }
    }
    Ok(dict)
}
