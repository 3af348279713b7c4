//! What is done about models: looks, loads, and retirements, as the plan says.
//!
//! Invariant: a model takes its name only after it was loaded whole, and with the signature that its clients know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Instant;

use super::attempts::{Attempt, Attempts, Ended, patience};
use super::config::LifecycleConfig;
use super::error::ReloadError;
use super::events::{self, Event};
use super::failures::{self, Failures};
use super::files::Files;
use super::notices::Notices;
use super::plan::{Look, Plan};
use super::required::Required;
use super::retired::{self, RETIRE_INTERVAL, RetiredModels};
use super::signature;
use super::troubles::{Trouble, Troubles};
use crate::model::faults;
use crate::model::onnx::RawModel;
use crate::model::repository::{Broken, Found, SkippedList};
use crate::model::versions::ModelId;
use crate::models::cpus;
use crate::models::loading::{Loader, LoadingError, Predecessor};
use crate::models::registry::Phase;
use crate::models::served::ServedModel;
use crate::service_manager;

/// How often files that change while the server starts are loaded again. Later, whoever watches or asks does so.
const TRIES_AT_START: usize = 3;

pub(super) struct Worker {
    config: LifecycleConfig,
    loader: Arc<Loader>,
    /// What others want of this thread.
    events: Receiver<Event>,
    /// For the threads that load.
    sender: Sender<Event>,
    plan: Plan,
    attempts: Attempts,
    /// The files of each model when it was last loaded, or refused.
    files: BTreeMap<ModelId, Files>,
    /// Why the last look did not find all models.
    troubles: Troubles,
    failures: Failures,
    retired: RetiredModels,
    required: Required,
    /// What has failed at the first look. It is told only if anything can be served, since a start that fails is one line.
    first_failures: Option<Vec<(ModelId, ReloadError)>>,
    notices: Notices,
    /// Whether somebody has asked for everything to be loaded again.
    asked: bool,
    /// Whether nothing is to be begun any more.
    stopped: bool,
    /// Whether a load has ended since the last look.
    ended: bool,
    /// What the last look has found.
    found: BTreeSet<ModelId>,
}

impl Worker {
    pub(super) fn new(
        config: LifecycleConfig,
        loader: Loader,
        (sender, events): (Sender<Event>, Receiver<Event>),
    ) -> Self {
        let notices = Notices::new(loader.default_model());
        Self {
            config,
            loader: Arc::new(loader),
            events,
            sender,
            plan: Plan::default(),
            attempts: Attempts::default(),
            files: BTreeMap::new(),
            troubles: Troubles::default(),
            failures: Failures::default(),
            retired: RetiredModels::default(),
            required: Required::default(),
            first_failures: None,
            notices,
            asked: false,
            stopped: false,
            ended: false,
            found: BTreeSet::new(),
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
        self.required = Required::of(&found);
        self.first_failures = Some(Vec::new());
        let look = self.load_all(&found, &self.troubles_of(&found), true);
        // While nothing serves there is nothing to go on with.
        while self.served().is_empty() && !self.attempts.is_empty() && !self.stopped {
            self.receive(None);
        }
        if self.stopped {
            return Ok(());
        }
        if self.served().is_empty() {
            let broken = found.broken.drain(..);
            let faults = broken.map(|broken| broken.fault.into());
            let failures = self.first_failures.take().unwrap_or_default().into_iter();
            let failures = failures.filter_map(|(_, error)| match error {
                ReloadError::Loading(error) => Some(error),
                ReloadError::Changed => Some(LoadingError::Changed),
                // There was nothing to be different from, and nobody waits any more.
                ReloadError::Signature(_)
                | ReloadError::Successor { .. }
                | ReloadError::Draining => None,
            });
            return faults::refuse(faults.chain(failures).collect(), LoadingError::Several);
        }
        self.conclude(&found, &look, Vec::new(), true);
        for (id, error) in self.first_failures.take().unwrap_or_default() {
            self.tell_failure(Some(&id.name), Some(&id.version), &error.to_string());
        }
        for trouble in self.troubles.told() {
            let (model, version) = (trouble.model.as_deref(), trouble.version.as_deref());
            self.tell_failure(model, version, &trouble.reason);
        }
        self.config.registry.become_ready();
        Ok(())
    }

    /// Looks when somebody asks, in intervals, and when a load has ended that nobody waited for, until it is to stop.
    pub(super) fn run(&mut self) {
        let mut look_at = self.config.watch.map(|watch| Instant::now() + watch);
        while !self.stopped {
            #[cfg(feature = "testkit")]
            crate::testkit::panic_at("reload");
            if std::mem::take(&mut self.asked) {
                let _told = service_manager::Reloading::begin();
                self.look(true);
            } else if look_at.is_some_and(|at| at <= Instant::now()) {
                self.look(false);
                look_at = self.config.watch.map(|watch| Instant::now() + watch);
            } else if std::mem::take(&mut self.ended) {
                self.look_after_a_load();
            } else {
                let retire_at =
                    (!self.retired.is_empty()).then(|| Instant::now() + RETIRE_INTERVAL);
                self.receive(look_at.into_iter().chain(retire_at).min());
            }
            self.let_go();
        }
        self.retired.close();
    }

    /// Waits for events, for as long as to `until` if that is given, and takes those that there are.
    fn receive(&mut self, until: Option<Instant>) {
        let first = match until {
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                self.events.recv_timeout(left)
            }
            None => (self.events.recv()).map_err(|_| RecvTimeoutError::Disconnected),
        };
        match first {
            Ok(event) => self.take(event),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.stopped = true,
        }
        // Whoever asked meanwhile gets what is there now, too.
        while let Ok(event) = self.events.try_recv() {
            self.take(event);
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Reload => self.asked = true,
            Event::Stop => self.stopped = true,
            Event::Loaded(loaded) => {
                let id = loaded.id().clone();
                if let Some(ended) = self.attempts.end(*loaded) {
                    self.ended = true;
                    self.publish(ended);
                }
                self.remove_series(&id);
            }
        }
    }

