//! Why a trial goes no further.
//!
//! Invariant: what the model refuses is told apart from what fails.

use std::time::Duration;

use super::row_dependence::RowDependence;
use crate::runtime::RuntimeError;

/// Why a kind of rows shows nothing.
pub(super) enum Unusable {
    /// The model does not take them.
    Refused(String),
    /// The model takes one of them, and refuses two.
    OneRow(String),
    /// An input would be too large.
    TooLarge,
    /// A run takes so long.
    TooSlow(Duration),
}

/// Ends the trial of a kind of rows, or all.
pub(super) enum Stop {
    RowDependence(RowDependence),
    Unusable(Unusable),
    Failed(RuntimeError),
}

impl From<RowDependence> for Stop {
    fn from(dependence: RowDependence) -> Self {
        Self::RowDependence(dependence)
    }
}

impl From<Unusable> for Stop {
    fn from(unusable: Unusable) -> Self {
        Self::Unusable(unusable)
    }
}

impl Unusable {
    pub(super) fn into_dependence(self) -> RowDependence {
        match self {
            Self::Refused(reason) => RowDependence::Untested(reason),
            Self::OneRow(reason) => RowDependence::Signature(format!(
                "the model takes one row, and refuses two: {reason}"
            )),
            Self::TooLarge => RowDependence::Untested("its rows are too large".to_owned()),
            Self::TooSlow(run) => RowDependence::Untested(format!(
                "a run of one row takes {:.1} s, which is too long to make the necessary ones",
                run.as_secs_f64()
            )),
        }
    }

    /// How much it says about the model.
    fn rank(&self) -> u8 {
        match self {
            Self::TooLarge => 0,
            Self::Refused(_) => 1,
            Self::TooSlow(_) => 2,
            Self::OneRow(_) => 3,
        }
    }
}

/// The one of two that says more.
pub(super) fn worse(known: Option<Unusable>, next: Unusable) -> Unusable {
    match known {
        Some(known) if known.rank() >= next.rank() => known,
        _ => next,
    }
}
