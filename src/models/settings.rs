//! The settings of one model: what the flags and the environment say, else its sidecar, else what `model-serving tune`
//! wrote down, else what was measured of the model before it; what then is open is measured, or has a default.
//!
//! Invariant: settings given by the user are never overridden, and each model has those that its own sidecar says.

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::model::limits;
use crate::model::sidecar::{Sidecar, TuningSettings};
use crate::runtime::providers::ExecutionProvider;
use crate::runtime::session::InstanceGroup;
use crate::runtime::tuning::{self, ModelSettings, TuningConstraints};
use crate::units::DurationText;

/// The most rows of an execution unless a flag, the environment or the sidecar says otherwise.
pub const DEFAULT_MAX_BATCH_SIZE: usize = 32;

/// What the user has fixed by flags or the environment, for all models.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fixed {
    /// Sessions per model.
    pub instances: Option<NonZeroUsize>,
    /// Threads per session.
    pub intra_op_threads: Option<NonZeroUsize>,
    /// Rows per execution.
    pub max_batch_size: Option<NonZeroUsize>,
}

/// Where settings come from that nobody has given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This start: what was measured in it, or what is done without measuring.
    Start,
    /// What the sidecar says under `[tuning]`.
    Sidecar,
    /// The model that is replaced.
    Before,
}

/// What is known of a model's settings before it is opened.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The CPUs that are the model's.
    cpus: usize,
    given: Fixed,
    written: Option<TuningSettings>,
}

/// What trying the rows of a model has shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowLimits {
    /// Whether rows of several requests may share an execution.
    pub(crate) mergeable: bool,
    /// The most rows of which that was shown.
    pub(crate) independent_rows: usize,
}

impl Settings {
    /// The settings of a model with this sidecar, which has so many CPUs.
    ///
    /// # Errors
    /// When what is given makes more threads than a model may have, with the reason.
    pub(crate) fn resolve(flags: Fixed, sidecar: &Sidecar, cpus: usize) -> Result<Self, String> {
        let group = sidecar.instance_group;
        let given = Fixed {
            instances: flags.instances.or(group.instances),
            intra_op_threads: flags.intra_op_threads.or(group.intra_op_threads),
            max_batch_size: flags.max_batch_size.or(sidecar.batching.max_batch_size),
        };
        let both = given.instances.zip(given.intra_op_threads);
        if let Some(reason) = both.and_then(|(first, other)| limits::too_many_threads(first, other))
        {
            return Err(format!("with the flags, [instance_group]: {reason}"));
        }
        Ok(Self {
            cpus,
            given,
            written: sidecar.tuning.clone(),
        })
    }

    /// The same without what was written down.
    pub(crate) fn without_tuning(self) -> Self {
        Self {
            written: None,
            ..self
        }
    }

    /// The most rows that may be executed together.
    pub(crate) fn max_batch_size(&self) -> usize {
        let given = self.given.max_batch_size;
        given.map_or(DEFAULT_MAX_BATCH_SIZE, NonZeroUsize::get)
    }

    /// Whether the user says how many rows may be executed together.
    pub(crate) fn has_batch_size(&self) -> bool {
        self.given.max_batch_size.is_some()
    }

    /// Whether the user says how many sessions there are.
    pub(crate) fn has_instances(&self) -> bool {
        self.given.instances.is_some()
    }

    /// The most sessions of the model that there are at once.
    pub(crate) fn most_sessions(&self) -> usize {
        let most = self.cpus.clamp(2, tuning::MAX_INSTANCES);
        self.given.instances.map_or(most, NonZeroUsize::get)
    }

    /// What the user leaves open. Before the rows were tried, it is not known whether they may be merged.
    pub(crate) fn constraints(
        &self,
        provider: ExecutionProvider,
        rows: Option<RowLimits>,
    ) -> TuningConstraints {
        let max_batch_size = self.max_batch_size();
        // A GPU works on one batch at a time, and its host's threads only hand it over.
        let on_gpu = provider.is_gpu().then_some(NonZeroUsize::MIN);
        let given = self.given;
        TuningConstraints {
            cpus: self.cpus,
            instances: given.instances.or(on_gpu).map(NonZeroUsize::get),
            intra_op_threads: given.intra_op_threads.or(on_gpu).map(NonZeroUsize::get),
            max_batch_size,
            mergeable: rows.is_none_or(|rows| rows.mergeable) && max_batch_size > 1,
            independent_rows: rows.map_or(usize::MAX, |rows| rows.independent_rows),
            merging_fixed: self.has_batch_size() || on_gpu.is_some(),
        }
    }

