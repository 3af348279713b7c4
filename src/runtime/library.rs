//! Finding and loading ONNX Runtime's shared library, once per process.
//!
//! Invariant: the library is loaded by an explicit path that we looked up ourselves, so that a missing or unsuitable
//! one is an error of ours with a fix in it, and never a panic inside a binding.

use std::env;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use ort::environment::Environment;
use ort::logging::LogLevel;
use parking_lot::Mutex;
use thiserror::Error;

use super::arena::Arenas;
use crate::text_file;

/// The file that is looked for.
const FILE_NAME: &str = "libonnxruntime.so";

/// The folder into which `make run` and `make test` fetch the library.
const FETCHED_FOLDER: &str = ".onnxruntime";

/// The oldest ONNX Runtime 1.x that has the interface we call (`api-24` in `Cargo.toml`).
const OLDEST_MINOR: u32 = 24;

/// Read by ONNX Runtime's official builds (1.29 and later) while the library is loaded. Unless it is set, they collect
/// and send usage data; asking for the same afterwards comes too late.
pub const NO_TELEMETRY: (&str, &str) = ("ORT_DISABLE_TELEMETRY", "1");

/// Why ONNX Runtime could not be loaded.
#[derive(Debug, Error)]
pub enum LibraryError {
    /// No library was found anywhere.
    #[error(
        "ONNX Runtime's library {FILE_NAME} was not found (looked in {searched}); run scripts/fetch-onnxruntime.sh, or set --onnxruntime (ORT_DYLIB_PATH) to it"
    )]
    NotFound {
        /// The places that were looked at.
        searched: String,
    },
    /// The memory of runs cannot be bounded as asked.
    #[error(
        "ONNX Runtime refuses to bound the memory of runs: {0}; run scripts/fetch-onnxruntime.sh for a library that does not"
    )]
    Memory(String),
    /// The file is there but cannot be used.
    #[error("cannot load ONNX Runtime from {path}: {reason}; version 1.{OLDEST_MINOR} or newer for this machine is needed, run scripts/fetch-onnxruntime.sh or set --onnxruntime (ORT_DYLIB_PATH)", path = .path.display())]
    Unusable {
        /// The library's path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The loaded library.
#[derive(Clone)]
pub struct Library {
    pub(super) environment: Environment,
    /// Where sessions on the CPU take the memory of their runs.
    pub(super) arenas: Arc<Arenas>,
    version: String,
    /// Where it lies, and what providers need beside it.
    pub(super) folder: PathBuf,
}

/// ONNX Runtime permits one environment per process, so the first one loaded is everybody's.
static LOADED: Mutex<Option<Library>> = Mutex::new(None);

impl Library {
    /// Loads the library at `path`, or the first one found by default, and prepares it for sessions.
    ///
    /// # Errors
    /// When there is none, or it is damaged, for another machine, or too old.
    pub fn load(path: Option<&Path>) -> Result<Self, LibraryError> {
        let mut loaded = LOADED.lock();
        if let Some(library) = loaded.as_ref() {
            return Ok(library.clone());
        }
        let path = match path {
            Some(path) => path.to_owned(),
            None => search()?,
        };
        let unusable = |reason: String| LibraryError::Unusable {
            path: path.clone(),
            reason: one_line(&reason),
        };
        Self::check(&path)?;
        // Said again here, because what was forgotten would be noticed by nobody.
        let (name, value) = NO_TELEMETRY;
        if env::var(name).as_deref() != Ok(value) {
            return Err(unusable(format!(
                "it would collect usage data; the program must set {name}={value} before"
            )));
        }
        // A relative path would be looked up beside the executable first, which is not what the user wrote.
        let absolute = path
            .canonicalize()
            .map_err(|error| unusable(error.to_string()))?;
        let environment = ort::init_from(&absolute)
            .map_err(|error| unusable(error.to_string()))?
            .with_name("model-serving")
            .with_telemetry(false)
            .with_logger(Arc::new(log))
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        // The environment starts at the most verbose level, at which every run formats messages that nobody reads.
        environment.set_log_level(LogLevel::Warning);
        let library = Self {
            arenas: Arc::new(Arenas::new(environment.clone())),
            environment,
            version: version_of(&absolute),
            folder: absolute.parent().map(Path::to_owned).unwrap_or_default(),
        };
        *loaded = Some(library.clone());
        Ok(library)
    }

    /// Whether there is a file at `path`, without loading it.
    ///
    /// # Errors
    /// When there is none, or something else.
    pub fn check(path: &Path) -> Result<(), LibraryError> {
        let reason = match std::fs::metadata(path) {
            Ok(metadata) => match text_file::other_kind(&metadata) {
                Some(kind) => format!("it is {kind}"),
                None if is_something_else(path) => "it is no shared library".to_owned(),
                None => return Ok(()),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => "there is no such file".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(LibraryError::Unusable {
            path: path.to_owned(),
            reason,
        })
    }

    /// The version of the library that [`Self::load`] would load, without loading it; none if there is none.
    #[must_use]
    pub fn version_of_file(path: Option<&Path>) -> Option<String> {
        let path = path.map(Path::to_owned).or_else(|| search().ok())?;
        let name = path.canonicalize().ok()?;
        named_version(&name)
    }

    /// Whether runs hold memory that they have not needed for a while. To be asked several times a second.
    #[must_use]
    pub fn has_unneeded_memory(now: Instant) -> bool {
        loaded_arenas().is_some_and(|arenas| arenas.has_unneeded(now))
    }

    /// Gives the memory of runs that is free back to the system.
    pub fn give_back_memory() {
        if let Some(arenas) = loaded_arenas() {
            arenas.shrink();
        }
    }

    /// The library's version, for example `1.31.1`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }
}

/// Whether the file can be read and is no program of this kind of system.
fn is_something_else(path: &Path) -> bool {
    let mut start = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut start));
    match read {
        Ok(()) => start != *b"\x7fELF",
        Err(error) => error.kind() == ErrorKind::UnexpectedEof,
    }
}

/// Logs what ONNX Runtime says by itself. Our trials make it complain of inputs that nobody sent, and what fails for a user
/// is told by us, with the model's or the request's name; so its messages are for who looks into it.
fn log(level: LogLevel, category: &str, id: &str, location: &str, message: &str) {
    match level {
        LogLevel::Fatal => {
            tracing::error!(target: "onnxruntime", category, id, location, "{}", message.trim());
        }
        LogLevel::Error | LogLevel::Warning => {
            let severity = if level == LogLevel::Error {
                "error"
            } else {
                "warning"
            };
            tracing::debug!(target: "onnxruntime", severity, category, id, location, "{}", message.trim());
        }
        LogLevel::Info | LogLevel::Verbose => {
            tracing::trace!(target: "onnxruntime", category, id, location, "{}", message.trim());
        }
    }
}

/// The arenas, if the library is loaded. While it is being loaded, nobody waits for that.
fn loaded_arenas() -> Option<Arc<Arenas>> {
    let loaded = LOADED.try_lock()?;
    loaded.as_ref().map(|library| Arc::clone(&library.arenas))
}

/// The version in the resolved file name (`libonnxruntime.so.1.31.1`), else the part of it that the interface states.
fn version_of(path: &Path) -> String {
    named_version(path).unwrap_or_else(|| {
        ort::util::probe(path).map_or_else(|| "unknown".to_owned(), |minor| format!("1.{minor}"))
    })
}

fn named_version(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let (_, version) = name.split_once(".so.")?;
    Some(version.to_owned())
}

/// The default places, in order: beside the executable (images), `../lib` of it (packages), the folder into which the
/// Makefile fetches it, below the current directory (checkouts), and where Debian-like systems install libraries.
fn search() -> Result<PathBuf, LibraryError> {
    let mut folders = Vec::new();
    if let Some(folder) = env::current_exe().ok().as_deref().and_then(Path::parent) {
        folders.push(folder.to_owned());
        folders.push(folder.join("../lib"));
    }
    folders.push(PathBuf::from(FETCHED_FOLDER));
    folders.push(PathBuf::from("/usr/local/lib"));
    folders.push(PathBuf::from("/usr/lib"));
    let found = folders
        .iter()
        .map(|folder| folder.join(FILE_NAME))
        .find(|path| path.is_file());
    found.ok_or_else(|| {
        let searched: Vec<String> = folders
            .iter()
            .map(|folder| folder.display().to_string())
            .collect();
        LibraryError::NotFound {
            searched: searched.join(", "),
        }
    })
}

/// What a library complains of, in one line and without where in its own sources it did.
pub(super) fn one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // ONNX Runtime: "<file>:<line> <function> [ONNXRuntimeError] : 1 : FAIL : <reason>", also nested.
    let reason = match text.rsplit_once("[ONNXRuntimeError] : ") {
        Some((_, coded)) => coded.splitn(3, " : ").last().unwrap_or(coded),
        None => &text,
    };
    // CUDA: "<reason> ; GPU=0 ; hostname=… ; file=… ; line=… ; expr=…".
    let reason = reason.split(" ; GPU=").next().unwrap_or(reason);
    without_place(reason).to_owned()
}

