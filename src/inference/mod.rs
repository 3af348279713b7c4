//! What is asked of a model and what it answers, and the memory that both may take. No protocol, no queue and no device.
//!
//! Invariant: what is held is reserved, and given back when it is dropped.

mod budget;
mod request;
mod response;

pub use budget::{Exhausted, MemoryBudget, Reservation};
pub use request::{InferenceRequest, InvalidRequest};
pub(crate) use request::{no_rows, too_many_rows};
pub use response::{InferenceResponse, Timings};
