//! The optional settings file beside a model: what the graph cannot say.
//!
//! Invariant: unknown keys are an error, so that a misspelt setting is never silently without effect.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Unexpected, Visitor};
use thiserror::Error;

use super::limits::{MAX_CPUS, MAX_INSTANCES, MAX_ROWS, MAX_THREADS, too_many_threads};
use super::name::{NAME_RULE, is_name, is_version};
use super::versions::VersionPolicy;
use crate::text_file::{self, TextFileError};
use crate::units::DurationText;

/// The most bytes of a sidecar. Labels of some ten thousand classes fit.
const MAX_BYTES: usize = 1 << 20;

/// The most bytes of what is said about a wrong one.
const MAX_REASON_BYTES: usize = 300;

/// Why a sidecar was refused.
#[derive(Debug, Error)]
pub enum SidecarError {
    /// The file exists but could not be read.
    #[error("{0}; mend or remove this sidecar")]
    Read(TextFileError),
    /// The file does not say what a sidecar may say.
    #[error("{path} is not a valid sidecar: {reason}", path = .path.display())]
    Invalid {
        /// The sidecar's path.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// The file could not be written.
    #[error("cannot write {path}: {source}; let the folder be writable, or take the settings above as flags", path = .path.display())]
    Write {
        /// The sidecar's path.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// The settings of one model, all optional.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sidecar {
    /// The name to serve the model under.
    #[serde(default, deserialize_with = "name")]
    pub name: Option<String>,
    /// The version to serve the model as.
    #[serde(default, deserialize_with = "version")]
    pub version: Option<String>,
    /// Whether requests that name no model are for this one.
    #[serde(default)]
    pub default: bool,
    /// Which of a repository's versions of the model are served; the highest, if not given.
    pub version_policy: Option<VersionPolicy>,
    /// Whether the server is ready only once the model serves, if it was there at the start; it is, if not given.
    pub required: Option<bool>,
    /// What the model does.
    pub description: Option<String>,
    /// Settings by output name.
    #[serde(default)]
    pub outputs: BTreeMap<String, OutputSettings>,
    /// How requests for this model are merged.
    #[serde(default)]
    pub batching: BatchingSettings,
    /// How many sessions execute the model, and of how many threads.
    #[serde(default)]
    pub instance_group: InstanceGroupSettings,
    /// What `model-serving tune` found out.
    pub tuning: Option<TuningSettings>,
}

/// What suits a model on one machine, as `model-serving tune` writes it down.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuningSettings {
    /// SHA-256 of the model that was measured. For another one the settings are ignored.
    pub sha256: String,
    /// The CPUs that the measuring process could use. Where there are others the settings are ignored.
    #[serde(deserialize_with = "count::<_, MAX_CPUS>")]
    pub cpus: NonZeroUsize,
    /// Sessions.
    #[serde(deserialize_with = "count::<_, MAX_INSTANCES>")]
    pub instances: NonZeroUsize,
    /// Threads per session.
    #[serde(deserialize_with = "count::<_, MAX_THREADS>")]
    pub intra_op_threads: NonZeroUsize,
    /// Rows of several requests that share an execution at most, if that was measured.
    #[serde(default, deserialize_with = "optional_count::<_, MAX_ROWS>")]
    pub merge_rows: Option<NonZeroUsize>,
}

/// Sessions of one model and their threads; flags and environment win over these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceGroupSettings {
    /// Sessions.
    #[serde(default, deserialize_with = "optional_count::<_, MAX_INSTANCES>")]
    pub instances: Option<NonZeroUsize>,
    /// Threads per session.
    #[serde(default, deserialize_with = "optional_count::<_, MAX_THREADS>")]
    pub intra_op_threads: Option<NonZeroUsize>,
}

/// What the graph cannot say about an output.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSettings {
    /// What each position of the last dimension means.
    #[serde(default)]
    pub labels: Vec<String>,
}

/// Batching settings of one model; flags and environment win over these.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchingSettings {
    /// The most rows of an execution that requests share, and of a part of a larger request.
    #[serde(default, deserialize_with = "optional_count::<_, MAX_ROWS>")]
    pub max_batch_size: Option<NonZeroUsize>,
    /// How long the oldest request may wait for company.
    #[serde(default, deserialize_with = "duration")]
    pub max_queue_delay: Option<Duration>,
    /// Whether it is tried at load that rows do not depend on each other; it is, if not given.
    pub check: Option<bool>,
}

