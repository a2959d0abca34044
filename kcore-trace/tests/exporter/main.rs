//! The exporter as scrapers see it: over a socket, with invented measurements, without root.

#[cfg(test)]
mod client;
#[cfg(test)]
mod dashboards;
#[cfg(test)]
mod endpoint;
#[cfg(test)]
mod exposition;
#[cfg(test)]
mod invented;
