//! The transmission phase: what requests do, which are refused and how, and how connections end.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::nbd_support::{
    BLOCK_STATUS, CACHE, Client, DISC, FLUSH, MIB, Memory, READ, TRIM, WRITE, WRITE_ZEROES, Way,
    go_data, option_bytes, request_bytes, serve, wait_until,
};
use polyvol_engine::error::Errno;
use polyvol_engine::request::Verb;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn random_reads_and_writes_agree_with_a_reference() {
    for (way, structured) in
        [(Way::Inline, true), (Way::Inline, false), (Way::Later, true), (Way::Later, false)]
    {
        let served = serve(Memory::new(2 * MIB, 2 << 20, way));
        let mut client = served.go(structured);
        let mut reference = vec![0_u8; 2 << 20];
        let mut seed = 42 + u64::from(structured);
        for cookie in 0..200 {
            let length = 1 + (random(&mut seed) % 200_000) as usize;
            let offset = (random(&mut seed) % (2 * MIB - length as u64)) as usize;
            let range = offset..offset + length;
            match random(&mut seed) % 4 {
                0 | 1 => {
                    let data: Vec<u8> = (0..length).map(|i| (i as u64 ^ seed) as u8).collect();
                    client.write(0, cookie, offset as u64, &data);
                    assert_eq!(client.reply().error, 0);
                    reference[range].copy_from_slice(&data);
                }
                2 => {
                    client.request(0, WRITE_ZEROES, cookie, offset as u64, length as u32);
                    assert_eq!(client.reply().error, 0);
                    reference[range].fill(0);
                }
                _ => {
                    client.request(0, READ, cookie, offset as u64, length as u32);
                    let reply = client.reply_of(|_| length);
                    assert_eq!((reply.cookie, reply.error), (cookie, 0));
                    assert!(reply.data == reference[range], "at {offset}, {length} bytes");
                }
            }
        }
    }
}

#[test]
fn many_requests_at_once_are_each_answered_once_in_any_order() {
    const SLOT: usize = 40_000;
    for way in [Way::Inline, Way::Later] {
        let served = serve(Memory::new(32 * MIB, 32 << 20, way));
        let mut client = served.go(true);
        let mut writer = client.stream.try_clone().unwrap();
        // Payloads below and above the limit of the inbox, and more than the inbox holds at once.
        let length_of = |slot: u64| {
            if slot.is_multiple_of(3) { SLOT } else { 1 + (slot as usize * 97) % 20_000 }
        };
        for command in [WRITE, READ] {
            let sender = std::thread::spawn({
                let mut writer = writer.try_clone().unwrap();
                move || {
                    for slot in 0..700_u64 {
                        let (offset, length) = (slot * SLOT as u64, length_of(slot));
                        let mut bytes = request_bytes(0, command, slot, offset, length as u32);
                        if command == WRITE {
                            bytes.resize(bytes.len() + length, slot as u8);
                        }
                        writer.write_all(&bytes).unwrap();
                    }
                }
            });
            let mut answered = vec![false; 700];
            for _ in 0..700 {
                let reply = client.reply();
                assert_eq!(reply.error, 0);
                assert!(!std::mem::replace(&mut answered[reply.cookie as usize], true));
                if command == READ {
                    assert_eq!(reply.data.len(), length_of(reply.cookie));
                    assert!(reply.data.iter().all(|byte| *byte == reply.cookie as u8));
                }
            }
            sender.join().unwrap();
        }
        writer.write_all(&request_bytes(0, DISC, 0, 0, 0)).unwrap();
        assert!(client.is_closed());
        served.wait_empty();
    }
}

/// Sends a request that must be refused, then one that must not, and returns the first one's error.
fn refused(client: &mut Client, flags: u16, command: u16, offset: u64, length: u32) -> u32 {
    client.request(flags, command, 5, offset, length);
    if command == WRITE {
        client.stream.write_all(&vec![0xee; length as usize]).unwrap();
    }
    let reply = client.reply();
    assert_eq!(reply.cookie, 5);
    client.request(0, READ, 6, 0, 8);
    let next = client.reply_of(|_| 8);
    assert_eq!((next.cookie, next.error), (6, 0), "the stream is lost");
    assert_eq!(next.data, [0; 8], "a refused write was done");
    reply.error
}