impl TuningSettings {
    /// Writes these settings into the sidecar at `path`, which keeps all else that it says, its comments included. The file
    /// is replaced in one step, because a server may be looking at it.
    ///
    /// # Errors
    /// When the file there is no sidecar, or cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), SidecarError> {
        // What it says must be valid before anything is added.
        Sidecar::read(path)?;
        let failed = |source| SidecarError::Write {
            path: path.to_owned(),
            source,
        };
        let text = read_text(path)?.unwrap_or_default();
        let invalid = |error: toml_edit::TomlError| SidecarError::Invalid {
            path: path.to_owned(),
            reason: one_line(error.message()),
        };
        let mut document: toml_edit::DocumentMut = text.parse().map_err(invalid)?;
        let number = |number: NonZeroUsize| {
            toml_edit::value(i64::try_from(number.get()).unwrap_or(i64::MAX))
        };
        let mut table = toml_edit::Table::new();
        table.insert("sha256", toml_edit::value(self.sha256.as_str()));
        table.insert("cpus", number(self.cpus));
        table.insert("instances", number(self.instances));
        table.insert("intra_op_threads", number(self.intra_op_threads));
        if let Some(rows) = self.merge_rows {
            table.insert("merge_rows", number(rows));
        }
        let blank_line = if text.is_empty() { "" } else { "\n" };
        table.decor_mut().set_prefix(blank_line);
        document.insert("tuning", toml_edit::Item::Table(table));
        // A link is kept, and so is who may read the file.
        let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let beside = place.with_extension("toml.new");
        fs::write(&beside, document.to_string())
            .and_then(|()| match fs::metadata(&place) {
                Ok(metadata) => fs::set_permissions(&beside, metadata.permissions()),
                Err(_) => Ok(()),
            })
            .and_then(|()| fs::rename(&beside, &place))
            .map_err(failed)
    }
}

/// A text such as "5ms".
fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    struct Text;

    impl Visitor<'_> for Text {
        type Value = Option<Duration>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a duration with a unit, such as \"5ms\"")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Option<Duration>, E> {
            text.parse::<DurationText>()
                .map(|duration| Some(duration.into()))
                .map_err(E::custom)
        }
    }

    deserializer.deserialize_any(Text)
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    label(deserializer, is_name, NAME_RULE)
}

fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    const RULE: &str = "1 to 128 letters, digits, '.', '_', '-' or '+', not beginning with '.'";
    label(deserializer, is_version, RULE)
}

/// A text that is fit for the label of a metric.
fn label<'de, D: Deserializer<'de>>(
    deserializer: D,
    fits: impl Fn(&str) -> bool,
    rule: &'static str,
) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if fits(&text) {
        return Ok(Some(text));
    }
    Err(D::Error::invalid_value(Unexpected::Str(&text), &rule))
}

fn optional_count<'de, D: Deserializer<'de>, const MAX: usize>(
    deserializer: D,
) -> Result<Option<NonZeroUsize>, D::Error> {
    count::<D, MAX>(deserializer).map(Some)
}

/// A whole number from 1 to `MAX`.
fn count<'de, D: Deserializer<'de>, const MAX: usize>(
    deserializer: D,
) -> Result<NonZeroUsize, D::Error> {
    struct Count<const MAX: usize>;

    impl<const MAX: usize> Visitor<'_> for Count<MAX> {
        type Value = NonZeroUsize;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(formatter, "a whole number from 1 to {MAX}")
        }

        fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<NonZeroUsize, E> {
            usize::try_from(number)
                .ok()
                .and_then(NonZeroUsize::new)
                .filter(|number| number.get() <= MAX)
                .ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
        }

        fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<NonZeroUsize, E> {
            // What is larger than a signed number is larger than any limit.
            self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
        }
    }

    deserializer.deserialize_any(Count::<MAX>)
}

/// The text at `path`; nothing if there is no such file.
fn read_text(path: &Path) -> Result<Option<String>, SidecarError> {
    match text_file::read(path, MAX_BYTES) {
        Ok(text) => Ok(Some(text)),
        // A link that leads nowhere was meant to be a sidecar.
        Err(error) if error.is_missing() && fs::symlink_metadata(path).is_err() => Ok(None),
        Err(error) => Err(SidecarError::Read(error)),
    }
}

