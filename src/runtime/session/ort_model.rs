//! A model in one ONNX Runtime session: running a batch, interrupting the run, and saying whose fault a failed one is.
//!
//! Invariant: an interrupt that came too late for its run does not end the next one, and memory that does not suffice or a
//! GPU that fails is never taken for a request's fault.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ort::error::ErrorCode;
use ort::session::{RunOptions, Session, SessionInputValue, SessionOutputs};
use ort::value::{Tensor, TensorRef};
use smallvec::SmallVec;

use crate::model::ModelMetadata;
use crate::runtime::arena::Arena;
use crate::runtime::binding::Binding;
use crate::runtime::division::DivisionPlan;
use crate::runtime::library::one_line;
use crate::runtime::providers::ExecutionProvider;
use crate::runtime::{BatchInput, BatchOutput, InputView, Interrupt, Model, RuntimeError, output};
use crate::tensor::{TensorView, for_each_plain_datatype};
#[cfg(feature = "testkit")]
use crate::testkit::Faults;

/// A model in one ONNX Runtime session.
pub struct OrtModel {
    session: Session,
    /// What is used where a GPU copies inputs and outputs.
    binding: Option<Binding>,
    metadata: Arc<ModelMetadata>,
    provider: ExecutionProvider,
    intra_op_threads: usize,
    interrupt: Arc<RunInterrupt>,
    /// Where runs on the CPU take their memory.
    arena: Arc<Arena>,
    plan: Arc<DivisionPlan>,
}

/// Ends a run through ONNX Runtime's run options, and remembers that it was asked to.
struct RunInterrupt {
    options: RunOptions,
    asked: AtomicBool,
}

impl Interrupt for RunInterrupt {
    fn interrupt(&self) {
        self.asked.store(true, Ordering::Relaxed);
        if let Err(error) = self.options.terminate() {
            tracing::warn!(error = %error, "a run that nobody waits for could not be interrupted");
        }
    }
}

impl OrtModel {
    pub(super) fn new(
        session: Session,
        intra_op_threads: usize,
        metadata: Arc<ModelMetadata>,
        provider: ExecutionProvider,
        bound: Option<ExecutionProvider>,
        arena: Arc<Arena>,
    ) -> Result<Self, ort::Error> {
        let bound = bound.filter(|_| Binding::suits(&metadata));
        let binding = bound
            .map(|provider| Binding::new(&session, provider))
            .transpose()?;
        Ok(Self {
            session,
            binding,
            metadata,
            provider,
            intra_op_threads,
            interrupt: Arc::new(RunInterrupt {
                options: RunOptions::new()?,
                asked: AtomicBool::new(false),
            }),
            arena,
            plan: Arc::default(),
        })
    }

    /// Threads that one run may use, the calling one included.
    #[must_use]
    pub fn intra_op_threads(&self) -> usize {
        self.intra_op_threads
    }

    /// Says how the outputs of runs from now on are to be handed out to requests that share them.
    pub fn divide_by(&mut self, plan: &Arc<DivisionPlan>) {
        self.plan = Arc::clone(plan);
    }

    fn run_once(&mut self, input: &BatchInput<'_>) -> Result<BatchOutput, RuntimeError> {
        #[cfg(feature = "testkit")]
        if let Some(text) = Faults::now().run {
            let error = ort::Error::new(text);
            return Err(classify(&error, false, self.provider));
        }
        let (session, options) = (&mut self.session, &self.interrupt.options);
        let result = if let Some(binding) = &mut self.binding {
            binding.run(session, &self.metadata, input, options, output::wrap_all)
        } else {
            let lent = input.iter().map(|view| view.elements).collect();
            run_lent(session, input, options).map(|outputs| output::wrap_all(outputs, &lent))
        };
        let mut outputs = result.unwrap_or_else(|error| {
            let interrupted = self.interrupt.asked.load(Ordering::Relaxed);
            Err(classify(&error, interrupted, self.provider))
        })?;
        self.plan.apply(&mut outputs, input);
        Ok(outputs)
    }
}

