//! What measurements speak for: pure functions, without a model or a clock.
//!
//! Invariant: of settings between which the measurements do not decide, the one with fewer threads per session and the
//! smaller batch is chosen: it wastes less, and answers sooner.

use super::measurement::Measurement;
use crate::runtime::session::InstanceGroup;

/// The most sessions that are chosen. Each holds the model's weights and arena anew.
pub const MAX_INSTANCES: usize = 8;

/// The bytes of weights that all sessions together may hold, unless one alone holds more.
const MAX_WEIGHTS: usize = 1 << 30;

/// Seconds of a CPU that a small request costs besides its execution, of which most is the kernel's share of receiving
/// and sending.
const BESIDES: f64 = 10e-6;

/// What more threads per session must gain in throughput to be taken.
const THREADS_PAY: f64 = 1.05;

/// What batches must gain in throughput to be formed: rows that share an execution wait for each other.
const BATCHES_PAY: f64 = 1.10;

/// The part of the best size's throughput that suffices for a smaller one.
const NEARLY_BEST: f64 = 0.95;

/// What a size must gain over the best smaller one for the next one to be tried without doubt.
const STILL_RISING: f64 = 1.03;

/// Sizes in a row that gain nothing, after which larger ones are not tried.
const HOPELESS: usize = 2;

/// What may be chosen, and what is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TuningConstraints {
    /// The CPUs that this process may use.
    pub cpus: usize,
    /// Sessions, if the user has fixed them.
    pub instances: Option<usize>,
    /// Threads per session, if the user has fixed them.
    pub intra_op_threads: Option<usize>,
    /// The most rows of one request or execution.
    pub max_batch_size: usize,
    /// Whether requests may be merged at all.
    pub mergeable: bool,
    /// The most rows that were shown not to depend on each other in one execution.
    pub independent_rows: usize,
    /// Whether the user has said how many rows are to be merged.
    pub merging_fixed: bool,
}

/// The settings of one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelSettings {
    /// Sessions and their threads.
    pub instance_group: InstanceGroup,
    /// Rows of several requests that share an execution at most; 1 merges nothing.
    pub merge_rows: usize,
    /// Whether measurements speak for so many rows. Else they are all that may be merged.
    pub measured: bool,
}

impl TuningConstraints {
    /// What is done without measuring.
    #[must_use]
    pub fn untuned(&self) -> ModelSettings {
        let instances = self.instances.unwrap_or(match self.intra_op_threads {
            Some(threads) => (self.cpus / threads).clamp(1, 2),
            None => self.cpus.clamp(1, 2),
        });
        let threads = self
            .intra_op_threads
            .unwrap_or((self.cpus / instances).max(1));
        ModelSettings {
            instance_group: InstanceGroup {
                instances,
                intra_op_threads: threads,
            },
            merge_rows: self.merge_limit(),
            measured: false,
        }
    }

    /// Whether `other` leaves the same open. How far the trial of the rows has come is no setting.
    #[must_use]
    pub fn leaves_the_same_as(&self, other: &Self) -> bool {
        let independent_rows = self.independent_rows;
        *self
            == Self {
                independent_rows,
                ..*other
            }
    }

    /// What suits a model whose runs are too short for threads to help, and of which one session executes
    /// `rows_per_second`: as many sessions as the part of the work that is the model's keeps busy, but two where there are
    /// two CPUs, so that requests on one need not wait for the other. More would only take turns.
    #[must_use]
    pub fn quick(&self, rows_per_second: f64, weights: usize) -> InstanceGroup {
        let row = 1.0 / rows_per_second.max(1.0);
        let part = row / (row + BESIDES);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a part of a number of CPUs"
        )]
        let busy = (self.cpus as f64 * part).ceil() as usize;
        InstanceGroup {
            instances: self
                .instances
                .unwrap_or(busy.max(self.cpus.clamp(1, 2)).min(most_instances(weights))),
            intra_op_threads: self.intra_op_threads.unwrap_or(1),
        }
    }

    /// The threads of the session that is measured first: one, which is also what short runs get.
    #[must_use]
    pub fn first_threads(&self) -> usize {
        self.intra_op_threads.unwrap_or(match self.instances {
            Some(instances) => (self.cpus / instances).max(1),
            None => 1,
        })
    }

    /// The most rows that may be merged.
    #[must_use]
    pub fn merge_limit(&self) -> usize {
        if self.mergeable {
            self.max_batch_size.min(self.independent_rows)
        } else {
            1
        }
    }
}

/// The most sessions of a model whose weights take so many bytes.
fn most_instances(weights: usize) -> usize {
    (MAX_WEIGHTS / weights.max(1)).clamp(1, MAX_INSTANCES)
}

