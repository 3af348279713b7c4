//! The pause between two attempts.
//!
//! Invariant: whether there is another attempt, [`Patience`] says.

use std::time::{Duration, Instant};

use super::error::FetchError;
use super::failure::{CHANGED, Failure};
use super::patience::Patience;
use crate::chance::chance;

/// Waits before the next attempt, or gives up.
pub(super) async fn pause(
    patience: &mut Patience,
    failure: Failure,
    what: &str,
    timeout: Duration,
) -> Result<(), FetchError> {
    let (reason, asked) = match failure {
        Failure::Transient { reason, pause } => (reason, pause),
        Failure::Changed => (CHANGED.to_owned(), None),
        failure => return Err(FetchError::after(failure, what, timeout)),
    };
    match patience.failed(Instant::now(), asked, chance()) {
        Some(pause) => {
            tracing::warn!(what, reason, seconds = pause.as_secs_f32(), "trying again");
            tokio::time::sleep(pause).await;
            Ok(())
        }
        None => Err(FetchError::after(Failure::transient(reason), what, timeout)),
    }
}
