//! The HTTP side: who may ask what, how long, and how many at once.
//!
//! In: connections. Out: `/metrics` in the format that the scraper prefers, `/healthz`, `/readyz`.
//! It runs on a thread of its own, which holds no capability, so that a scrape never waits for a
//! snapshot or for hooks being attached, and no snapshot waits for a scrape.
//!
//! Invariant: a client takes no more than one of [`CONNECTIONS`] places, [`HEADERS`] of memory and
//! its answer, for [`PATIENCE`] at most; one more than there are places takes that of the oldest,
//! which answers nobody quickly. So no client keeps another one out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::exposition::{Exposition, lock};
use super::negotiation;
use super::state::State;
use crate::sampling::event_loop;

/// Connections that are served at once.
const CONNECTIONS: usize = 64;
/// Bytes of a request that are kept before it is refused.
const HEADERS: usize = 16 << 10;
/// How long a connection may last, whatever it does.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer that is under way may take when the exporter ends.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// A pause after the system refused a connection for want of descriptors or memory.
const RECOVERY: Duration = Duration::from_millis(100);

/// The thread that serves.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens, and serves until it is dropped.
    pub(crate) fn start(listen: SocketAddr, state: Arc<Mutex<State>>) -> Result<Self> {
        let listener = TcpListener::bind(listen)
            .with_context(|| format!("failed to listen on {listen}; --listen takes another"))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let runtime = event_loop()?;
        let serve = move || {
            crate::privilege::drop_all_of_this_thread();
            runtime.block_on(serve(listener, state, stopped));
        };
        let thread = thread::Builder::new()
            .name("exporter".into())
            .spawn(serve)
            .context("failed to start the thread of the exporter")?;
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens; the port is known even if any was asked for.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // Nobody listens any more if the thread has ended.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    listener: TcpListener,
    state: Arc<Mutex<State>>,
    mut stopped: oneshot::Receiver<()>,
) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    let exposition = Arc::new(Exposition::new(Arc::clone(&state)));
    let mut connections = JoinSet::new();
    let mut places: VecDeque<AbortHandle> = VecDeque::with_capacity(CONNECTIONS);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            _ = &mut stopped => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(RECOVERY).await;
            continue;
        };
        places.retain(|place| !place.is_finished());
        if places.len() == CONNECTIONS
            && let Some(oldest) = places.pop_front()
        {
            oldest.abort();
            lock(&state).traffic.crowded_out += 1;
        }
        lock(&state).traffic.connections += 1;
        let connection = connection(stream, Arc::clone(&exposition), Arc::clone(&state));
        places.push_back(connections.spawn(connection));
    }
    drop(listener);
    let last_words = async { while connections.join_next().await.is_some() {} };
    // Who has not got an answer by then will ask another time.
    let _ = timeout(LAST_WORDS, last_words).await;
}

/// One connection, one request: what an idle connection could keep is a place.
async fn connection(stream: TcpStream, exposition: Arc<Exposition>, state: Arc<Mutex<State>>) {
    let service = service_fn(|request| {
        let response = answer(&request, &exposition, &state);
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let ended = timeout(PATIENCE, connection).await;
    let traffic = &mut lock(&state).traffic;
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(_)) => traffic.broken += 1,
        Err(_) => traffic.slow += 1,
    }
}

fn answer(
    request: &Request<Incoming>,
    exposition: &Exposition,
    state: &Mutex<State>,
) -> Response<Full<Bytes>> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        let allowed = HeaderValue::from_static("GET, HEAD");
        refusal.headers_mut().insert(ALLOW, allowed);
        return refusal;
    }
    match request.uri().path() {
        "/metrics" => metrics(request, exposition),
        "/healthz" => plain(StatusCode::OK, "alive\n"),
        "/readyz" if lock(state).cost.snapshots > 0 => plain(StatusCode::OK, "measuring\n"),
        "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, "not measuring yet\n"),
        "/" => plain(StatusCode::OK, "kcore-trace: /metrics, /healthz, /readyz\n"),
        _ => plain(
            StatusCode::NOT_FOUND,
            "there is /metrics, /healthz, /readyz\n",
        ),
    }
}

fn metrics(request: &Request<Incoming>, exposition: &Exposition) -> Response<Full<Bytes>> {
    let wanted = request.headers().get_all(ACCEPT).iter();
    let wanted: Vec<_> = wanted.filter_map(|value| value.to_str().ok()).collect();
    let format = negotiation::choose(&wanted.join(","));
    match exposition.scrape(format) {
        Ok(body) => response(StatusCode::OK, format.content_type(), body),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let kind = "text/plain; charset=utf-8";
    response(status, kind, text.to_owned().into_bytes())
}

fn response(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
