//! Which execution provider executes which nodes of a graph, as the session itself reports it.
//!
//! That CUDA is registered does not mean that it executes anything: what it has no kernel for goes to the CPU, without
//! a word. `ort` has no safe function for this report yet, so this file has unsafe code.
//!
//! Invariant: every pointer comes from ONNX Runtime and belongs to the session, which is borrowed for as long as any
//! of them is used.
#![allow(
    unsafe_code,
    reason = "ort does not wrap the graph assignment; see the invariant"
)]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::fmt;
use std::ptr;

use ort::AsPointer;
use ort::session::Session;
use ort::sys::{OrtEpAssignedNode, OrtEpAssignedSubgraph, OrtStatusPtr};

/// What must be set, with the value "1", while a session is built, so that it can report.
pub(super) const CONFIG_ENTRY: &str = "session.record_ep_graph_assignment_info";

/// How many nodes of a graph each execution provider executes, and which operators those are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assignment(BTreeMap<String, BTreeMap<String, usize>>);

impl Assignment {
    /// Asks `session`.
    ///
    /// # Errors
    /// When it was built without [`CONFIG_ENTRY`].
    pub(super) fn of(session: &Session) -> Result<Self, ort::Error> {
        let mut assignment = Self::default();
        for subgraph in subgraphs(session)? {
            let mut provider = ptr::null();
            // SAFETY: `subgraph` is one of the session's, and the text is the subgraph's.
            let provider = unsafe {
                result((ort::api().EpAssignedSubgraph_GetEpName)(
                    *subgraph,
                    &raw mut provider,
                ))?;
                text(provider)
            };
            let operators = assignment.0.entry(provider).or_default();
            for node in nodes(*subgraph)? {
                let mut operator = ptr::null();
                // SAFETY: `node` is one of the subgraph's, and the text is the node's.
                let operator = unsafe {
                    result((ort::api().EpAssignedNode_GetOperatorType)(
                        *node,
                        &raw mut operator,
                    ))?;
                    text(operator)
                };
                *operators.entry(operator).or_default() += 1;
            }
        }
        Ok(assignment)
    }

    /// The nodes that the provider called `name` executes.
    #[must_use]
    pub fn nodes(&self, name: &str) -> usize {
        self.0
            .get(name)
            .map_or(0, |operators| operators.values().sum())
    }

    /// The providers with the number of nodes that each executes.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&str, usize> {
        self.0
            .keys()
            .map(|name| (name.as_str(), self.nodes(name)))
            .collect()
    }

    /// The operators that the provider called `name` executes, with how many nodes each, as people write it.
    #[must_use]
    pub fn operators(&self, name: &str) -> String {
        let operators = self.0.get(name).into_iter().flatten();
        let texts: Vec<String> = operators
            .map(|(operator, nodes)| format!("{operator} {nodes}"))
            .collect();
        texts.join(", ")
    }
}

/// The providers with the number of nodes that each executes, as people write it.
impl fmt::Display for Assignment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, nodes)) in self.counts().into_iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(formatter, "{separator}{name} {nodes}")?;
        }
        Ok(())
    }
}

fn subgraphs(session: &Session) -> Result<&[*const OrtEpAssignedSubgraph], ort::Error> {
    let (mut first, mut count) = (ptr::null(), 0);
    // SAFETY: the session is valid, and the array that ONNX Runtime returns lives as long as it does.
    unsafe {
        let status = (ort::api().Session_GetEpGraphAssignmentInfo)(
            session.ptr(),
            &raw mut first,
            &raw mut count,
        );
        result(status)?;
        Ok(slice(first, count))
    }
}

/// The nodes of a subgraph, which live as long as its session.
fn nodes<'a>(
    subgraph: *const OrtEpAssignedSubgraph,
) -> Result<&'a [*const OrtEpAssignedNode], ort::Error> {
    let (mut first, mut count) = (ptr::null(), 0);
    // SAFETY: only called by `Assignment::of`, with a subgraph of the session that it borrows.
    unsafe {
        let status =
            (ort::api().EpAssignedSubgraph_GetNodes)(subgraph, &raw mut first, &raw mut count);
        result(status)?;
        Ok(slice(first, count))
    }
}

/// # Safety
/// `status` comes from ONNX Runtime and is given away.
unsafe fn result(status: OrtStatusPtr) -> Result<(), ort::Error> {
    // SAFETY: as the caller promises.
    unsafe { ort::Error::result_from_status(status) }
}

/// # Safety
/// `first` is null, or the first of `count` elements that live for `'a`.
unsafe fn slice<'a, T>(first: *const T, count: usize) -> &'a [T] {
    if first.is_null() {
        return &[];
    }
    // SAFETY: as the caller promises.
    unsafe { std::slice::from_raw_parts(first, count) }
}

/// # Safety
/// `text` is null, or ends with a zero.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}
