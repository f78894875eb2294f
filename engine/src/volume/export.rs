//! Exports: the names that a host can ask for, and the target of each.
//!
//! How it works      A table from name to [`Export`]. A connection that enters transmission attaches to its
//!                   export and holds the [`Attachment`] until it ends.
//! Invariants        EP1 an export that a connection is attached to stays in the table;
//!                   EP2 the empty name is the only export, when the table holds exactly one writable one;
//!                   EP3 a hidden export is found by its name alone: it is neither listed, nor what the empty name
//!                       means.
//! Owner and locks   one lock over the table, held for a look-up or a change, never across I/O.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};

use crate::error::{Error, ErrorKind, Result};
use crate::request::Target;
use crate::units::{Epoch, VolumeId};

/// What a host sees under one name.
pub struct Export {
    /// `VOLUME` or `VOLUME@SNAPSHOT`.
    pub name: String,
    /// One line of text, sent with NBD_INFO_DESCRIPTION.
    pub description: String,
    /// The target that serves it.
    pub target: Arc<dyn Target>,
    /// It is found by its name alone (EP3).
    pub hidden: bool,
    /// Attached connections; shared with the export that this one replaced when its volume grew.
    connections: Arc<AtomicUsize>,
}

impl Export {
    /// The name of the snapshot that it shows, if it shows one.
    pub fn snapshot(&self) -> Option<&str> {
        self.name.split_once('@').map(|(_, snapshot)| snapshot)
    }

    /// How many connections are attached.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }
}

/// A connection's attachment to its export.
pub struct Attachment(Arc<Export>);

impl std::ops::Deref for Attachment {
    type Target = Export;
    fn deref(&self) -> &Export {
        &self.0
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// All exports of an engine.
#[derive(Default)]
pub struct ExportTable(RwLock<BTreeMap<String, Arc<Export>>>);

impl ExportTable {
    /// Adds an export that is listed; it can be attached to at once.
    pub fn add(&self, name: &str, description: &str, target: Arc<dyn Target>) -> Result<()> {
        self.insert(name, description, target, false)
    }

    /// Adds a hidden export (EP3); it can be attached to at once.
    pub fn add_hidden(&self, name: &str, description: &str, target: Arc<dyn Target>) -> Result<()> {
        self.insert(name, description, target, true)
    }

    fn insert(
        &self,
        name: &str,
        description: &str,
        target: Arc<dyn Target>,
        hidden: bool,
    ) -> Result<()> {
        let mut table = self.0.write().expect("no holder panics");
        if table.contains_key(name) {
            return Err(Error::new(ErrorKind::Exists, format!("export {name} exists already")));
        }
        let export = Export {
            name: name.to_owned(),
            description: description.to_owned(),
            target,
            hidden,
            connections: Arc::default(),
        };
        table.insert(name.to_owned(), Arc::new(export));
        Ok(())
    }

    /// Removes an export without attached connections (EP1). Removing an unknown name succeeds.
    pub fn remove(&self, name: &str) -> Result<()> {
        let mut table = self.0.write().expect("no holder panics");
        let connections = table.get(name).map_or(0, |export| export.connections());
        if connections > 0 {
            let what = format!("export {name} is in use by {connections} connection(s)");
            return Err(Error::new(ErrorKind::Busy, what));
        }
        table.remove(name);
        Ok(())
    }

    /// Makes the exports of a live volume that has grown show `grown` to connections that attach from now on.
    pub fn grow(&self, grown: &Arc<dyn Target>) {
        let instant = grown.instant();
        let mut table = self.0.write().expect("no holder panics");
        for export in table.values_mut() {
            if instant.is_some() && export.target.instant() == instant {
                let target = Arc::clone(grown);
                let (name, description) = (export.name.clone(), export.description.clone());
                let connections = Arc::clone(&export.connections);
                let hidden = export.hidden;
                *export = Arc::new(Export { name, description, target, hidden, connections });
            }
        }
    }

    /// Removes every export, attached or not: the engine is stopping, and attached connections get ESHUTDOWN.
    pub fn clear(&self) {
        self.0.write().expect("no holder panics").clear();
    }

    /// The export of this name; for the empty name see EP2.
    pub fn find(&self, name: &str) -> Option<Arc<Export>> {
        find_in(&self.0.read().expect("no holder panics"), name).cloned()
    }

    /// Attaches to the export that [`ExportTable::find`] returns for this name.
    pub fn attach(&self, name: &str) -> Option<Attachment> {
        // The count goes up under the read lock, so that `remove`, under the write lock, sees it (EP1).
        let table = self.0.read().expect("no holder panics");
        let export = find_in(&table, name)?;
        export.connections.fetch_add(1, Ordering::AcqRel);
        Some(Attachment(Arc::clone(export)))
    }

    /// The exports of the snapshots of `export`'s volume that are older than what it shows, by name.
    pub fn older(&self, export: &Export) -> Vec<Arc<Export>> {
        let prefix = format!("{}@", volume_of(&export.name));
        let table = self.0.read().expect("no holder panics");
        let ours = table.range(prefix.clone()..).take_while(|(name, _)| name.starts_with(&prefix));
        ours.filter(|(_, other)| is_older(other, export))
            .map(|(_, other)| Arc::clone(other))
            .collect()
    }

    /// The one of these that shows the snapshot of this name.
    pub fn older_named(&self, export: &Export, snapshot: &str) -> Option<Arc<Export>> {
        let other = self.find(&format!("{}@{snapshot}", volume_of(&export.name)))?;
        is_older(&other, export).then_some(other)
    }

    /// The name of an export that shows this volume, live or at the snapshot of this epoch, if there is one.
    pub fn shows(&self, volume: VolumeId, epoch: Option<Epoch>) -> Option<String> {
        let table = self.0.read().expect("no holder panics");
        let mut shows =
            table.values().filter(|export| export.target.instant() == Some((volume, epoch)));
        shows.next().map(|export| export.name.clone())
    }

    /// Every export that is not hidden, by name.
    pub fn listed(&self) -> Vec<Arc<Export>> {
        self.list().into_iter().filter(|export| !export.hidden).collect()
    }

    /// Every export, by name, including the hidden ones.
    pub fn list(&self) -> Vec<Arc<Export>> {
        self.0.read().expect("no holder panics").values().cloned().collect()
    }
}

fn volume_of(export: &str) -> &str {
    export.split_once('@').map_or(export, |(volume, _)| volume)
}

/// Whether `other` is a snapshot of the same volume, older than what `export` shows.
fn is_older(other: &Export, export: &Export) -> bool {
    match (other.target.instant(), export.target.instant()) {
        (Some((volume, Some(other))), Some((same, shown))) => {
            volume == same && shown.is_none_or(|shown| other < shown)
        }
        _ => false,
    }
}

fn find_in<'a>(table: &'a BTreeMap<String, Arc<Export>>, name: &str) -> Option<&'a Arc<Export>> {
    if !name.is_empty() {
        return table.get(name);
    }
    let mut writable = table.values().filter(|export| !export.hidden && !export.target.read_only());
    match (writable.next(), writable.next()) {
        (Some(only), None) => Some(only),
        _ => None,
    }
}
