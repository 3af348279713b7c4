//! The memory of runs on the CPU: a bounded arena for all sessions of a loaded model, whose free memory goes back to the
//! system.
//!
//! ONNX Runtime's own arenas have no bound and give nothing back before their session ends: one request to a model whose
//! values choose the size of its output would take all memory there is, and keep it. Here the sessions take the memory of
//! their runs from an arena of the environment, which refuses beyond its limit before anything is allocated. ONNX Runtime
//! takes weights from the same arena, so that it is made with room for those, and what is left of that room once all
//! sessions are there is filled with memory that nobody ever touches. `ort` has no functions for this.
//!
//! Invariant: a pointer is used only while the object that it belongs to is held beside it.
#![allow(
    unsafe_code,
    reason = "ort does not wrap the environment's allocators; see the invariant"
)]

mod trimming;
mod usage;

use std::ffi::{CStr, c_char};
use std::ptr;
use std::sync::{Arc, Weak};
use std::time::Instant;

use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{RunOptions, Session};
use ort::sys::{OrtArenaCfg, OrtKeyValuePairs, OrtStatusPtr};
use ort::value::TensorRef;
use parking_lot::Mutex;

use trimming::Trimming;
use usage::Usage;

/// What must be set, with the value "1", for a session that takes its memory from the environment's arena.
pub(super) const CONFIG_ENTRY: &str = "session.use_env_allocators";

/// A run with this option gives the free memory of the named arena back when it ends.
const SHRINKAGE: (&str, &str) = ("memory.enable_memory_arena_shrinkage", "cpu:0");

/// An ONNX model that computes nothing: `Identity` of no elements, from `x` to `y`, which takes no memory itself. To run
/// it is the only way to have an arena shrunk without a run of a model that is served.
const NOTHING: &[u8] = b"\x08\x08:7\n\x10\n\x01x\x12\x01y\"\x08Identity\x12\x01nZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x00b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x00B\x04\n\x00\x10\x11";

/// Regions of exactly the size that is asked for: what one unusual run took is a region by itself, and can go back.
const SAME_AS_REQUESTED: usize = 1;

/// The arenas of the process.
pub(super) struct Arenas {
    environment: Environment,
    /// Whether an arena is registered with the environment.
    registered: Mutex<bool>,
    live: Mutex<Vec<Weak<Arena>>>,
}

/// The arena of one loaded model.
pub(super) struct Arena {
    limit: Option<usize>,
    /// What the arena may hold besides, for weights.
    room: usize,
    state: Mutex<State>,
}

struct State {
    handle: Handle,
    /// What it held when nothing ran; there is none while sessions are made and tried.
    settled: Option<Usage>,
    trimming: Trimming,
}

/// What an arena is asked and shrunk by.
struct Handle {
    session: Session,
    allocator: Allocator,
    options: RunOptions,
}

impl Arenas {
    pub(super) fn new(environment: Environment) -> Self {
        Self {
            environment,
            registered: Mutex::new(false),
            live: Mutex::default(),
        }
    }

    /// Makes an arena from which all sessions take that are made until the next one is. Their runs may hold at most
    /// `limit` bytes at once, if that is given, and their weights take at most `room`.
    ///
    /// # Errors
    /// What ONNX Runtime said.
    pub(super) fn make(&self, limit: Option<usize>, room: usize) -> Result<Arc<Arena>, ort::Error> {
        let mut registered = self.registered.lock();
        if *registered {
            let memory = memory()?;
            // SAFETY: both pointers belong to objects that live until the call is over.
            unsafe {
                result((ort::api().UnregisterAllocator)(
                    self.environment.ptr().cast_mut(),
                    memory.ptr(),
                ))?;
            }
            *registered = false;
        }
        let most = limit.map(|limit| limit.saturating_add(room));
        register(&self.environment, most)?;
        *registered = true;
        let arena = Arc::new(Arena {
            limit,
            room,
            state: Mutex::new(State {
                handle: Handle::new(&self.environment)?,
                settled: None,
                trimming: Trimming::default(),
            }),
        });
        let mut live = self.live.lock();
        live.retain(|arena| arena.strong_count() > 0);
        live.push(Arc::downgrade(&arena));
        Ok(arena)
    }

    /// Whether there is memory that has not been needed for a while. To be asked several times a second.
    pub(super) fn has_unneeded(&self, now: Instant) -> bool {
        let arenas = self.arenas();
        let unneeded = arenas.iter().filter(|arena| arena.has_unneeded(now));
        unneeded.count() > 0
    }

    /// Gives all memory that no tensor is in back to the system.
    pub(super) fn shrink(&self) {
        for arena in self.arenas() {
            arena.shrink();
        }
    }

    fn arenas(&self) -> Vec<Arc<Arena>> {
        self.live.lock().iter().filter_map(Weak::upgrade).collect()
    }
}

impl Arena {
    /// Takes note that all sessions are there and nothing runs: from now on, runs get what was said and no more.
    pub(super) fn settle(&self) {
        self.shrink();
        let mut state = self.state.lock();
        if state.settled.is_some() {
            return;
        }
        let usage = state.handle.usage();
        if self.limit.is_some() {
            if let Some(surplus) = self.room.checked_sub(usage.taken) {
                state.handle.fill(surplus);
            } else {
                tracing::warn!(
                    bytes = usage.taken,
                    expected = self.room,
                    "weights take more than was expected, so that the memory of runs is bounded elsewhere than was asked"
                );
            }
        }
        state.settled = Some(state.handle.usage());
    }

    /// The most bytes that runs may hold at once; no bound if not given.
    pub(super) fn limit(&self) -> Option<usize> {
        self.limit
    }

