//! Why a prediction is not answered with what was asked for.
//!
//! Invariant: the set is closed and speaks no protocol; each edge has one table from it to what its clients are told.

use std::sync::Arc;
use std::time::Duration;

use crate::batching::ScheduleError;
use crate::inference::{Exhausted, InvalidRequest};
use crate::model::operators::Operators;
use crate::models::registry::Fault;
use crate::telemetry::metrics::Outcome;

/// Why a prediction is not answered with what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServeError {
    /// The models are being loaded.
    Starting,
    /// No model has the name that was given.
    UnknownModel,
    /// No such version of a model that is served is.
    UnknownVersion,
    /// No name was given, and the default model is not served now.
    DefaultModelGone,
    /// No name was given, and there is no default among the models.
    NoDefaultModel,
    /// Something in the server is broken, and a restart would cure it.
    Broken(Fault),
    /// The server is about to stop.
    Draining,
    /// Too much to do.
    Overloaded {
        /// What is full.
        reason: &'static str,
        /// When it is worth trying again.
        retry_after: Duration,
    },
    /// Not answered within the deadline, or it cannot be.
    DeadlineExceeded,
    /// Not what the model takes.
    Invalid(String),
    /// The request by itself takes more memory than all requests together may.
    RequestTooLarge,
    /// The answer by itself takes more memory than all requests together may.
    AnswerTooLarge,
    /// The values make the model take more memory than runs may.
    ValuesTooLarge,
    /// The model cannot compute these values.
    Refused {
        /// The operator that refused them, if that is known.
        operator: Option<String>,
        /// Names, datatypes and shapes of the inputs.
        inputs: Arc<str>,
    },
    /// Our fault; the log says which.
    Internal,
}

impl ServeError {
    /// How the prediction is counted.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::UnknownModel
            | Self::UnknownVersion
            | Self::DefaultModelGone
            | Self::NoDefaultModel
            | Self::Invalid(_)
            | Self::AnswerTooLarge
            | Self::ValuesTooLarge
            | Self::Refused { .. } => Outcome::Invalid,
            Self::Overloaded { .. } | Self::RequestTooLarge => Outcome::Overloaded,
            Self::DeadlineExceeded => Outcome::Timeout,
            Self::Starting | Self::Broken(_) | Self::Draining | Self::Internal => Outcome::Error,
        }
    }

    /// Of the memory for a request.
    #[must_use]
    pub fn of_request_memory(exhausted: Exhausted) -> Self {
        match exhausted {
            Exhausted::Now => Self::memory_is_full(),
            Exhausted::Ever => Self::RequestTooLarge,
        }
    }

    /// Of the memory for an answer.
    #[must_use]
    pub fn of_answer_memory(exhausted: Exhausted) -> Self {
        match exhausted {
            Exhausted::Now => Self::memory_is_full(),
            Exhausted::Ever => Self::AnswerTooLarge,
        }
    }

    fn memory_is_full() -> Self {
        Self::Overloaded {
            reason: "request memory is full",
            retry_after: Duration::from_secs(1),
        }
    }

    /// Of an execution; `operators` are the model's.
    #[must_use]
    pub fn of_execution(error: ScheduleError, operators: &Operators) -> Self {
        match error {
            ScheduleError::Overloaded {
                reason,
                retry_after,
            } => Self::Overloaded {
                reason,
                retry_after,
            },
            ScheduleError::ShuttingDown => Self::Draining,
            ScheduleError::DeviceLost => Self::Broken(Fault::DeviceLost),
            ScheduleError::DeadlineExceeded => Self::DeadlineExceeded,
            ScheduleError::Refused { reason, inputs } => Self::Refused {
                operator: operators.named_in(&reason).map(|name| name.to_string()),
                inputs,
            },
            ScheduleError::TooLarge => Self::ValuesTooLarge,
            ScheduleError::Disagreement(message) => Self::Invalid(message.to_string()),
            ScheduleError::Internal(_) => Self::Internal,
        }
    }
}

impl From<InvalidRequest> for ServeError {
    fn from(error: InvalidRequest) -> Self {
        Self::Invalid(error.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_sent_is_never_counted_as_an_error_of_the_server() {
        let operators = Operators::default();
        let of = |error| ServeError::of_execution(error, &operators);
        for error in [
            InvalidRequest(String::new()).into(),
            of(ScheduleError::Refused {
                reason: "x".into(),
                inputs: "x".into(),
            }),
            of(ScheduleError::TooLarge),
            of(ScheduleError::Disagreement("x".into())),
            ServeError::of_answer_memory(Exhausted::Ever),
        ] {
            assert_eq!(error.outcome(), Outcome::Invalid, "{error:?}");
        }
        for exhausted in [Exhausted::Now, Exhausted::Ever] {
            let error = ServeError::of_request_memory(exhausted);
            assert_eq!(error.outcome(), Outcome::Overloaded, "{error:?}");
        }
    }
}