/// Runs `session` on memory that is lent to it.
fn run_lent<'s>(
    session: &'s mut Session,
    input: &BatchInput<'_>,
    options: &'s RunOptions,
) -> Result<SessionOutputs<'s>, ort::Error> {
    let values: Result<SmallVec<[SessionInputValue<'_>; 4]>, ort::Error> =
        input.iter().map(to_value).collect();
    session.run_with_options(values?.as_slice(), options)
}

impl Model for OrtModel {
    fn metadata(&self) -> &Arc<ModelMetadata> {
        &self.metadata
    }

    fn run(&mut self, input: BatchInput<'_>) -> Result<BatchOutput, RuntimeError> {
        // A late interrupt of the previous run must not end this one.
        if self.interrupt.asked.swap(false, Ordering::Relaxed) {
            self.interrupt
                .options
                .unterminate()
                .map_err(|error| RuntimeError::Broken(error.to_string()))?;
        }
        let failed = match self.run_once(&input) {
            Err(RuntimeError::OutOfMemory(_)) if !self.provider.is_gpu() => {
                // The arena may hold enough, in pieces that do not suit.
                self.arena.shrink();
                let held = self.arena.held();
                (self.run_once(&input), held)
            }
            result => return result,
        };
        let alone = |held: Option<usize>| match (held, self.arena.limit()) {
            // Only this model's first runs can have taken it.
            (None, _) => true,
            (Some(held), Some(limit)) => held <= limit / 8,
            (Some(_), None) => false,
        };
        match failed {
            // Nobody else held much of it.
            (Err(RuntimeError::OutOfMemory(text)), held) if alone(held) => {
                Err(RuntimeError::TooLarge(text))
            }
            (result, _) => result,
        }
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        Arc::clone(&self.interrupt) as Arc<dyn Interrupt>
    }
}

/// Sorts a failed run by whose fault it is.
///
/// On the CPU, an operator that fails on checked names, datatypes and shapes has met values that it cannot compute, such
/// as an index out of range; those are the request's. Memory that does not suffice, and what a GPU says of itself, never
/// are.
fn classify(error: &ort::Error, interrupted: bool, provider: ExecutionProvider) -> RuntimeError {
    let whole = error.to_string();
    let text = one_line(&whole);
    // A GPU that is lost may well be what kept the run until it was interrupted.
    if provider.is_lost(&whole) {
        return RuntimeError::DeviceLost(text);
    }
    if interrupted {
        return RuntimeError::Interrupted;
    }
    if provider.is_out_of_memory(&whole) {
        return RuntimeError::OutOfMemory(text);
    }
    if provider.is_concerned(&whole) {
        return RuntimeError::Broken(text);
    }
    match error.code() {
        ErrorCode::GenericFailure
        | ErrorCode::InvalidArgument
        | ErrorCode::NotImplemented
        | ErrorCode::RuntimeException => RuntimeError::Refused(text),
        _ => RuntimeError::Broken(text),
    }
}

macro_rules! value_of {
    ($(($variant:ident, $element:ty, $name:literal, $size:literal)),+) => {
        /// Lends `input` to ONNX Runtime; only strings are copied, because it keeps those in a form of its own.
        fn to_value<'a>(input: &'a InputView<'a>) -> Result<SessionInputValue<'a>, ort::Error> {
            let shape = input.shape.as_slice();
            Ok(match input.elements {
                TensorView::Bool(elements) => TensorRef::from_array_view((shape, elements))?.into(),
                $(TensorView::$variant(elements) => TensorRef::from_array_view((shape, elements))?.into(),)+
                TensorView::Bytes(strings) => Tensor::from_string_array((shape, strings))?.into(),
            })
        }
    };
}
for_each_plain_datatype!(value_of);
