//! Known weaknesses of NBD servers: peers that send wrong lengths, leave early, never finish, or never read.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::nbd_support::{
    BLOCK_STATUS, DISC, FLUSH, MIB, Memory, READ, WRITE, Way, go_data, meta_query, option_bytes,
    request_bytes, serve, wait_until,
};

const ACK: u32 = 1;
const ERR_INVALID: u32 = (1 << 31) + 3;
const ERR_UNKNOWN: u32 = (1 << 31) + 6;
const ERR_TOO_BIG: u32 = (1 << 31) + 9;

#[test]
fn huge_lengths_are_refused_before_anything_is_allocated() {
    let served = serve(Memory::new(MIB, 0, Way::Inline));
    for number in 0..14 {
        for length in [u32::MAX, 1 << 31, (1 << 20) + 1] {
            let mut client = served.client();
            let _ = client.stream.write_all(&option_bytes(number, length, &[b'x'; 100]));
            assert!(client.is_closed(), "option {number} of {length} bytes");
        }
    }
    let mut client = served.client();
    let replies = client.option(7, &vec![b'x'; 100_000]);
    assert_eq!(replies[0].0, ERR_TOO_BIG);
    assert_eq!(client.option(3, &[]).last().unwrap().0, ACK);
    served.check_alive();
}

#[test]
fn error_texts_are_short_for_any_name() {
    let served = serve(Memory::new(MIB, 0, Way::Inline));
    let mut client = served.client();
    for name in ["x".repeat(4096), "ä".repeat(2048), "v@nothing".to_owned(), "%s%n".to_owned()] {
        for number in [6, 7] {
            let replies = client.option(number, &go_data(&name, &[0, 1, 2, 3, 77]));
            assert_eq!(replies[0].0, ERR_UNKNOWN);
            assert!(replies[0].1.len() <= 4096);
        }
    }
    assert_eq!(client.option(7, &go_data(&"x".repeat(4097), &[]))[0].0, ERR_INVALID);
    assert_eq!(client.option(7, &go_data("v", &[])).last().unwrap().0, ACK);
}

#[test]
fn an_overlong_query_consumes_exactly_the_options_length() {
    let served = serve(Memory::new(MIB, 0, Way::Inline));
    let mut client = served.client();
    client.option(8, &[]);
    for query in ["x".repeat(4097), "base:".repeat(10_000)] {
        assert_eq!(client.option(10, &meta_query("v", &[&query]))[0].0, ERR_INVALID);
        assert_eq!(client.option(9, &meta_query("v", &[])).len(), 2);
    }
    let many: Vec<&str> = vec!["base:allocation"; 3000];
    assert_eq!(client.option(10, &meta_query("v", &many)).len(), 2);
}

#[test]
fn commands_before_the_handshake_is_done_reach_no_target() {
    let memory = Memory::new(MIB, 1 << 20, Way::Inline);
    let served = serve(memory.clone());
    let mut early = served.stream();
    early.write_all(&request_bytes(0, READ, 1, 0, 512)).unwrap();
    let mut client = served.client();
    client.request(0, WRITE, 1, 0, 512);
    assert!(client.is_closed());
    let mut rest = Vec::new();
    early.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), 18, "more than the greeting");
    assert!(memory.seen.lock().unwrap().is_empty());
    assert_eq!(served.exports.find("v").unwrap().connections(), 0);
}

/// All bytes that a complete session sends.
fn session() -> Vec<u8> {
    [
        3_u32.to_be_bytes().to_vec(),
        option_bytes(8, 0, &[]),
        option_bytes(3, 0, &[]),
        option_bytes(10, meta_query("v", &["base:allocation"]).len() as u32, &[]),
        meta_query("v", &["base:allocation"]),
        option_bytes(7, go_data("v", &[1, 2]).len() as u32, &[]),
        go_data("v", &[1, 2]),
        request_bytes(0, READ, 1, 0, 300_000),
        request_bytes(0, WRITE, 2, 0, 100),
        vec![1; 100],
        request_bytes(0, WRITE, 3, 0, 200),
        vec![2; 200],
        request_bytes(0, BLOCK_STATUS, 4, 0, 512),
        request_bytes(0, FLUSH, 5, 0, 0),
        request_bytes(0, DISC, 6, 0, 0),
    ]
    .concat()
}

