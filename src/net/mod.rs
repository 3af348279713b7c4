//! Connections: binding, accepting, their deadlines and places, and their end. Serves any `tower` service.
//!
//! What a connection does and how long it is waited for is decided in `phase`, without a socket or a clock; who gives way
//! when all places are taken in `giving_way`. Invariant: every connection has a deadline or owes an answer, and none
//! that owes one is ended for another.

pub mod accept;
pub mod config;
pub mod connection;
mod departure;
pub mod drain;
mod giving_way;
pub mod listening;
mod phase;
mod places;
pub mod site;

pub use places::NoPlace;
