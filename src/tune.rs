//! `model-serving tune`: which settings suit a model on this machine, as a table, and written into the model's sidecar.
//!
//! Invariant: what is measured is run by the very code that serves, and what is written is what the next start uses.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::container;
use crate::model::faults::{self, Faults};
use crate::model::onnx::RawModel;
use crate::model::repository::{self, ModelSource, RepositoryError};
use crate::model::sidecar::{SidecarError, TuningSettings};
use crate::models::cpus;
use crate::models::loading::{self, DEFAULT_RUN_MEMORY};
use crate::models::settings::{Fixed, Settings};
use crate::runtime::LoadError;
use crate::runtime::library::Library;
use crate::runtime::providers::{CudaConfig, Device, ExecutionProvider};
use crate::runtime::session::{RunMemory, SessionConfig};
use crate::runtime::tuning::{self, Budget, Effort, Measurement, ModelSettings};
use crate::telemetry::progress::{self, Progress};

/// Why nothing was tuned. Each is one line with a cause and a fix.
#[derive(Debug, Error)]
pub enum TuneError {
    /// No model was found.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A model could not be opened or executed, or ONNX Runtime is missing.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A model refuses what can be made up for it.
    #[error(
        "{} refuses dummy rows, so it cannot be measured; set --instances and --intra-op-threads by hand", .0.display()
    )]
    Refused(PathBuf),
    /// The settings could not be written down.
    #[error(transparent)]
    Sidecar(#[from] SidecarError),
    /// Nobody reads what is printed.
    #[error("the table could not be printed: {0}")]
    Print(std::io::Error),
    /// Several models could not be tuned.
    #[error("{} models cannot be tuned: {}", .0.len(), Faults(.0))]
    Several(Vec<TuneError>),
}

impl TuneError {
    /// Whether a setting is wrong for what lies there, and not what lies there.
    #[must_use]
    pub fn is_of_settings(&self) -> bool {
        matches!(self, Self::Repository(error) if error.is_of_settings())
    }
}

/// What is to be tuned, and how.
#[derive(Debug, Clone, Copy)]
pub struct TuneConfig<'a> {
    /// An `.onnx` file, or a repository folder.
    pub path: &'a Path,
    /// The name of a single-file model.
    pub name: Option<&'a str>,
    /// ONNX Runtime's library; searched if not given.
    pub library: Option<&'a Path>,
    /// How long each model may take.
    pub time: Duration,
    /// What is not to be chosen.
    pub fixed: Fixed,
    /// Whether the settings are written down.
    pub write: bool,
}

/// Tunes the model, or the models of a repository, and gives what is to be printed to `print` as it becomes known. Says on
/// standard error what takes long. A model that cannot be tuned keeps no other from it.
///
/// # Errors
/// When there is no model, one cannot be measured, or the settings cannot be written or printed.
pub fn tune(
    config: &TuneConfig<'_>,
    mut print: impl FnMut(&str) -> std::io::Result<()>,
) -> Result<(), TuneError> {
    let mut found = repository::look(config.path, config.name)?;
    if let Some(error) = found.emptiness(config.path) {
        return Err(error.into());
    }
    let broken = found.broken.drain(..);
    let mut faults: Vec<TuneError> = broken.map(|broken| broken.fault.into()).collect();
    let library = Library::load(config.library).map_err(LoadError::from)?;
    let cpus = cpus::share(cpus::available(), found.sources.len());
    for source in &found.sources {
        match tune_one(config, &library, source, cpus, &mut print) {
            Ok(()) => {}
            // What nobody reads need not be measured.
            Err(error @ TuneError::Print(_)) => return Err(error),
            Err(error) => faults.push(error),
        }
    }
    faults::refuse(faults, TuneError::Several)
}

/// Tunes the model at `source` on so many `cpus`.
fn tune_one(
    config: &TuneConfig<'_>,
    library: &Library,
    source: &ModelSource,
    cpus: usize,
    print: &mut impl FnMut(&str) -> std::io::Result<()>,
) -> Result<(), TuneError> {
    let tuned = measure(config, library, source, cpus)?;
    let mut text = format!("{} ({})\n\n", source.name, source.path.display());
    // Writing into a string cannot fail.
    let _ = write_table(&mut text, &tuned);
    print(&text).map_err(TuneError::Print)?;
    if config.write {
        let path = sidecar_of(&source.path);
        tuned.settings.write(&path)?;
        print(&format!("written to {}\n\n", path.display())).map_err(TuneError::Print)?;
    }
    Ok(())
}