/// The instance groups worth trying for a model whose weights take so many bytes, the most likely one first. All CPUs are used, and none
/// twice, unless the user says otherwise.
#[must_use]
pub fn instance_groups(constraints: &TuningConstraints, weights: usize) -> Vec<InstanceGroup> {
    let cpus = constraints.cpus.max(1);
    let most = most_instances(weights);
    let instance_group = |instances: usize, intra_op_threads: usize| InstanceGroup {
        instances,
        intra_op_threads,
    };
    match (constraints.instances, constraints.intra_op_threads) {
        (Some(instances), Some(threads)) => vec![instance_group(instances, threads)],
        (Some(instances), None) => vec![instance_group(instances, (cpus / instances).max(1))],
        (None, Some(threads)) => {
            vec![instance_group((cpus / threads).clamp(1, most), threads)]
        }
        (None, None) => {
            let threads = std::iter::successors(Some(1), |threads| Some(threads * 2));
            let mut all: Vec<InstanceGroup> = threads
                .take_while(|threads| *threads < cpus)
                .map(|threads| instance_group(cpus / threads, threads))
                .filter(|instance_group| instance_group.instances <= most)
                .collect();
            all.push(instance_group(1, cpus));
            all
        }
    }
}

/// Whether `challenger` is worth its additional threads.
pub(super) fn threads_pay(best: &Measurement, challenger: &Measurement) -> bool {
    challenger.rows_per_second >= THREADS_PAY * best.rows_per_second
}

/// Whether sizes beyond those measured, in ascending order, may still gain something.
pub(super) fn is_still_rising(sizes: &[Measurement]) -> bool {
    let mut best: f64 = 0.0;
    let mut without_gain = 0;
    for size in sizes {
        if size.rows_per_second >= STILL_RISING * best {
            without_gain = 0;
        } else {
            without_gain += 1;
        }
        best = best.max(size.rows_per_second);
    }
    without_gain < HOPELESS
}

/// The rows that are worth merging, of measurements in ascending order of rows, the first of which has one row.
pub(super) fn merge_rows(sizes: &[Measurement]) -> usize {
    let rate = |size: &Measurement| size.rows_per_second;
    let best = sizes.iter().map(rate).fold(0.0, f64::max);
    match sizes.first() {
        Some(single) if best >= BATCHES_PAY * single.rows_per_second => sizes
            .iter()
            .find(|size| size.rows_per_second >= NEARLY_BEST * best)
            .map_or(1, |size| size.rows),
        _ => 1,
    }
}

