//! Where lines of the log wait for their reader: one bounded buffer, and a thread that writes it out.
//!
//! Hot path: lines are gathered for a moment and written together, because waking a thread for every line, and a system
//! call for each, cost a fifth of a request. Only the time of the CPUs under load shows that; benches/NOTES.md has how it
//! was measured, and why this is not `tracing-appender`.
//!
//! Invariant: whoever logs never waits for the reader. What does not fit is dropped, and so is what an output that is gone
//! does not take; each such line is counted, and the log says how many when it gets through again.

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::supervision;

/// How long the first line of a write waits for further ones. Too short for anybody to notice, and long enough that a
/// loaded server writes a hundred times a second and not once for every request.
const GATHER: Duration = Duration::from_millis(10);

/// Bytes at which lines are written without further waiting.
const ENOUGH: usize = 64 << 10;

/// Bytes that may wait for a slow reader before further lines are dropped.
const MAX_WAITING: usize = 10 << 20;

/// Room for the line that says how many were dropped.
const NOTICE: usize = 1 << 10;

/// Lines that were dropped in this process.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// How long the end of the process waits for the last lines to be written.
const FLUSH: Duration = Duration::from_secs(1);

/// How many lines of the log were dropped so far.
pub(super) fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// The end at which lines are put in; a cheap handle.
#[derive(Clone)]
pub(super) struct LogWriter(Arc<Shared>);

/// Writes what waits when it is dropped, for at most a second.
#[must_use = "what is logged is written when the guard is dropped"]
pub struct LogGuard(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// For the thread: there is something to do.
    filled: Condvar,
    /// For the guard: the thread has ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    /// Whether the thread waits for a first line.
    idle: bool,
    closed: bool,
    ended: bool,
}

/// Starts the thread that writes to `output`.
///
/// Without a thread, which the operating system may refuse, lines wait until the buffer is full and are then dropped;
/// the server says so itself when it gets no others.
pub(super) fn start(output: impl Write + Send + 'static) -> (LogWriter, LogGuard) {
    let shared = Arc::new(Shared {
        state: Mutex::default(),
        filled: Condvar::new(),
        ended: Condvar::new(),
    });
    let own = Arc::clone(&shared);
    let thread = thread::Builder::new().name("log".to_owned());
    if thread.spawn(move || own.write_out(output)).is_err() {
        shared.state.lock().ended = true;
    }
    (LogWriter(Arc::clone(&shared)), LogGuard(shared))
}

impl LogWriter {
    /// Takes `line`, its line break included, or drops it if the reader is too slow.
    pub(super) fn put(&self, line: &[u8]) {
        let wake = {
            let mut state = self.0.state.lock();
            if state.lines.len() + line.len() > MAX_WAITING {
                drop(state);
                DROPPED.fetch_add(1, Ordering::Relaxed);
                return;
            }
            let before = state.lines.len();
            state.lines.extend_from_slice(line);
            let enough = before < ENOUGH && state.lines.len() >= ENOUGH;
            std::mem::take(&mut state.idle) || enough
        };
        if wake {
            self.0.filled.notify_one();
        }
    }
}

impl Shared {
    /// Writes lines to `output` until the guard is dropped and nothing waits.
    fn write_out(&self, mut output: impl Write) {
        let mut lines = Vec::new();
        let mut mid_line = false;
        let mut told = dropped();
        loop {
            {
                let mut state = self.state.lock();
                while state.lines.is_empty() && !state.closed {
                    state.idle = true;
                    self.filled.wait(&mut state);
                }
                state.idle = false;
                let until = Instant::now() + GATHER;
                while state.lines.len() < ENOUGH && !state.closed {
                    if self.filled.wait_until(&mut state, until).timed_out() {
                        break;
                    }
                }
                std::mem::swap(&mut state.lines, &mut lines);
                if lines.is_empty() && state.closed {
                    state.ended = true;
                    self.ended.notify_all();
                    return;
                }
            }
            // Should that panic, which an output of a test may, the lines are lost and the thread goes on.
            let written =
                supervision::guard(|| write(&mut output, &lines, &mut mid_line)).unwrap_or(0);
            let lost = lines.get(written..).unwrap_or_default();
            // The rest of a line is of no use to anybody.
            let lost = memchr::memchr_iter(b'\n', lost).count() as u64;
            DROPPED.fetch_add(lost, Ordering::Relaxed);
            lines.clear();
            if lost == 0 && self.has_room() {
                let now = dropped();
                let untold = now.saturating_sub(told);
                if untold > 0 {
                    tracing::warn!(
                        lines = untold,
                        "lines of the log were dropped, because they were not read in time or could not be written"
                    );
                    told = now;
                }
            }
            // What a slow reader has let grow is not kept for ever.
            lines.shrink_to(2 * ENOUGH);
        }
    }
}

