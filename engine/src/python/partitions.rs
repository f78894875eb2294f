//! Partitions: partitions, partition snapshots, change logs and places as Python dictionaries.

use std::collections::BTreeMap;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};

use crate::block_map::change_logs::PlaceCounts;
use crate::block_map::counters::Counters;
use crate::engine::partitions::{
    LivePartition, LocatedRun, Location, LogOfPartition, PartitionSnapshot, Spot,
};
use crate::units::{Epoch, ProcessorIndex};

fn set_map(
    dict: &Bound<'_, PyDict>,
    places: PlaceCounts,
    counters: Option<Counters>,
    last_write_ns: Option<u64>,
) -> PyResult<()> {
    let py = dict.py();
    dict.set_item(intern!(py, "slots"), places.slots)?;
    dict.set_item(intern!(py, "zeroes"), places.zeroes)?;
    dict.set_item(intern!(py, "bases"), places.bases)?;
    dict.set_item(intern!(py, "writes"), counters.map(|counters| counters.writes))?;
    dict.set_item(intern!(py, "written_bytes"), counters.map(|counters| counters.written_bytes))?;
    dict.set_item(intern!(py, "last_write_ns"), last_write_ns)
}

/// A dictionary with two numbers, if there are any.
fn numbers<'py, const N: usize>(
    py: Python<'py>,
    names: [&Bound<'py, PyString>; N],
    values: Option<[u64; N]>,
) -> PyResult<Option<Bound<'py, PyDict>>> {
    let Some(values) = values else { return Ok(None) };
    let dict = PyDict::new(py);
    for (name, value) in names.into_iter().zip(values) {
        dict.set_item(name, value)?;
    }
    Ok(Some(dict))
}

/// A list of `PartitionSnapshotState`.
pub fn snapshots<'py>(
    py: Python<'py>,
    epoch: Epoch,
    found: &[PartitionSnapshot],
) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    let log_sizes = [intern!(py, "blocks"), intern!(py, "zeroes"), intern!(py, "bases")];
    for one in found {
        let dict = PyDict::new(py);
        dict.set_item(intern!(py, "partition"), one.partition)?;
        dict.set_item(intern!(py, "processor"), one.processor)?;
        dict.set_item(intern!(py, "epoch"), epoch)?;
        dict.set_item(intern!(py, "size"), one.size)?;
        dict.set_item(intern!(py, "frozen"), one.frozen)?;
        set_map(&dict, one.places, one.counters, one.last_write_ns)?;
        dict.set_item(intern!(py, "write_seq"), one.write_seq)?;
        dict.set_item(intern!(py, "checksummed"), one.places.slots)?;
        dict.set_item(
            intern!(py, "since"),
            numbers(
                py,
                [intern!(py, "writes"), intern!(py, "written_bytes")],
                one.since.map(|(writes, bytes)| [writes, bytes]),
            )?,
        )?;
        dict.set_item(intern!(py, "log"), numbers(py, log_sizes, one.log)?)?;
        list.append(dict)?;
    }
    Ok(list)
}

/// A list of `PartitionState`.
pub fn partitions<'py>(py: Python<'py>, found: &[LivePartition]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for one in found {
        let dict = PyDict::new(py);
        dict.set_item(intern!(py, "partition"), one.partition)?;
        dict.set_item(intern!(py, "processor"), one.processor)?;
        set_map(&dict, one.places, Some(one.counters), one.last_write_ns)?;
        dict.set_item(intern!(py, "write_seq"), one.write_seq)?;
        dict.set_item(intern!(py, "versions"), one.versions)?;
        dict.set_item(intern!(py, "newest_snapshot"), one.newest_snapshot)?;
        list.append(dict)?;
    }
    Ok(list)
}

/// A list of `ChangeLogState`.
pub fn change_logs<'py>(py: Python<'py>, found: &[LogOfPartition]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for one in found {
        let dict = PyDict::new(py);
        dict.set_item(intern!(py, "partition"), one.partition)?;
        dict.set_item(intern!(py, "processor"), one.processor)?;
        dict.set_item(intern!(py, "begin"), one.begin)?;
        dict.set_item(intern!(py, "blocks"), one.blocks)?;
        dict.set_item(intern!(py, "zeroes"), one.zeroes)?;
        dict.set_item(intern!(py, "bases"), one.bases)?;
        dict.set_item(intern!(py, "runs"), one.runs)?;
        dict.set_item(intern!(py, "areas"), &one.areas)?;
        dict.set_item(intern!(py, "writes"), one.written.map(|written| written.0))?;
        dict.set_item(intern!(py, "written_bytes"), one.written.map(|written| written.1))?;
        dict.set_item(intern!(py, "ended"), one.ended)?;
        list.append(dict)?;
    }
    Ok(list)
}

/// A list of `ChangeLogCount`.
pub fn counts<'py>(
    py: Python<'py>,
    found: &BTreeMap<(Epoch, ProcessorIndex), u64>,
) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for ((begin, processor), logs) in found {
        let dict = PyDict::new(py);
        dict.set_item(intern!(py, "begin"), begin)?;
        dict.set_item(intern!(py, "processor"), processor)?;
        dict.set_item(intern!(py, "logs"), logs)?;
        list.append(dict)?;
    }
    Ok(list)
}

/// A list of `ChangeLogRun`.
pub fn runs<'py>(py: Python<'py>, found: &[LocatedRun]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for run in found {
        let dict = PyDict::new(py);
        dict.set_item(intern!(py, "block"), run.block)?;
        dict.set_item(intern!(py, "blocks"), run.blocks)?;
        dict.set_item(intern!(py, "area"), run.area)?;
        dict.set_item(intern!(py, "device"), run.device)?;
        dict.set_item(intern!(py, "offset"), run.offset)?;
        list.append(dict)?;
    }
    Ok(list)
}

/// A `Location`.
pub fn location<'py>(py: Python<'py>, found: &Location) -> PyResult<Bound<'py, PyDict>> {
    let (kind, area, device, offset, begin) = match found.spot {
        Spot::Base(device, offset) => ("base", None, Some(device), Some(offset), None),
        Spot::Zero => ("zero", None, None, None, None),
        Spot::Log(area, device, offset, begin) => {
            ("log", Some(area), Some(device), Some(offset), Some(begin))
        }
        Spot::Source => ("source", None, None, None, None),
    };
    let dict = PyDict::new(py);
    dict.set_item(intern!(py, "partition"), found.partition)?;
    dict.set_item(intern!(py, "processor"), found.processor)?;
    dict.set_item(intern!(py, "block"), found.block)?;
    dict.set_item(intern!(py, "kind"), kind)?;
    dict.set_item(intern!(py, "area"), area)?;
    dict.set_item(intern!(py, "device"), device)?;
    dict.set_item(intern!(py, "device_offset"), offset)?;
    dict.set_item(intern!(py, "begin"), begin)?;
    Ok(dict)
}
