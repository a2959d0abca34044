//! The exporter: the same numbers as a recording, for Prometheus, while they are measured.
//!
//! ```text
//! sampling ──► state ◄── server ◄── scrapers
//!   intervals   sums      exposition: text, OpenMetrics, protobuf with native histograms
//! ```
//!
//! In: a header, a plan and intervals, all plain data. Out: an HTTP endpoint. Owns the names of the
//! metrics (`exposition`), which dashboards and rules are checked against.
//!
//! Invariant: measuring never waits for a client, and what is exported never falls, but for gauges.

pub(crate) mod buckets;
mod exposition;
mod negotiation;
mod process;
pub mod serve;
mod server;
mod state;
mod totals;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use anyhow::Result;

use crate::allocator;
use crate::diagnostics::say;
use crate::model::{Header, Step};
use crate::plan::Plan;
use crate::sampling::Sample;
use exposition::lock;
use server::Server;
use state::State;

/// Where it listens unless told otherwise.
pub const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);

/// An endpoint that shows what is measured; it is gone when this is dropped.
#[derive(Debug)]
pub struct Exporter {
    state: Arc<Mutex<State>>,
    server: Server,
}

impl Exporter {
    /// Listens, and says that nothing is measured yet.
    ///
    /// # Errors
    ///
    /// The address is taken, or not one of this machine.
    pub fn start(listen: SocketAddr) -> Result<Self> {
        allocator::return_large_buffers();
        let state = Arc::new(Mutex::new(State::default()));
        let server = Server::start(listen, Arc::clone(&state))?;
        let address = server.address();
        say(format_args!("metrics at http://{address}/metrics"));
        if !address.ip().is_loopback() {
            say(format_args!(
                "anyone who reaches {address} can read them; a reverse proxy can ask for a password"
            ));
        }
        Ok(Self { state, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Says what is measured from now on.
    pub fn describe(&self, header: &Header, plan: &Plan) {
        lock(&self.state).describe(header, plan);
    }

    /// Adds an interval.
    pub fn add(&self, sample: &Sample) {
        lock(&self.state).add(sample);
    }

    /// Says what is measured from now on instead.
    pub fn step(&self, step: &Step, plan: &Plan) {
        lock(&self.state).step(step, plan);
    }
}