    /// Looks at what lies there, and does what follows from it.
    fn look(&mut self, asked: bool) {
        match self.find() {
            (Some(found), faults) => {
                let look = self.load_all(&found, &self.troubles_of(&found), asked);
                self.conclude(&found, &look, faults, asked);
            }
            (None, faults) => self.tell(faults, asked),
        }
    }

    /// Does what follows from a load that others did not wait for. Nothing else is loaded, since nobody asked for it, and
    /// nothing is let go whose files are missing only now.
    fn look_after_a_load(&mut self) {
        match self.find() {
            (Some(found), faults) => {
                let look = self.compare(&found, &self.troubles_of(&found), false);
                self.conclude(&found, &look, faults, false);
            }
            (None, faults) => self.tell(faults, false),
        }
    }

    /// What there is, if it can be looked at, and what is wrong with all of it.
    fn find(&self) -> (Option<Found>, Vec<Trouble>) {
        let (found, fault) = match self.loader.look() {
            Ok((found, emptiness)) => (Some(found), emptiness),
            Err(error) => (None, Some(error)),
        };
        let name = || self.loader.repository_name();
        let fault = fault.map(|fault| Trouble::of_all(name(), &fault));
        (found, fault.into_iter().collect())
    }

    /// Loads what has changed, or everything if somebody `asked`. What takes too long goes on by itself.
    fn load_all(&mut self, found: &Found, broken: &[Trouble], asked: bool) -> Look {
        let look = self.compare(found, broken, asked);
        self.found = look.found.keys().cloned().collect();
        let is_found = |id: &ModelId| look.found.contains_key(id);
        self.failures.keep_only(is_found);
        for id in self.attempts.keep_only(is_found) {
            self.plan.forget(&id);
            if !self.is_served(&id) {
                self.files.remove(&id);
            }
        }
        for load in self.plan.loads(&look, &self.served()) {
            let fingerprint = look.found.get(&load.id);
            if fingerprint.is_some_and(|it| self.attempts.has_files(&load.id, it)) {
                continue;
            }
            let mut sources = found.sources.iter();
            if let Some(source) = sources.find(|source| source.id() == load.id) {
                let cpus = cpus::share(cpus::available(), self.sharing(&look));
                // Two of a model at a time are enough for the memory.
                self.wait_for_retired();
                let is_start = self.first_failures.is_some();
                let id = load.id.clone();
                self.begin(Attempt {
                    source: source.clone(),
                    load,
                    cpus,
                    started: Instant::now(),
                    is_start,
                    tries: if is_start { TRIES_AT_START } else { 1 },
                });
                self.wait_for(&id);
            }
            if self.stopped {
                break;
            }
        }
        look
    }

