//! Which program this is.
//!
//! Invariant: what is said here was known when the program was built; nothing is asked of the machine that runs it.

/// The version, as in `Cargo.toml`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How the program was built.
pub const PROFILE: &str = if cfg!(debug_assertions) {
    "debug"
} else {
    "release"
};

/// The revision of the sources, if whoever built the program named it in `MODEL_SERVING_REVISION`. No build script asks
/// git: sources without a repository must build, and the same sources to the same program.
#[must_use]
pub fn revision() -> Option<&'static str> {
    option_env!("MODEL_SERVING_REVISION").filter(|revision| !revision.is_empty())
}

/// All of that in one line.
#[must_use]
pub fn line() -> String {
    let revision = revision().map(|revision| format!(", revision {revision}"));
    format!(
        "{} {VERSION} ({PROFILE} build{})",
        env!("CARGO_PKG_NAME"),
        revision.unwrap_or_default()
    )
}
