//! When an execution could begin that is asked for now: pure functions of what runs and what waits.
//!
//! Invariant: where an instance is free and nothing waits, it begins now.

use super::numbers::to_f64;
use super::run_times::Expected;

/// A run that is nearly over by expectation may still take this part of it.
const LEAST_RESIDUAL: f64 = 1.0 / 16.0;

/// How long a run goes on that began `elapsed` seconds ago.
///
/// One that takes longer than expected is not over at any moment: as far as is known, it goes on for as long as it is
/// late.
pub(super) fn residual(expected: Expected, elapsed: f64) -> f64 {
    let off = (expected.mean - elapsed).abs();
    off.max(expected.deviation.min(expected.mean))
        .max(LEAST_RESIDUAL * expected.mean)
}

/// In how many seconds an execution begins that has `executions` of `each` seconds before it, when the instances are
/// free in `free_in` seconds. Each goes to the instance that is free first.
pub(super) fn start(free_in: &mut [f64], executions: usize, each: f64) -> f64 {
    free_in.sort_unstable_by(f64::total_cmp);
    let Some(first) = free_in.first().copied() else {
        return 0.0;
    };
    if executions == 0 || each <= 0.0 {
        return first;
    }
    // Were executions divisible, all instances that take part would be free at one moment. Up to one execution before
    // it everything is settled, however many executions that are; the few that are left are dealt out one by one.
    let level = level(free_in, to_f64(executions) * each);
    let mut settled = 0.0;
    for free in free_in.iter_mut().filter(|free| **free < level) {
        let count = (((level - *free) / each).ceil() - 1.0).max(0.0);
        settled += count;
        *free += count * each;
    }
    free_in.sort_unstable_by(f64::total_cmp);
    let left = (to_f64(executions) - settled).max(0.0);
    let next = free_in
        .iter()
        .enumerate()
        .find(|(index, _)| to_f64(*index) >= left);
    next.map_or(level, |(_, free)| free.min(level))
}

/// Where `work` seconds, poured over instances that are free in `free_in` (ascending) seconds, come to stand.
fn level(free_in: &[f64], work: f64) -> f64 {
    let mut filled = work;
    let mut level = 0.0;
    for (index, free) in free_in.iter().enumerate() {
        if index > 0 && *free >= level {
            break;
        }
        filled += free;
        level = filled / to_f64(index + 1);
    }
    level
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same by dealing out the executions one by one.
    fn dealt(free_in: &[f64], executions: usize, each: f64) -> f64 {
        let mut free_in = free_in.to_vec();
        for _ in 0..executions {
            free_in.sort_unstable_by(f64::total_cmp);
            free_in[0] += each;
        }
        free_in.into_iter().fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn an_execution_begins_when_an_instance_is_free_and_those_before_it_have_begun() {
        for (free_in, executions, expected) in [
            (&[0.0][..], 0, 0.0),
            (&[0.0], 3, 30.0),
            (&[4.0], 0, 4.0),
            (&[4.0], 3, 34.0),
            // Two free instances take two requests at once.
            (&[0.0, 0.0], 1, 0.0),
            (&[0.0, 0.0], 2, 10.0),
            (&[4.0, 6.0], 0, 4.0),
            (&[4.0, 6.0], 1, 6.0),
            (&[4.0, 6.0], 4, 24.0),
            // One that hangs takes no part.
            (&[5.0, 10_000.0], 3, 35.0),
            (&[10_000.0, 0.0], 1, 10.0),
            (&[], 3, 0.0),
        ] {
            let result = start(&mut free_in.to_vec(), executions, 10.0);
            assert!(
                (result - expected).abs() < 1e-6,
                "{free_in:?}, {executions}: {result} is not {expected}"
            );
        }
    }

    #[test]
    fn any_number_of_executions_is_dealt_out_as_if_one_by_one() {
        let mut state = 1_u32;
        let mut random = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        for _ in 0..2000 {
            let instances = 1 + random(8);
            let free_in: Vec<f64> = (0..instances).map(|_| f64::from(random(40))).collect();
            let executions = random(50) as usize;
            let each = f64::from(1 + random(20));
            let (expected, result) = (
                dealt(&free_in, executions, each),
                start(&mut free_in.clone(), executions, each),
            );
            assert!(
                (result - expected).abs() < 1e-6,
                "{free_in:?}, {executions} of {each}: {result} is not {expected}"
            );
        }
    }

    #[test]
    fn a_run_goes_on_for_what_it_lacks_and_one_that_is_late_for_as_long_as_it_is_late() {
        let expected = Expected {
            mean: 16.0,
            deviation: 0.0,
        };
        for (elapsed, rest) in [
            (0.0, 16.0),
            (10.0, 6.0),
            (15.5, 1.0),
            (16.0, 1.0),
            (17.0, 1.0),
            (20.0, 4.0),
            (116.0, 100.0),
        ] {
            assert!(
                (residual(expected, elapsed) - rest).abs() < 1e-6,
                "{elapsed}"
            );
        }
        let uneven = Expected {
            mean: 16.0,
            deviation: 3.0,
        };
        assert!((residual(uneven, 15.0) - 3.0).abs() < 1e-6);
    }
}