    /// The threads of the first session, which is made before it is known whether what is written down is of this model.
    pub(crate) fn first_threads(&self, provider: ExecutionProvider) -> usize {
        let constraints = self.constraints(provider, None);
        let written = self.written_for(provider);
        let written = written.filter(|written| written.cpus.get() == constraints.cpus);
        let choice = written.and_then(|written| as_choice(written, &constraints));
        choice.map_or(constraints.first_threads(), |choice| {
            choice.instance_group.intra_op_threads
        })
    }

    /// What is written down, if it is for this provider.
    fn written_for(&self, provider: ExecutionProvider) -> Option<&TuningSettings> {
        let written = self.written.as_ref();
        written.filter(|_| provider.takes_tuned_settings())
    }

    /// The settings that are known without measuring, if any, of the model with this checksum.
    pub(crate) fn known(
        &self,
        provider: ExecutionProvider,
        constraints: &TuningConstraints,
        replaced: Option<(TuningConstraints, ModelSettings)>,
        sha256: &str,
    ) -> Option<(ModelSettings, Origin)> {
        if let Some(written) = self.written_for(provider) {
            let stale = written.cpus.get() != constraints.cpus || written.sha256 != sha256;
            if stale {
                tracing::warn!(
                    cpus = constraints.cpus,
                    "[tuning] in the sidecar was written for another model or number of CPUs, and is ignored; run 'model-serving tune' again, on all that is served, because its models share the CPUs"
                );
            } else if let Some(choice) = as_choice(written, constraints) {
                return Some((choice, Origin::Sidecar));
            }
        }
        replaced
            .filter(|(then, _)| then.leaves_the_same_as(constraints))
            .map(|(_, choice)| {
                let (merge_rows, measured) = up_to(choice.merge_rows, constraints.merge_limit());
                let measured = measured && choice.measured;
                let choice = ModelSettings {
                    merge_rows,
                    measured,
                    ..choice
                };
                (choice, Origin::Before)
            })
    }
}

/// How long the oldest request may wait for company: by the flag, else by the sidecar, else not at all.
///
/// # Errors
/// When the sidecar says a time that the flag may not have either, because requests are given up after `timeout`.
pub(crate) fn queue_delay(
    flag: Option<Duration>,
    sidecar: &Sidecar,
    timeout: Duration,
) -> Result<Duration, String> {
    if let Some(delay) = flag {
        return Ok(delay);
    }
    let delay = sidecar.batching.max_queue_delay.unwrap_or_default();
    if delay.is_zero() || delay < timeout {
        return Ok(delay);
    }
    let [delay, timeout] = [delay, timeout].map(DurationText::from);
    Err(format!(
        "batching.max_queue_delay '{delay}' is not below --request-timeout (REQUEST_TIMEOUT), which is {timeout}, so that a request could wait for company until nobody waits for it; write a shorter time, for example 5ms"
    ))
}

/// As many of `rows` as may be merged, and whether what was measured for `rows` speaks for them.
fn up_to(rows: usize, limit: usize) -> (usize, bool) {
    (rows.min(limit), rows <= limit)
}

