//! What an arena holds.

/// What an arena holds, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// In tensors.
    pub(super) used: usize,
    /// Taken from the system.
    pub(super) taken: usize,
}
