//! Specifications: converts the catalog's dictionaries to the engine's structures.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::block_map::history::Rollback;
use crate::change_log::log_rules::{LogRule, LogRules, VolumeRules};
use crate::engine::spec::{ExtentSpec, Manifests, VolumeSpec};
use crate::units::Epoch;

/// A dictionary's entry.
pub fn entry<'py, T>(dict: &Bound<'py, PyDict>, key: &str) -> PyResult<T>
where
    T: for<'a> FromPyObject<'a, 'py>,
{
    let value = dict.get_item(key)?.ok_or_else(|| PyKeyError::new_err(key.to_owned()))?;
    value.extract::<T>().map_err(Into::into)
}

fn dicts<'py>(dict: &Bound<'py, PyDict>, key: &str) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let list: Bound<'py, PyList> = entry(dict, key)?;
    list.iter().map(|item| Ok(item.cast_into::<PyDict>()?)).collect()
}

/// A `LogSpec` or `PartitionSpec`'s extents.
pub fn extents(dict: &Bound<'_, PyDict>) -> PyResult<Vec<ExtentSpec>> {
    let extent = |dict: Bound<'_, PyDict>| {
        Ok(ExtentSpec {
            device: entry(&dict, "device")?,
            offset: entry(&dict, "offset")?,
            length: entry(&dict, "length")?,
        })
    };
    dicts(dict, "extents")?.into_iter().map(extent).collect()
}

/// A `VolumeRules`.
pub fn volume_rules(dict: &Bound<'_, PyDict>) -> PyResult<VolumeRules> {
    Ok(VolumeRules { volume: log_rules(dict)?, snapshots: snapshot_rules(dict)? })
}

/// The rules of the `snapshots` of a `VolumeRules` or `VolumeSpec`, in order.
fn snapshot_rules(dict: &Bound<'_, PyDict>) -> PyResult<Vec<(Epoch, LogRules)>> {
    let one = |snapshot| Ok((entry(&snapshot, "epoch")?, log_rules(&snapshot)?));
    let found: PyResult<Vec<(Epoch, LogRules)>> =
        dicts(dict, "snapshots")?.into_iter().map(one).collect();
    let mut rules = found?;
    rules.sort_unstable_by_key(|(epoch, _)| *epoch);
    Ok(rules)
}

/// The `log_rules` of a `VolumeSpec`, `SnapshotSpec` or `CutVolume`.
pub fn log_rules(dict: &Bound<'_, PyDict>) -> PyResult<LogRules> {
    let rule = |dict: Bound<'_, PyDict>| {
        Ok(LogRule {
            partitions: entry(&dict, "partitions")?,
            processors: entry(&dict, "processors")?,
            logs: entry(&dict, "logs")?,
            any: entry(&dict, "any")?,
        })
    };
    let rules: PyResult<Vec<LogRule>> = dicts(dict, "log_rules")?.into_iter().map(rule).collect();
    rules.map(LogRules::from)
}

fn uuid(text: &str) -> PyResult<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32);
    let number = number.ok_or_else(|| PyValueError::new_err(format!("{text} is not a UUID")))?;
    Ok(number.to_be_bytes())
}

/// A `VolumeSpec`.
pub fn volume(dict: &Bound<'_, PyDict>) -> PyResult<VolumeSpec> {
    let mut partitions = Vec::new();
    for partition in dicts(dict, "partitions")? {
        partitions.push((entry(&partition, "processor")?, extents(&partition)?));
    }
    let mut logs = Vec::new();
    for log in dicts(dict, "logs")? {
        logs.push((entry(&log, "number")?, extents(&log)?));
    }
    let snapshots = snapshot_rules(dict)?;
    let size: u64 = entry(dict, "size")?;
    let mut smaller: BTreeMap<u64, Epoch> = BTreeMap::new();
    let mut sizes: Vec<(Epoch, u64)> = Vec::new();
    for snapshot in dicts(dict, "snapshots")? {
        sizes.push((entry(&snapshot, "epoch")?, entry(&snapshot, "size")?));
    }
    for rollback in dicts(dict, "rollbacks")? {
        sizes.push((entry(&rollback, "to")?, entry(&rollback, "to_size")?));
    }
    for (epoch, bytes) in sizes {
        if bytes < size {
            let bound = smaller.entry(bytes).or_insert(0);
            *bound = epoch.saturating_add(1).max(*bound);
        }
    }
    let origin: Option<Bound<'_, PyDict>> = entry(dict, "source")?;
    let origin = origin.map(|one| PyResult::Ok((entry(&one, "volume")?, entry(&one, "epoch")?)));
    let mut rollbacks: Vec<(Rollback, u64)> = Vec::new();
    for rollback in dicts(dict, "rollbacks")? {
        let (at, to) = (entry(&rollback, "at")?, entry(&rollback, "to")?);
        rollbacks.push((Rollback { at, to }, entry(&rollback, "size")?));
    }
    let manifests: Bound<'_, PyDict> = entry(dict, "manifests")?;
    let manifests = Manifests {
        directory: entry(&manifests, "directory")?,
        partitions: entry(&manifests, "partitions")?,
        older: entry(&manifests, "older")?,
    };
    Ok(VolumeSpec {
        id: entry(dict, "id")?,
        uuid: uuid(&entry::<String>(dict, "uuid")?)?,
        name: entry(dict, "name")?,
        size,
        partition_size: entry(dict, "partition_size")?,
        partitions,
        logs,
        log_rules: log_rules(dict)?,
        directory: entry::<PathBuf>(dict, "directory")?,
        manifests,
        snapshots,
        next_epoch: entry(dict, "next_epoch")?,
        bounds: smaller.into_iter().map(|(bytes, epoch)| (epoch, bytes)).collect(),
        rollbacks,
        origin: origin.transpose()?,
    })
}