#[test]
fn bad_requests_are_refused_and_their_payload_is_consumed() {
    let served = serve(Memory::new(MIB, 1 << 20, Way::Inline));
    for structured in [true, false] {
        let mut client = served.go(structured);
        let mut check = |flags, command, offset, length, error| {
            let seen = refused(&mut client, flags, command, offset, length);
            assert_eq!(seen, error, "command {command} flags {flags} {offset}+{length}");
        };
        check(0, READ, MIB, 1, EINVAL);
        check(0, READ, MIB - 1, 2, EINVAL);
        check(0, READ, u64::MAX, 2, EINVAL);
        check(0, READ, 0, 0, EINVAL);
        check(0, READ, 0, u32::MAX, EINVAL);
        check(0, WRITE, MIB - 1, 2, ENOSPC);
        check(0, WRITE, u64::MAX - 3, 100_000, ENOSPC);
        check(0, WRITE, 0, 0, EINVAL);
        check(0, WRITE_ZEROES, MIB - 1, 2, ENOSPC);
        check(0, WRITE_ZEROES, 0, u32::MAX, ENOSPC);
        check(0, TRIM, MIB - 1, 2, EINVAL);
        check(0, TRIM, 0, 0, EINVAL);
        check(0, CACHE, MIB, 1, EINVAL);
        check(0, FLUSH, 0, 1, EINVAL);
        check(0, FLUSH, 1, 0, EINVAL);
        check(0, BLOCK_STATUS, MIB, 1, EINVAL);
        check(0, 8, 0, 512, EINVAL);
        check(0, u16::MAX, 0, 512, EINVAL);
        for flags in [1 << 1, 1 << 3, 1 << 4, 1 << 5, 1 << 15] {
            check(flags, READ, 0, 1, EINVAL);
            check(flags, WRITE, 0, 1, EINVAL);
            check(flags, FLUSH, 0, 0, EINVAL);
        }
        check(1 << 2, WRITE, 0, 1, EINVAL);
        check(1 << 2, WRITE_ZEROES, 0, 1, EINVAL);
        if !structured {
            check(1 << 2, READ, 0, 1, EINVAL);
            check(0, BLOCK_STATUS, 0, 1, EINVAL);
        }
    }
}

#[test]
fn a_large_write_is_refused_after_others_of_its_length_and_before_more() {
    let served = serve(Memory::new(MIB, 1 << 20, Way::Inline));
    for length in [64 << 10, 256 << 10] {
        let mut client = served.go(true);
        for (cookie, offset) in [0, 0, 0, MIB, 0, MIB - 512, MIB, 0].into_iter().enumerate() {
            client.write(0, cookie as u64, offset, &vec![cookie as u8 + 1; length]);
            let reply = client.reply();
            let expected = if offset == 0 { 0 } else { ENOSPC };
            assert_eq!((reply.cookie, reply.error), (cookie as u64, expected), "{length}");
        }
        // All at once, so that the next ones are received when the refused one is parsed.
        let all: Vec<u8> = [0, 0, 0, MIB, 0, 0]
            .into_iter()
            .enumerate()
            .flat_map(|(cookie, offset)| {
                let header = request_bytes(0, WRITE, cookie as u64, offset, length as u32);
                [header, vec![7; length]].concat()
            })
            .collect();
        client.send(&all);
        for _ in 0..6 {
            let reply = client.reply();
            assert_eq!(reply.error, if reply.cookie == 3 { ENOSPC } else { 0 });
        }
    }
    served.check_alive();
}

#[test]
fn a_read_only_export_refuses_every_write() {
    let served = serve(Memory::with(MIB, 1 << 20, Way::Inline, true));
    let mut client = served.go(true);
    for command in [WRITE, TRIM, WRITE_ZEROES] {
        assert_eq!(refused(&mut client, 0, command, 0, 70_000), EPERM);
    }
    for command in [FLUSH, CACHE] {
        client.request(0, command, 1, 0, if command == CACHE { 9 } else { 0 });
        assert_eq!(client.reply().error, 0);
    }
    let mut client = served.client();
    let replies = client.option(6, &go_data("v", &[]));
    let flags = u16::from_be_bytes(replies[0].1[10..12].try_into().unwrap());
    let wanted = 1 | 1 << 1 | 1 << 2 | 1 << 7 | 1 << 8 | 1 << 10;
    assert_eq!(flags, wanted);
}

