//! The models that are served: found, loaded, published and retired.
//!
//! Invariant: what is published answers requests at once, and goes on until nobody needs it. Imports run from `lifecycle`
//! over `loading` to `registry` and `served`.

pub mod cpus;
pub mod directory;
pub mod lifecycle;
pub mod loading;
pub mod registry;
pub mod served;
pub mod settings;
