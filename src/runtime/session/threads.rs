//! Whether the operating system gives the threads that a session will ask for.
//!
//! ONNX Runtime waits for ever when one of its threads cannot be started, and nobody would be told. So as many are started
//! here before, and ended again.
//!
//! Invariant: nothing is left behind, whether they can be had or not.

use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;

/// The stack of a thread as the system gives it, which ONNX Runtime asks for.
const STACK: usize = 8 << 20;

/// Finds out whether `count` threads can be had at once.
///
/// # Errors
/// What the operating system says if not.
pub(super) fn check(count: usize) -> std::io::Result<()> {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock();
    let start = |_| {
        let gate = Arc::clone(&gate);
        let thread = thread::Builder::new().stack_size(STACK);
        thread.spawn(move || drop(gate.lock()))
    };
    let mut threads = Vec::new();
    let mut refused = None;
    for thread in (0..count).map(start) {
        match thread {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    drop(closed);
    for thread in threads {
        // They do nothing that could panic.
        let _ = thread.join();
    }
    refused.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_few_threads_can_be_had() {
        for count in [0, 1, 16] {
            assert!(super::check(count).is_ok());
        }
    }
}