/// The rows that are to be merged of up to `limit`, and whether measurements speak for them: where only single rows were
/// measured, nothing speaks for or against more.
pub(super) fn merging(sizes: &[Measurement], limit: usize) -> (usize, bool) {
    if limit > 1 && sizes.len() < 2 {
        (limit, false)
    } else {
        (merge_rows(sizes).min(limit), true)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const FREE: TuningConstraints = TuningConstraints {
        cpus: 2,
        instances: None,
        intra_op_threads: None,
        max_batch_size: 32,
        mergeable: true,
        independent_rows: usize::MAX,
        merging_fixed: false,
    };

    fn pairs(constraints: TuningConstraints, weights: usize) -> Vec<(usize, usize)> {
        instance_groups(&constraints, weights)
            .iter()
            .map(|instance_group| (instance_group.instances, instance_group.intra_op_threads))
            .collect()
    }

    fn sizes(rates: &[f64]) -> Vec<Measurement> {
        let size = |(index, rate): (u32, &f64)| Measurement {
            instance_group: FREE.quick(1.0, 1),
            rows: 2_usize.pow(index),
            rows_per_second: *rate,
            run: Duration::from_millis(1),
        };
        (0..).zip(rates).map(size).collect()
    }

    #[test]
    fn every_cpu_is_used_once() {
        assert_eq!(pairs(FREE, 1), [(2, 1), (1, 2)]);
        assert_eq!(pairs(TuningConstraints { cpus: 1, ..FREE }, 1), [(1, 1)]);
        assert_eq!(
            pairs(TuningConstraints { cpus: 16, ..FREE }, 1),
            [(8, 2), (4, 4), (2, 8), (1, 16)]
        );
        assert_eq!(
            pairs(TuningConstraints { cpus: 6, ..FREE }, 1),
            [(6, 1), (3, 2), (1, 4), (1, 6)]
        );
        for cpus in 1..100 {
            for instance_group in instance_groups(&TuningConstraints { cpus, ..FREE }, 1) {
                assert!(instance_group.instances * instance_group.intra_op_threads <= cpus);
            }
        }
    }

    #[test]
    fn quick_models_get_as_many_instances_as_they_keep_busy() {
        let instances = |cpus, rate| TuningConstraints { cpus, ..FREE }.quick(rate, 1).instances;
        // A tiny network, one of 5 microseconds a row, and one of 150.
        assert_eq!(instances(1, 10e6), 1);
        assert_eq!(instances(2, 10e6), 2);
        assert_eq!(instances(16, 10e6), 2);
        assert_eq!(instances(2, 6.7e3), 2);
        assert_eq!(instances(16, 200e3), 6);
        let fixed = TuningConstraints {
            instances: Some(3),
            ..FREE
        };
        assert_eq!(fixed.quick(10e6, 1).instances, 3);
        // Two of a large one would hold its weights twice.
        assert_eq!(FREE.quick(6.7e3, 900 << 20).instances, 1);
    }

    #[test]
    fn a_large_model_is_not_held_many_times() {
        let four = TuningConstraints { cpus: 4, ..FREE };
        assert_eq!(pairs(four, 600 << 20), [(1, 4)]);
        assert_eq!(pairs(four, 400 << 20), [(2, 2), (1, 4)]);
    }

    #[test]
    fn what_the_user_fixed_stays() {
        let fixed = |instances, intra_op_threads| TuningConstraints {
            cpus: 4,
            instances,
            intra_op_threads,
            ..FREE
        };
        for (constraints, expected) in [
            (fixed(Some(3), Some(5)), (3, 5)),
            (fixed(Some(2), None), (2, 2)),
            (fixed(Some(9), None), (9, 1)),
            (fixed(None, Some(2)), (2, 2)),
            (fixed(None, Some(8)), (1, 8)),
        ] {
            assert_eq!(pairs(constraints, 1), [expected]);
            let untuned = constraints.untuned().instance_group;
            assert_eq!(
                constraints.instances.unwrap_or(untuned.instances),
                untuned.instances
            );
            assert_eq!(
                constraints
                    .intra_op_threads
                    .unwrap_or(untuned.intra_op_threads),
                untuned.intra_op_threads
            );
        }
    }

    #[test]
    fn batches_are_formed_only_where_they_pay() {
        // Rows per second at 1, 2, 4, 8, 16 and 32 rows.
        assert_eq!(merge_rows(&sizes(&[288.0, 290.0, 287.0, 270.0])), 1);
        assert_eq!(merge_rows(&sizes(&[100.0, 104.0, 109.0])), 1);
        assert_eq!(merge_rows(&sizes(&[4e5, 8e5, 1.6e6, 3e6, 6e6, 1.2e7])), 32);
        assert_eq!(merge_rows(&sizes(&[100.0, 150.0, 195.0, 200.0, 190.0])), 4);
        assert_eq!(merge_rows(&[]), 1);
    }

    #[test]
    fn what_was_not_measured_is_merged_and_not_said_to_cost_as_much() {
        // The time ended before a size above one.
        assert_eq!(merging(&sizes(&[2.5]), 32), (32, false));
        assert_eq!(merging(&[], 32), (32, false));
        assert_eq!(merging(&sizes(&[100.0, 101.0]), 32), (1, true));
        assert_eq!(merging(&sizes(&[100.0, 190.0]), 32), (2, true));
        // Where nothing may be merged there is nothing to measure.
        assert_eq!(merging(&sizes(&[100.0]), 1), (1, true));
    }

    #[test]
    fn no_more_rows_are_merged_than_were_shown_to_be_independent() {
        let shown = |independent_rows| TuningConstraints {
            independent_rows,
            ..FREE
        };
        assert_eq!(shown(3).untuned().merge_rows, 3);
        assert_eq!(shown(100).untuned().merge_rows, 32);
        // It is no reason to measure a model anew that is loaded again.
        assert!(shown(3).leaves_the_same_as(&shown(32)));
        let other = TuningConstraints {
            cpus: 3,
            ..shown(3)
        };
        assert!(!shown(3).leaves_the_same_as(&other));
    }

    #[test]
    fn sizes_are_tried_while_they_gain() {
        assert!(is_still_rising(&sizes(&[100.0])));
        assert!(is_still_rising(&sizes(&[100.0, 99.0])));
        assert!(!is_still_rising(&sizes(&[100.0, 99.0, 101.0])));
        assert!(is_still_rising(&sizes(&[100.0, 99.0, 110.0])));
        assert!(!is_still_rising(&sizes(&[100.0, 200.0, 150.0, 160.0])));
    }

    #[test]
    fn more_threads_need_a_reason() {
        let [one, other] = [&sizes(&[100.0])[0], &sizes(&[104.0])[0]];
        assert!(!threads_pay(one, other));
        assert!(threads_pay(one, &sizes(&[106.0])[0]));
    }
}