/// What came out of it for one model.
struct TunedModel {
    measurements: Vec<Measurement>,
    /// The rows of several requests that share an execution at most, measured or not.
    merge_rows: usize,
    settings: TuningSettings,
}

fn sidecar_of(model: &Path) -> PathBuf {
    model.with_extension("toml")
}

fn measure(
    config: &TuneConfig<'_>,
    library: &Library,
    source: &ModelSource,
    cpus: usize,
) -> Result<TunedModel, TuneError> {
    let settings = Settings::resolve(config.fixed, &source.sidecar, cpus);
    let settings = settings.map_err(|reason| LoadError::Sidecar {
        path: source.path.clone(),
        reason,
    })?;
    let settings = settings.without_tuning();
    let device = SessionConfig {
        device: Device::CPU,
        cuda: CudaConfig::default(),
        run_memory: Some(RunMemory::within(container::memory(), DEFAULT_RUN_MEMORY)),
        most_sessions: settings.most_sessions(),
    };
    let threads = |provider: ExecutionProvider| settings.first_threads(provider);
    let _progress = Progress::told(&source.name);
    progress::stage("reading and opening the model");
    let raw = RawModel::read(&source.path);
    let (opened, mut first) = loading::open_with_memory(library, source, raw, device, threads)?;
    progress::stage("trying whether rows may share executions");
    let trial = loading::try_rows(&opened, &mut first, &settings, false, source)?;
    let constraints = settings.constraints(ExecutionProvider::CPU, Some(trial.limits()));
    let budget = Budget {
        time: config.time,
        effort: Effort::THOROUGH,
        everything: true,
    };
    progress::stage("measuring settings");
    let tuned = tuning::tune(&opened, first, &constraints, budget)?;
    if tuned.measurements.is_empty() {
        return Err(TuneError::Refused(source.path.clone()));
    }
    let ModelSettings {
        instance_group,
        merge_rows,
        measured,
    } = tuned.choice;
    let number = |number| NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN);
    let settings = TuningSettings {
        sha256: opened.sha256().to_owned(),
        cpus: number(constraints.cpus),
        instances: number(instance_group.instances),
        intra_op_threads: number(instance_group.intra_op_threads),
        // What is written down is taken for measured.
        merge_rows: measured.then(|| number(merge_rows)),
    };
    Ok(TunedModel {
        measurements: tuned.measurements,
        merge_rows,
        settings,
    })
}

fn write_table(text: &mut String, tuned: &TunedModel) -> std::fmt::Result {
    let TunedModel {
        measurements,
        merge_rows,
        settings,
    } = tuned;
    writeln!(text, "instances  threads   rows      rows/s      ms/run")?;
    let instances = settings.instances.get();
    // The sessions of a model with short runs are measured one at a time.
    let together = measurements
        .iter()
        .any(|measurement| measurement.instance_group.instances == instances);
    // What was measured twice stands there as it was confirmed.
    let rows: BTreeMap<_, _> = measurements
        .iter()
        .map(|measurement| {
            let instance_group = measurement.instance_group;
            let setting = (
                instance_group.instances,
                instance_group.intra_op_threads,
                measurement.rows,
            );
            (setting, measurement)
        })
        .collect();
    for measurement in rows.values() {
        let chosen = (!together || measurement.instance_group.instances == instances)
            && measurement.instance_group.intra_op_threads == settings.intra_op_threads.get()
            && measurement.rows == settings.merge_rows.map_or(1, NonZeroUsize::get);
        writeln!(
            text,
            "{:>9} {:>8} {:>6} {:>11.0} {:>11.3}{}",
            measurement.instance_group.instances,
            measurement.instance_group.intra_op_threads,
            measurement.rows,
            measurement.rows_per_second,
            measurement.run.as_secs_f64() * 1e3,
            if chosen { "  chosen" } else { "" }
        )?;
    }
    let merging = match (*merge_rows, settings.merge_rows) {
        (1, _) => "requests are executed one by one".to_owned(),
        (rows, Some(_)) => format!("up to {rows} rows of several requests share an execution"),
        (rows, None) => format!(
            "up to {rows} rows of several requests share an execution, and whether that pays was not measured"
        ),
    };
    writeln!(
        text,
        "\n{} CPU(s): --instances {} --intra-op-threads {}; {merging}\n",
        settings.cpus, settings.instances, settings.intra_op_threads
    )
}
