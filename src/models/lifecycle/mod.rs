//! Loading models again while they serve: on SIGHUP, and when their files change, if that is watched.
//!
//! A model is loaded beside the one that serves, checked, warmed up, and only then takes its name. The old one answers
//! the requests that had found it and is then let go.
//!
//! Invariant: whatever lies on the disk, the model that serves goes on until another one can take its place.

mod departures;
mod files;
mod notices;
mod troubles;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::model::ModelMetadata;
use crate::model::fingerprint::Fingerprint;
use crate::model::repository::{Broken, ModelSource};
use crate::models::loading::{LoadReport, Loader, LoadingError};
use crate::models::registry::{Phase, Registry};
use crate::models::served::ServedModel;
use crate::service_manager;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::supervision;
use departures::Departures;
pub use files::Files;
pub use notices::Notices;
use troubles::{Trouble, Troubles};

/// How often a replaced model is looked at, until nobody uses it any more.
const RETIRE_INTERVAL: Duration = Duration::from_millis(50);

/// How long a model without requests may take to end its threads.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a model does not take the place of the one before.
#[derive(Debug, Error)]
enum ReloadError {
    #[error(transparent)]
    Loading(#[from] LoadingError),
    /// Clients were written for the signature that they were told.
    #[error("{0}; start the server anew, or serve it under another name")]
    Signature(String),
    /// Clients of `/predict` would reach a model that they were not written for.
    #[error(
        "it would take the place of '{old}', and {change}; start the server anew, or serve it beside '{old}'"
    )]
    Successor {
        /// The name of the model that serves.
        old: String,
        /// How the signatures differ.
        change: String,
    },
    #[error("the server is draining")]
    Draining,
    /// That is a defect of this program, which the log tells in a line of its own.
    #[error("loading it panicked, which is a defect of this server; the line 'panic' says where")]
    Panicked,
    /// What was loaded may be half of the old files and half of the new ones.
    #[error("its files changed while they were loaded; ask again when they are complete")]
    Changed,
}

impl ReloadError {
    /// The reason without paths and without what a library said, for `/ready`.
    fn public(&self) -> &'static str {
        match self {
            Self::Signature(_) | Self::Successor { .. } => {
                "its signature is not that of the model that serves; the log says how they differ"
            }
            Self::Changed => "its files changed while they were loaded",
            Self::Loading(_) | Self::Draining | Self::Panicked => {
                "it could not be loaded; the log says why"
            }
        }
    }
}

/// The thread that loads models again.
pub struct Reloader {
    requests: Option<Sender<()>>,
    ended: Receiver<()>,
}

/// What the thread needs.
pub struct ReloadConfig {
    /// What loads models.
    pub loader: Loader,
    /// Where they take their names.
    pub registry: Arc<Registry>,
    /// Where reloads are counted.
    pub metrics: Arc<Metrics>,
    /// How often the files are looked at; never if not given.
    pub watch: Option<Duration>,
    /// The longest that a request can need a model that it has found.
    pub grace: Duration,
}

impl Reloader {
    /// Starts the thread. `loaded` are the files of the models that serve, as they were before they were loaded.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(
        config: ReloadConfig,
        loaded: BTreeMap<String, Files>,
        notices: Notices,
    ) -> std::io::Result<Self> {
        let (requests, requested) = mpsc::channel();
        let (ending, ended) = mpsc::channel();
        let thread = thread::Builder::new().name("reload".to_owned());
        thread.spawn(move || {
            let mut worker = Worker {
                config,
                tried: loaded,
                changing: BTreeMap::new(),
                troubles: Troubles::default(),
                departures: Departures::default(),
                retired: Vec::new(),
                refused: BTreeMap::new(),
                notices,
            };
            let wait = |pause| {
                thread::park_timeout(pause);
                // It sees by itself whether it is still wanted.
                true
            };
            supervision::keep_running("reload", wait, || worker.run(&requested));
            drop(ending);
        })?;
        Ok(Self {
            requests: Some(requests),
            ended,
        })
    }

    /// Asks for every model to be loaded again.
    pub fn reload(&self) {
        if let Some(requests) = &self.requests {
            // The thread ends only after this handle has let go of it.
            let _ = requests.send(());
        }
    }

    /// Starts nothing more, and waits until what is being loaded has ended, or until `deadline`. Says whether it has.
    #[must_use]
    pub fn join(mut self, deadline: Instant) -> bool {
        drop(self.requests.take());
        let left = deadline.saturating_duration_since(Instant::now());
        // It sends nothing: its end is that the other side is gone.
        self.ended.recv_timeout(left) != Err(RecvTimeoutError::Timeout)
    }
}

