//! Whether rows of different requests may share an execution, tried before the first request does.
//!
//! A dynamic first dimension says that a model takes several rows. It does not say that it computes each of them by
//! itself: a normalisation over the batch, a quantisation by the largest value, or a sum along the wrong axis would mix
//! the requests of strangers, and texts may be padded to the longest one beside them. What is asked of the graph:
//!
//! - Has each output a row for each row of the inputs, and otherwise the sizes that a row alone gives? A size that nothing
//!   but values explains is doubted, whatever the dummy values gave. An output that no value reaches may be shared.
//! - Does a row's answer change when only its neighbours do? Both runs have the same shape, and so the same kernels, so
//!   that hardly any difference is rounding. The neighbours are extreme or blank, so that any influence shows. This must
//!   hold for every kind of rows that the model takes.
//! - Does it change with the number of rows, or with its place among them? Here kernels differ and round differently, and
//!   on rows such as nobody sends some networks amplify that. A difference that only one kind of rows shows is taken for
//!   such rounding if it is small, and rows of another kind, which give answers far apart from each other, show none.
//!
//! Executions of 1, 2 and 3 rows are tried, and larger ones as far as time and memory let them. Invariant: what was not
//! shown to be independent is not merged, nor are more rows than it was shown for.

mod comparison;
mod outputs;
mod pace;
mod row_dependence;
mod rows;
mod runs;
mod stop;
#[cfg(test)]
mod tests;
mod trial;
mod verdict;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use row_dependence::RowDependence;
pub use verdict::Verdict;

use super::dummy_inputs::LARGEST_INPUT;
use super::{Model, RuntimeError};
use crate::model::flow::Flow;
use crate::model::operators::Operators;
use trial::{Limits, Trial};

/// Tries it with executions of up to `max_rows` rows; `flows` are what the outputs follow from by the graph, whose
/// `operators` are what a refusal is told by.
///
/// # Errors
/// When a run fails for another reason than that the model refuses the dummy rows.
pub fn check(
    model: &mut dyn Model,
    flows: &[Flow],
    operators: &Operators,
    max_rows: usize,
    tf32: bool,
) -> Result<Verdict, RuntimeError> {
    let started = Instant::now();
    let clock = || started.elapsed();
    let limits = Limits {
        max_rows,
        tf32,
        largest: LARGEST_INPUT,
    };
    let metadata = Arc::clone(model.metadata());
    Trial::new(model, &metadata, (flows, operators), limits, &clock).run(false)
}

/// Only finds out how the outputs are to be handed out: the user says that rows do not depend on each other.
///
/// # Errors
/// As [`check`].
pub fn probe(
    model: &mut dyn Model,
    flows: &[Flow],
    operators: &Operators,
) -> Result<Verdict, RuntimeError> {
    let clock = || Duration::ZERO;
    let limits = Limits {
        max_rows: 2,
        tf32: false,
        largest: LARGEST_INPUT,
    };
    let metadata = Arc::clone(model.metadata());
    Trial::new(model, &metadata, (flows, operators), limits, &clock).run(true)
}
