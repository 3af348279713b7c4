//! A bound on the memory that requests may hold at once, across all models.
//!
//! Invariant: every reservation is given back when it is dropped, so an abandoned request leaves no trace.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The bytes that bodies and tensors of requests may take together.
#[derive(Debug, Clone)]
pub struct MemoryBudget {
    limit: usize,
    used: Arc<AtomicUsize>,
}

/// The budget is exhausted; try again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exhausted;

impl MemoryBudget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            used: Arc::default(),
        }
    }

    /// Bytes that are reserved now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// An empty reservation, to be grown.
    #[must_use]
    pub fn reservation(&self) -> Reservation {
        Reservation {
            budget: Some(self.clone()),
            bytes: 0,
        }
    }
}

/// A share of a [`MemoryBudget`].
#[derive(Debug)]
pub struct Reservation {
    budget: Option<MemoryBudget>,
    bytes: usize,
}

impl Reservation {
    /// A reservation without a budget, for requests that do not come from outside.
    #[must_use]
    pub fn none() -> Self {
        Self {
            budget: None,
            bytes: 0,
        }
    }

    /// Adds `bytes` to this reservation.
    ///
    /// # Errors
    /// When that exceeds the budget; the reservation stays as it was.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Exhausted> {
        let Some(budget) = &self.budget else {
            return Ok(());
        };
        let add = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= budget.limit);
        budget
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .map_err(|_| Exhausted)?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_given_back_on_drop() {
        let budget = MemoryBudget::new(100);
        let mut first = budget.reservation();
        assert_eq!(first.grow(60), Ok(()));
        let mut second = budget.reservation();
        assert_eq!(second.grow(41), Err(Exhausted));
        assert_eq!(second.grow(40), Ok(()));
        assert_eq!(second.grow(usize::MAX), Err(Exhausted));
        drop(first);
        assert_eq!(budget.used(), 40);
        drop(second);
        assert_eq!(budget.used(), 0);
    }
}
