//! What is done about models: looks, loads, and retirements, as the plan says.
//!
//! Invariant: a model takes its name only after it was loaded whole, and with the signature that its clients know.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::Instant;

use super::config::LifecycleConfig;
use super::error::ReloadError;
use super::files::Files;
use super::notices::Notices;
use super::plan::{Load, Look, Plan};
use super::retired::{self, RETIRE_INTERVAL, RetiredModels};
use super::troubles::{Trouble, Troubles};
use crate::model::faults;
use crate::model::onnx::RawModel;
use crate::model::repository::{Broken, Found, ModelSource, SkippedList};
use crate::model::versions::ModelId;
use crate::models::cpus;
use crate::models::loading::{LoadReport, Loader, LoadingError};
use crate::models::registry::{Models, Phase};
use crate::models::served::ServedModel;
use crate::service_manager;
use crate::telemetry::supervision;

/// How often files that change while the server starts are loaded again. Later, whoever watches or asks does so.
const ATTEMPTS_AT_START: usize = 3;

/// A model that serves now, what is to be said of it, and the one that it replaced, if any.
type Replaced = (Arc<ServedModel>, LoadReport, Option<Arc<ServedModel>>);

pub(super) struct Worker {
    config: LifecycleConfig,
    loader: Loader,
    plan: Plan,
    /// The files of each model when it was last loaded, or refused.
    files: BTreeMap<ModelId, Files>,
    /// Why the last look did not find all models.
    troubles: Troubles,
    retired: RetiredModels,
    /// Models whose files were refused when they were last tried, and why in words that anybody may read.
    refused: BTreeMap<ModelId, &'static str>,
    /// What of `ml_model_load_failed` is set.
    counted_failures: BTreeSet<(String, String)>,
    /// Where the models lie that the server is not ready without, and that have never served.
    required: BTreeSet<PathBuf>,
    /// What has failed at the first look. It is told only if anything can be served, since a start that fails is one line.
    first_failures: Option<Vec<(ModelId, ReloadError)>>,
    notices: Notices,
}

impl Worker {
    pub(super) fn new(config: LifecycleConfig, loader: Loader) -> Self {
        let notices = Notices::new(loader.default_model());
        Self {
            config,
            loader,
            plan: Plan::default(),
            files: BTreeMap::new(),
            troubles: Troubles::default(),
            retired: RetiredModels::default(),
            refused: BTreeMap::new(),
            counted_failures: BTreeSet::new(),
            required: BTreeSet::new(),
            first_failures: None,
            notices,
        }
    }

    /// Looks for the first time, and makes the server ready if anything can be served.
    ///
    /// # Errors
    /// Why nothing can be served.
    pub(super) fn first_look(&mut self) -> Result<(), LoadingError> {
        let (mut found, emptiness) = self.loader.look()?;
        if let Some(error) = emptiness {
            return Err(error.into());
        }
        let there = self.requirements(&found).into_iter();
        self.required = there
            .filter(|(_, required)| *required)
            .map(|(place, _)| place)
            .collect();
        self.first_failures = Some(Vec::new());
        self.reconcile(&found, Vec::new(), true);
        let failures = self.first_failures.take().unwrap_or_default();
        if self.config.registry.models().is_empty() {
            let broken = found.broken.drain(..);
            let faults = broken.map(|broken| broken.fault.into());
            let failures = failures.into_iter().filter_map(|(_, error)| match error {
                ReloadError::Loading(error) => Some(error),
                ReloadError::Changed => Some(LoadingError::Changed),
                // There was nothing to be different from, and nobody waits any more.
                ReloadError::Signature(_)
                | ReloadError::Successor { .. }
                | ReloadError::Draining => None,
            });
            return faults::refuse(faults.chain(failures).collect(), LoadingError::Several);
        }
        for (id, error) in failures {
            self.tell_failure(Some(&id.name), Some(&id.version), &error.to_string());
        }
        for trouble in self.troubles.told() {
            let (model, version) = (trouble.model.as_deref(), trouble.version.as_deref());
            self.tell_failure(model, version, &trouble.reason);
        }
        self.config.registry.become_ready();
        Ok(())
    }

