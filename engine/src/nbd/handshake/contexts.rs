//! Metadata contexts: which an export offers, which a client asks about, which it selects.
//!
//! How it works      `base:allocation`, and `qemu:dirty-bitmap:A` for each older snapshot A of the export's volume. A
//!                   list of them can be as long as the volume has snapshots, so it is sent piece by piece. Selected
//!                   snapshots are stored by name, and attached to when the handshake ends (HN3).
//! Invariants        CX1 a snapshot that a connection compares with cannot be deleted: the connection is attached to
//!                   it.
//! Errors            more than [`SELECTED_MAX`] contexts at once: ERR_TOO_BIG; a snapshot that was deleted after it was
//!                   selected: ERR_UNKNOWN.

use std::sync::Arc;

use super::options::{MALFORMED, NO_STRUCTURE, Refusal, TOO_MANY_LISTS, find};
use super::{Context, Handshake, LISTS_MAX, Listing, STEP_BYTES_MAX, Selection};
use crate::limits::NAME_BYTES_MAX;
use crate::nbd::wire::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, CHANGED_SINCE, CHANGED_SINCE_ID,
    OPTION_REPLY_HEADER_BYTES, option, option_reply, take_string, take_u32,
};
use crate::request::Contexts;
use crate::units::Epoch;
use crate::volume::export::{Attachment, Export, ExportTable};

/// Snapshots that one connection can compare with.
pub const SELECTED_MAX: usize = 16;

/// Longest name of a context, bytes; snapshots whose context would have a longer one are not offered.
const NAME_MAX: usize = 256;

// All contexts that can be selected fit into what one step may add to the output.
const _: () =
    assert!((SELECTED_MAX + 2) * (OPTION_REPLY_HEADER_BYTES + 4 + NAME_MAX) <= STEP_BYTES_MAX);

const NAMESPACE: &str = "base:";
const QEMU_NAMESPACE: &str = "qemu:";
const TOO_MANY: Refusal = Refusal(option_reply::ERR_TOO_BIG, "too many contexts were selected");
const SNAPSHOT_GONE: Refusal =
    Refusal(option_reply::ERR_UNKNOWN, "a snapshot that was selected is gone");

impl Selection {
    /// The selection that a host made at another process; the error is that a snapshot is gone.
    pub fn again(
        exports: &ExportTable,
        export: &Export,
        contexts: Contexts,
    ) -> Result<Selection, ()> {
        let older = exports.older(export);
        let attached = |epoch: &Epoch| {
            let is = |one: &&Arc<Export>| {
                one.target.instant().is_some_and(|(_, shown)| shown == Some(*epoch))
            };
            exports.attach(&older.iter().find(is)?.name)
        };
        let held: Option<Vec<Attachment>> = contexts.since.iter().map(attached).collect();
        Ok(Selection { held: held.ok_or(())?, contexts: Arc::new(contexts) })
    }
}

/// What was selected for an export: valid for this export, until the next selection.
pub(super) struct Selected {
    export: String,
    allocation: bool,
    /// Exports of snapshots.
    since: Vec<String>,
}

impl Handshake {
    pub(super) fn list_meta_context(
        &mut self,
        data: &[u8],
        context: Context,
    ) -> Result<(), Refusal> {
        if !self.structured {
            return Err(NO_STRUCTURE);
        }
        let queries = Queries::parse(data)?;
        let export = find(queries.export, context)?;
        let older = if queries.all_since {
            if self.lists >= LISTS_MAX {
                return Err(TOO_MANY_LISTS);
            }
            self.lists += 1;
            context.exports.older(&export)
        } else {
            queries.named(&export, context)
        };
        if queries.all_base || queries.allocation {
            self.allocation(option::LIST_META_CONTEXT, 0);
        }
        self.listing =
            Some(Listing { option: option::LIST_META_CONTEXT, exports: older.into_iter() });
        Ok(())
    }

