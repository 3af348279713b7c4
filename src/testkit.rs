//! Faults on demand, for the tests of this project; not in release builds.
//!
//! `TESTKIT_FAULTS` names a file that is read anew whenever something could fail. Its lines are `key value`. Invariant:
//! without it, or with a file that says nothing, the program is the one that is released.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

static FILE: LazyLock<Option<PathBuf>> =
    LazyLock::new(|| std::env::var_os("TESTKIT_FAULTS").map(PathBuf::from));

/// What goes wrong now.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// `cuda`: models are taken to be executed on the GPU of this index, although the CPU does it.
    pub(crate) cuda: Option<u16>,
    /// `run`: each run fails with this text, as if ONNX Runtime had said so.
    pub(crate) run: Option<String>,
    /// `patience`: how long others wait for a load, in milliseconds.
    pub(crate) patience: Option<Duration>,
}

impl Faults {
    /// What the file says now.
    pub(crate) fn now() -> Self {
        let text = FILE
            .as_ref()
            .and_then(|file| std::fs::read_to_string(file).ok())
            .unwrap_or_default();
        let value = |key: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(' '));
            lines.find_map(|(name, value)| (name == key).then(|| value.to_owned()))
        };
        Self {
            cuda: value("cuda").and_then(|index| index.parse().ok()),
            run: value("run"),
            patience: value("patience")
                .and_then(|milliseconds| milliseconds.parse().ok())
                .map(Duration::from_millis),
        }
    }
}

/// Panics if the file says so now: it has a line `panic PLACE`.
pub(crate) fn panic_at(place: &str) {
    let text = FILE
        .as_ref()
        .and_then(|file| std::fs::read_to_string(file).ok())
        .unwrap_or_default();
    let wanted = |line: &str| line.strip_prefix("panic ") == Some(place);
    assert!(
        !text.lines().any(wanted),
        "a test asked for a panic in {place}"
    );
}