/// A model that serves now, what is to be said of it, and what the one before was.
type Replaced = (Arc<ServedModel>, LoadReport, Option<Arc<ModelMetadata>>);

struct Retired {
    model: Arc<ServedModel>,
    deadline: Instant,
}

struct Worker {
    config: ReloadConfig,
    /// The files of each model when it was last loaded, or refused.
    tried: BTreeMap<String, Files>,
    /// Stamps that were new at the last look; nothing for a model that was gone.
    changing: BTreeMap<String, Option<Fingerprint>>,
    /// Why the last look did not find all models.
    troubles: Troubles,
    departures: Departures,
    retired: Vec<Retired>,
    /// Models whose files were refused when they were last tried, and why in words that anybody may read.
    refused: BTreeMap<String, &'static str>,
    notices: Notices,
}

impl Worker {
    fn run(&mut self, requested: &Receiver<()>) {
        let mut look_at = self.config.watch.map(|watch| Instant::now() + watch);
        loop {
            #[cfg(feature = "testkit")]
            crate::testkit::panic_at("reload");
            let retire_at = (!self.retired.is_empty()).then(|| Instant::now() + RETIRE_INTERVAL);
            let event = match look_at.into_iter().chain(retire_at).min() {
                Some(at) => requested.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => requested.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Ok(()) => {
                    // Whoever asked meanwhile gets what is there now, too.
                    while requested.try_recv().is_ok() {}
                    let _told = service_manager::Reloading::begin();
                    self.look(true);
                    self.tell_whether_blocked();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if look_at.is_some_and(|at| at <= Instant::now()) {
                self.look(false);
                self.tell_whether_blocked();
                look_at = self.config.watch.map(|watch| Instant::now() + watch);
            }
            self.let_go(Instant::now());
        }
        for retired in &self.retired {
            close(&retired.model);
        }
    }

    fn tell_whether_blocked(&self) {
        let blocked = self.troubles.are_told() || !self.refused.is_empty();
        let metrics = &self.config.metrics;
        metrics.reload_blocked.set(i64::from(blocked));
    }

    /// Loads the models that have changed, or all of them.
    fn look(&mut self, all: bool) {
        let (found, fault) = match self.config.loader.look() {
            Ok((found, emptiness)) => (Some(found), emptiness),
            Err(error) => (None, Some(error)),
        };
        let broken = found.iter().flat_map(|found| &found.broken);
        let troubles = broken.map(|broken| self.trouble_of(broken));
        let name = || self.config.loader.repository_name();
        let troubles = troubles.chain(fault.map(|fault| Trouble::of_all(name(), &fault)));
        let mut troubles: Vec<Trouble> = troubles.collect();
        if let Some(found) = &found {
            self.notices.see(&found.skipped, all);
            self.load_changed(&found.sources, &troubles, all);
        }
        let waiting = self.departures.waiting();
        troubles.extend(waiting.map(|(name, for_)| Trouble::of_departure(name, for_)));
        for trouble in self.troubles.see(troubles, all) {
            let model = trouble.model.as_deref();
            self.failed(model, model, &trouble.reason);
        }
        let mut skipped = self.notices.skipped().clone();
        for trouble in self.troubles.current() {
            skipped.push(trouble.place.clone(), trouble.public.to_owned());
        }
        for (name, reason) in &self.refused {
            skipped.push(name.clone(), (*reason).to_owned());
        }
        self.config.registry.set_skipped(skipped);
        if let Some(found) = &found {
            self.notices
                .choose_default(&self.config.registry, &found.sources);
        }
    }

    /// What is wrong with a model that lies there.
    fn trouble_of(&self, broken: &Broken) -> Trouble {
        let mut tried = self.tried.iter();
        let served = tried.find(|(_, files)| files.model() == broken.model);
        Trouble::of_model(broken, served.map(|(name, _)| name.as_str()))
    }

    /// Loads those of `sources` that have changed, or all of them, and lets go what is gone; beside them there are
    /// `troubles`.
    fn load_changed(&mut self, sources: &[ModelSource], troubles: &[Trouble], all: bool) {
        self.refused
            .retain(|name, _| sources.iter().any(|source| source.name == *name));
        let renamed = self.renamed(sources).filter(|_| troubles.is_empty());
        for source in sources {
            let tried = self.tried.get(&source.name);
            let fingerprint = match tried {
                Some(files) => files.fingerprint_as_found(source),
                None => source.fingerprint.clone(),
            };
            if all || self.has_settled(&source.name, Some(&fingerprint)) {
                // Two of a model at a time are enough for the memory.
                self.wait_for_retired();
                self.load(source, renamed.as_deref());
            }
        }
        // A folder without any model is rather one that is not mounted.
        if !sources.is_empty() {
            self.let_depart(sources, troubles, all);
        }
    }

    /// Lets go the models whose files are gone.
    fn let_depart(&mut self, sources: &[ModelSource], troubles: &[Trouble], all: bool) {
        let served = self.config.registry.models();
        let names = sources.iter().map(|source| &source.name);
        let names = names.chain(troubles.iter().filter_map(|trouble| trouble.model.as_ref()));
        let (there, unserved): (BTreeSet<String>, BTreeSet<String>) =
            names.cloned().partition(|name| served.contains_key(name));
        let gone = served
            .keys()
            .filter(|name| !there.contains(*name) && self.is_gone(name, sources));
        let gone = gone.cloned().collect();
        self.departures.look(&gone, unserved);
        for name in gone {
            let settled = all || self.has_settled(&name, None);
            if settled && self.departures.may_go(&name) {
                self.remove(&name);
            }
        }
    }

    /// Whether nothing lies in the place of the model called `name`, which is none of `sources`, that is to be mended, such
    /// as a folder, or a file that must not be read.
    fn is_gone(&self, name: &str, sources: &[ModelSource]) -> bool {
        let files = self.tried.get(name).filter(|files| files.lie_there());
        // What lies in its folder may be called otherwise now.
        files.is_none_or(|files| sources.iter().any(|source| files.are_beside(&source.path)))
    }

    /// The name that the only model had until now, if it has another one now.
    fn renamed(&self, sources: &[ModelSource]) -> Option<String> {
        let models = self.config.registry.models();
        match (sources, models.len(), models.keys().next()) {
            ([source], 1, Some(name)) if source.name != *name => Some(name.clone()),
            _ => None,
        }
    }

    /// Waits until the models that were replaced are gone, or nobody can need them any more.
    fn wait_for_retired(&mut self) {
        self.let_go(Instant::now());
        while !self.retired.is_empty() && self.config.registry.phase() != Phase::Draining {
            thread::park_timeout(RETIRE_INTERVAL);
            self.let_go(Instant::now());
        }
    }

    /// Whether the model's files differ from those that were tried, and were the same at the last look: somebody may
    /// still be writing them.
    fn has_settled(&mut self, name: &str, fingerprint: Option<&Fingerprint>) -> bool {
        let tried = self.tried.get(name).map(Files::fingerprint);
        if fingerprint.is_some() && tried == fingerprint {
            self.changing.remove(name);
            return false;
        }
        let last = self.changing.insert(name.to_owned(), fingerprint.cloned());
        last.is_some_and(|last| last.as_ref() == fingerprint)
    }

    /// Loads the model at `source`, instead of the one called `renamed`, if any.
    fn load(&mut self, source: &ModelSource, renamed: Option<&str>) {
        self.changing.remove(&source.name);
        let started = Instant::now();
        let files = Files::of(source);
        // A panic on the way is a refusal like any other: these files are not tried again and again.
        let result = supervision::guard(|| self.take_place(source, &files, renamed))
            .unwrap_or(Err(ReloadError::Panicked));
        self.tried.insert(source.name.clone(), files);
        match result {
            Ok(replaced) => {
                self.refused.remove(&source.name);
                if let Some(old) = renamed {
                    self.notices.rename(old, &source.name);
                    self.tried.remove(old);
                    self.changing.remove(old);
                }
                let (model, report, before) = replaced;
                report.log(&model);
                // What is new was loaded, and not loaded again.
                if let Some(before) = before {
                    tracing::info!(
                        model = source.name,
                        version = source.version,
                        sha256 = model.metadata.sha256,
                        before = before.name,
                        version_before = before.version,
                        sha256_before = before.sha256,
                        seconds = started.elapsed().as_secs_f64(),
                        "model reloaded"
                    );
                }
            }
            Err(ReloadError::Draining) => {}
            Err(error) => {
                self.refused.insert(source.name.clone(), error.public());
                let serves = Some(renamed.unwrap_or(&source.name));
                self.failed(Some(&source.name), serves, &error.to_string());
            }
        }
    }

    fn take_place(
        &mut self,
        source: &ModelSource,
        files: &Files,
        renamed: Option<&str>,
    ) -> Result<Replaced, ReloadError> {
        #[cfg(feature = "testkit")]
        crate::testkit::panic_at("load");
        let registry = &self.config.registry;
        let served = registry.get(&source.name);
        let before = renamed.and_then(|old| registry.get(old));
        let before = served.as_deref().or(before.as_deref());
        let (model, report) = self.config.loader.load_again(source, before)?;
        let model = Arc::new(model);
        let change = before.and_then(|before| before.declared.signature_change(&model.declared));
        let refused = match (change, renamed) {
            (Some(change), Some(old)) => Some(ReloadError::Successor {
                old: old.to_owned(),
                change,
            }),
            (Some(change), None) => Some(ReloadError::Signature(change)),
            (None, _) if !files.are_unchanged() => Some(ReloadError::Changed),
            (None, _) => (registry.phase() == Phase::Draining).then_some(ReloadError::Draining),
        };
        if let Some(error) = refused {
            close(&model);
            return Err(error);
        }
        // Counted first, so that whoever meets the new model finds it counted.
        self.config.metrics.reloads_succeeded.inc();
        let old = renamed.unwrap_or(&source.name);
        let follows = self.notices.follows_renames();
        let before = registry.publish_instead_of(&model, old, follows);
        let info = before.as_ref().map(|before| &before.info);
        self.config.metrics.set_model_info(Some(&model.info), info);
        let metadata = before.as_ref().map(|before| Arc::clone(&before.metadata));
        self.retire(before);
        Ok((model, report, metadata))
    }

    fn remove(&mut self, name: &str) {
        self.changing.remove(name);
        self.tried.remove(name);
        let before = self.config.registry.remove(name);
        let info = before.as_ref().map(|before| &before.info);
        self.config.metrics.set_model_info(None, info);
        self.retire(before);
        tracing::info!(model = name, "the model is gone, and is no longer served");
    }

    /// Tells that `model` is refused, if it is known which; `serving` is the one that it was to replace.
    fn failed(&self, model: Option<&str>, serving: Option<&str>, reason: &str) {
        self.config.metrics.reloads_failed.inc();
        let registry = &self.config.registry;
        let serves = match serving {
            Some(name) => registry.get(name).is_some(),
            None => !registry.models().is_empty(),
        };
        if serves {
            tracing::warn!(
                model,
                reason,
                "the model could not be loaded again; what served before goes on serving"
            );
        } else {
            tracing::warn!(
                model,
                reason,
                "the model could not be loaded, and is not served"
            );
        }
    }

    fn retire(&mut self, model: Option<Arc<ServedModel>>) {
        let deadline = Instant::now() + self.config.grace;
        self.retired
            .extend(model.map(|model| Retired { model, deadline }));
    }

    /// Ends the models that nobody uses any more.
    fn let_go(&mut self, now: Instant) {
        self.retired.retain(|retired| {
            // Nobody can find it any more, so that once we are alone with it we stay alone.
            let alone = Arc::strong_count(&retired.model) == 1;
            if alone || now > retired.deadline {
                close(&retired.model);
                let name = &retired.model.metadata.name;
                if self.config.registry.get(name).is_none() {
                    retired.model.scheduler.clear_gauges();
                }
                return false;
            }
            let _ = retired.model.scheduler.check(now);
            true
        });
    }
}

fn close(model: &ServedModel) {
    model.scheduler.close();
    if !model.scheduler.join(Instant::now() + JOIN_TIMEOUT) {
        let name = &model.metadata.name;
        tracing::warn!(model = name, "an instance of a replaced model did not end");
    }
}