/// What is written down, if the user has not fixed something else.
fn as_choice(written: &TuningSettings, constraints: &TuningConstraints) -> Option<ModelSettings> {
    let (instances, threads) = (written.instances.get(), written.intra_op_threads.get());
    let fits = constraints.instances.is_none_or(|fixed| fixed == instances)
        && constraints
            .intra_op_threads
            .is_none_or(|fixed| fixed == threads);
    let limit = constraints.merge_limit();
    let (merge_rows, measured) = match written.merge_rows {
        Some(rows) if !constraints.merging_fixed => up_to(rows.get(), limit),
        _ => (limit, false),
    };
    fits.then_some(ModelSettings {
        instance_group: InstanceGroup {
            instances,
            intra_op_threads: threads,
        },
        merge_rows,
        measured,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sidecar(text: &str) -> Sidecar {
        toml::from_str(text).unwrap()
    }

    fn number(number: usize) -> Option<NonZeroUsize> {
        NonZeroUsize::new(number)
    }

    const WRITTEN: &str =
        "[tuning]\nsha256 = \"a\"\ncpus = 4\ninstances = 2\nintra_op_threads = 2\nmerge_rows = 8\n";

    /// What is known on four CPUs: instances, threads, rows, and who says so.
    fn known(flags: Fixed, text: &str, before: bool) -> Option<(usize, usize, usize, Origin)> {
        let settings = Settings::resolve(flags, &sidecar(text), 4).unwrap();
        let constraints = settings.constraints(ExecutionProvider::CPU, None);
        let choice = ModelSettings {
            instance_group: InstanceGroup {
                instances: 3,
                intra_op_threads: 1,
            },
            merge_rows: 16,
            measured: true,
        };
        let before = before.then_some((constraints, choice));
        let (choice, origin) = settings.known(ExecutionProvider::CPU, &constraints, before, "a")?;
        let group = choice.instance_group;
        Some((
            group.instances,
            group.intra_op_threads,
            choice.merge_rows,
            origin,
        ))
    }

    #[test]
    fn a_flag_goes_before_the_sidecar_and_the_sidecar_before_the_default() {
        let text = "[instance_group]\ninstances = 3\n[batching]\nmax_batch_size = 8\n";
        let flags = |instances, rows| Fixed {
            instances: number(instances),
            max_batch_size: number(rows),
            ..Fixed::default()
        };
        for (flags, text, instances, rows) in [
            (flags(0, 0), "", None, 32),
            (flags(0, 0), text, Some(3), 8),
            (flags(2, 0), text, Some(2), 8),
            (flags(2, 16), text, Some(2), 16),
            (flags(2, 16), "", Some(2), 16),
        ] {
            let settings = Settings::resolve(flags, &sidecar(text), 4).unwrap();
            let constraints = settings.constraints(ExecutionProvider::CPU, None);
            let found = (constraints.instances, constraints.max_batch_size);
            assert_eq!(found, (instances, rows), "{flags:?} {text}");
            assert_eq!(settings.has_batch_size(), rows != 32);
        }
    }

    #[test]
    fn what_was_written_down_goes_before_what_was_measured_of_the_model_before() {
        let none = Fixed::default();
        assert_eq!(known(none, "", false), None);
        assert_eq!(known(none, "", true), Some((3, 1, 16, Origin::Before)));
        let written = Some((2, 2, 8, Origin::Sidecar));
        assert_eq!(known(none, WRITTEN, true), written);
        // Of another model, or another share of the CPUs.
        for (from, to) in [("\"a\"", "\"b\""), ("cpus = 4", "cpus = 8")] {
            let stale = WRITTEN.replace(from, to);
            assert_eq!(known(none, &stale, false), None, "{stale}");
        }
        // What the user says otherwise.
        let threads = Fixed {
            intra_op_threads: number(1),
            ..none
        };
        assert_eq!(known(threads, WRITTEN, false), None);
        let own = format!("[instance_group]\ninstances = 1\n{WRITTEN}");
        assert_eq!(known(none, &own, false), None);
        let rows = format!("[batching]\nmax_batch_size = 4\n{WRITTEN}");
        assert_eq!(known(none, &rows, false), Some((2, 2, 4, Origin::Sidecar)));
    }

    #[test]
    fn more_threads_than_a_model_may_have_are_refused_wherever_they_are_said() {
        let flags = Fixed {
            instances: number(1024),
            ..Fixed::default()
        };
        let text = "[instance_group]\nintra_op_threads = 2\n";
        let reason = Settings::resolve(flags, &sidecar(text), 4).unwrap_err();
        assert!(reason.contains("2048 threads"), "{reason}");
        assert!(Settings::resolve(Fixed::default(), &sidecar(text), 4).is_ok());
    }

    #[test]
    fn a_delay_in_the_sidecar_is_below_the_deadline_unless_the_flag_says_another() {
        let text = "[batching]\nmax_queue_delay = \"30s\"\n";
        let seconds = Duration::from_secs;
        let delay = |flag| queue_delay(flag, &sidecar(text), seconds(30));
        assert!(delay(None).unwrap_err().contains("'30s' is not below"));
        assert_eq!(delay(Some(seconds(1))), Ok(seconds(1)));
        let delay = queue_delay(None, &sidecar(text), seconds(31));
        assert_eq!(delay, Ok(seconds(30)));
        let none = queue_delay(None, &sidecar(""), seconds(31));
        assert_eq!(none, Ok(Duration::ZERO));
    }
}
