//! What is fixed about a queue, and what a request counts and takes by it.
//!
//! Invariant: what a request counts of the rows that may wait follows from its rows alone, so that as much is counted out
//! as was counted in.

use crate::batching::numbers::to_f64;
use crate::batching::policy::BatchPolicy;
use crate::batching::run_times::RunTimes;
use crate::runtime::buckets::Buckets;

/// What is fixed about a queue.
#[derive(Debug, Clone, Copy)]
pub struct QueueConfig {
    /// The rules by which requests are merged.
    pub policy: BatchPolicy,
    /// Rows that may wait, where a request counts as many as are executed at once.
    pub max_rows: usize,
    /// The most rows of an execution, where requests with more are executed in parts.
    pub part_rows: Option<usize>,
    /// Who executes what waits.
    pub instances: usize,
    /// The sizes to which executions are padded, if they are.
    pub buckets: Option<Buckets>,
    /// Whether runs of as many rows take about as long. Where they do not, because requests choose other sizes or the
    /// work follows from the values, what runs took says how long one waits, but nothing about a request's own run.
    pub comparable: bool,
}

impl QueueConfig {
    /// The rows of an execution of `rows` rows.
    pub(super) fn padded(self, rows: usize) -> usize {
        self.buckets.map_or(rows, |buckets| buckets.fit(rows))
    }

    /// What a request of `rows` rows counts of the rows that may wait. Of one that is executed in parts whoever comes
    /// later waits for one part at a time, so that all of its rows would lock others out for nothing.
    pub(super) fn counted(self, rows: usize) -> usize {
        self.part_rows.map_or(rows, |most| rows.min(most))
    }

    /// The rows of the largest execution of a request of `rows` rows.
    pub(super) fn executed(self, rows: usize) -> usize {
        self.padded(self.counted(rows))
    }

    /// The seconds that a request of `rows` rows is executed at least, all of its parts together, by what runs took;
    /// none if that says nothing about it.
    pub(super) fn shortest(self, times: &RunTimes, rows: usize) -> f64 {
        if !self.comparable {
            return 0.0;
        }
        let part = self.counted(rows).max(1);
        let (full, rest) = (rows / part, rows % part);
        let of_rest = if rest > 0 {
            times.shortest(self.padded(rest)).max(0.0)
        } else {
            0.0
        };
        to_f64(full) * times.shortest(self.padded(part)).max(0.0) + of_rest
    }
}