/// What a parser says, on one short line: what was got may be long, and what was expected stands at the end.
fn one_line(message: &str) -> String {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.len() <= MAX_REASON_BYTES {
        return line;
    }
    let head = line.floor_char_boundary(MAX_REASON_BYTES / 3);
    let tail = line.ceil_char_boundary(line.len() - MAX_REASON_BYTES / 2);
    let (head, tail) = (line.get(..head), line.get(tail..));
    [head, tail].map(Option::unwrap_or_default).join("...")
}

/// Where byte `position` of `text` lies: the line, counted from 1, and the key that stands there, with its table.
fn place(text: &str, position: usize) -> (usize, Option<String>) {
    let position = text.floor_char_boundary(position);
    let (before, after) = text.split_at(position);
    let number = before.matches('\n').count() + 1;
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = text.get(line_start..).unwrap_or(after);
    let line = line.lines().next().unwrap_or_default().trim();
    let is_key = |key: &&str| {
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '"');
        !key.is_empty() && key.len() <= 128 && key.chars().all(plain)
    };
    let key = line.split_once('=').map(|(key, _)| key.trim());
    let mut headers = before.lines().rev().map(str::trim);
    let table = headers.find_map(|line| {
        let name = line.strip_prefix('[')?.split(']').next()?;
        Some(name.trim_start_matches('['))
    });
    let table = table.filter(is_key);
    let key = key.filter(is_key).map(|key| match table {
        Some(table) => format!("{table}.{key}"),
        None => key.to_owned(),
    });
    (number, key)
}

impl Sidecar {
    /// What this sidecar of one version says, and where it says nothing, that of the `model`.
    #[must_use]
    pub fn or(self, model: Self) -> Self {
        let mut outputs = model.outputs;
        outputs.extend(self.outputs);
        let (own, general) = (self.batching, model.batching);
        let (own_group, general_group) = (self.instance_group, model.instance_group);
        Self {
            name: self.name.or(model.name),
            version: self.version.or(model.version),
            default: self.default || model.default,
            version_policy: self.version_policy.or(model.version_policy),
            required: self.required.or(model.required),
            description: self.description.or(model.description),
            outputs,
            batching: BatchingSettings {
                max_batch_size: own.max_batch_size.or(general.max_batch_size),
                max_queue_delay: own.max_queue_delay.or(general.max_queue_delay),
                check: own.check.or(general.check),
            },
            instance_group: InstanceGroupSettings {
                instances: own_group.instances.or(general_group.instances),
                intra_op_threads: own_group
                    .intra_op_threads
                    .or(general_group.intra_op_threads),
            },
            tuning: self.tuning.or(model.tuning),
        }
    }

