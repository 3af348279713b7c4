//! Loads that are under way, each on a thread of its own.
//!
//! Invariant: a load that takes long, or never ends, keeps no other waiting. What a load has brought is of use only if
//! none was begun for the same model since, and if the model is still wanted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::files::Files;
use super::plan::Load;
use super::retired;
use crate::model::fingerprint::Fingerprint;
use crate::model::onnx::RawModel;
use crate::model::repository::ModelSource;
use crate::model::versions::ModelId;
use crate::models::loading::{LoadReport, Loader, LoadingError, Predecessor};
use crate::models::served::ServedModel;
use crate::runtime::load_in_progress::LoadInProgress;
use crate::telemetry::supervision;

/// How long others wait for a load. Most models are loaded in seconds, and two at a time take twice the memory; but one may
/// compute without end, for ONNX Runtime executes what is constant in a graph while it loads it, and cannot be stopped.
const PATIENCE: Duration = Duration::from_secs(60);

/// A load that is to be made, or under way.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub(super) source: ModelSource,
    pub(super) load: Load,
    /// The CPUs that are the model's.
    pub(super) cpus: usize,
    pub(super) started: Instant,
    /// Whether it is part of the start, when nobody was told a signature.
    pub(super) is_start: bool,
    /// How often it may be made, should files change meanwhile.
    pub(super) tries: usize,
}

/// What a load has brought.
pub(super) struct Loaded {
    id: ModelId,
    number: u64,
    result: Result<(ServedModel, LoadReport), LoadingError>,
}

/// A load that has ended, and is of use.
pub(super) struct Ended {
    pub(super) attempt: Attempt,
    /// The files, as they were when it began.
    pub(super) files: Files,
    pub(super) result: Result<(Arc<ServedModel>, LoadReport), LoadingError>,
}

/// The loads that are under way.
#[derive(Default)]
pub(super) struct Attempts {
    under_way: BTreeMap<ModelId, UnderWay>,
    /// How many were begun.
    begun: u64,
}

struct UnderWay {
    number: u64,
    attempt: Attempt,
    files: Files,
}

impl Attempts {
    /// Begins `attempt` with the model that was read as `raw` from `files`, by `loader`, in the place of `before`. What it
    /// brings is given to `deliver`, which gives it back if nobody takes it. A load of the same model that is under way is
    /// of no use any more.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub(super) fn begin(
        &mut self,
        attempt: Attempt,
        (raw, files): (RawModel, Files),
        loader: &Arc<Loader>,
        before: Option<Predecessor>,
        deliver: impl FnOnce(Box<Loaded>) -> Result<(), Box<Loaded>> + Send + 'static,
    ) -> std::io::Result<()> {
        self.begun += 1;
        let (id, number) = (attempt.load.id.clone(), self.begun);
        let (source, cpus) = (attempt.source.clone(), attempt.cpus);
        let under_way = UnderWay {
            number,
            attempt,
            files,
        };
        self.under_way.insert(id.clone(), under_way);
        let loader = Arc::clone(loader);
        let in_progress = LoadInProgress::begin();
        let work = {
            let id = id.clone();
            move || {
                // A panic on the way is a refusal like any other: these files are not tried again and again.
                let result = supervision::guard(|| {
                    #[cfg(feature = "testkit")]
                    crate::testkit::panic_at("load");
                    loader.load(&source, raw, before, cpus)
                });
                drop(loader);
                let result = result.unwrap_or(Err(LoadingError::Panicked));
                if let Err(unwanted) = deliver(Box::new(Loaded { id, number, result })) {
                    unwanted.let_go();
                }
                // The process must not end in the middle of what it was needed for.
                drop(in_progress);
            }
        };
        let thread = thread::Builder::new().name("load".to_owned());
        let started = thread.spawn(work).map(drop);
        if started.is_err() {
            self.under_way.remove(&id);
        }
        started
    }

    /// The load that has brought `loaded`, unless it is of no use any more.
    pub(super) fn end(&mut self, loaded: Loaded) -> Option<Ended> {
        let is_current = |under_way: &UnderWay| under_way.number == loaded.number;
        if !self.under_way.get(&loaded.id).is_some_and(is_current) {
            loaded.let_go();
            return None;
        }
        let under_way = self.under_way.remove(&loaded.id)?;
        Some(Ended {
            attempt: under_way.attempt,
            files: under_way.files,
            result: loaded
                .result
                .map(|(model, report)| (Arc::new(model), report)),
        })
    }

    /// Whether `id` is being loaded.
    pub(super) fn has(&self, id: &ModelId) -> bool {
        self.under_way.contains_key(id)
    }

    /// Whether `id` is being loaded from files with this fingerprint.
    pub(super) fn has_files(&self, id: &ModelId, fingerprint: &Fingerprint) -> bool {
        let under_way = self.under_way.get(id);
        under_way.is_some_and(|it| it.files.fingerprint() == fingerprint)
    }

    /// What is being loaded.
    pub(super) fn ids(&self) -> impl Iterator<Item = &ModelId> {
        self.under_way.keys()
    }

    /// Whether nothing is being loaded.
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Has no use any more for what is not `wanted`, and says what that is.
    pub(super) fn keep_only(&mut self, wanted: impl Fn(&ModelId) -> bool) -> Vec<ModelId> {
        let ids = self.under_way.keys().filter(|id| !wanted(id));
        let unwanted: Vec<ModelId> = ids.cloned().collect();
        self.under_way.retain(|id, _| wanted(id));
        unwanted
    }
}

impl Loaded {
    /// Of what.
    pub(super) fn id(&self) -> &ModelId {
        &self.id
    }

    /// Ends what was loaded and nobody uses.
    fn let_go(self) {
        if let Ok((model, _)) = self.result {
            retired::close(&model);
        }
    }
}

/// How long others wait for a load.
pub(super) fn patience() -> Duration {
    #[cfg(feature = "testkit")]
    if let Some(patience) = crate::testkit::Faults::now().patience {
        return patience;
    }
    PATIENCE
}