    pub(super) fn set_meta_context(
        &mut self,
        data: &[u8],
        context: Context,
    ) -> Result<(), Refusal> {
        self.selected = None;
        if !self.structured {
            return Err(NO_STRUCTURE);
        }
        let queries = Queries::parse(data)?;
        let export = find(queries.export, context)?;
        let since = queries.named(&export, context);
        if since.len() > SELECTED_MAX {
            return Err(TOO_MANY);
        }
        if queries.allocation {
            self.allocation(option::SET_META_CONTEXT, BASE_ALLOCATION_ID);
        }
        for (id, snapshot) in (CHANGED_SINCE_ID..).zip(&since) {
            self.changed_since(option::SET_META_CONTEXT, id, snapshot);
        }
        self.reply(option::SET_META_CONTEXT, option_reply::ACK, &[]);
        if queries.allocation || !since.is_empty() {
            let since = since.iter().map(|snapshot| snapshot.name.clone()).collect();
            let (export, allocation) = (export.name.clone(), queries.allocation);
            self.selected = Some(Selected { export, allocation, since });
        }
        Ok(())
    }

    /// What was selected for `export`, with an attachment to each snapshot (CX1).
    pub(super) fn selected_for(
        &self,
        export: &Attachment,
        context: Context,
    ) -> Result<Option<Selection>, Refusal> {
        let Some(selected) = self.selected.as_ref().filter(|one| one.export == export.name) else {
            return Ok(None);
        };
        let mut contexts = Contexts { allocation: selected.allocation, since: Vec::new() };
        let mut held: Vec<Attachment> = Vec::new();
        for name in &selected.since {
            let snapshot = context.exports.attach(name).ok_or(SNAPSHOT_GONE)?;
            let (_, epoch) = snapshot.target.instant().ok_or(SNAPSHOT_GONE)?;
            contexts.since.push(epoch.ok_or(SNAPSHOT_GONE)?);
            held.push(snapshot);
        }
        Ok(Some(Selection { contexts: Arc::new(contexts), held }))
    }

    fn allocation(&mut self, number: u32, id: u32) {
        let parts = [&id.to_be_bytes()[..], BASE_ALLOCATION.as_bytes()];
        self.reply(number, option_reply::META_CONTEXT, &parts);
    }

    /// Sends the context that compares with a snapshot.
    pub(super) fn changed_since(&mut self, number: u32, id: u32, snapshot: &Export) {
        let name = snapshot.snapshot().unwrap_or_default();
        if CHANGED_SINCE.len() + name.len() <= NAME_MAX {
            let parts = [&id.to_be_bytes()[..], CHANGED_SINCE.as_bytes(), name.as_bytes()];
            self.reply(number, option_reply::META_CONTEXT, &parts);
        }
    }
}

/// The payload of the two options about metadata contexts.
struct Queries<'a> {
    export: &'a [u8],
    /// All of `base:` was queried.
    all_base: bool,
    /// `base:allocation` was queried.
    allocation: bool,
    /// All of `qemu:` or `qemu:dirty-bitmap:` was queried.
    all_since: bool,
    /// Snapshots that were queried, each once.
    since: Vec<&'a str>,
}

impl Queries<'_> {
    fn parse(data: &[u8]) -> Result<Queries<'_>, Refusal> {
        let mut rest = data;
        let export = take_string(&mut rest).ok_or(MALFORMED)?;
        let count = take_u32(&mut rest).ok_or(MALFORMED)?;
        let all = count == 0;
        let mut queries =
            Queries { export, all_base: all, allocation: false, all_since: all, since: Vec::new() };
        // Each query takes at least 4 bytes, so the loop ends with the data, even if the count is wrong.
        for _ in 0..count {
            let query = take_string(&mut rest).ok_or(MALFORMED)?;
            if query.len() > NAME_BYTES_MAX {
                return Err(MALFORMED);
            }
            // No context has a name that is not UTF-8.
            let Ok(query) = std::str::from_utf8(query) else { continue };
            queries.all_base |= query == NAMESPACE;
            queries.allocation |= query == BASE_ALLOCATION;
            queries.all_since |= query == QEMU_NAMESPACE || query == CHANGED_SINCE;
            let snapshot = query.strip_prefix(CHANGED_SINCE).filter(|name| !name.is_empty());
            let snapshot = snapshot.filter(|_| query.len() <= NAME_MAX);
            queries.since.extend(snapshot);
        }
        queries.since.sort_unstable();
        queries.since.dedup();
        if rest.is_empty() { Ok(queries) } else { Err(MALFORMED) }
    }

    /// The exports of the older snapshots that were queried.
    fn named(&self, export: &Export, context: Context) -> Vec<Arc<Export>> {
        self.since.iter().filter_map(|name| context.exports.older_named(export, name)).collect()
    }
}
