//! A fake of the driver's library, built from `tests/fakes/nvml.rs`, that the server loads as it would the real one.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Server, repository};

/// The folder with the fake library, and the file from which it answers.
pub struct FakeNvml {
    folder: tempfile::TempDir,
}

impl FakeNvml {
    /// Builds the library and lets it answer as `state` says.
    pub fn new(state: &str) -> Self {
        let fake = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let built = Command::new("rustc")
            .args(["--edition", "2024", "--crate-type", "cdylib", "-o"])
            .arg(fake.folder.path().join("libnvidia-ml.so.1"))
            .arg(repository("tests/fakes/nvml.rs"))
            .status()
            .expect("rustc, which built this test, is on the PATH");
        assert!(built.success());
        fake.set(state);
        fake
    }

    /// Two GPUs that are well and at work.
    pub fn two_gpus() -> String {
        [
            "init 1",
            "count 2",
            "0.handle 1",
            "0.utilization 37",
            "0.memory_used 1073741824",
            "0.memory_total 24152899584",
            "0.temperature 61",
            "0.power 68500",
            "1.handle 1",
            "1.utilization 100",
            "1.memory_used 24000000000",
            "1.memory_total 24152899584",
            "1.temperature 88",
            "1.power 72000",
        ]
        .join("\n")
    }

    /// From now on the library answers as `state` says.
    pub fn set(&self, state: &str) {
        // Replaced in one step, since the server may read it at any moment.
        let new = self.folder.path().join("state.new");
        std::fs::write(&new, state).unwrap();
        std::fs::rename(new, self.state()).unwrap();
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// A server that finds the library where loaders look, and has `flags`.
    pub fn serve(&self, flags: &[&str]) -> Server {
        self.serve_with(flags, &[])
    }

    /// The same, with more in its environment.
    pub fn serve_with(&self, flags: &[&str], environment: &[(&str, &str)]) -> Server {
        let (state, text) = (self.state(), |path: &Path| {
            path.to_str().unwrap().to_owned()
        });
        let (folder, state) = (text(self.folder.path()), text(&state));
        let mut all = vec![
            ("LD_LIBRARY_PATH", folder.as_str()),
            ("FAKE_NVML_STATE", state.as_str()),
        ];
        all.extend(environment);
        Server::start_with(flags, &all)
    }
}
