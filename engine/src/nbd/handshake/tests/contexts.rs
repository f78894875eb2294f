//! The contexts that show what changed since a snapshot: which are offered, selected, refused, attached to.

use std::sync::Arc;

use super::{drive, go_data, kinds, option_with, past_client_flags, queries, replies};
use crate::nbd::handshake::contexts::SELECTED_MAX;
use crate::nbd::handshake::{LISTS_MAX, Step};
use crate::nbd::wire::{option, option_reply};
use crate::request::{Request, Target};
use crate::units::{Epoch, VolumeId};
use crate::volume::export::ExportTable;

struct At(VolumeId, Option<Epoch>);

impl Target for At {
    fn size(&self) -> u64 {
        4096
    }
    fn read_only(&self) -> bool {
        self.1.is_some()
    }
    fn instant(&self) -> Option<(VolumeId, Option<Epoch>)> {
        Some((self.0, self.1))
    }
    fn submit(&self, _: &mut Vec<Arc<Request>>) {
        unreachable!("nothing is submitted here")
    }
}

/// Volume `v` with snapshots `s1` to `sN`, and one `w` with its own `s1`.
fn table(snapshots: u64) -> ExportTable {
    let table = ExportTable::default();
    table.add("v", "", Arc::new(At(1, None))).expect("new");
    for epoch in 1..=snapshots {
        table.add(&format!("v@s{epoch}"), "", Arc::new(At(1, Some(epoch)))).expect("new");
    }
    table.add("w", "", Arc::new(At(2, None))).expect("new");
    table.add("w@s1", "", Arc::new(At(2, Some(1)))).expect("new");
    table
}

fn structured() -> Vec<u8> {
    option_with(option::STRUCTURED_REPLY, &[])
}

/// The names of the contexts that are sent, with their ids.
fn contexts_in_reply(table: &ExportTable, number: u32, data: &[u8]) -> Vec<(u32, String)> {
    let bytes = [structured(), option_with(number, data)].concat();
    let (out, _) = drive(&mut past_client_flags(table), table, &bytes, 1000);
    let all = replies(&out);
    assert_eq!(all.last().map(|(_, kind, _)| *kind), Some(option_reply::ACK));
    let contexts = all.iter().filter(|(_, kind, _)| *kind == option_reply::META_CONTEXT);
    contexts
        .map(|(_, _, data)| {
            let id = u32::from_be_bytes(data[..4].try_into().expect("4 bytes"));
            (id, String::from_utf8(data[4..].to_vec()).expect("text"))
        })
        .collect()
}

fn names(contexts: &[(u32, String)]) -> Vec<&str> {
    contexts.iter().map(|(_, name)| name.as_str()).collect()
}

#[test]
fn an_export_offers_its_allocation_and_each_older_snapshot_of_its_volume() {
    let table = table(3);
    let list = |export: &[u8], asked: &[&[u8]]| {
        contexts_in_reply(&table, option::LIST_META_CONTEXT, &queries(export, asked))
    };
    let since = ["qemu:dirty-bitmap:s1", "qemu:dirty-bitmap:s2", "qemu:dirty-bitmap:s3"];
    assert_eq!(names(&list(b"v", &[])), [&["base:allocation"], &since[..]].concat());
    assert_eq!(names(&list(b"v", &[b"qemu:"])), since);
    assert_eq!(names(&list(b"v", &[b"qemu:dirty-bitmap:"])), since);
    assert_eq!(names(&list(b"v@s3", &[b"qemu:"])), since[..2]);
    assert!(list(b"v@s1", &[b"qemu:"]).is_empty());
    assert_eq!(names(&list(b"w", &[b"qemu:"])), since[..1]);
    assert_eq!(names(&list(b"v@s2", &[b"qemu:dirty-bitmap:s1"])), since[..1]);
    for unknown in [&b"qemu:dirty-bitmap:s2"[..], b"qemu:dirty-bitmap:s9", b"qemu:dirty", b"\xff"] {
        assert!(list(b"v@s2", &[unknown]).is_empty());
    }
}

