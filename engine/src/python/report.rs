//! Reports: results of the engine as Python dictionaries.

use std::os::fd::IntoRawFd;
use std::time::UNIX_EPOCH;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::engine::relocate::Relocation;
use crate::engine::scrub::ScrubReport;
use crate::engine::snapshots::CutReport;
use crate::engine::watch::DeviceState;
use crate::error::Errno;
use crate::geometry::bad_blocks::BadBlocks;
use crate::nbd::clients::Client;
use crate::nbd::hand_over::HandedOver;
use crate::nbd::peer::Who;

/// A `DeviceStats`.
pub fn device<'py>(py: Python<'py>, state: &DeviceState) -> PyResult<Bound<'py, PyDict>> {
    let device = &state.device;
    let (errors, last_errno) = device.errors();
    let dict = PyDict::new(py);
    dict.set_item("device", device.id)?;
    dict.set_item("present", device.is_present())?;
    dict.set_item("errors", errors)?;
    dict.set_item("last_errno", last_errno)?;
    let fault = state.fault.map(|fault| {
        let dict = PyDict::new(py);
        dict.set_item("call", fault.call.name())?;
        dict.set_item("errno", fault.errno.raw())?;
        dict.set_item("offset", fault.offset)?;
        dict.set_item("first_ns", fault.first_ns)?;
        dict.set_item("last_ns", fault.last_ns)?;
        dict.set_item("times", fault.times)?;
        dict.set_item("short", fault.short)?;
        Ok::<_, PyErr>(dict)
    });
    dict.set_item("fault", fault.transpose()?)?;
    dict.set_item("silent_s", state.silent.map(|silent| silent.as_secs_f64()))?;
    Ok(dict)
}

/// A volume's `BadBlocksStats`.
pub fn bad_blocks<'py>(py: Python<'py>, bad: &BadBlocks) -> PyResult<Bound<'py, PyDict>> {
    let found = PyDict::new(py);
    for (device, times) in bad.found() {
        found.set_item(device, times)?;
    }
    let blocks = PyList::empty(py);
    for bad in bad.listed() {
        let dict = PyDict::new(py);
        dict.set_item("partition", bad.partition)?;
        dict.set_item("block", bad.block)?;
        dict.set_item("device", bad.device)?;
        dict.set_item("first_ns", bad.first_ns)?;
        dict.set_item("last_ns", bad.last_ns)?;
        dict.set_item("times", bad.times)?;
        blocks.append(dict)?;
    }
    let dict = PyDict::new(py);
    dict.set_item("found", found)?;
    dict.set_item("blocks", blocks)?;
    Ok(dict)
}

/// A `ScrubReport`.
pub fn scrub<'py>(py: Python<'py>, report: &ScrubReport) -> PyResult<Bound<'py, PyDict>> {
    let list = PyList::empty(py);
    for bad in &report.bad {
        let dict = PyDict::new(py);
        dict.set_item("block", bad.block)?;
        dict.set_item("device", bad.device)?;
        dict.set_item("errno", bad.errno.map_or(0, Errno::raw))?;
        dict.set_item("live", bad.seen_by.live)?;
        dict.set_item("epochs", &bad.seen_by.epochs)?;
        list.append(dict)?;
    }
    let dict = PyDict::new(py);
    dict.set_item("next", report.next.map(|next| (next.leaf, next.epoch)))?;
    dict.set_item("bytes", report.bytes)?;
    dict.set_item("skipped_bytes", report.skipped_bytes)?;
    dict.set_item("bad", list)?;
    Ok(dict)
}

/// A `ClientInfo`.
pub fn client<'py>(py: Python<'py>, client: &Client) -> PyResult<Bound<'py, PyDict>> {
    let (address, pid, uid) = match client.who {
        Who::Local { pid, uid } => (None, pid, Some(uid)),
        Who::Remote(address) => (Some(address.to_string()), None, None),
        Who::Unknown => (None, None, None),
    };
    let since = client.since.duration_since(UNIX_EPOCH).unwrap_or_default();
    let dict = PyDict::new(py);
    dict.set_item("number", client.number)?;
    dict.set_item("export", &client.export)?;
    dict.set_item("read_only", client.read_only)?;
    dict.set_item("address", address)?;
    dict.set_item("pid", pid)?;
    dict.set_item("uid", uid)?;
    dict.set_item("since_ns", u64::try_from(since.as_nanos()).unwrap_or(0))?;
    dict.set_item("in_flight", client.in_flight)?;
    dict.set_item("received", client.received)?;
    dict.set_item("sent", client.sent)?;
    Ok(dict)
}

/// A `HandOverReport`; the caller owns the descriptors afterwards.
pub fn hand_over<'py>(py: Python<'py>, handed: HandedOver) -> PyResult<Bound<'py, PyDict>> {
    let connections = PyList::empty(py);
    for connection in handed.connections {
        let dict = PyDict::new(py);
        dict.set_item("export", connection.export)?;
        dict.set_item("state", PyBytes::new(py, &connection.state))?;
        dict.set_item("fd", connection.socket.into_raw_fd())?;
        connections.append(dict)?;
    }
    let dict = PyDict::new(py);
    dict.set_item("connections", connections)?;
    dict.set_item("closed", handed.closed)?;
    Ok(dict)
}

/// A `CutReport`.
pub fn cut<'py>(py: Python<'py>, made: &CutReport) -> PyResult<Bound<'py, PyDict>> {
    let epochs = PyDict::new(py);
    for (volume, epoch) in &made.epochs {
        epochs.set_item(volume, epoch)?;
    }
    let processors = PyList::empty(py);
    for part in &made.parts {
        let partitions = PyDict::new(py);
        for (share, count) in &part.partitions {
            partitions.set_item(made.volumes[share], count)?;
        }
        let dict = PyDict::new(py);
        dict.set_item("processor", part.processor)?;
        dict.set_item("stall_ns", part.stall_ns)?;
        dict.set_item("partitions", partitions)?;
        processors.append(dict)?;
    }
    let dict = PyDict::new(py);
    dict.set_item("epochs", epochs)?;
    dict.set_item("instant_ns", made.instant_ns)?;
    let longest = made.parts.iter().map(|part| part.stall_ns).max().unwrap_or(0);
    dict.set_item("stall_ns", longest)?;
    dict.set_item("processors", processors)?;
    Ok(dict)
}

/// A `RelocationReport`.
pub fn relocation(py: Python<'_>, done: Relocation) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("bytes", done.bytes)?;
    dict.set_item("failed", done.failed)?;
    dict.set_item("at_end", done.at_end)?;
    dict.set_item("hosts", done.hosts)?;
    Ok(dict)
}
