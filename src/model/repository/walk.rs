//! Going through a repository folder: which of its entries are versions of models, and what is wrong with the others.
//!
//! Invariant: every entry is a model's version, or known to be harmless, or named with a reason. Harmless is what is
//! hidden (`.git`, Kubernetes' `..data`), `lost+found`, and texts about the models, such as a README.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::skipped::{SkippedList, shown};
use crate::model::is_name;

/// The file that a version's folder holds.
const MODEL_FILE: &str = "model.onnx";

/// What Linux says of a link that leads to itself.
const TOO_MANY_LINKS: i32 = 40;

/// Endings of texts that people and tools lay beside models.
const TEXTS: [&str; 10] = [
    "md", "txt", "rst", "json", "yaml", "yml", "pbtxt", "csv", "sha256", "sig",
];

/// How the names of texts begin that may have no ending.
const TEXT_NAMES: [&str; 6] = [
    "readme",
    "license",
    "licence",
    "notice",
    "changelog",
    "checksums",
];

/// The newest version of one model.
pub(super) struct Candidate {
    /// The name of the model's folder, as it can be shown.
    pub(super) folder: String,
    pub(super) version: u64,
    /// The `.onnx` file.
    pub(super) model: PathBuf,
}

/// What an entry is.
enum Kind {
    Folder,
    File,
    /// Neither, with the reason why it cannot be served.
    Other(String),
    /// It went away while we looked.
    Gone,
}

/// The newest version of each model in `repository`. What is not served is added to `skipped`.
pub(super) fn newest_versions(
    repository: &Path,
    skipped: &mut SkippedList,
) -> std::io::Result<Vec<Candidate>> {
    let mut candidates = Vec::new();
    for path in entries(repository)? {
        let name = name_of(&path);
        match kind(&path)? {
            Kind::Gone => {}
            Kind::Folder => {
                if let Some((version, model)) = newest_version(&path, &name, skipped)? {
                    candidates.push(Candidate {
                        folder: name,
                        version,
                        model,
                    });
                }
            }
            Kind::Other(reason) => skipped.push(name, reason),
            Kind::File => {
                if let Some(reason) = stray_file(&name, &path, None) {
                    skipped.push(name, reason);
                }
            }
        }
    }
    Ok(candidates)
}

/// The highest version of the model in `folder`, which is called `name`, with its file.
fn newest_version(
    folder: &Path,
    name: &str,
    skipped: &mut SkippedList,
) -> std::io::Result<Option<(u64, PathBuf)>> {
    let mut versions: Vec<(u64, String, PathBuf)> = Vec::new();
    let mut inside = Vec::new();
    for path in entries(folder)? {
        let entry = name_of(&path);
        let shown = format!("{name}/{entry}");
        match kind(&path)? {
            Kind::Gone => {}
            Kind::Folder => match version(&entry) {
                Err(reason) => inside.push((shown, reason)),
                Ok(number) => {
                    let twin = versions.iter().find(|(known, ..)| *known == number);
                    if let Some((_, twin, _)) = twin {
                        inside.push((shown, format!("is the same version as {name}/{twin}")));
                        continue;
                    }
                    match model_in(&path)? {
                        Ok(model) => versions.push((number, entry, model)),
                        Err(reason) => inside.push((shown, reason)),
                    }
                }
            },
            Kind::Other(reason) => inside.push((shown, reason)),
            Kind::File => {
                if let Some(reason) = stray_file(&entry, &path, Some(name)) {
                    inside.push((shown, reason));
                }
            }
        }
    }
    let newest = versions.into_iter().max_by_key(|(number, ..)| *number);
    if newest.is_none() {
        let reason = "holds no version that can be served; expected <version>/model.onnx with a \
                      whole number as version";
        skipped.push(name.to_owned(), reason.to_owned());
    }
    for (path, reason) in inside {
        skipped.push(path, reason);
    }
    Ok(newest.map(|(number, _, model)| (number, model)))
}

/// The version that a folder called `name` holds, or why it is none. Leading zeros are allowed, as exporters write them.
fn version(name: &str) -> Result<u64, String> {
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        return name
            .parse()
            .map_err(|_| format!("is no version: the highest is {}", u64::MAX));
    }
    let number = name.trim_start_matches(['v', 'V', '+']);
    let number = number.strip_suffix(".0").unwrap_or(number);
    let example = match number.parse::<u64>() {
        Ok(number) => format!("rename it to {number}"),
        Err(_) => "rename it, for example to 1".to_owned(),
    };
    Err(format!(
        "is no version: a version's folder is called by a whole number, by digits alone; {example}"
    ))
}

