//! The cases, by what they are about.

pub(crate) mod audit;
pub(crate) mod blame;
pub(crate) mod blocks;
pub(crate) mod churn;
pub(crate) mod endings;
pub(crate) mod exporter;
pub(crate) mod guard;
pub(crate) mod inside;
pub(crate) mod nodes;
pub(crate) mod plan;
pub(crate) mod refusals;