impl Shared {
    /// Whether a line that is put in now will not be dropped.
    fn has_room(&self) -> bool {
        self.state.lock().lines.len() + NOTICE <= MAX_WAITING
    }
}

/// Writes `lines` to `output`; returns how many bytes of them it has taken. A reader that is gone has no use for an error.
///
/// `mid_line` is whether the output ends within a line, of which the rest was dropped. That line is ended first, so that
/// the next one is readable.
fn write(output: &mut impl Write, lines: &[u8], mid_line: &mut bool) -> usize {
    #[cfg(feature = "testkit")]
    crate::testkit::panic_at("log");
    if *mid_line {
        if take(output, b"\n") == 0 {
            return 0;
        }
        *mid_line = false;
    }
    let written = take(output, lines);
    let last = lines.get(..written).and_then(<[u8]>::last);
    *mid_line = last.is_some_and(|last| *last != b'\n');
    written
}

/// Writes as many of `bytes` as `output` takes; returns how many.
fn take(output: &mut impl Write, bytes: &[u8]) -> usize {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match output.write(rest) {
            Ok(0) => break,
            Ok(more) => written += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let _ = output.flush();
    written
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let until = Instant::now() + FLUSH;
        let mut state = self.0.state.lock();
        state.closed = true;
        self.0.filled.notify_one();
        while !state.ended {
            if self.0.ended.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What the tests of log formats read.
#[cfg(test)]
pub(super) mod testing {
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing::Subscriber;

    use super::LogWriter;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What `log` logs through the subscriber that `with` makes.
    pub(in crate::telemetry) fn logged<S: Subscriber + Send + Sync + 'static>(
        with: impl FnOnce(LogWriter) -> S,
        log: impl FnOnce(),
    ) -> String {
        let page = Page::default();
        let (writer, guard) = super::start(page.clone());
        tracing::subscriber::with_default(with(writer), log);
        drop(guard);
        let text = page.0.lock().clone();
        String::from_utf8(text).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// An output whose every write has to be allowed.
    struct Gated {
        allowed: mpsc::Receiver<()>,
        written: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.written.send(bytes.to_vec());
            let _ = self.allowed.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_is_written_once_and_in_order() {
        let (sender, written) = mpsc::channel();
        let (allow, allowed) = mpsc::channel();
        drop(allow);
        let (writer, guard) = start(Gated {
            allowed,
            written: sender,
        });
        let mut expected = Vec::new();
        for number in 0..20_000 {
            let line = format!("line {number}\n");
            writer.put(line.as_bytes());
            expected.extend_from_slice(line.as_bytes());
        }
        drop(guard);
        let all: Vec<u8> = written.iter().flatten().collect();
        assert!(all == expected);
    }

    /// A pipe that does not block: it takes so many bytes, and no more until there is room again.
    #[derive(Default)]
    struct Pipe {
        room: usize,
        taken: Vec<u8>,
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let taken = self.room.min(bytes.len());
            if taken == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.room -= taken;
            self.taken.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_of_which_the_rest_was_dropped_is_not_continued_by_another() {
        let (mut pipe, mut mid_line) = (Pipe::default(), false);
        pipe.room = 12;
        assert_eq!(
            write(&mut pipe, b"{\"a\":1}\n{\"b\":2}\n", &mut mid_line),
            12
        );
        // It is full, and takes not even the end of the line.
        assert_eq!(write(&mut pipe, b"{\"c\":3}\n", &mut mid_line), 0);
        pipe.room = 100;
        assert_eq!(write(&mut pipe, b"{\"d\":4}\n", &mut mid_line), 8);
        assert_eq!(write(&mut pipe, b"{\"e\":5}\n", &mut mid_line), 8);
        let text = String::from_utf8(pipe.taken).unwrap();
        let expected = ["{\"a\":1}", "{\"b\"", "{\"d\":4}", "{\"e\":5}", ""];
        assert_eq!(text.split('\n').collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_reader_that_stops_costs_lines_and_nobody_s_time() {
        let (sender, written) = mpsc::channel();
        let (allow, allowed) = mpsc::channel();
        let (writer, guard) = start(Gated {
            allowed,
            written: sender,
        });
        writer.put(b"first\n");
        assert_eq!(written.recv().unwrap(), b"first\n");
        // The thread is inside its write now, and stays there.
        let line = vec![b'x'; 1 << 20];
        for _ in 0..30 {
            writer.put(&line);
        }
        assert_eq!(writer.0.state.lock().lines.len(), MAX_WAITING);
        drop(allow);
        drop(guard);
        let rest: usize = written.iter().map(|bytes| bytes.len()).sum();
        assert_eq!(rest, MAX_WAITING);
    }
}