/// The model in a version's `folder`, or why there is none.
fn model_in(folder: &Path) -> std::io::Result<Result<PathBuf, String>> {
    let model = folder.join(MODEL_FILE);
    match kind(&model)? {
        Kind::File => return Ok(Ok(model)),
        Kind::Folder => return Ok(Err(format!("its {MODEL_FILE} is a folder, not a file"))),
        Kind::Other(reason) => return Ok(Err(format!("its {MODEL_FILE} {reason}"))),
        Kind::Gone => {}
    }
    let models: Vec<String> = entries(folder)?
        .iter()
        .filter(|path| has_ending(path, &["onnx"]))
        .map(|path| name_of(path))
        .collect();
    Ok(Err(match models.as_slice() {
        [] => format!("holds no {MODEL_FILE}"),
        [one] => format!("holds no {MODEL_FILE}; rename {one} to {MODEL_FILE}"),
        [first, second, ..] => format!(
            "holds {} .onnx files ({first}, {second}{}) and none is called {MODEL_FILE}; give each model a folder of its own",
            models.len(),
            if models.len() > 2 { ", ..." } else { "" }
        ),
    }))
}

/// Why the file called `name`, at the top of a repository or in the folder of `model`, is not served; nothing if it is
/// known to be harmless.
fn stray_file(name: &str, path: &Path, model: Option<&str>) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    if has_ending(path, &TEXTS) || TEXT_NAMES.iter().any(|text| lower.starts_with(text)) {
        return None;
    }
    if has_ending(path, &["toml"]) {
        let reason =
            "a sidecar has an effect only beside its model, as <name>/<version>/model.toml";
        return Some(reason.to_owned());
    }
    if !has_ending(path, &["onnx"]) {
        let reason =
            "is not part of a repository; expected folders <name>/<version>/ with a model.onnx";
        return Some(reason.to_owned());
    }
    let stem = path.file_stem().map(shown);
    let place = match (model, stem) {
        (Some(model), _) => format!("{model}/1"),
        (None, Some(stem)) if is_name(&stem) => format!("{stem}/1"),
        _ => "<name>/1".to_owned(),
    };
    Some(format!(
        "does not lie in a version's folder; move it to {place}/{MODEL_FILE}, or set --model (MODEL_PATH) to it alone"
    ))
}

/// What lies at `path`. A file system that fails is an error, and no model that is gone.
fn kind(path: &Path) -> std::io::Result<Kind> {
    let failed = |error: std::io::Error| {
        std::io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    };
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(Kind::Folder),
        Ok(metadata) if metadata.is_file() => Ok(Kind::File),
        Ok(_) => Ok(Kind::Other(
            "is neither a file nor a folder (a pipe, socket or device)".to_owned(),
        )),
        Err(error) if error.raw_os_error() == Some(TOO_MANY_LINKS) => Ok(Kind::Other(
            "is a link that leads back to itself".to_owned(),
        )),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            let target = fs::read_link(path);
            Ok(target.map_or(Kind::Gone, |target| {
                Kind::Other(format!(
                    "is a link that leads nowhere (to {})",
                    shown(target.as_os_str())
                ))
            }))
        }
        Err(error) => Err(failed(error)),
    }
}

/// The entries of `folder` that are not known to be harmless by their names, in order.
fn entries(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut entries = Vec::new();
    let failed = |error: std::io::Error| {
        std::io::Error::new(error.kind(), format!("{}: {error}", folder.display()))
    };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default();
        // Kubernetes mounts volumes through hidden folders such as `..data`; they hold no models of their own.
        if !name.to_string_lossy().starts_with('.') && name != "lost+found" {
            entries.push(path);
        }
    }
    entries.sort();
    Ok(entries)
}

fn name_of(path: &Path) -> String {
    path.file_name().map(shown).unwrap_or_default()
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().and_then(OsStr::to_str);
    ending.is_some_and(|ending| {
        endings
            .iter()
            .any(|known| known.eq_ignore_ascii_case(ending))
    })
}
