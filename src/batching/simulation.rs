//! What share of an overloaded server's time is useful, in virtual time: the queue's rules with requests that arrive at
//! random and runs that take what a formula says. No clock, no thread.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use smallvec::smallvec;
use tokio::sync::oneshot;

use super::numbers::to_f64;
use super::policy::BatchPolicy;
use super::queue::{Look, Pending, QueueConfig, QueueState};
use super::run_times::{RunEnd, seconds};
use super::testing::{Answer, metadata};
use crate::inference::{InferenceRequest, Reservation};
use crate::model::ModelMetadata;
use crate::tensor::{Shape, Tensor, TensorData};

/// Seconds of a run by its rows.
type Cost = fn(f64) -> f64;

/// A server, and what is asked of it.
#[derive(Clone, Copy)]
struct Scenario {
    instances: usize,
    /// 1 without batching.
    merge_rows: usize,
    cost: Cost,
    /// Runs take up to this part more or less than the formula says.
    jitter: f64,
    /// Requests, as a multiple of what can be answered.
    load: f64,
    /// Seconds until their clients stop waiting, which come in turn.
    deadlines: [f64; 2],
    /// How many full executions take place.
    runs: usize,
}

/// What became of the requests, in rows.
#[derive(Debug, Default)]
struct Outcome {
    useful: f64,
    late: f64,
    refused_at_once: f64,
    refused_later: f64,
    /// What could be answered.
    capacity: f64,
}

impl Outcome {
    fn useful_share(&self) -> f64 {
        self.useful / self.capacity
    }

    fn late_share(&self) -> f64 {
        self.late / (self.useful + self.late)
    }
}

/// A small generator of random numbers (xorshift64*), always the same ones.
struct Random(u64);

impl Random {
    /// Between 0 and 1, neither of them.
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
        (f64::from(u32::try_from(bits).unwrap()) + 0.5) / f64::from(1_u32 << 24)
    }
}

/// What happens at one moment happens in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    RunEnds(usize),
    Look(usize),
    Arrival,
}

struct Simulation {
    scenario: Scenario,
    base: Instant,
    events: BinaryHeap<Reverse<(Duration, Event)>>,
    random: Random,
    state: QueueState,
    running: Vec<Option<(Vec<Pending>, Duration)>>,
    metadata: ModelMetadata,
    /// Clients are there until the end.
    answers: Vec<Answer>,
    outcome: Outcome,
}

impl Simulation {
    fn new(scenario: Scenario) -> Self {
        let policy = BatchPolicy {
            merge_rows: scenario.merge_rows,
            max_queue_delay: Duration::ZERO,
            merge: scenario.merge_rows > 1,
        };
        Self {
            scenario,
            base: Instant::now(),
            events: BinaryHeap::new(),
            random: Random(0x9e37_79b9_7f4a_7c15),
            state: QueueState::new(QueueConfig {
                policy,
                max_rows: 4096,
                part_rows: None,
                instances: scenario.instances,
                buckets: None,
                comparable: true,
            }),
            running: (0..scenario.instances).map(|_| None).collect(),
            metadata: metadata(&[("x", &["N", ""])], &[("y", &["N", ""])]),
            answers: Vec::new(),
            outcome: Outcome::default(),
        }
    }

    fn run(mut self) -> Outcome {
        let scenario = self.scenario;
        let full = to_f64(scenario.merge_rows);
        let best = full / (scenario.cost)(full) * to_f64(scenario.instances);
        let length = to_f64(scenario.runs) * full / best;
        self.outcome.capacity = best * length;
        let mut arrival = 0.0;
        while arrival < length {
            let event = (seconds(arrival), Event::Arrival);
            self.events.push(Reverse(event));
            arrival -= self.random.next().ln() / (best * scenario.load);
        }
        let mut deadlines = scenario.deadlines.into_iter().cycle();
        while let Some(Reverse((time, event))) = self.events.pop() {
            if time > seconds(length) {
                break;
            }
            match event {
                Event::Arrival => self.arrive(time, deadlines.next().unwrap()),
                Event::RunEnds(instance) => self.end_run(instance, time),
                Event::Look(_) => {}
            }
            for instance in 0..scenario.instances {
                self.look(instance, time);
            }
        }
        self.outcome
    }

    fn arrive(&mut self, time: Duration, deadline: f64) {
        let now = self.base + time;
        let tensor =
            Tensor::new(Shape::from_slice(&[1, 1]), TensorData::from(vec![0.0_f32])).unwrap();
        let request = InferenceRequest::new(
            &self.metadata,
            smallvec![tensor],
            1,
            now + seconds(deadline),
            Reservation::none(),
        );
        let (respond, answer) = oneshot::channel();
        self.answers.push(answer);
        let pending = Pending {
            request: request.unwrap(),
            respond,
            enqueued_at: now,
        };
        let mut refused = Vec::new();
        if self.state.push(pending, now, &mut refused).is_err() {
            self.outcome.refused_at_once += 1.0;
        }
        self.outcome.refused_later += to_f64(refused.len());
    }