    /// Lets go what is gone, and tells what is wrong: each once, and all of it if somebody `asked`.
    fn conclude(&mut self, found: &Found, look: &Look, mut troubles: Vec<Trouble>, asked: bool) {
        self.ended = false;
        for id in self.plan.retirements(look, &self.served()) {
            self.remove(&id);
        }
        troubles.extend(self.troubles_of(found));
        // What is still being loaded is no trouble yet.
        let is_loading = |name: &String| self.attempts.ids().any(|id| id.name == *name);
        let waiting = self.plan.waiting();
        let waiting = waiting.filter(|(_, for_)| !for_.iter().all(is_loading));
        troubles.extend(waiting.map(|(name, for_)| Trouble::of_departure(name, for_)));
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

    fn is_served(&self, id: &ModelId) -> bool {
        let registry = &self.config.registry;
        registry.version(&id.name, &id.version).is_some()
    }

    fn served(&self) -> BTreeSet<ModelId> {
        self.config.registry.models().ids().collect()
    }

    /// What is wrong with models that were `found`.
    fn troubles_of(&self, found: &Found) -> Vec<Trouble> {
        let of = |broken: &Broken| {
            let mut known = self.files.iter();
            let served = known.find(|(_, files)| files.model() == broken.model);
            let others = found.sources.iter().map(|source| &source.place);
            let others = others.chain(found.broken.iter().map(|broken| &broken.place));
            let is_of_several = others.filter(|place| **place == broken.place).count() > 1;
            Trouble::of_model(broken, served.map(|(id, _)| id), is_of_several)
        };
        found.broken.iter().map(of).collect()
    }

    /// Says whether the server is ready without what was `found` and does not serve.
    fn look_for_required(&mut self, found: &Found) {
        let registry = &self.config.registry;
        let models = registry.models();
        let is_served = |id: &ModelId| models.version(&id.name, &id.version).is_some();
        self.required.look(found, is_served);
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
            skipped.push(trouble.place.clone(), trouble.public.clone());
        }
        for (id, reason) in self.failures.refused() {
            skipped.push(self.place_of(id), reason.to_owned());
        }
        for id in self.attempts.ids() {
            let reason = "it is still being loaded; the others are not kept waiting";
            skipped.push(self.place_of(id), reason.to_owned());
        }
        skipped.append(self.notices.skipped().clone());
        self.config.registry.set_skipped(skipped);
        let is_loading = !self.attempts.is_empty();
        self.failures
            .count(&self.config.metrics, &self.troubles, is_loading);
    }

