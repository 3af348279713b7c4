//! A bound on the memory that requests and their answers may hold at once, across all models.
//!
//! Invariant: every reservation is given back when it is dropped, so an abandoned request leaves no trace.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The bytes that bodies, tensors and answers may take together.
#[derive(Debug, Clone)]
pub struct MemoryBudget {
    limit: usize,
    used: Arc<AtomicUsize>,
}

/// Why bytes are not reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// Others hold too much now; try again later.
    Now,
    /// The request by itself takes more than requests may.
    Ever,
}

/// The part of the budget that is left to small reservations: whoever holds large answers and does not read them cannot
/// keep everybody else out.
const LEFT_TO_SMALL: usize = 8;

/// Up to this part of the budget, what a request reserves in all counts as small.
const SMALL: usize = 64;

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
        let own = self.bytes.checked_add(bytes).ok_or(Exhausted::Ever)?;
        let limit = if own <= budget.limit / SMALL {
            budget.limit
        } else {
            budget.limit - budget.limit / LEFT_TO_SMALL
        };
        if own > limit {
            return Err(Exhausted::Ever);
        }
        let add = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= limit);
        budget
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .map_err(|_| Exhausted::Now)?;
        self.bytes = own;
        Ok(())
    }

    /// Makes this a reservation of `bytes`, whatever it was.
    ///
    /// # Errors
    /// When that exceeds the budget; the reservation stays as it was.
    pub fn resize(&mut self, bytes: usize) -> Result<(), Exhausted> {
        match self.bytes.checked_sub(bytes) {
            None => self.grow(bytes - self.bytes),
            Some(surplus) => {
                if let Some(budget) = &self.budget {
                    budget.used.fetch_sub(surplus, Ordering::Relaxed);
                    self.bytes = bytes;
                }
                Ok(())
            }
        }
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
        let budget = MemoryBudget::new(800);
        let mut first = budget.reservation();
        assert_eq!(first.grow(400), Ok(()));
        let mut second = budget.reservation();
        assert_eq!(second.grow(301), Err(Exhausted::Now));
        assert_eq!(second.grow(300), Ok(()));
        assert_eq!(second.grow(usize::MAX), Err(Exhausted::Ever));
        drop(first);
        assert_eq!(budget.used(), 300);
        drop(second);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn small_requests_find_room_beside_large_ones() {
        let budget = MemoryBudget::new(6400);
        let mut large = budget.reservation();
        assert_eq!(large.grow(5601), Err(Exhausted::Ever));
        assert_eq!(large.grow(5600), Ok(()));
        let mut other = budget.reservation();
        assert_eq!(other.grow(101), Err(Exhausted::Now));
        assert_eq!(other.grow(100), Ok(()));
        // Many small pieces of one request are not small.
        assert_eq!(other.grow(1), Err(Exhausted::Now));
        assert_eq!(budget.used(), 5700);
    }

    #[test]
    fn a_reservation_follows_what_is_held() {
        let budget = MemoryBudget::new(800);
        let mut answer = budget.reservation();
        assert_eq!(answer.resize(500), Ok(()));
        assert_eq!(answer.resize(200), Ok(()));
        assert_eq!(budget.used(), 200);
        assert_eq!(answer.resize(900), Err(Exhausted::Ever));
        assert_eq!(budget.used(), 200);
        assert_eq!(Reservation::none().resize(usize::MAX), Ok(()));
    }
}