#[test]
fn a_targets_error_reaches_the_host_as_the_protocols_error() {
    let memory = Memory::new(MIB, 1 << 20, Way::Inline);
    let served = serve(memory.clone());
    for structured in [true, false] {
        let mut client = served.go(structured);
        for (errno, code) in [
            (Errno::ENOSPC, ENOSPC),
            (Errno::EIO, EIO),
            (Errno::EPERM, EPERM),
            (Errno::ENOMEM, 12),
            (Errno::EINVAL, EINVAL),
            (Errno::EOVERFLOW, 75),
            (Errno::ENOTSUP, 95),
            (Errno::ESHUTDOWN, 108),
            (Errno::new(110), EIO),
        ] {
            *memory.fails.lock().unwrap() = Some(errno);
            client.write(0, 1, 0, &[1; 100]);
            assert_eq!(client.reply().error, code);
            client.request(0, READ, 2, 0, 100);
            assert_eq!(client.reply_of(|_| 100).error, code);
            client.request(0, FLUSH, 3, 0, 0);
            assert_eq!(client.reply().error, code);
        }
    }
}

#[test]
fn flags_reach_the_target() {
    let memory = Memory::new(MIB, 1 << 20, Way::Inline);
    let served = serve(memory.clone());
    let mut client = served.go(true);
    client.write(1, 1, 0, &[1; 10]);
    client.request(1, TRIM, 2, 0, 10);
    client.request(1 | 1 << 1 | 1 << 4, WRITE_ZEROES, 3, 0, 10);
    client.request(0, WRITE_ZEROES, 4, 0, 10);
    client.request(1, READ, 5, 0, 10);
    (0..5).for_each(|_| assert_eq!(client.reply().error, 0));
    let seen = memory.seen.lock().unwrap();
    let (both, neither) =
        (Verb::Zero { no_hole: true, fast: true }, Verb::Zero { no_hole: false, fast: false });
    let wanted = [
        (Verb::Write, true),
        (Verb::Trim, true),
        (both, true),
        (neither, false),
        (Verb::Read, false),
    ];
    assert_eq!(*seen, wanted);
}

#[test]
fn block_status_stays_within_the_request_and_beyond_4_gib() {
    const SIZE: u64 = 8 << 40;
    let served = serve(Memory::new(SIZE, 0, Way::Inline));
    let mut client = served.go(true);
    client.request(0, BLOCK_STATUS, 1, SIZE - 3 * MIB - 100, 3 << 20);
    let reply = client.reply();
    assert_eq!(reply.error, 0);
    let total: u64 = reply.extents.iter().map(|(length, _)| u64::from(*length)).sum();
    assert_eq!(total, 3 * MIB, "{:?}", reply.extents);
    assert_eq!(reply.extents[0], (100, 0));
    assert_eq!(reply.extents[1], (1 << 20, 3));
    client.request(1 << 3, BLOCK_STATUS, 2, 5 << 40, u32::MAX);
    assert_eq!(client.reply().extents, [(1 << 20, 0)]);
    client.request(0, BLOCK_STATUS, 3, 0, u32::MAX);
    let reply = client.reply();
    let total: u64 = reply.extents.iter().map(|(length, _)| u64::from(*length)).sum();
    assert!(total >= 16 * MIB && total <= u64::from(u32::MAX), "{total}");
    client.request(0, TRIM, 4, 0, u32::MAX);
    client.request(0, WRITE_ZEROES, 5, SIZE - u64::from(u32::MAX), u32::MAX);
    client.request(0, CACHE, 6, 0, u32::MAX);
    (0..3).for_each(|_| assert_eq!(client.reply().error, 0));
}

#[test]
fn the_largest_request_works_and_a_larger_one_ends_the_connection() {
    let served = serve(Memory::new(64 * MIB, 64 << 20, Way::Later));
    let mut client = served.go(true);
    let data: Vec<u8> = (0..32 << 20).map(|i: u32| (i >> 8) as u8).collect();
    client.write(0, 1, 12345, &data);
    assert_eq!(client.reply().error, 0);
    client.request(1 << 2, READ, 2, 12345, 32 << 20);
    assert!(client.reply().data == data);
    client.request(0, WRITE, 3, 0, (32 << 20) + 1);
    let _ = client.stream.write_all(&vec![0; 2 << 20]);
    assert_eq!(client.reply().error, EINVAL);
    assert!(client.is_closed());
    served.check_alive();
}

#[test]
fn a_disconnect_sends_pending_replies() {
    let memory = Memory::new(64 * MIB, 0, Way::Gated);
    let served = serve(memory.clone());
    let mut client = served.go(true);
    for cookie in 0..16 {
        client.request(0, READ, cookie, 0, 1 << 20);
    }
    client.request(0, DISC, 99, 0, 0);
    wait_until("the requests arrive", || memory.held() == 16);
    assert_eq!(served.exports.find("v").unwrap().connections(), 1);
    memory.open_gate();
    for _ in 0..16 {
        assert_eq!(client.reply().data.len(), 1 << 20);
    }
    assert!(client.is_closed());
    served.wait_empty();
}

