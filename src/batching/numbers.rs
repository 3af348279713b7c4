//! Counts as numbers that can be divided.

/// Rows as a histogram counts them; no batch comes near the 2^53 rows from which this would round.
#[expect(clippy::cast_precision_loss, reason = "row counts are far below 2^53")]
pub(in crate::batching) fn to_f64(rows: usize) -> f64 {
    rows as f64
}