    fn look(&mut self, instance: usize, time: Duration) {
        while self.running[instance].is_none() {
            match self.state.look(instance, self.base + time) {
                Look::Batch(batch) => {
                    let jitter = 1.0 + self.scenario.jitter * (2.0 * self.random.next() - 1.0);
                    let took = seconds((self.scenario.cost)(to_f64(batch.len())) * jitter);
                    self.running[instance] = Some((batch, took));
                    let event = (time + took, Event::RunEnds(instance));
                    self.events.push(Reverse(event));
                }
                Look::Until(instant) => {
                    let event = (instant - self.base, Event::Look(instance));
                    self.events.push(Reverse(event));
                    return;
                }
                Look::Pointless(pointless) => {
                    self.outcome.refused_later += to_f64(pointless.len());
                }
                Look::Empty | Look::Ended => return,
            }
        }
    }

    fn end_run(&mut self, instance: usize, time: Duration) {
        let (batch, took) = self.running[instance].take().unwrap();
        let now = self.base + time;
        let on_time = batch
            .iter()
            .filter(|member| member.request.deadline() >= now)
            .count();
        self.outcome.useful += to_f64(on_time);
        self.outcome.late += to_f64(batch.len() - on_time);
        self.state.record(batch.len(), took, RunEnd::Completed, now);
    }
}

fn constant(_rows: f64) -> f64 {
    0.010
}

fn proportional(rows: f64) -> f64 {
    0.010 * rows
}

fn affine(rows: f64) -> f64 {
    0.009 + 0.001 * rows
}

/// Vector instructions, or a GPU's waves: eight rows cost as much as one.
fn steps(rows: f64) -> f64 {
    0.010 * (rows / 8.0).ceil()
}

#[test]
fn under_two_and_four_times_the_load_nearly_all_of_the_capacity_is_useful() {
    let mut failures = Vec::new();
    for (name, merge_rows, cost, run, runs) in [
        ("one by one", 1, constant as Cost, 0.010, 3000),
        ("free batches", 16, constant, 0.010, 400),
        ("batches by a line", 16, affine, affine(16.0), 400),
        ("batches by steps", 16, steps, steps(16.0), 400),
        ("batches that save nothing", 16, proportional, 0.160, 400),
        (
            "batches too long for the deadlines",
            16,
            proportional,
            0.010,
            400,
        ),
    ] {
        for (instances, load) in [(1, 2.0), (1, 4.0), (2, 2.0), (2, 4.0)] {
            for (shorter, longer) in [(5.0, 5.0), (10.0, 10.0), (5.0, 20.0)] {
                for jitter in [0.0, 0.2] {
                    let outcome = Simulation::new(Scenario {
                        instances,
                        merge_rows,
                        cost,
                        jitter,
                        load,
                        deadlines: [run * shorter, run * longer],
                        runs,
                    })
                    .run();
                    let (useful, late) = (outcome.useful_share(), outcome.late_share());
                    let line = format!(
                        "{name}, instances {instances}, load {load}, deadlines {shorter} and {longer} runs, \
                         jitter {jitter}: {useful:.3} of the capacity is useful, {late:.3} of what is executed \
                         is late; refused at once {:.0}, later {:.0}",
                        outcome.refused_at_once, outcome.refused_later,
                    );
                    println!("{line}");
                    if useful < 0.95 || late > 0.01 {
                        failures.push(line);
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn who_asks_for_the_impossible_takes_nobody_s_time() {
    for cost in [constant as Cost, affine] {
        let outcome = Simulation::new(Scenario {
            instances: 1,
            merge_rows: 1,
            cost,
            jitter: 0.1,
            load: 4.0,
            // Every other request asks for an answer in half of a run.
            deadlines: [cost(1.0) / 2.0, cost(1.0) * 10.0],
            runs: 3000,
        })
        .run();
        assert!(outcome.useful_share() > 0.95, "{outcome:?}");
        assert!(outcome.late_share() < 0.02, "{outcome:?}");
    }
}

#[test]
fn a_model_that_is_slow_for_a_while_is_found_to_be_quick_again() {
    let mut simulation = Simulation::new(Scenario {
        instances: 1,
        merge_rows: 1,
        cost: constant,
        jitter: 0.0,
        load: 2.0,
        deadlines: [0.050; 2],
        runs: 1000,
    });
    for _ in 0..10 {
        let (rows, now) = (1, simulation.base);
        let slow = Duration::from_secs(30);
        simulation.state.record(rows, slow, RunEnd::CutShort, now);
    }
    // Of ten seconds the first is lost.
    let outcome = simulation.run();
    let useful = outcome.useful_share();
    assert!((0.85..0.95).contains(&useful), "{outcome:?}");
}
