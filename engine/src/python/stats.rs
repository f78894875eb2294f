//! Stats: the counters of the engine and of its volumes, as Python dictionaries.

use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::engine::Engine;
use crate::nbd::Server;
use crate::processor::run::Handle;
use crate::processor::share::ShareStats;
use crate::python::report;
use crate::volume::Volume;

/// An `EngineStats`.
pub fn engine<'py>(
    py: Python<'py>,
    engine: &Engine,
    server: &Server,
) -> PyResult<Bound<'py, PyDict>> {
    let processors = PyList::empty(py);
    let handles = engine.processors.lock().expect("no holder panics");
    for (number, handle) in handles.iter().enumerate() {
        processors.append(processor(py, number, handle)?)?;
    }
    drop(handles);
    let devices = PyList::empty(py);
    for device in &py.detach(|| engine.device_states()) {
        devices.append(report::device(py, device)?)?;
    }
    let dict = PyDict::new(py);
    dict.set_item("processors", processors)?;
    dict.set_item("devices", devices)?;
    dict.set_item("connections", server.connections())?;
    dict.set_item("handshakes", server.handshakes())?;
    Ok(dict)
}

/// A `ProcessorStats`.
fn processor<'py>(py: Python<'py>, number: usize, handle: &Handle) -> PyResult<Bound<'py, PyDict>> {
    let stats = &handle.stats;
    let counted: [(&str, &AtomicU64); 5] = [
        ("parts", &stats.parts),
        ("reader_parts", &stats.reader_parts),
        ("batches", &stats.batches),
        ("slow_ios", &stats.slow_ios),
        ("partitions", &stats.partitions),
    ];
    let dict = PyDict::new(py);
    dict.set_item("processor", number)?;
    for (name, counter) in counted {
        dict.set_item(name, counter.load(Ordering::Relaxed))?;
    }
    dict.set_item("cpu_ns", handle.cpu_ns())?;
    dict.set_item("queued", handle.runner.queue.length())?;
    Ok(dict)
}

/// A `VolumeStats`.
pub fn volume<'py>(
    py: Python<'py>,
    engine: &Engine,
    volume: &Volume,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = counters(py, volume)?;
    dict.set_item("bad_blocks", report::bad_blocks(py, &volume.bad)?)?;
    let exports = engine.exports.list();
    let ours = exports
        .iter()
        .filter(|export| export.target.instant().is_some_and(|(shown, _)| shown == volume.id));
    dict.set_item("connections", ours.map(|export| export.connections()).sum::<usize>())?;
    dict.set_item("logs", super::space::logs(py, volume)?)?;
    Ok(dict)
}

fn counters<'py>(py: Python<'py>, volume: &Volume) -> PyResult<Bound<'py, PyDict>> {
    type Counter = fn(&ShareStats) -> &AtomicU64;
    let counters: [(&str, Counter); 10] = [
        ("reads", |stats| &stats.reads),
        ("writes", |stats| &stats.writes),
        ("read_bytes", |stats| &stats.read_bytes),
        ("write_bytes", |stats| &stats.write_bytes),
        ("zeroes", |stats| &stats.zeroes),
        ("trims", |stats| &stats.trims),
        ("redirected_blocks", |stats| &stats.redirected_blocks),
        ("drops", |stats| &stats.drops),
        ("errors", |stats| &stats.errors),
        ("checkpoint_failures", |stats| &stats.checkpoint_failures),
    ];
    let dict = PyDict::new(py);
    dict.set_item("epoch", volume.epoch.load(Ordering::Acquire))?;
    dict.set_item("flushes", volume.flushes.load(Ordering::Relaxed))?;
    for (name, counter) in counters {
        let values =
            volume.shares.iter().map(|share| counter(&share.stats).load(Ordering::Relaxed));
        dict.set_item(name, values.sum::<u64>())?;
    }
    Ok(dict)
}
