//! The batch sizes in which a model is executed where shapes had better repeat.
//!
//! On a GPU every new shape costs: cuDNN chooses algorithms for it, and memory is asked for that was not needed before.
//! Invariant: whatever is executed after the warm-up has a size that was warmed up.

/// Powers of two up to a maximum, and the maximum itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buckets {
    max_rows: usize,
}

impl Buckets {
    /// The sizes for executions of at most `max_rows` rows.
    #[must_use]
    pub fn up_to(max_rows: usize) -> Self {
        Self {
            max_rows: max_rows.max(1),
        }
    }

    /// All sizes, ascending.
    #[must_use]
    pub fn sizes(self) -> Vec<usize> {
        let powers = std::iter::successors(Some(1_usize), |size| size.checked_mul(2));
        let mut sizes: Vec<usize> = powers.take_while(|size| *size < self.max_rows).collect();
        sizes.push(self.max_rows);
        sizes
    }

    /// The smallest size that holds `rows`; `rows` themselves, if none does.
    #[must_use]
    pub fn fit(self, rows: usize) -> usize {
        match rows.checked_next_power_of_two() {
            Some(size) if size < self.max_rows => size.max(1),
            _ => rows.max(self.max_rows),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two_and_the_maximum() {
        assert_eq!(Buckets::up_to(1).sizes(), [1]);
        assert_eq!(Buckets::up_to(8).sizes(), [1, 2, 4, 8]);
        assert_eq!(Buckets::up_to(20).sizes(), [1, 2, 4, 8, 16, 20]);
    }

    #[test]
    fn every_number_of_rows_fits_the_next_size() {
        for max_rows in 1..70 {
            let buckets = Buckets::up_to(max_rows);
            for rows in 1..=max_rows {
                let next = buckets.sizes().into_iter().find(|size| *size >= rows);
                assert_eq!(Some(buckets.fit(rows)), next, "{rows} of {max_rows}");
            }
        }
        assert_eq!(Buckets::up_to(4).fit(5), 5);
    }
}
