//! What holds for the whole process: that ONNX Runtime tells nobody, that memory which is freed goes back to the system,
//! how many files may be open, that no division ends it, and that no signal and no unfinished load ends it otherwise than it
//! should.
//!
//! Invariant: [`prepare`] is called before anything else, by every program that loads ONNX Runtime.
#![allow(
    unsafe_code,
    reason = "the environment, the allocator and limits are the process's; see the safety comments"
)]

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod division;

use std::ffi::OsStr;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::runtime::library::NO_TELEMETRY;
use crate::runtime::load_in_progress::LoadInProgress;

/// Allocations from this size on are mappings of their own, which are gone when they are freed. Left to itself, glibc
/// raises this bound to 32 MiB and keeps up to twice that for each of its arenas. Smaller bodies and answers are reused.
const MAPPED_FROM: i32 = 1 << 20;

/// Free memory at the end of an arena that is kept.
const KEPT: i32 = 8 << 20;

/// What was free in the allocator's arenas after it was given back the last time.
#[cfg(target_env = "gnu")]
static GIVEN_BACK: AtomicUsize = AtomicUsize::new(0);

/// Free memory inside the allocator's arenas that is worth a look through all of them.
#[cfg(target_env = "gnu")]
const WORTH_TRIMMING: usize = 16 << 20;

/// Gives free memory back that lies between allocations: what ONNX Runtime takes of it beside its arenas, for texts and
/// for the tables of some operators, is freed in pieces. To be called now and then; takes a while where there is much.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: both only look at, and give back, memory that the allocator owns.
    unsafe {
        // Pages that were given back count as free as well, so that only what has come since is of interest.
        let free = libc::mallinfo2().fordblks;
        let before = GIVEN_BACK.fetch_min(free, Ordering::Relaxed);
        if free > before.saturating_add(WORTH_TRIMMING) {
            libc::malloc_trim(WORTH_TRIMMING / 2);
            GIVEN_BACK.store(libc::mallinfo2().fordblks, Ordering::Relaxed);
        }
    }
}

/// Lets the process have as many files open as it is allowed to, and says how many that are; none if there is no limit or
/// it cannot be read. The usual limit of 1024 is for programs that put descriptors into fixed tables, which nothing here
/// does.
#[must_use]
pub fn raise_open_files() -> Option<usize> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both take a pointer to a limit, which lives long enough; one that may not be set is refused without effect.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return None;
        }
        let raised = libc::rlimit {
            rlim_cur: limit.rlim_max,
            ..limit
        };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) == 0 {
            limit = raised;
        }
    }
    if limit.rlim_cur == libc::RLIM_INFINITY {
        return None;
    }
    usize::try_from(limit.rlim_cur).ok()
}

/// Holds SIGTERM and SIGINT back from this thread, and from those that it starts from now on: one that comes meanwhile is
/// delivered when [`take_signals`] is called, also in the program that this process becomes.
pub fn hold_signals() {
    mask_signals(libc::SIG_BLOCK);
}

/// Takes what [`hold_signals`] has held back. To be called when there are handlers, by a thread that stays.
pub fn take_signals() {
    mask_signals(libc::SIG_UNBLOCK);
}

fn mask_signals(how: libc::c_int) {
    // SAFETY: the set is initialised before it is used, and all calls only read or write it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut());
    }
}

/// Ends the process with `code` if a load is in progress, which nobody can stop: libraries that are taken down under its
/// hands would crash the process. Whatever must be written is written before.
pub fn leave_loads_behind(code: u8) {
    if LoadInProgress::is_any() {
        // SAFETY: it ends the process and touches nothing.
        unsafe { libc::_exit(libc::c_int::from(code)) };
    }
}

/// Prepares the process. To be called first in `main`.
///
/// # Safety
/// The process has no other thread, which might read the environment meanwhile.
pub unsafe fn prepare() {
    // SAFETY: as the caller promises.
    unsafe { std::env::set_var(NO_TELEMETRY.0, NO_TELEMETRY.1) };
    // An empty variable is as if it were not there, also to a library that reads it itself.
    let is_empty = |name: &OsStr, value: &OsStr| {
        let bytes = name.as_encoded_bytes();
        let is_read = bytes.starts_with(b"OTEL_") || bytes.starts_with(b"SSL_CERT_");
        value.is_empty() && is_read
    };
    for (name, value) in std::env::vars_os() {
        if is_empty(&name, &value) {
            // SAFETY: as the caller promises.
            unsafe { std::env::remove_var(name) };
        }
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    division::go_on_after_overflows();
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` takes numbers only; an unsuitable one is refused without effect.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}