    /// What runs and their outputs hold now; `None` while the model is being loaded.
    pub(super) fn held(&self) -> Option<usize> {
        let state = self.state.lock();
        let settled = state.settled?;
        Some(state.handle.usage().used.saturating_sub(settled.used))
    }

    /// Gives all memory that no tensor is in back to the system.
    pub(super) fn shrink(&self) {
        if let Err(error) = self.state.lock().handle.shrink() {
            tracing::warn!(%error, "memory of runs could not be given back");
        }
    }

    fn has_unneeded(&self, now: Instant) -> bool {
        // Somebody who gives memory back right now is not waited for.
        let Some(mut state) = self.state.try_lock() else {
            return false;
        };
        let settled = state.settled.unwrap_or_default();
        let usage = state.handle.usage();
        let usage = Usage {
            used: usage.used.saturating_sub(settled.used),
            taken: usage.taken.saturating_sub(settled.taken),
        };
        state.trimming.observe(usage, now)
    }
}

impl Handle {
    /// A handle of the arena that `environment` has now.
    fn new(environment: &Environment) -> Result<Self, ort::Error> {
        let mut builder = Session::builder(environment)?
            .with_intra_threads(1)?
            .with_inter_threads(1)?
            .with_config_entry(CONFIG_ENTRY, "1")?;
        let session = builder.commit_from_memory(NOTHING)?;
        let allocator = Allocator::new(&session, memory()?)?;
        let mut options = RunOptions::new()?;
        options.set(SHRINKAGE.0, SHRINKAGE.1)?;
        Ok(Self {
            session,
            allocator,
            options,
        })
    }

    fn shrink(&mut self) -> Result<(), ort::Error> {
        let nothing: [f32; 0] = [];
        let input = TensorRef::from_array_view(([0_usize], &nothing[..]))?;
        self.session
            .run_with_options(ort::inputs![input], &self.options)
            .map(drop)
    }

    /// Takes `bytes` for as long as the arena is there. They are never touched, and so take addresses and no memory.
    fn fill(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        match self.allocator.alloc::<u8>(bytes) {
            // The arena frees it when it ends itself.
            Ok(block) => drop(block.into_raw()),
            Err(error) => {
                tracing::debug!(%error, bytes, "runs may hold so much more than was asked");
            }
        }
    }

    /// What the arena says of itself; nothing if it does not.
    fn usage(&self) -> Usage {
        usage_of(&self.allocator)
    }
}

/// Whether a run failed because it got no memory: from the arena, or from the system.
pub(super) fn is_exhausted(complaint: &str) -> bool {
    const MARKS: [&str; 4] = [
        "is smaller than requested bytes",
        "Failed to allocate memory",
        "bad allocation",
        "std::bad_alloc",
    ];
    MARKS.iter().any(|mark| complaint.contains(mark))
}

/// The memory that the arena is for.
fn memory() -> Result<MemoryInfo<'static>, ort::Error> {
    MemoryInfo::new(
        AllocationDevice::CPU,
        0,
        AllocatorType::Arena,
        MemoryType::Default,
    )
}

/// Registers an arena of at most `limit` bytes with `environment`.
fn register(environment: &Environment, limit: Option<usize>) -> Result<(), ort::Error> {
    // Zero means no bound.
    let settings = [
        (c"max_mem", limit.unwrap_or(0)),
        (c"arena_extend_strategy", SAME_AS_REQUESTED),
    ];
    let keys: Vec<*const c_char> = settings.iter().map(|(key, _)| key.as_ptr()).collect();
    let values: Vec<usize> = settings.iter().map(|(_, value)| *value).collect();
    let memory = memory()?;
    let mut config: *mut OrtArenaCfg = ptr::null_mut();
    // SAFETY: keys and values are as many as is said, and live until the call is over.
    unsafe {
        result((ort::api().CreateArenaCfgV2)(
            keys.as_ptr(),
            values.as_ptr(),
            keys.len(),
            &raw mut config,
        ))?;
    }
    // SAFETY: all three live until the call is over, and the configuration is released once.
    unsafe {
        let registered = result((ort::api().CreateAndRegisterAllocator)(
            environment.ptr().cast_mut(),
            memory.ptr(),
            config,
        ));
        (ort::api().ReleaseArenaCfg)(config);
        registered
    }
}

/// What the arena of `allocator` says of itself; nothing if it does not.
fn usage_of(allocator: &Allocator) -> Usage {
    let mut pairs: *mut OrtKeyValuePairs = ptr::null_mut();
    // SAFETY: the allocator is held by the caller.
    let told = unsafe {
        result((ort::api().AllocatorGetStats)(
            allocator.ptr(),
            &raw mut pairs,
        ))
    };
    if told.is_err() || pairs.is_null() {
        return Usage::default();
    }
    let figure = |key: &CStr| {
        // SAFETY: the pairs are released below only, and the text is theirs.
        let text = unsafe { (ort::api().GetKeyValue)(pairs, key.as_ptr()) };
        if text.is_null() {
            return 0;
        }
        // SAFETY: ONNX Runtime's texts end with a zero.
        let text = unsafe { CStr::from_ptr(text) };
        text.to_str()
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    };
    let usage = Usage {
        used: figure(c"InUse"),
        taken: figure(c"TotalAllocated"),
    };
    // SAFETY: they were given to us, and are released once.
    unsafe { (ort::api().ReleaseKeyValuePairs)(pairs) };
    usage
}

/// # Safety
/// `status` comes from ONNX Runtime and is given away.
unsafe fn result(status: OrtStatusPtr) -> Result<(), ort::Error> {
    // SAFETY: as the caller promises.
    unsafe { ort::Error::result_from_status(status) }
}