    /// Reads the sidecar at `path`; a missing file is an empty sidecar.
    ///
    /// # Errors
    /// When the file cannot be read or says something that a sidecar may not say.
    pub fn read(path: &Path) -> Result<Self, SidecarError> {
        let Some(text) = read_text(path)? else {
            return Ok(Self::default());
        };
        let parsed: Result<Self, _> = toml::from_str(&text);
        let sidecar = parsed.map_err(|error| {
            // The parser's own display spans several lines; a failed start prints one.
            let (line, key) = place(&text, error.span().map_or(0, |span| span.start));
            let key = key.map(|key| format!(" ({key})")).unwrap_or_default();
            let reason = format!("line {line}{key}: {}", one_line(error.message()));
            SidecarError::Invalid {
                path: path.to_owned(),
                reason,
            }
        })?;
        if let Some(tuning) = &sidecar.tuning
            && let Some(reason) = too_many_threads(tuning.instances, tuning.intra_op_threads)
        {
            return Err(SidecarError::Invalid {
                path: path.to_owned(),
                reason: format!("[tuning]: {reason}"),
            });
        }
        Ok(sidecar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(merge_rows: usize) -> TuningSettings {
        let number = |number| NonZeroUsize::new(number).unwrap();
        TuningSettings {
            sha256: "5c".to_owned(),
            cpus: number(4),
            instances: number(2),
            intra_op_threads: number(2),
            merge_rows: Some(number(merge_rows)),
        }
    }

    #[test]
    fn tuning_is_written_beside_all_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.toml");
        fs::write(
            &path,
            "name = \"a\" # a comment\n\n[batching]\ncheck = false\n",
        )
        .unwrap();
        for merge_rows in [1, 16] {
            settings(merge_rows).write(&path).unwrap();
            let sidecar = Sidecar::read(&path).unwrap();
            assert_eq!(sidecar.tuning, Some(settings(merge_rows)));
            assert_eq!(sidecar.name.as_deref(), Some("a"));
            assert_eq!(sidecar.batching.check, Some(false));
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("name = \"a\" # a comment\n"), "{text}");
            assert_eq!(text.matches("[tuning]").count(), 1, "{text}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_sidecar_is_made_where_there_is_none_and_a_wrong_one_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.toml");
        settings(1).write(&path).unwrap();
        assert_eq!(Sidecar::read(&path).unwrap().tuning, Some(settings(1)));
        fs::write(&path, "nmae = \"a\"").unwrap();
        assert!(settings(1).write(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "nmae = \"a\"");
    }

    #[test]
    fn a_wrong_sidecar_is_one_line_with_line_key_expected_and_got() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.toml");
        let tuning = "[tuning]\nsha256 = \"a\"\ncpus = 2\nintra_op_threads = 1\n";
        let deep = format!("name = {}", "[".repeat(100_000));
        let tables = format!("[{}]", "a.".repeat(50_000) + "a");
        let long = format!("[batching]\ncheck = \"{}\"", "x".repeat(100_000));
        for (text, parts) in [
            (
                format!("{tuning}instances = 1000000"),
                &["line 5 (tuning.instances)", "`1000000`", "from 1 to 1024"][..],
            ),
            (format!("{tuning}instances = 0"), &["`0`", "from 1 to 1024"]),
            (
                format!("{tuning}instances = 1\nmerge_rows = -1"),
                &["line 6 (tuning.merge_rows)", "`-1`", "from 1 to 1048576"],
            ),
            (
                "[batching]\nmax_batch_size = \"8\"".to_owned(),
                &[
                    "line 2 (batching.max_batch_size)",
                    "string \"8\"",
                    "from 1 to 1048576",
                ],
            ),
            (
                "[batching]\nmax_batch_size = 99999999999999999999".to_owned(),
                &["line 2 (batching.max_batch_size)"],
            ),
            (
                "name = \"a b\"".to_owned(),
                &["line 1 (name)", "\"a b\"", "1 to 128 letters"],
            ),
            (
                "version = \"1 or 2\"".to_owned(),
                &["line 1 (version)", "\"1 or 2\"", "1 to 128 letters"],
            ),
            (
                "name = \"a\"\nname = \"b\"".to_owned(),
                &["line 2 (name)", "duplicate key"],
            ),
            (
                "default = \"yes\"".to_owned(),
                &["line 1 (default)", "string \"yes\"", "a boolean"],
            ),
            (
                "nmae = \"a\"".to_owned(),
                &["line 1 (nmae)", "unknown field `nmae`"],
            ),
            (
                "[batching]\nmax_queue_delay = \"5\"".to_owned(),
                &["line 2", "'5'", "250ms"],
            ),
            (
                "[batching]\nmax_queue_delay = 5".to_owned(),
                &["line 2", "`5`", "a duration with a unit", "5ms"],
            ),
            (long, &["line 2 (batching.check)", "a boolean"]),
            (deep, &["line 1"]),
            (tables, &["line 1"]),
            ("name = \"a".to_owned(), &["line 1"]),
        ] {
            fs::write(&path, &text).unwrap();
            let error = Sidecar::read(&path).unwrap_err().to_string();
            let start: String = text.chars().take(60).collect();
            assert_eq!(error.lines().count(), 1, "{start}: {error}");
            assert!(error.len() < 600, "{start}: {error}");
            for part in parts {
                assert!(error.contains(part), "{start}: {error}");
            }
        }
    }

    #[test]
    fn what_is_no_short_text_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.toml");
        let refused = |part: &str| {
            let error = Sidecar::read(&path).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            let error = settings(1).write(&path).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        let file = fs::File::create(&path).unwrap();
        file.set_len(100 << 20).unwrap();
        refused("larger than 1048576 bytes");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        refused("a pipe");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        refused("cannot be read");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "\u{feff}name = \"a\"\r\n").unwrap();
        assert_eq!(Sidecar::read(&path).unwrap().name.as_deref(), Some("a"));
    }
}