#[test]
fn a_peer_may_leave_at_any_byte() {
    for way in [Way::Inline, Way::Later] {
        let served = serve(Memory::new(MIB, 1 << 20, way));
        let session = session();
        for cut in 0..session.len() {
            let mut stream = served.stream();
            stream.write_all(&session[..cut]).unwrap();
            if cut % 3 == 0 {
                let mut some = [0; 50];
                let _ = stream.read(&mut some);
            }
        }
        served.check_alive();
        served.wait_empty();
        wait_until("no handshake is left", || served.server.handshakes() == 0);
    }
}

#[test]
fn a_peer_may_send_any_bytes_instead_of_requests() {
    let served = serve(Memory::new(MIB, 1 << 20, Way::Later));
    let mut seed = 0x1234_5678_9abc_def1_u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..100 {
        let mut client = served.go(next() % 2 == 0);
        let mut bytes = Vec::new();
        for _ in 0..50 {
            let mut one = request_bytes(
                (next() % 64) as u16 & next() as u16,
                (next() % 10) as u16,
                next(),
                next() % (2 * MIB),
                (next() % 70_000) as u32,
            );
            if next() % 40 == 0 {
                one[(next() % 28) as usize] = next() as u8;
            }
            bytes.extend(one);
            bytes.extend(vec![0; (next() % 1000) as usize * (next() % 2) as usize]);
        }
        client.stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        let _ = client.stream.write_all(&bytes);
    }
    served.check_alive();
    served.wait_empty();
}

#[test]
fn a_handshake_has_ten_seconds_and_idle_sockets_delay_no_other() {
    let served = serve(Memory::new(MIB, 0, Way::Inline));
    // Both ends are in this process: as many as its limit of open files allows.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let count = limit.map_or(10_000, |files| ((files.saturating_sub(4000)) / 2).min(10_000));
    let start = Instant::now();
    let mut idle: Vec<UnixStream> = (0..count).map(|_| served.stream()).collect();
    wait_until("all are accepted", || served.server.handshakes() as u64 == count);
    let mut times: Vec<Duration> = (0..21)
        .map(|_| {
            let start = Instant::now();
            served.check_alive();
            start.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[10] < Duration::from_millis(100), "{count} idle: {times:?}");
    assert!(start.elapsed() < Duration::from_secs(10), "too slow a machine for this test");
    let first = &mut idle[0];
    first.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let mut greeting = Vec::new();
    first.read_to_end(&mut greeting).unwrap();
    let took = start.elapsed();
    assert!(took > Duration::from_secs(9) && took < Duration::from_secs(13), "{took:?}");
}

#[test]
fn there_are_at_most_1024_connections_and_the_next_is_refused() {
    let served = serve(Memory::new(MIB, 0, Way::Inline));
    let mut clients: Vec<_> = (0..1024).map(|_| served.go(false)).collect();
    let mut more = served.client();
    let replies = more.option(7, &go_data("v", &[]));
    assert_eq!(replies[0].0, (1 << 31) + 2);
    clients.pop();
    wait_until("there is room again", || served.server.connections() < 1024);
    assert_eq!(more.option(7, &go_data("v", &[])).last().unwrap().0, ACK);
}

#[test]
fn a_peer_that_never_reads_its_handshake_is_closed() {
    let served = serve(Memory::new(MIB, 0, Way::Inline));
    let mut client = served.client();
    client.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let options = option_bytes(6, go_data("v", &[1, 2]).len() as u32, &go_data("v", &[1, 2]));
    let flood = options.repeat(1000);
    let stalled = loop {
        match client.stream.write(&flood) {
            Ok(sent) => assert!(sent > 0),
            Err(e) => break e.kind(),
        }
    };
    assert!(matches!(
        stalled,
        ErrorKind::WouldBlock | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    ));
    served.check_alive();
}