#[test]
fn an_export_is_attached_to_until_its_target_has_finished() {
    let memory = Memory::new(MIB, 0, Way::Gated);
    let served = serve(memory.clone());
    let mut client = served.go(false);
    client.write(0, 1, 0, &[1; 512]);
    wait_until("the write arrives", || memory.held() == 1);
    drop(client);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(served.exports.find("v").unwrap().connections(), 1);
    memory.open_gate();
    served.wait_empty();
    served.exports.remove("v").unwrap();
}

#[test]
fn a_client_that_has_left_no_longer_counts() {
    let served = serve(Memory::new(MIB, 1 << 20, Way::Inline));
    for _ in 0..300 {
        let mut client = served.go(true);
        client.request(0, DISC, 1, 0, 0);
        assert!(client.is_closed());
        assert_eq!(served.exports.find("v").unwrap().connections(), 0);
    }
}

#[test]
fn disconnect_ends_one_exports_connections_only() {
    let served = serve(Memory::new(MIB, 1 << 20, Way::Later));
    served.exports.add("w", "another", Memory::new(MIB, 1 << 20, Way::Inline)).unwrap();
    let mut ours = served.go(true);
    let mut other = served.client();
    other.option(7, &go_data("w", &[]));
    served.server.disconnect("v");
    assert_eq!(served.exports.find("v").unwrap().connections(), 0);
    assert!(ours.is_closed());
    other.request(0, READ, 1, 0, 16);
    assert_eq!(other.reply_of(|_| 16).error, 0);
    served.check_alive();
}

#[test]
fn stopping_is_bounded_and_may_be_repeated() {
    let stuck = Memory::new(MIB, 0, Way::Gated);
    let served = serve(stuck.clone());
    let idle = served.client();
    let mut client = served.go(true);
    client.request(0, READ, 1, 0, 512);
    wait_until("the read arrives", || stuck.held() == 1);
    let start = Instant::now();
    served.server.stop();
    served.server.stop();
    assert!(start.elapsed() < Duration::from_millis(5500), "{:?}", start.elapsed());
    assert!(client.is_closed());
    stuck.open_gate();
    served.wait_empty();
    drop(idle);
    let quick = serve(Memory::new(MIB, 0, Way::Inline));
    let _clients: Vec<Client> = (0..20).map(|_| quick.go(true)).collect();
    let start = Instant::now();
    quick.server.stop();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!((quick.server.connections(), quick.server.handshakes()), (0, 0));
}

#[test]
fn it_listens_on_several_sockets_and_refuses_one_that_does_not_listen() {
    let served = serve(Memory::new(MIB, 1 << 20, Way::Later));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    served.server.listen(listener.into()).unwrap();
    let mut peer = TcpStream::connect(address).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let go = go_data("v", &[]);
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    bytes.extend(option_bytes(7, go.len() as u32, &go));
    // Requests need not wait for the handshake's last reply.
    bytes.extend(request_bytes(0, READ, 7, 0, 1000));
    bytes.extend(request_bytes(0, DISC, 8, 0, 0));
    peer.write_all(&bytes).unwrap();
    let mut all = Vec::new();
    peer.read_to_end(&mut all).unwrap();
    let reply = &all[all.len() - 1016..];
    assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
    served.check_alive();
    let (one, _other) = UnixStream::pair().unwrap();
    assert!(served.server.listen(one.into()).is_err());
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(served.server.listen(datagrams.into()).is_err());
    served.server.stop();
    let late = TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(served.server.listen(late.into()).is_err());
}

#[test]
fn a_peer_that_does_not_read_delays_no_other() {
    let served = serve(Memory::new(64 * MIB, 0, Way::Later));
    let mut lazy = served.go(true);
    for cookie in 0..60 {
        lazy.request(0, READ, cookie, 0, 1 << 20);
    }
    let mut good = served.go(true);
    let mut slowest = Duration::ZERO;
    for cookie in 0..50 {
        let start = Instant::now();
        good.request(0, READ, cookie, 0, 4096);
        assert_eq!(good.reply().data.len(), 4096);
        slowest = slowest.max(start.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    for _ in 0..60 {
        assert_eq!(lazy.reply().data.len(), 1 << 20);
    }
}
