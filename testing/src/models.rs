//! Models in temporary repositories, and what they answer.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use super::{Request, Server, fixture, program};

/// A repository with fixtures in it.
pub struct Repository(tempfile::TempDir);

impl Repository {
    /// One with fixtures, each by its name and the place that it is put to.
    pub fn with(files: &[(&str, &str)]) -> Self {
        let repository = Self(tempfile::tempdir().unwrap());
        for (name, place) in files {
            repository.put(name, place);
        }
        repository
    }

    /// Where `place` is.
    pub fn path(&self, place: &str) -> PathBuf {
        self.0.path().join(place)
    }

    /// Puts the fixture `name` to `place`.
    pub fn put(&self, name: &str, place: &str) {
        let place = self.path(place);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(fixture(name), place).unwrap();
    }

    /// Writes a file.
    pub fn write(&self, place: &str, text: &str) {
        fs::write(self.path(place), text).unwrap();
    }

    /// A server of it that is ready.
    pub fn serve(&self, flags: &[&str]) -> Server {
        let mut all = vec!["--model", self.0.path().to_str().unwrap()];
        all.extend(flags);
        Server::start(&all)
    }

    /// A server that may never become ready.
    pub fn spawn(&self, flags: &[&str]) -> Server {
        let mut all = vec!["--model", self.0.path().to_str().unwrap()];
        all.extend(flags);
        Server::spawn(&all, &[])
    }

    /// The one line that a start with `flags` fails with, and the exit code.
    pub fn refused(&self, flags: &[&str]) -> (String, i32) {
        let output = program()
            .env("HOST", "127.0.0.1")
            .env("PORT", "0")
            .args(["--model", self.0.path().to_str().unwrap()])
            .args(flags)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        (text, output.status.code().unwrap())
    }
}

/// The answer of the model called `name` to 1, if it is served.
pub fn answer_of(server: &Server, name: &str) -> Option<f64> {
    let path = format!("/v1/models/{name}:predict");
    let answer = server.request(&Request::json(&path, r#"{"inputs": [[1, 1, 1, 1]]}"#));
    let outputs = (answer.status == 200).then(|| answer.json()["outputs"].clone())?;
    outputs.as_object()?.values().next()?[0][0].as_f64()
}
