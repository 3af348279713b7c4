//! Faults that the program under test has by its test kit: a file says which, and it is looked at again and again.

use std::fs;
use std::path::PathBuf;

use super::Server;

/// The faults of one server.
pub struct Faults {
    folder: tempfile::TempDir,
    /// What is there all the time.
    always: &'static str,
}

impl Default for Faults {
    fn default() -> Self {
        Self::new()
    }
}

impl Faults {
    /// No faults yet.
    pub fn new() -> Self {
        Self::with("")
    }

    /// A CPU that is taken for a GPU, and no other faults yet.
    pub fn of_gpu() -> Self {
        Self::with("cuda 0\n")
    }

    fn with(always: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let faults = Self { folder, always };
        faults.set("");
        faults
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("faults")
    }

    /// Sets the faults, one a line. A new file takes the old one's place, so that no half of one is ever read.
    pub fn set(&self, text: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, format!("{}{text}", self.always)).unwrap();
        fs::rename(new, self.path()).unwrap();
    }

    /// Lets runs fail with `text`.
    pub fn fail_runs(&self, text: &str) {
        self.set(&format!("run {text}"));
    }

    /// Starts a server that has them.
    pub fn serve(&self, flags: &[&str]) -> Server {
        Server::start_with(flags, &[("TESTKIT_FAULTS", self.path().to_str().unwrap())])
    }
}