#[test]
fn only_complete_names_select_and_each_selection_has_its_number() {
    let table = table(3);
    let set = |asked: &[&[u8]]| {
        contexts_in_reply(&table, option::SET_META_CONTEXT, &queries(b"v@s3", asked))
    };
    assert!(set(&[]).is_empty());
    assert!(set(&[b"qemu:", b"base:", b"qemu:dirty-bitmap:"]).is_empty());
    let chosen = set(&[b"qemu:dirty-bitmap:s2", b"base:allocation", b"qemu:dirty-bitmap:s1"]);
    let mut ids: Vec<u32> = chosen.iter().map(|(id, _)| *id).collect();
    ids.dedup();
    assert_eq!(ids, [1, 2, 3]);
    // The same name twice is one context.
    assert_eq!(set(&[b"qemu:dirty-bitmap:s2", b"qemu:dirty-bitmap:s2"]).len(), 1);
}

#[test]
fn a_connection_holds_the_snapshots_that_it_compares_with() {
    let table = table(2);
    let select = queries(b"v", &[b"qemu:dirty-bitmap:s1"]);
    let before = [structured(), option_with(option::SET_META_CONTEXT, &select)].concat();
    let mut handshake = past_client_flags(&table);
    drive(&mut handshake, &table, &before, 1000);
    assert!(table.find("v@s1").is_some_and(|export| export.connections() == 0), "HN3");
    let (_, step) = drive(&mut handshake, &table, &option_with(option::GO, &go_data(b"v")), 1000);
    let Step::Done(agreement) = step else { panic!("the handshake is not done") };
    let contexts = &agreement.selection.as_ref().expect("selected").contexts;
    assert!(!contexts.allocation && contexts.since == [1]);
    assert!(table.remove("v@s1").is_err(), "CX1");
    drop(agreement);
    table.remove("v@s1").expect("it is not attached");
}

#[test]
fn go_fails_if_a_selected_snapshot_is_gone() {
    let table = table(2);
    let select = queries(b"v", &[b"qemu:dirty-bitmap:s1"]);
    let before = [structured(), option_with(option::SET_META_CONTEXT, &select)].concat();
    let mut handshake = past_client_flags(&table);
    drive(&mut handshake, &table, &before, 1000);
    table.remove("v@s1").expect("it is not attached");
    let (out, step) = drive(&mut handshake, &table, &option_with(option::GO, &go_data(b"v")), 1000);
    assert!(matches!(step, Step::More));
    assert_eq!(kinds(&out), [option_reply::ERR_UNKNOWN]);
    // The client may continue without it.
    let again = [
        option_with(option::SET_META_CONTEXT, &queries(b"v", &[])),
        option_with(option::GO, &go_data(b"v")),
    ];
    let (_, step) = drive(&mut handshake, &table, &again.concat(), 1000);
    assert!(matches!(step, Step::Done(agreement) if agreement.selection.is_none()));
}

#[test]
fn selections_and_lists_are_bounded() {
    let table = table(5000);
    let names: Vec<String> = (1..=17).map(|n| format!("qemu:dirty-bitmap:s{n}")).collect();
    let asked: Vec<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
    let refused = |asked: &[&[u8]]| {
        let set = option_with(option::SET_META_CONTEXT, &queries(b"v", asked));
        let bytes = [structured(), set].concat();
        kinds(&drive(&mut past_client_flags(&table), &table, &bytes, 1000).0).pop()
    };
    assert_eq!(refused(&asked), Some(option_reply::ERR_TOO_BIG));
    assert_eq!(refused(&asked[..SELECTED_MAX]), Some(option_reply::ACK));
    // A list of 5000 is sent piece by piece (`drive` asserts HN2), at most LISTS_MAX times.
    let list = option_with(option::LIST_META_CONTEXT, &queries(b"v", &[b"qemu:"]));
    let lists = list.repeat(LISTS_MAX as usize + 1);
    let (out, _) =
        drive(&mut past_client_flags(&table), &table, &[structured(), lists].concat(), 1000);
    let kinds = kinds(&out);
    let sent = kinds.iter().filter(|kind| **kind == option_reply::META_CONTEXT).count();
    assert_eq!(sent, 5000 * LISTS_MAX as usize);
    assert_eq!(kinds.last(), Some(&option_reply::ERR_POLICY));
}