    /// How `/ready` calls a version of a model: by the model's name, if no other is known.
    fn place_of(&self, id: &ModelId) -> String {
        let versions = self.files.keys().filter(|known| known.name == id.name);
        if versions.count() > 1 {
            id.to_string()
        } else {
            id.name.clone()
        }
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

    /// Begins a load.
    fn begin(&mut self, attempt: Attempt) {
        let (source, load) = (&attempt.source, &attempt.load);
        let id = load.id.clone();
        let raw = RawModel::read(&source.path);
        let files = Files::of(source, &raw);
        self.plan.note_tried(&id, files.fingerprint().clone());
        self.files.insert(id.clone(), files.clone());
        let models = self.config.registry.models();
        let same = models.version(&id.name, &id.version);
        let old = load.instead_of.as_ref();
        let old = old.and_then(|old| models.version(&old.name, &old.version));
        // Before the server is in use, other versions have nothing to hand on.
        let highest = models.get(&id.name).filter(|_| !attempt.is_start);
        let before = same.or(old).or(highest);
        let before = before.map(|before| Predecessor::of(before));
        let is_start = attempt.is_start;
        let sender = self.sender.clone();
        let deliver = move |loaded| events::deliver(&sender, loaded);
        let begun = self
            .attempts
            .begin(attempt, (raw, files), &self.loader, before, deliver);
        if let Err(error) = begun {
            self.refuse(&id, is_start, LoadingError::Thread(error).into());
        }
    }

    /// Waits for the load of `id`, but not without end: others want to be loaded, too.
    fn wait_for(&mut self, id: &ModelId) {
        let patience = patience();
        let until = Instant::now() + patience;
        while self.attempts.has(id) && !self.stopped {
            if Instant::now() >= until {
                tracing::warn!(
                    model = id.name,
                    version = id.version,
                    seconds = patience.as_secs_f64(),
                    "the model is still being loaded; the others are not kept waiting, and it serves as soon as it is loaded"
                );
                return;
            }
            self.receive(Some(until));
        }
    }

    /// Gives a model that was loaded its name, if it can have it.
    fn publish(&mut self, ended: Ended) {
        let Ended {
            mut attempt,
            files,
            result,
        } = ended;
        // What it was to take the place of may have come back meanwhile.
        let place = attempt.load.instead_of.take();
        attempt.load.instead_of = place.filter(|old| !self.found.contains(old));
        let taken = result
            .map_err(ReloadError::from)
            .and_then(|(model, report)| {
                let before = self.take_place(&model, &files, &attempt);
                // What is taken out is ended; what was never in has nobody else who would.
                before
                    .inspect_err(|_| retired::close(&model))
                    .map(|before| (model, report, before))
            });
        let (id, source) = (&attempt.load.id, &attempt.source);
        match taken {
            Ok((model, report, before)) => {
                self.failures.forget(id);
                if let Some(old) = &attempt.load.instead_of {
                    self.plan.forget(old);
                    self.files.remove(old);
                    if old.name != id.name {
                        self.notices.rename(&old.name, &id.name);
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
                        seconds = attempt.started.elapsed().as_secs_f64(),
                        "model reloaded"
                    );
                }
            }
            Err(ReloadError::Draining) => {}
            Err(ReloadError::Changed) if attempt.tries > 1 => {
                let tries = attempt.tries - 1;
                // Its sidecar may be another one, too.
                let (found, _) = self.find();
                let mut sources = found.into_iter().flat_map(|found| found.sources);
                let source = sources.find(|source| source.id() == attempt.load.id);
                let source = source.unwrap_or_else(|| attempt.source.clone());
                self.begin(Attempt {
                    source,
                    tries,
                    ..attempt
                });
            }
            Err(error) => self.refuse(id, attempt.is_start, error),
        }
    }

    /// Publishes `model`, which was loaded from `files`; returns the one that it replaces, if any.
    fn take_place(
        &mut self,
        model: &Arc<ServedModel>,
        files: &Files,
        attempt: &Attempt,
    ) -> Result<Option<Arc<ServedModel>>, ReloadError> {
        let (load, is_start) = (&attempt.load, attempt.is_start);
        let registry = &self.config.registry;
        // At the start nobody was told a signature, and versions beside each other may have their own.
        match signature::difference(model, &registry.models(), load) {
            Some(error) if !is_start => return Err(error),
            _ if !files.are_unchanged() => return Err(ReloadError::Changed),
            _ if registry.phase() == Phase::Draining => return Err(ReloadError::Draining),
            _ => {}
        }
        let metrics = &self.config.metrics;
        if !is_start {
            // Counted first, so that whoever meets the new model finds it counted.
            metrics.reloads_succeeded.inc();
        }
        let follows = self.notices.follows_renames();
        let replaced = registry.publish(model, load.instead_of.as_ref(), follows);
        let mut infos = replaced.iter().map(|before| &before.info);
        metrics.set_model_info(Some(&model.info), infos.next());
        for info in infos {
            metrics.set_model_info(None, Some(info));
        }
        let before = replaced.first().cloned();
        self.retire(replaced);
        Ok(before)
    }

    fn refuse(&mut self, id: &ModelId, is_start: bool, error: ReloadError) {
        self.failures.note(id, &error);
        match &mut self.first_failures {
            Some(failures) => failures.push((id.clone(), error)),
            // It has begun with the server, and others did not wait for it.
            None if is_start => {
                self.tell_failure(Some(&id.name), Some(&id.version), &error.to_string());
            }
            None => self.failed(Some(&id.name), Some(&id.version), &error.to_string()),
        }
    }

    fn remove(&mut self, id: &ModelId) {
        self.plan.forget(id);
        self.files.remove(id);
        let registry = &self.config.registry;
        let models = registry.models();
        let before = registry.remove(id);
        signature::compare_next(id, &models, &registry.models());
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

    /// Counts and tells that `model` is refused, if it is known which.
    fn failed(&self, model: Option<&str>, version: Option<&str>, reason: &str) {
        if self.first_failures.is_none() {
            self.config.metrics.reloads_failed.inc();
            self.tell_failure(model, version, reason);
        }
    }

    fn tell_failure(&self, model: Option<&str>, version: Option<&str>, reason: &str) {
        failures::tell(&self.config.registry.models(), model, version, reason);
    }

    fn retire(&mut self, models: impl IntoIterator<Item = Arc<ServedModel>>) {
        self.retired.add(models, Instant::now() + self.config.grace);
    }

    /// Ends the models that nobody uses any more.
    fn let_go(&mut self) {
        for id in self.retired.let_go(Instant::now()) {
            self.remove_series(&id);
        }
    }

    /// Removes the series of `id` and its name, unless one is served that has them, or loaded.
    fn remove_series(&self, id: &ModelId) {
        let registry = &self.config.registry;
        if !self.is_served(id) && !self.attempts.has(id) {
            self.config.metrics.remove_batching(&id.name, &id.version);
        }
        let is_loading = self.attempts.ids().any(|it| it.name == id.name);
        if registry.get(&id.name).is_none() && !is_loading {
            self.config.metrics.remove_prediction(&id.name);
        }
    }
}
