//! Tests of the handshake as a state machine: for any input, the output is bounded and no more than an option is
//! consumed.

mod contexts;

use std::sync::Arc;

use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop, prop_assert, prop_oneof, proptest,
};

use crate::nbd::handshake::{
    Context, FEED_BYTES_MAX, Handshake, INPUT_BYTES_MAX, OPTION_BYTES_MAX, OPTIONS_MAX,
    OUTPUT_BYTES_MAX, SKIPPED_BYTES_MAX, Step,
};
use crate::nbd::wire::{OPTION_MAGIC, option, option_reply, take_string, take_u32, take_u64};
use crate::request::{Request, Target};
use crate::volume::export::ExportTable;

struct Nothing(u64);

impl Target for Nothing {
    fn size(&self) -> u64 {
        self.0
    }
    fn read_only(&self) -> bool {
        false
    }
    fn submit(&self, _batch: &mut Vec<Arc<Request>>) {}
}

fn exports(count: usize) -> ExportTable {
    let table = ExportTable::default();
    for index in 0..count {
        let name = if index == 0 { "v".to_owned() } else { format!("v@{index}") };
        table.add(&name, "a volume", Arc::new(Nothing(4096))).expect("names differ");
    }
    table
}

fn string(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("short");
    [&length.to_be_bytes()[..], bytes].concat()
}

fn header(number: u32, length: u32) -> Vec<u8> {
    let magic = OPTION_MAGIC.to_be_bytes();
    [&magic[..], &number.to_be_bytes(), &length.to_be_bytes()].concat()
}

fn option_with(number: u32, data: &[u8]) -> Vec<u8> {
    [header(number, u32::try_from(data.len()).expect("short")), data.to_vec()].concat()
}

fn go_data(name: &[u8]) -> Vec<u8> {
    [string(name), vec![0, 2, 0, 1, 0, 2]].concat()
}

