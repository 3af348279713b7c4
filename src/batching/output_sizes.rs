//! How large the outputs of an execution will be, so that requests do not share one whose outputs take much memory: they
//! lie beside the answers that are copied out of them, and no budget counts them.
//!
//! Invariant: a row is taken to have as many bytes of outputs as the signature tells, or else as many for each byte of
//! input as any row of about its size was seen to have.

/// The part of the memory limit that the outputs of shared executions may take, of one for each instance: little beside
/// what is held already, and yet so much that small answers share executions as before.
const PART: usize = 32;

/// Inputs of which nothing is known yet are executed together up to this size: it takes a model whose outputs are far
/// larger than its inputs to make much of that.
const SMALL_INPUTS: usize = 256 << 10;

/// Classes of rows by the bits that the size of their inputs has.
const CLASSES: usize = usize::BITS as usize + 1;

/// The bytes of a row's inputs and outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowSize {
    /// Of its inputs.
    pub(super) input: usize,
    /// Of its outputs, if the signature tells.
    pub(super) output: Option<usize>,
}

/// A row that was executed: of its class, the one with the most outputs for its inputs.
#[derive(Debug, Clone, Copy)]
struct Seen {
    input: usize,
    output: usize,
}

impl Seen {
    /// The outputs of a row with `input` bytes, if they grow as its inputs do.
    fn scaled(self, input: usize) -> usize {
        let product = self.output.checked_mul(input.max(1));
        product.map_or(usize::MAX, |product| product.div_ceil(self.input.max(1)))
    }
}

/// What one instance knows of the sizes of outputs.
#[derive(Debug)]
pub(super) struct OutputSizes {
    most: usize,
    /// By class, because an output may well have a part that does not grow with the inputs: what a tiny row teaches would
    /// make every large one seem to be huge.
    seen: [Option<Seen>; CLASSES],
}

impl OutputSizes {
    /// Nothing is known yet. Requests and answers may hold `memory` bytes, and there are so many `instances`.
    pub(super) fn new(memory: usize, instances: usize) -> Self {
        Self {
            most: memory / PART / instances.max(1),
            seen: [None; CLASSES],
        }
    }

    /// Takes note that a row with `input` bytes of inputs had `output` bytes of outputs.
    pub(super) fn record(&mut self, input: usize, output: usize) {
        if let Some(seen) = self.seen.get_mut(class(input))
            && seen.is_none_or(|seen| output > seen.scaled(input))
        {
            *seen = Some(Seen { input, output });
        }
    }

    /// The most rows such as `row` that requests may share an execution of; `rows` are there.
    pub(super) fn most_rows(&self, row: RowSize, rows: usize) -> usize {
        let output = row.output.or_else(|| {
            let own = self.seen.get(class(row.input)).copied().flatten();
            own.map(|seen| seen.scaled(row.input))
        });
        if output.is_none() && row.input.saturating_mul(rows) > SMALL_INPUTS {
            // The first request is executed alone, and tells of the others.
            return 1;
        }
        let of_others = || {
            let seen = self.seen.iter().flatten();
            seen.map(|seen| seen.scaled(row.input)).max()
        };
        let output = output.or_else(of_others).unwrap_or(0);
        self.most.checked_div(output).unwrap_or(usize::MAX)
    }
}

/// The class of a row with `input` bytes of inputs.
fn class(input: usize) -> usize {
    input.checked_ilog2().map_or(0, |bits| bits as usize + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1 << 10;

    /// Of outputs that the signature does not tell.
    fn row(input: usize) -> RowSize {
        RowSize {
            input,
            output: None,
        }
    }

    #[test]
    fn what_the_signature_tells_counts() {
        let mut sizes = OutputSizes::new(PART * 200, 2);
        sizes.record(4, 4000);
        let told = |output| RowSize {
            input: 4,
            output: Some(output),
        };
        for (output, rows) in [(10, 10), (11, 9), (100, 1), (101, 0), (0, usize::MAX)] {
            assert_eq!(sizes.most_rows(told(output), 32), rows, "{output}");
        }
    }

    #[test]
    fn what_was_seen_counts_where_the_signature_does_not_tell() {
        let mut sizes = OutputSizes::new(PART * 100, 1);
        assert_eq!(sizes.most_rows(row(4), 32), usize::MAX);
        sizes.record(4, 40);
        assert_eq!(sizes.most_rows(row(4), 32), 2);
        assert_eq!(sizes.most_rows(row(7), 32), 1, "70 bytes each");
        // The largest counts, in whatever order they come.
        sizes.record(4, 20);
        sizes.record(6, 30);
        assert_eq!(sizes.most_rows(row(4), 32), 2);
        sizes.record(5, 100);
        assert_eq!(sizes.most_rows(row(5), 32), 1);
        assert_eq!(sizes.most_rows(row(4), 32), 1, "80 bytes each");
    }

    #[test]
    fn of_large_inputs_the_first_request_is_executed_alone_until_one_like_it_was_seen() {
        let mut sizes = OutputSizes::new(PART << 20, 1);
        assert_eq!(sizes.most_rows(row(128 * KIB), 2), usize::MAX);
        assert_eq!(sizes.most_rows(row(128 * KIB), 3), 1);
        // Small rows do not tell what large ones do: attention grows with the square.
        sizes.record(100, 100);
        assert_eq!(sizes.most_rows(row(128 * KIB), 3), 1);
        sizes.record(128 * KIB, 128 * KIB);
        assert_eq!(sizes.most_rows(row(128 * KIB), 3), 8);
    }

    #[test]
    fn small_inputs_of_another_size_are_taken_to_grow_like_those_that_were_seen() {
        let mut sizes = OutputSizes::new(PART * 100 * KIB, 1);
        sizes.record(4, 4000);
        assert_eq!(sizes.most_rows(row(40), 32), 2);
        assert_eq!(sizes.most_rows(row(4 * KIB), 32), 0);
        // Not once it was seen that they do not.
        sizes.record(4 * KIB, 4 * KIB);
        assert_eq!(sizes.most_rows(row(4 * KIB), 32), 25);
    }

    #[test]
    fn sizes_at_the_ends_do_not_overflow() {
        let mut sizes = OutputSizes::new(usize::MAX, 1);
        sizes.record(0, 10);
        assert_eq!(sizes.most_rows(row(0), 1), usize::MAX / PART / 10);
        sizes.record(usize::MAX, usize::MAX);
        assert_eq!(sizes.most_rows(row(usize::MAX), usize::MAX), 0);
    }
}
