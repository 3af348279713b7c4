//! Work that takes a while says so: what it is for and its stage, first after a second and then ever more rarely.
//!
//! Whoever begins such work starts a [`Progress`]; whoever does a part of it, on the same thread, names the [`stage`].
//!
//! Invariant: work that is done within a second says nothing, and nothing here makes the work wait.

use std::cell::RefCell;
use std::io::Write;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// How long work may take before it is worth a line.
const PATIENCE: Duration = Duration::from_secs(1);

/// The longest time between two lines.
const RAREST: Duration = Duration::from_secs(30);

/// What is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report<'a> {
    /// What the work is for: a model's name.
    pub subject: &'a str,
    /// What is being done now.
    pub stage: &'static str,
    /// How long all of it has taken until now.
    pub elapsed: Duration,
}

/// Reports work until it is dropped.
#[must_use = "work is reported until this is dropped"]
pub struct Progress {
    shared: Arc<Shared>,
    before: Option<Arc<Shared>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    stage: &'static str,
    ended: bool,
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Shared>>> = const { RefCell::new(None) };
}

impl Progress {
    /// Begins work for `subject`, reported as lines «loading» of the log.
    pub fn logged(subject: &str) -> Self {
        Self::start(subject, PATIENCE, |report| {
            tracing::info!(
                model = report.subject,
                stage = report.stage,
                seconds = report.elapsed.as_secs_f64(),
                "loading"
            );
        })
    }

    /// Begins work for `subject`, reported on standard error, beside what a command prints.
    pub fn told(subject: &str) -> Self {
        Self::start(subject, PATIENCE, |report| {
            let seconds = report.elapsed.as_secs();
            // Whoever closed standard error wants no progress.
            let _ = writeln!(
                std::io::stderr(),
                "{}: {} ... ({seconds} s)",
                report.subject,
                report.stage
            );
        })
    }

    /// Begins work for `subject` that is reported to `say`, first when it has taken `patience`. Without a thread, which
    /// the operating system may refuse, nothing is reported.
    pub fn start(
        subject: &str,
        patience: Duration,
        say: impl Fn(Report<'_>) + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                stage: "starting",
                ended: false,
            }),
            changed: Condvar::new(),
        });
        let (own, subject) = (Arc::clone(&shared), subject.to_owned());
        let thread = thread::Builder::new().name("progress".to_owned());
        let _ = thread.spawn(move || own.report(&subject, patience, say));
        let before = CURRENT.with(|current| current.replace(Some(Arc::clone(&shared))));
        Self { shared, before }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.shared.state.lock().ended = true;
        self.shared.changed.notify_one();
        CURRENT.with(|current| current.replace(self.before.take()));
    }
}

/// Names what this thread does now, if it does it for work that is reported.
pub fn stage(stage: &'static str) {
    CURRENT.with(|current| {
        if let Some(shared) = current.borrow().as_ref() {
            shared.state.lock().stage = stage;
        }
    });
}

impl Shared {
    fn report(&self, subject: &str, patience: Duration, say: impl Fn(Report<'_>)) {
        let started = Instant::now();
        let mut wait = patience;
        let mut due = started + wait;
        let mut state = self.state.lock();
        loop {
            while !state.ended && Instant::now() < due {
                self.changed.wait_until(&mut state, due);
            }
            if state.ended {
                return;
            }
            let current = state.stage;
            // The work may go on while this is said.
            parking_lot::MutexGuard::unlocked(&mut state, || {
                say(Report {
                    subject,
                    stage: current,
                    elapsed: started.elapsed(),
                });
            });
            wait = (wait * 2).clamp(Duration::from_millis(1), RAREST);
            due = Instant::now() + wait;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn long_work_says_what_it_is_doing_again_and_again() {
        let (send, reports) = mpsc::channel();
        let progress = Progress::start("digits", Duration::ZERO, move |report| {
            let _ = send.send((report.subject.to_owned(), report.stage));
        });
        stage("trying rows");
        let is_trying = |(subject, stage): &(String, &str)| {
            assert_eq!(subject, "digits");
            *stage == "trying rows"
        };
        assert!(reports.iter().any(|report| is_trying(&report)));
        assert!(reports.iter().any(|report| is_trying(&report)), "once more");
        drop(progress);
        // The thread ends, and with it the channel.
        for report in reports {
            assert!(is_trying(&report));
        }
    }

    #[test]
    fn short_work_says_nothing() {
        let (send, reports) = mpsc::channel();
        let progress = Progress::start("digits", Duration::from_secs(3600), move |report| {
            let _ = send.send(report.stage);
        });
        stage("reading");
        drop(progress);
        assert_eq!(reports.iter().count(), 0);
    }

    #[test]
    fn work_within_work_has_stages_of_its_own() {
        let (send, reports) = mpsc::channel();
        let outer = Progress::start("outer", Duration::from_secs(3600), |_| {});
        stage("outside");
        let inner = Progress::start("inner", Duration::ZERO, move |report| {
            let _ = send.send(report.stage);
        });
        stage("inside");
        assert!(reports.iter().any(|stage| stage == "inside"));
        assert_eq!(outer.shared.state.lock().stage, "outside");
        drop(inner);
        stage("outside again");
        assert_eq!(outer.shared.state.lock().stage, "outside again");
        drop(outer);
        stage("nobody asks");
    }
}