fn queries(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let count = u32::try_from(queries.len()).expect("few");
    let mut data = [string(name), count.to_be_bytes().to_vec()].concat();
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

/// Feeds all of `bytes` in pieces of `piece`, taking the output each time; returns the output and the last step.
fn drive(
    handshake: &mut Handshake,
    table: &ExportTable,
    bytes: &[u8],
    piece: usize,
) -> (Vec<u8>, Step) {
    let context = Context { exports: table, full: false };
    let mut out = Vec::new();
    let mut take = |handshake: &mut Handshake| {
        assert!(handshake.output().len() <= OUTPUT_BYTES_MAX, "HN2: too much output");
        out.extend_from_slice(handshake.output());
        handshake.sent(handshake.output().len());
    };
    take(handshake);
    for piece in bytes.chunks(piece.min(FEED_BYTES_MAX)) {
        let mut step = handshake.feed(piece, context);
        loop {
            assert!(handshake.input.len() <= INPUT_BYTES_MAX, "HN2: too much input");
            let idle = handshake.output().is_empty();
            take(handshake);
            if !matches!(step, Step::More) {
                return (out, step);
            }
            if idle {
                break;
            }
            step = handshake.feed(&[], context);
        }
    }
    (out, Step::More)
}

/// A handshake past the client's flags.
fn past_client_flags(table: &ExportTable) -> Handshake {
    let mut handshake = Handshake::new();
    let (greeting, _) = drive(&mut handshake, table, &[0, 0, 0, 3], 4);
    assert_eq!(greeting, [&b"NBDMAGICIHAVEOPT"[..], &[0, 3]].concat());
    handshake
}

/// The replies in `out`: option, kind, payload. Fails if they do not end where `out` ends.
fn replies(mut out: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut found = Vec::new();
    while !out.is_empty() {
        assert_eq!(take_u64(&mut out), Some(crate::nbd::wire::OPTION_REPLY_MAGIC));
        let number = take_u32(&mut out).expect("whole");
        let kind = take_u32(&mut out).expect("whole");
        found.push((number, kind, take_string(&mut out).expect("whole").to_vec()));
    }
    found
}

fn kinds(out: &[u8]) -> Vec<u32> {
    replies(out).into_iter().map(|(_, kind, _)| kind).collect()
}

#[test]
fn each_option_is_answered_and_go_leaves_the_rest_alone() {
    let table = exports(3);
    for piece in [1, 7, 4096] {
        let mut handshake = past_client_flags(&table);
        let bytes = [
            option_with(option::STARTTLS, &[]),
            option_with(12345, b"whatever"),
            option_with(option::SET_META_CONTEXT, &queries(b"v", &[b"base:allocation"])),
            option_with(option::STRUCTURED_REPLY, &[]),
            option_with(option::STRUCTURED_REPLY, &[1]),
            option_with(option::LIST_META_CONTEXT, &queries(b"v", &[])),
            option_with(option::LIST_META_CONTEXT, &queries(b"v", &[b"x:y"])),
            option_with(option::SET_META_CONTEXT, &queries(b"nobody", &[b"base:allocation"])),
            option_with(option::SET_META_CONTEXT, &queries(b"", &[b"x", b"base:allocation"])),
            option_with(option::LIST, &[]),
            option_with(option::INFO, &go_data(b"v@2")),
            option_with(option::GO, &go_data(b"nobody")),
            option_with(option::SET_META_CONTEXT, &queries(b"v", &[b"base:allocation"])),
            option_with(option::GO, &go_data(b"v")),
        ]
        .concat();
        let (out, step) = drive(&mut handshake, &table, &[&bytes[..], b"rest"].concat(), piece);
        use option_reply::{ACK, ERR_INVALID, ERR_UNKNOWN, ERR_UNSUP, INFO, META_CONTEXT, SERVER};
        let wanted = [
            vec![ERR_UNSUP, ERR_UNSUP, ERR_INVALID, ACK, ERR_INVALID, META_CONTEXT, ACK, ACK],
            // The empty name means no export while there are several writable ones.
            vec![ERR_UNKNOWN, ERR_UNKNOWN, SERVER, SERVER, SERVER, ACK],
            vec![INFO, INFO, INFO, INFO, ACK, ERR_UNKNOWN, META_CONTEXT, ACK],
            vec![INFO, INFO, INFO, INFO, ACK],
        ];
        assert_eq!(kinds(&out), wanted.concat());
        let Step::Done(agreement) = step else { panic!("the handshake is not done") };
        assert!(agreement.structured && agreement.selection.is_some());
        assert_eq!(agreement.attachment.name, "v");
        assert!(b"rest".starts_with(&agreement.rest[..]));
    }
}

#[test]
fn a_context_selected_for_another_export_does_not_count() {
    let table = exports(2);
    let mut handshake = past_client_flags(&table);
    let bytes = [
        option_with(option::STRUCTURED_REPLY, &[]),
        option_with(option::SET_META_CONTEXT, &queries(b"v", &[b"base:allocation"])),
        option_with(option::GO, &go_data(b"v@1")),
    ];
    let (_, step) = drive(&mut handshake, &table, &bytes.concat(), 100);
    let Step::Done(agreement) = step else { panic!("the handshake is not done") };
    assert!(agreement.selection.is_none());
}

#[test]
fn export_name_gives_size_and_flags_and_zeroes_if_wanted() {
    let table = exports(1);
    for (flags, length) in [(1_u8, 8 + 2 + 124), (3, 8 + 2), (0, 8 + 2 + 124)] {
        let mut handshake = Handshake::new();
        let bytes = [vec![0, 0, 0, flags], option_with(option::EXPORT_NAME, b"")].concat();
        let (out, step) = drive(&mut handshake, &table, &bytes, 4096);
        assert!(matches!(step, Step::Done(_)));
        assert_eq!(out.len(), 18 + length);
    }
    for bytes in [option_with(option::EXPORT_NAME, b"nobody"), header(option::EXPORT_NAME, 4097)] {
        let (out, step) = drive(&mut past_client_flags(&table), &table, &bytes, 4096);
        assert!(out.is_empty() && matches!(step, Step::Close));
    }
}

#[test]
fn lengths_that_do_not_add_up_are_refused_and_exactly_consumed() {
    let table = exports(1);
    let long = vec![b'x'; 5000];
    let mut overlong_query = queries(b"v", &[]);
    overlong_query.truncate(5);
    overlong_query.extend([0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
    let many = [string(b"v"), vec![0xff; 4]].concat();
    let bad: Vec<(u32, Vec<u8>)> = vec![
        (option::GO, vec![]),
        (option::GO, vec![0xff; 4]),
        (option::GO, [vec![0xff; 4], vec![0; 100]].concat()),
        (option::GO, [string(b"v"), vec![0xff, 0xff]].concat()),
        (option::GO, [go_data(b"v"), vec![0]].concat()),
        (option::GO, go_data(&long)),
        (option::INFO, go_data(&[0xc3, 0x28])),
        (option::LIST, vec![0]),
        (option::LIST_META_CONTEXT, overlong_query.clone()),
        (option::SET_META_CONTEXT, overlong_query),
        (option::SET_META_CONTEXT, many),
        (option::SET_META_CONTEXT, queries(b"v", &[&long])),
        (option::SET_META_CONTEXT, [queries(b"v", &[b"base:"]), vec![9]].concat()),
    ];
    for (number, data) in bad {
        let bytes = [
            option_with(option::STRUCTURED_REPLY, &[]),
            option_with(number, &data),
            option_with(option::GO, &go_data(b"v")),
        ];
        let (out, step) = drive(&mut past_client_flags(&table), &table, &bytes.concat(), 333);
        assert_eq!(kinds(&out)[1], option_reply::ERR_INVALID, "option {number}: {data:?}");
        assert!(matches!(step, Step::Done(_)), "HN1: option {number}: {data:?}");
    }
}

#[test]
fn too_long_options_are_skipped_up_to_a_limit() {
    let table = exports(1);
    let length = OPTION_BYTES_MAX + 1;
    let mut handshake = past_client_flags(&table);
    let bytes = [option_with(option::GO, &vec![7; length]), option_with(option::ABORT, &[])];
    let (out, step) = drive(&mut handshake, &table, &bytes.concat(), 999);
    assert_eq!(kinds(&out), [option_reply::ERR_TOO_BIG, option_reply::ACK]);
    assert!(matches!(step, Step::Close));
    for number in 0..14 {
        let (out, step) =
            drive(&mut past_client_flags(&table), &table, &header(number, u32::MAX), 16);
        assert!(out.is_empty() && matches!(step, Step::Close), "option {number}");
    }
    let many = option_with(99, &vec![7; length]).repeat(SKIPPED_BYTES_MAX as usize / length + 1);
    let (_, step) = drive(&mut past_client_flags(&table), &table, &many, FEED_BYTES_MAX);
    assert!(matches!(step, Step::Close));
}

#[test]
fn a_long_list_is_made_piece_by_piece_and_lists_and_options_are_counted() {
    let table = exports(3000);
    let (out, _) =
        drive(&mut past_client_flags(&table), &table, &option_with(option::LIST, &[]), 16);
    assert_eq!(kinds(&out).len(), 3001);
    let table = exports(1);
    let (out, _) = drive(
        &mut past_client_flags(&table),
        &table,
        &option_with(option::LIST, &[]).repeat(17),
        99,
    );
    assert_eq!(kinds(&out).last(), Some(&option_reply::ERR_POLICY));
    let many = option_with(99, &[]).repeat(OPTIONS_MAX as usize + 1);
    let (_, step) = drive(&mut past_client_flags(&table), &table, &many, FEED_BYTES_MAX);
    assert!(matches!(step, Step::Close));
}

#[test]
fn a_hidden_export_is_found_by_its_name_alone() {
    let table = ExportTable::default();
    table.add_hidden("v@restore:7", "a volume", Arc::new(Nothing(4096))).expect("it is the first");
    let kinds_of = |number: u32, data: &[u8]| {
        let mut handshake = past_client_flags(&table);
        let (out, _) = drive(&mut handshake, &table, &option_with(number, data), FEED_BYTES_MAX);
        kinds(&out)
    };
    assert_eq!(kinds_of(option::LIST, &[]), [option_reply::ACK]);
    for name in [&b""[..], b"v", b"v@restore:"] {
        assert_eq!(kinds_of(option::GO, &go_data(name)), [option_reply::ERR_UNKNOWN]);
    }
    assert_eq!(kinds_of(option::GO, &go_data(b"v@restore:7")).last(), Some(&option_reply::ACK));
    // The empty name still means the only listed export.
    table.add("w", "a volume", Arc::new(Nothing(4096))).expect("names differ");
    let mut handshake = past_client_flags(&table);
    let (out, _) = drive(&mut handshake, &table, &option_with(option::LIST, &[]), FEED_BYTES_MAX);
    assert_eq!(kinds(&out), [option_reply::SERVER, option_reply::ACK]);
    assert_eq!(table.find("").expect("there is one").name, "w");
    table.remove("v@restore:7").expect("it is not attached");
    assert!(table.find("v@restore:7").is_none());
}

#[test]
fn a_full_server_says_so() {
    let table = exports(1);
    let context = Context { exports: &table, full: true };
    let mut handshake = past_client_flags(&table);
    let step = handshake.feed(&option_with(option::GO, &go_data(b"v")), context);
    assert!(matches!(step, Step::More));
    assert_eq!(kinds(handshake.output()), [option_reply::ERR_POLICY]);
}

/// An option that may be valid, mutated or random.
fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let name =
        prop_oneof![Just(b"v".to_vec()), Just(vec![]), prop::collection::vec(any::<u8>(), 0..50)];
    let valid = (0_u32..14, name, 0_usize..4).prop_map(|(number, name, shape)| {
        let data = match shape {
            0 => vec![],
            1 => go_data(&name),
            2 => queries(&name, &[b"base:allocation", b"base:"]),
            _ => name,
        };
        option_with(number, &data)
    });
    (valid, prop::option::of((any::<prop::sample::Index>(), any::<u8>()))).prop_map(
        |(mut bytes, flip)| {
            if let Some((index, value)) = flip {
                let at = index.index(bytes.len());
                bytes[at] = value;
            }
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_bytes_cause_no_panic_and_bounded_output(
        flags in any::<u32>(),
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        piece in 1_usize..600,
    ) {
        let table = exports(2);
        let bytes = [&flags.to_be_bytes()[..], &bytes].concat();
        let (out, _) = drive(&mut Handshake::new(), &table, &bytes, piece);
        prop_assert!(out.len() >= 18);
    }

    #[test]
    fn mutated_options_give_the_same_output_in_pieces_of_any_size(
        options in prop::collection::vec(any_option(), 0..12),
        piece in 1_usize..40,
    ) {
        let table = exports(2);
        let bytes = [vec![0, 0, 0, 3], options.concat()].concat();
        let (whole, whole_step) = drive(&mut Handshake::new(), &table, &bytes, FEED_BYTES_MAX);
        let (pieces, pieces_step) = drive(&mut Handshake::new(), &table, &bytes, piece);
        prop_assert!(whole == pieces);
        prop_assert!(std::mem::discriminant(&whole_step) == std::mem::discriminant(&pieces_step));
        if !matches!(whole_step, Step::Done(_)) {
            replies(&whole[18..]);
        }
    }
}
