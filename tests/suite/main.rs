//! The tests of what users can see, and of the files around the server: one module per subject, in one program, so that
//! one link is enough for all of them. `cargo test --features testkit --test suite -- predict::` runs a subject.
//!
//! The modules share this process: none changes its environment, its folder or its limits, and what has to be a
//! process's own is a test binary of its own, such as `tests/allocations.rs`.
//!
//! They also share the machine, and no test has it for itself: what another test, or a busy machine, could decide is not
//! asserted. A bound on time is far from what is usual, and nearer to what the fault would take.

#[cfg(feature = "testkit")]
mod accounting;
mod admin_port;
mod api_keys;
mod artifacts;
mod batch_check;
mod connections;
mod crowding;
mod datatypes;
mod delivery;
#[cfg(feature = "testkit")]
mod device_faults;
mod docs;
mod draining;
mod fetching;
mod gpu;
mod impostors;
mod inspecting;
mod layers;
mod leaving;
mod malformed;
mod manifests;
mod memory;
mod metadata;
mod metrics;
mod mistakes;
mod monitoring;
mod openvino;
mod passthrough;
mod predict;
mod reloading;
mod repository;
mod samples;
#[cfg(feature = "testkit")]
mod service_manager;
mod settings;
mod shapes;
#[cfg(feature = "testkit")]
mod slow_loads;
mod starting;
mod system_calls;
mod tracing;
mod tuning;
mod versions;
