//! Which requests a line of the log is about.
//!
//! Invariant: however many they are, the line names a few and the number of the others, and nothing is allocated before
//! there is something to log.

use std::fmt::Write as _;

use smallvec::SmallVec;

use super::queue::Pending;
use crate::telemetry::request_ids::RequestIds;

/// How many requests a line names.
const NAMED: usize = 4;

/// The requests of an execution, for a line that may have to be written when they are answered already.
pub(super) struct RequestList {
    named: SmallVec<[RequestIds; NAMED]>,
    others: usize,
}

impl RequestList {
    /// The requests of `members`.
    pub(super) fn of<'a>(members: impl IntoIterator<Item = &'a Pending>) -> Self {
        let mut list = Self {
            named: SmallVec::new(),
            others: 0,
        };
        for ids in members
            .into_iter()
            .filter_map(|member| member.request.ids())
        {
            if list.named.len() < NAMED {
                list.named.push(ids.clone());
            } else {
                list.others += 1;
            }
        }
        list
    }

    /// Their ids, if there are any.
    pub(super) fn request_ids(&self) -> Option<String> {
        let all = self.named.iter().map(|ids| ids.id().to_owned());
        self.listed(&all.collect::<Vec<_>>())
    }

    /// The traces that they are part of, if there are any.
    pub(super) fn trace_ids(&self) -> Option<String> {
        let all = self.named.iter().filter_map(RequestIds::trace_id);
        self.listed(&all.map(|id| format!("{id:?}")).collect::<Vec<_>>())
    }

    fn listed(&self, named: &[String]) -> Option<String> {
        if named.is_empty() {
            return None;
        }
        let mut text = named.join(", ");
        if self.others > 0 {
            // Writing into a string cannot fail.
            let _ = write!(text, " and {} more", self.others);
        }
        Some(text)
    }
}
