//! The endpoint among its clients: several, slow, broken and hostile ones.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use kcore_trace::exporter::Exporter;
use kcore_trace::model::Level;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::client::{self, ask, connect, scrape, send};
use crate::invented::{ANY_PORT, everything, exporter, waits};

/// What a client waits at most among others who behave badly; far less than such a connection lasts.
const PROMPT: Duration = Duration::from_secs(5);

fn serves(address: SocketAddr) {
    let begun = Instant::now();
    assert_eq!(ask(address, "GET /metrics", "*/*").status(), 200);
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
}

#[test]
fn it_is_alive_from_the_start_and_ready_once_it_measures() {
    let exporter = Exporter::start(ANY_PORT).unwrap();
    let status = |path: &str| ask(exporter.address(), &format!("GET {path}"), "*/*").status();
    assert_eq!((status("/healthz"), status("/readyz")), (200, 503));
    exporter.add(&waits(0, &[]));
    assert_eq!((status("/healthz"), status("/readyz")), (200, 200));
}

#[test]
fn other_paths_and_methods_are_refused() {
    let exporter = exporter("6.12", Level::Contended);
    let status = |line: &str| ask(exporter.address(), line, "*/*").status();
    assert_eq!(status("GET /"), 200);
    assert_eq!(status("GET /metrics/../etc/passwd"), 404);
    assert_eq!(status("POST /metrics"), 405);
    let head = ask(exporter.address(), "HEAD /metrics", "*/*");
    assert_eq!((head.status(), head.body.len()), (200, 0));
}

#[test]
fn an_address_that_is_taken_is_an_error_that_names_it() {
    let exporter = Exporter::start(ANY_PORT).unwrap();
    let error = Exporter::start(exporter.address()).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains(&exporter.address().to_string()), "{text}");
}

#[test]
fn ten_scrapers_at_once_get_the_same_numbers() {
    let exporter = exporter("6.12", Level::Full);
    exporter.add(&everything(0));
    let address = exporter.address();
    let scrapes: Vec<_> = thread::scope(|scope| {
        let scrapers: Vec<_> = (0..10).map(|_| scope.spawn(|| scrape(address))).collect();
        scrapers.into_iter().map(|s| s.join().unwrap()).collect()
    });
    let of = |samples: &client::Samples| {
        let waits = samples.of("kcore_trace_wait_seconds_bucket");
        waits
            .map(|(series, n)| format!("{series} {n}"))
            .collect::<Vec<_>>()
    };
    for samples in &scrapes {
        assert_eq!(of(samples), of(&scrapes[0]));
    }
}

#[test]
fn clients_that_send_a_byte_now_and_then_keep_nobody_out() {
    let exporter = exporter("6.12", Level::Contended);
    let slow = (0..200).map(|_| {
        let mut stream = connect(exporter.address());
        stream.write_all(b"GET /metrics HTTP/1.1\r\nX: ").ok();
        stream
    });
    let mut slow: Vec<_> = slow.collect();
    for _ in 0..5 {
        for stream in &mut slow {
            stream.write_all(b"y").ok();
        }
        serves(exporter.address());
    }
    let samples = scrape(exporter.address());
    let crowded_out = r#"kcore_trace_connection_errors_total{reason="crowded-out"}"#;
    assert!(samples.value(crowded_out) >= 100.0);
}

#[test]
fn a_client_that_says_nothing_is_cut_off() {
    let exporter = exporter("6.12", Level::Contended);
    let begun = Instant::now();
    let mut silent = connect(exporter.address());
    let mut nothing = Vec::new();
    // An answer that the request took too long, or none.
    silent.read_to_end(&mut nothing).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn clients_that_do_not_read_their_answer_keep_nobody_out() {
    let exporter = exporter("6.12", Level::Full);
    exporter.add(&everything(0));
    let deaf = (0..30).map(|_| {
        let mut stream = connect(exporter.address());
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        stream
    });
    let deaf: Vec<_> = deaf.collect();
    serves(exporter.address());
    drop(deaf);
    serves(exporter.address());
}

#[test]
fn headers_that_are_too_long_are_refused() {
    let exporter = exporter("6.12", Level::Contended);
    for header in ["x".repeat(1 << 20), "X: y\r\n".repeat(5_000)] {
        let request = format!("GET /metrics HTTP/1.1\r\n{header}");
        let answer = send(exporter.address(), request.as_bytes());
        let answer = String::from_utf8_lossy(&answer);
        // It may be reset before the answer is read.
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{answer}"
        );
        serves(exporter.address());
    }
}

/// Garbage, and requests with a part that is garbage.
#[test]
fn garbage_never_stops_it() {
    let exporter = exporter("6.12", Level::Contended);
    let address = exporter.address();
    let bytes = || vec(any::<u8>(), 0..300);
    let request = (bytes(), bytes(), 0..4).prop_map(|(a, b, shape)| match shape {
        0 => [a, b, b"\r\n\r\n".to_vec()].concat(),
        1 => [
            b"GET ".to_vec(),
            a,
            b" HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        ]
        .concat(),
        2 => [
            b"GET /metrics HTTP/1.1\r\nAccept: ".to_vec(),
            a,
            b"\r\n\r\n".to_vec(),
        ]
        .concat(),
        _ => [
            b"GET /metrics HTTP/1.1\r\n".to_vec(),
            a,
            b": ".to_vec(),
            b,
            b"\r\n\r\n".to_vec(),
        ]
        .concat(),
    });
    TestRunner::default()
        .run(&request, |request| {
            let mut stream = connect(address);
            stream.write_all(&request).ok();
            stream.shutdown(std::net::Shutdown::Write).ok();
            stream.read_to_end(&mut Vec::new()).ok();
            Ok(())
        })
        .unwrap();
    serves(address);
}

#[test]
fn it_is_gone_at_once_when_measuring_ends_whoever_is_connected() {
    let exporter = exporter("6.12", Level::Contended);
    let address = exporter.address();
    let mut waiting = connect(address);
    waiting.write_all(b"GET /met").unwrap();
    let begun = Instant::now();
    drop(exporter);
    assert!(begun.elapsed() < PROMPT);
    assert!(std::net::TcpStream::connect(address).is_err());
}