/// `text` without the place in the library's sources that it may begin with: `FILE.cc:LINE FUNCTION(TYPES) `.
fn without_place(text: &str) -> &str {
    let is_place = |(_, rest): &(&str, &str)| rest.starts_with(|c: char| c.is_ascii_digit());
    let place = [".cc:", ".h:", ".cpp:", ".hpp:", ".cu:"]
        .iter()
        .find_map(|ending| text.split_once(ending).filter(is_place));
    let Some((file, rest)) = place.filter(|(file, _)| file.contains('/')) else {
        return text;
    };
    if file.contains(". ") {
        // The place stands within a sentence.
        return text;
    }
    let mut depth = 0_usize;
    for (index, character) in rest.char_indices() {
        match character {
            '(' | '[' => depth += 1,
            ')' | ']' => {
                depth = depth.saturating_sub(1);
                let after = rest.get(index + 1..).unwrap_or_default();
                let after = after.strip_prefix(" const").unwrap_or(after);
                let goes_on = after.starts_with(" [") || !after.starts_with(' ');
                if depth == 0 && !goes_on {
                    return after.trim_start();
                }
            }
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_one_line_about_what_is_wrong() {
        for (complaint, line) in [
            ("no such\n  file", "no such file"),
            (
                "/src/bridge.cc:1962 onnxruntime::Provider& onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library p.so with error: libx.so.1: cannot open : x",
                "Failed to load library p.so with error: libx.so.1: cannot open : x",
            ),
            (
                "Load model failed:/src/core/graph/model.cc:256 x::Model::Model(y::Proto&&, std::function<void (int)>) const [with T = (z)] Unsupported version (of it)",
                "Unsupported version (of it)",
            ),
            (
                "/src/core/model_load_utils.h:46 void x::Validate(const std::unordered_map<std::string, int>&, bool) It is (really) so",
                "It is (really) so",
            ),
            (
                "Parse of \"device_id\" failed: CUDA failure 35: CUDA driver version is insufficient ; GPU=-1 ; hostname=h ; file=f.cc ; line=67 ; expr=g();",
                "Parse of \"device_id\" failed: CUDA failure 35: CUDA driver version is insufficient",
            ),
        ] {
            assert_eq!(one_line(complaint), line);
        }
    }
}