    /// Looks when somebody asks, or in intervals, until nobody holds the other end of `requested`.
    pub(super) fn run(&mut self, requested: &Receiver<()>) {
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
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if look_at.is_some_and(|at| at <= Instant::now()) {
                self.look(false);
                look_at = self.config.watch.map(|watch| Instant::now() + watch);
            }
            self.let_go();
        }
        self.retired.close();
    }

    /// Looks at what lies there, and does what follows from it.
    fn look(&mut self, asked: bool) {
        let (found, fault) = match self.loader.look() {
            Ok((found, emptiness)) => (Some(found), emptiness),
            Err(error) => (None, Some(error)),
        };
        let name = || self.loader.repository_name();
        let fault = fault.map(|fault| Trouble::of_all(name(), &fault));
        let faults: Vec<Trouble> = fault.into_iter().collect();
        match found {
            Some(found) => self.reconcile(&found, faults, asked),
            None => self.tell(faults, asked),
        }
    }

    /// Loads what has changed, or everything if somebody `asked`, lets go what is gone, and tells what is wrong.
    fn reconcile(&mut self, found: &Found, mut troubles: Vec<Trouble>, asked: bool) {
        let broken: Vec<Trouble> = found.broken.iter().map(|it| self.trouble_of(it)).collect();
        let look = self.compare(found, &broken, asked);
        self.refused.retain(|id, _| look.found.contains_key(id));
        for load in self.plan.loads(&look, &self.served()) {
            let mut sources = found.sources.iter();
            if let Some(source) = sources.find(|source| source.id() == load.id) {
                let cpus = cpus::share(cpus::available(), self.sharing(&look));
                // Two of a model at a time are enough for the memory.
                self.wait_for_retired();
                self.load(source, &load, cpus);
            }
        }
        for id in self.plan.retirements(&look, &self.served()) {
            self.remove(&id);
        }
        troubles.extend(broken);
        let waiting = self.plan.waiting();
        troubles.extend(waiting.map(|(name, for_)| Trouble::of_departure(name, for_)));
        if self.first_failures.is_some() && self.served().is_empty() {
            // The start fails, and says why in one line.
            return;
        }
        self.notices.see(&found.skipped, asked);
        self.notices.choose_default(&self.config.registry, found);
        self.look_for_required(found);
        self.tell(troubles, asked);
    }

    /// What was found, as the plan wants it.
    fn compare(&self, found: &Found, broken: &[Trouble], asked: bool) -> Look {
        let sources = found.sources.iter().map(|source| {
            let id = source.id();
            let fingerprint = match self.files.get(&id) {
                Some(files) => files.fingerprint_as_found(source),
                None => source.fingerprint.clone(),
            };
            (id, fingerprint)
        });
        let sources: BTreeMap<_, _> = sources.collect();
        let missing = self.served().into_iter();
        let missing = missing.filter(|id| !sources.contains_key(id));
        let is_occupied = |id: &ModelId| {
            let files = self.files.get(id);
            files.is_some_and(|files| files.are_occupied(&found.sources))
        };
        Look {
            asked,
            occupied: missing.filter(is_occupied).collect(),
            broken: broken.iter().filter_map(|it| it.model.clone()).collect(),
            found: sources,
        }
    }

    /// How many versions of models share the CPUs: those that are found, and those that go on serving because what lies in
    /// their place is broken.
    fn sharing(&self, look: &Look) -> usize {
        let served = self.served().into_iter();
        let left =
            served.filter(|id| !look.found.contains_key(id) && look.broken.contains(&id.name));
        look.found.len() + left.count()
    }

    fn served(&self) -> BTreeSet<ModelId> {
        self.config.registry.models().ids().collect()
    }

    /// What is wrong with a model that lies there.
    fn trouble_of(&self, broken: &Broken) -> Trouble {
        let mut known = self.files.iter();
        let served = known.find(|(_, files)| files.model() == broken.model);
        Trouble::of_model(broken, served.map(|(id, _)| id.name.as_str()))
    }

    /// Where each version of a model lies that was `found`, broken or not, and whether it is required.
    fn requirements(&self, found: &Found) -> Vec<(PathBuf, bool)> {
        let sources = found.sources.iter();
        let sources = sources.map(|source| (self.place(&source.path), source.is_required()));
        let broken = found.broken.iter();
        let broken = broken.map(|broken| (self.place(&broken.model), broken.required));
        sources.chain(broken).collect()
    }

    /// Where the model lies whose file is `model`: its folder in a repository, else the file.
    fn place(&self, model: &Path) -> PathBuf {
        let folder = model.ancestors().nth(2);
        let folder = folder.filter(|folder| folder.starts_with(self.loader.path()));
        folder.unwrap_or(model).to_owned()
    }

    /// Whether the server is ready without what was `found` and does not serve. A model that was required is so until all of
    /// its versions that are wanted have served, until it is gone, or until its sidecars say otherwise.
    fn look_for_required(&mut self, found: &Found) {
        let registry = &self.config.registry;
        let unserved = found.sources.iter().filter(|source| {
            let id = source.id();
            registry.version(&id.name, &id.version).is_none()
        });
        let unserved = unserved.map(|source| self.place(&source.path));
        let broken = found.broken.iter().map(|broken| self.place(&broken.model));
        let unserved: BTreeSet<PathBuf> = unserved.chain(broken).collect();
        let served = self.served().into_iter();
        let served = served.filter_map(|id| Some(self.place(self.files.get(&id)?.model())));
        let served: BTreeSet<PathBuf> = served.collect();
        let mut optional: BTreeMap<PathBuf, bool> = BTreeMap::new();
        for (place, required) in self.requirements(found) {
            *optional.entry(place).or_insert(true) &= !required;
        }
        self.required.retain(|place| {
            let is_complete = served.contains(place) && !unserved.contains(place);
            let is_gone = fs::symlink_metadata(place).is_err();
            !is_complete && !is_gone && !optional.get(place).is_some_and(|optional| *optional)
        });
        let registry = &self.config.registry;
        let was_incomplete = registry.is_incomplete();
        registry.set_incomplete(!self.required.is_empty());
        if was_incomplete && self.required.is_empty() {
            tracing::info!("ready, as every model that is required serves now");
        }
    }

    /// Tells what is wrong: each once, and all of it to whoever `asked`.
    fn tell(&mut self, troubles: Vec<Trouble>, asked: bool) {
        for trouble in self.troubles.see(troubles, asked) {
            self.failed(
                trouble.model.as_deref(),
                trouble.version.as_deref(),
                &trouble.reason,
            );
        }
        // What is broken first, since the list is bounded.
        let mut skipped = SkippedList::default();
        for trouble in self.troubles.current() {
            skipped.push(trouble.place.clone(), trouble.public.to_owned());
        }
        for (id, reason) in &self.refused {
            let place = if self.is_of_several(id) {
                id.to_string()
            } else {
                id.name.clone()
            };
            skipped.push(place, (*reason).to_owned());
        }
        skipped.append(self.notices.skipped().clone());
        self.config.registry.set_skipped(skipped);
        self.count_failures();
    }

    /// Whether other versions of the model are known.
    fn is_of_several(&self, id: &ModelId) -> bool {
        let versions = self.files.keys().filter(|known| known.name == id.name);
        versions.count() > 1
    }

    /// Keeps the metrics of what could not be loaded.
    fn count_failures(&mut self) {
        let metrics = &self.config.metrics;
        let refused = self.refused.keys().cloned();
        let refused = refused.map(|id| (id.name, id.version));
        let troubles = self.troubles.told().filter_map(|trouble| {
            let version = trouble.version.clone().unwrap_or_default();
            Some((trouble.model.clone()?, version))
        });
        let failures: BTreeSet<(String, String)> = refused.chain(troubles).collect();
        for (name, version) in &failures {
            metrics.set_load_failed(name, version, true);
        }
        for (name, version) in self.counted_failures.difference(&failures) {
            metrics.set_load_failed(name, version, false);
        }
        self.counted_failures = failures;
        let blocked = self.troubles.are_told() || !self.refused.is_empty();
        metrics.reload_blocked.set(i64::from(blocked));
    }

    /// Waits until the models that were replaced are gone, or nobody can need them any more.
    #[expect(
        clippy::disallowed_methods,
        reason = "who drops the last handle of a model wakes nobody"
    )]
    fn wait_for_retired(&mut self) {
        self.let_go();
        while !self.retired.is_empty() && self.config.registry.phase() != Phase::Draining {
            thread::park_timeout(RETIRE_INTERVAL);
            self.let_go();
        }
    }

    /// Loads the model at `source`, and gives it its name if it can have it.
    fn load(&mut self, source: &ModelSource, load: &Load, cpus: usize) {
        let started = Instant::now();
        let is_start = self.first_failures.is_some();
        let mut attempts = if is_start { ATTEMPTS_AT_START } else { 1 };
        let result = loop {
            let raw = RawModel::read(&source.path);
            let files = Files::of(source, &raw);
            // A panic on the way is a refusal like any other: these files are not tried again and again.
            let result = supervision::guard(|| self.take_place(source, raw, &files, load, cpus));
            self.plan.note_tried(&load.id, files.fingerprint().clone());
            self.files.insert(load.id.clone(), files);
            attempts -= 1;
            match result.unwrap_or(Err(LoadingError::Panicked.into())) {
                Err(ReloadError::Changed) if attempts > 0 => {}
                result => break result,
            }
        };
        match result {
            Ok((model, report, before)) => {
                self.refused.remove(&load.id);
                if let Some(old) = &load.instead_of {
                    self.plan.forget(old);
                    self.files.remove(old);
                    if old.name != load.id.name {
                        self.notices.rename(&old.name, &load.id.name);
                    }
                }
                report.log(&model);
                // What is new was loaded, and not loaded again.
                if let Some(before) = before {
                    let before = &before.metadata;
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
                self.refused.insert(load.id.clone(), error.public());
                if let Some(failures) = &mut self.first_failures {
                    failures.push((load.id.clone(), error));
                } else {
                    let (name, version) = (&load.id.name, &load.id.version);
                    self.failed(Some(name), Some(version), &error.to_string());
                }
            }
        }
    }

    fn take_place(
        &mut self,
        source: &ModelSource,
        raw: RawModel,
        files: &Files,
        load: &Load,
        cpus: usize,
    ) -> Result<Replaced, ReloadError> {
        #[cfg(feature = "testkit")]
        crate::testkit::panic_at("load");
        let Load { id, instead_of } = load;
        let registry = &self.config.registry;
        let models = registry.models();
        let same = models.version(&id.name, &id.version);
        let old = instead_of
            .as_ref()
            .and_then(|old| models.version(&old.name, &old.version));
        // Before the server is in use, other versions have nothing to hand on.
        let is_start = self.first_failures.is_some();
        let highest = models.get(&id.name).filter(|_| !is_start);
        let before = same.or(old).or(highest);
        let (model, report) =
            self.loader
                .load(source, raw, before.map(|before| &**before), cpus)?;
        let model = Arc::new(model);
        // At the start nobody was told a signature, and versions beside each other may have their own.
        let refused = match different(&model, &models, load) {
            Some(error) if !is_start => Some(error),
            _ if !files.are_unchanged() => Some(ReloadError::Changed),
            _ => (registry.phase() == Phase::Draining).then_some(ReloadError::Draining),
        };
        if let Some(error) = refused {
            retired::close(&model);
            return Err(error);
        }
        let metrics = &self.config.metrics;
        if !is_start {
            // Counted first, so that whoever meets the new model finds it counted.
            metrics.reloads_succeeded.inc();
        }
        let follows = self.notices.follows_renames();
        let replaced = registry.publish(&model, instead_of.as_ref(), follows);
        let mut infos = replaced.iter().map(|before| &before.info);
        metrics.set_model_info(Some(&model.info), infos.next());
        for info in infos {
            metrics.set_model_info(None, Some(info));
        }
        let before = replaced.first().cloned();
        self.retire(replaced);
        Ok((model, report, before))
    }

    fn remove(&mut self, id: &ModelId) {
        self.plan.forget(id);
        self.files.remove(id);
        let models = self.config.registry.models();
        let before = self.config.registry.remove(id);
        self.compare_next(id, &models);
        drop(models);
        let info = before.as_ref().map(|before| &before.info);
        self.config.metrics.set_model_info(None, info);
        self.retire(before);
        tracing::info!(
            model = id.name,
            version = id.version,
            "the model is gone, and is no longer served"
        );
    }

    /// Tells if who names no version gets another signature, now that `id` is taken out of `models`.
    fn compare_next(&self, id: &ModelId, models: &Models) {
        let (before, next) = (models.get(&id.name), self.config.registry.get(&id.name));
        if let (Some(before), Some(next)) = (before, next)
            && let Some(change) = before.declared.signature_change(&next.declared)
        {
            tracing::warn!(
                model = id.name,
                version = next.metadata.version,
                reason = change,
                "requests that name no version are answered by one of another signature now, because the higher one is gone"
            );
        }
    }

    /// Counts and tells that `model` is refused, if it is known which.
    fn failed(&self, model: Option<&str>, version: Option<&str>, reason: &str) {
        if self.first_failures.is_none() {
            self.config.metrics.reloads_failed.inc();
            self.tell_failure(model, version, reason);
        }
    }

    fn tell_failure(&self, model: Option<&str>, version: Option<&str>, reason: &str) {
        let models = self.config.registry.models();
        let serves = match model {
            Some(name) => models.get(name).is_some(),
            None => !models.is_empty(),
        };
        if serves {
            tracing::warn!(
                model,
                version,
                reason,
                "the model could not be loaded again; what served before goes on serving"
            );
        } else {
            tracing::warn!(
                model,
                version,
                reason,
                "the model could not be loaded, and is not served"
            );
        }
    }

    fn retire(&mut self, models: impl IntoIterator<Item = Arc<ServedModel>>) {
        self.retired.add(models, Instant::now() + self.config.grace);
    }

    /// Ends the models that nobody uses any more.
    fn let_go(&mut self) {
        for id in self.retired.let_go(Instant::now()) {
            if self
                .config
                .registry
                .version(&id.name, &id.version)
                .is_none()
            {
                self.config.metrics.remove_batching(&id.name, &id.version);
            }
            if self.config.registry.get(&id.name).is_none() {
                self.config.metrics.remove_prediction(&id.name);
            }
        }
    }
}

/// Why `model` cannot take its place among `models`, because of its signature. Whoever asks for it by its version, or
/// without one if it is to answer that, was told another one.
fn different(model: &ServedModel, models: &Models, load: &Load) -> Option<ReloadError> {
    let Load { id, instead_of } = load;
    let change = |before: &ServedModel| before.declared.signature_change(&model.declared);
    if let Some(same) = models.version(&id.name, &id.version) {
        return change(same).map(ReloadError::Signature);
    }
    if let Some(old) = instead_of.as_ref().filter(|old| old.name != id.name) {
        let change = change(models.get(&old.name)?)?;
        let old = old.name.clone();
        return Some(ReloadError::Successor { old, change });
    }
    let highest = models.get(&id.name)?;
    let is_replaced = instead_of.as_ref() == Some(&highest.metadata.id());
    if is_replaced || *id > highest.metadata.id() {
        return change(highest).map(ReloadError::Signature);
    }
    None
}
