//! The scheduler as a whole, with a model that can be held back.

use tracing_subscriber::layer::SubscriberExt;

use super::testing::{FakeModel, metadata, metrics, request};
use super::*;
use crate::inference::{MemoryBudget, Reservation};
use crate::tensor::{Shape, Tensor, TensorData};

fn config() -> BatchingConfig {
    BatchingConfig {
        max_request_rows: 64,
        max_batch_size: 8,
        merge_rows: 8,
        max_queue_delay: Duration::ZERO,
        max_queue_size: 16,
        default_timeout: Duration::from_secs(30),
        buckets: None,
        comparable_runs: true,
        memory: 1 << 30,
    }
}

fn start(model: FakeModel, config: BatchingConfig) -> Scheduler {
    start_on(&Executor::Threads, vec![model], config)
}

fn start_on(executor: &Executor, models: Vec<FakeModel>, config: BatchingConfig) -> Scheduler {
    let boxed = |model| Box::new(model) as Box<dyn Model>;
    let metadata = metadata(&[("x", &["N", "1"])], &[("y", &["N", "1"])]);
    Scheduler::start(
        &metadata,
        models.into_iter().map(boxed).collect(),
        executor,
        config,
        &Arc::default(),
        metrics(),
    )
    .unwrap()
}

/// With so much memory for each of them, rows of the fake model share executions: an output of four bytes, which may be a
/// small part of what may be held.
const MEMORY_OF_A_ROW: usize = 4 * 32;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn values(response: &InferenceResponse) -> Vec<f32> {
    response.outputs[0]
        .array::<f32>()
        .unwrap()
        .iter()
        .copied()
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn merges_what_came_while_the_instance_was_busy() {
    let (model, gate) = FakeModel::gated();
    let scheduler = start(model, config());
    let first = tokio::spawn({
        let scheduler = scheduler.clone();
        async move { scheduler.submit(request(&[1.0], soon())).await }
    });
    gate.wait_for_run();
    let rest: Vec<_> = (2..6_u8)
        .map(|value| {
            let scheduler = scheduler.clone();
            tokio::spawn(
                async move { scheduler.submit(request(&[f32::from(value)], soon())).await },
            )
        })
        .collect();
    while scheduler.shared.queue.rows() < 4 {
        tokio::task::yield_now().await;
    }
    gate.open();
    let first = first.await.unwrap().unwrap();
    assert_eq!((values(&first), first.batch_rows), (vec![2.0], 1));
    for (value, answer) in (2..6_u8).zip(rest) {
        let answer = answer.await.unwrap().unwrap();
        assert_eq!(
            (values(&answer), answer.batch_rows),
            (vec![f32::from(value) + 1.0], 4)
        );
    }
    scheduler.close();
    assert!(scheduler.join(soon()));
}

/// Keeps `model` busy at its gate with one row until all of `requests` wait. Returns their answers.
async fn together(
    (model, gate): (FakeModel, Arc<super::testing::Gate>),
    config: BatchingConfig,
    requests: Vec<InferenceRequest>,
) -> Vec<InferenceResponse> {
    let scheduler = start(model, config);
    let submit = |request| {
        let scheduler = scheduler.clone();
        tokio::spawn(async move { scheduler.submit(request).await })
    };
    let busy = submit(request(&[0.0], soon()));
    gate.wait_for_run();
    let mut waiting = 0;
    let mut answers = Vec::new();
    for request in requests {
        waiting += request.rows();
        answers.push(submit(request));
        // One after the other, so that their order is known.
        while scheduler.shared.queue.rows() < waiting {
            tokio::task::yield_now().await;
        }
    }
    gate.open();
    busy.await.unwrap().unwrap();
    let mut responses = Vec::new();
    for answer in answers {
        responses.push(answer.await.unwrap().unwrap());
    }
    responses
}

/// A request of one row of `width` values.
fn wide(width: usize, reservation: Reservation) -> InferenceRequest {
    let metadata = metadata(&[("x", &["N", ""])], &[("y", &["N", ""])]);
    let tensor = Tensor::new(
        Shape::from_slice(&[1, width]),
        TensorData::from(vec![1.0_f32; width]),
    );
    let inputs = std::iter::once(tensor.unwrap()).collect();
    InferenceRequest::new(&metadata, inputs, 1, soon(), reservation).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_share_no_execution_whose_outputs_would_be_large() {
    let buckets = Some(Buckets::up_to(8));
    for (rows_of_memory, buckets, expected) in [
        (100, None, &[1, 8][..]),
        (4, None, &[1, 4, 4]),
        (3, None, &[1, 3, 1, 3, 1]),
        // Padded executions are as large as those of so many rows.
        (3, buckets, &[1, 2, 2, 4, 1]),
        // Who is alone is executed all the same.
        (0, None, &[1, 1, 1, 1, 1, 3, 1]),
    ] {
        for told in [true, false] {
            let (model, gate) = FakeModel::gated();
            let model = if told { model } else { model.untold() };
            let executions = model.executions();
            let config = BatchingConfig {
                memory: rows_of_memory * MEMORY_OF_A_ROW,
                buckets,
                ..config()
            };
            let given: [&[f32]; 6] = [&[1.0], &[2.0], &[3.0], &[4.0], &[5.0, 6.0, 7.0], &[8.0]];
            let requests = given.iter().map(|values| request(values, soon())).collect();
            let answers = together((model, gate), config, requests).await;
            for (answer, given) in answers.iter().zip(given) {
                assert_eq!(values(answer), plus_one(given));
            }
            assert_eq!(*executions.lock(), expected, "{rows_of_memory} {told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_of_large_requests_shows_how_large_the_outputs_of_the_others_will_be() {
    for (memory, expected) in [
        (1 << 30, &[1, 30_000, 60_000][..]),
        (30_000 * MEMORY_OF_A_ROW, &[1, 30_000, 30_000, 30_000]),
    ] {
        let (model, gate) = FakeModel::gated();
        let model = model.untold();
        let executions = model.executions();
        let requests = (0..3).map(|_| wide(30_000, Reservation::none())).collect();
        let config = BatchingConfig { memory, ..config() };
        together((model, gate), config, requests).await;
        assert_eq!(*executions.lock(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_answer_keeps_nothing_of_the_execution_that_it_shared() {
    for (width, shared, free) in [
        (1000, true, usize::MAX),
        (200_000, false, usize::MAX),
        // What there is no memory for is left where it is, and refused by whoever reserves memory for the answer.
        (200_000, true, 0),
    ] {
        let budget = MemoryBudget::new(free);
        let requests = (0..2).map(|_| wide(width, budget.reservation())).collect();
        let answers = together(FakeModel::gated(), config(), requests).await;
        for answer in answers {
            assert_eq!(answer.batch_rows, 2);
            assert_eq!(values(&answer), vec![2.0; width]);
            assert_eq!(answer.outputs[0].shape(), [1, width]);
            let rows_held = if shared { 2 } else { 1 };
            assert_eq!(answer.outputs[0].held_bytes(), rows_held * 4 * width);
        }
        assert_eq!(budget.used(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn executions_are_padded_to_the_next_size_and_answers_are_not() {
    let model = FakeModel::open();
    let executed = model.executed_rows();
    let buckets = Some(Buckets::up_to(8));
    let scheduler = start(
        model,
        BatchingConfig {
            buckets,
            ..config()
        },
    );
    let mut all = 0;
    for (rows, padded) in [(1_u8, 1), (2, 2), (3, 4), (5, 8), (8, 8)] {
        let given: Vec<f32> = (0..rows).map(f32::from).collect();
        let answer = scheduler.submit(request(&given, soon())).await.unwrap();
        let expected: Vec<f32> = given.iter().map(|value| value + 1.0).collect();
        assert_eq!(values(&answer), expected);
        assert_eq!(answer.batch_rows, usize::from(rows));
        all += padded;
        assert_eq!(executed.load(std::sync::atomic::Ordering::Relaxed), all);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_culprit_of_a_failed_batch_fails() {
    // Of two rows, for each of which as many bytes of outputs may be shared.
    let few_rows = 2 * MEMORY_OF_A_ROW;
    for memory in [config().memory, few_rows] {
        only_the_culprit_fails(BatchingConfig { memory, ..config() }).await;
    }
}

async fn only_the_culprit_fails(config: BatchingConfig) {
    let (model, gate) = FakeModel::gated();
    let scheduler = start(model, config);
    // Negative values make the fake model refuse the whole execution; the first request keeps it busy.
    let mut answers = Vec::new();
    for (index, value) in [0.0, 1.0, -1.0, 2.0, 3.0, -2.0, 4.0]
        .into_iter()
        .enumerate()
    {
        let handle = scheduler.clone();
        answers.push((
            value,
            tokio::spawn(async move { handle.submit(request(&[value], soon())).await }),
        ));
        if index == 0 {
            gate.wait_for_run();
        }
    }
    while scheduler.shared.queue.rows() < 6 {
        tokio::task::yield_now().await;
    }
    gate.open();
    for (value, answer) in answers {
        match answer.await.unwrap() {
            Ok(response) => assert_eq!(values(&response), [value + 1.0]),
            Err(ScheduleError::Refused { .. }) => assert!(value < 0.0),
            Err(error) => panic!("{value}: {error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_the_model_is_an_answer_and_the_instance_lives_on() {
    let scheduler = start(FakeModel::open(), config());
    let error = scheduler
        .submit(request(&[f32::INFINITY], soon()))
        .await
        .unwrap_err();
    assert!(matches!(error, ScheduleError::Internal(_)), "{error}");
    assert_eq!(
        values(&scheduler.submit(request(&[1.0], soon())).await.unwrap()),
        [2.0]
    );
    assert_eq!(scheduler.check(Instant::now()), InstanceHealth::Healthy);
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_when_the_queue_is_full_and_recovers() {
    let (model, gate) = FakeModel::gated();
    let scheduler = start(model, config());
    let submit = |rows: usize| {
        let scheduler = scheduler.clone();
        tokio::spawn(async move { scheduler.submit(request(&vec![1.0; rows], soon())).await })
    };
    let busy = submit(1);
    gate.wait_for_run();
    let waiting = [submit(8), submit(8)];
    while scheduler.shared.queue.rows() < 16 {
        tokio::task::yield_now().await;
    }
    let refused = submit(1).await.unwrap();
    assert!(matches!(refused, Err(ScheduleError::Overloaded { .. })));
    gate.open();
    assert!(busy.await.unwrap().is_ok());
    for answer in waiting {
        assert!(answer.await.unwrap().is_ok());
    }
    assert!(submit(1).await.unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_work_is_never_executed() {
    let (model, gate) = FakeModel::gated();
    let executed = model.executed_rows();
    let scheduler = start(model, config());
    let busy = tokio::spawn({
        let scheduler = scheduler.clone();
        async move { scheduler.submit(request(&[1.0], soon())).await }
    });
    gate.wait_for_run();
    let abandoned = tokio::spawn({
        let scheduler = scheduler.clone();
        async move { scheduler.submit(request(&[5.0; 4], soon())).await }
    });
    while scheduler.shared.queue.rows() < 4 {
        tokio::task::yield_now().await;
    }
    abandoned.abort();
    assert!(abandoned.await.unwrap_err().is_cancelled());
    gate.open();
    assert!(busy.await.unwrap().is_ok());
    scheduler.close();
    assert!(scheduler.join(soon()));
    assert_eq!(executed.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_nobody_waits_for_is_interrupted() {
    let (model, gate) = FakeModel::gated();
    let scheduler = start(model, config());
    // On a busy machine so short a deadline may pass in the queue; then nothing runs, and another request must.
    while !gate.has_run() {
        let deadline = Instant::now() + Duration::from_millis(20);
        let error = scheduler
            .submit(request(&[1.0], deadline))
            .await
            .unwrap_err();
        assert!(matches!(error, ScheduleError::DeadlineExceeded), "{error}");
    }
    assert_eq!(scheduler.check(Instant::now()), InstanceHealth::Healthy);
    // The interrupt opens the fake model's gate, so the instance is free again.
    assert_eq!(
        values(&scheduler.submit(request(&[1.0], soon())).await.unwrap()),
        [2.0]
    );
    assert_eq!(
        scheduler.check(Instant::now() + Duration::from_secs(3600)),
        InstanceHealth::Healthy
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_finishes_what_was_accepted_and_refuses_the_rest() {
    let (model, gate) = FakeModel::gated();
    let scheduler = start(model, config());
    let accepted = tokio::spawn({
        let scheduler = scheduler.clone();
        async move { scheduler.submit(request(&[1.0], soon())).await }
    });
    gate.wait_for_run();
    scheduler.close();
    let refused = scheduler.submit(request(&[1.0], soon())).await;
    assert!(matches!(refused, Err(ScheduleError::ShuttingDown)));
    assert!(
        !scheduler.join(Instant::now()),
        "the instance is still busy"
    );
    gate.open();
    assert!(accepted.await.unwrap().is_ok());
    assert!(scheduler.join(soon()));
}

fn here() -> Executor {
    here_up_to(8)
}

fn here_up_to(short_rows: usize) -> Executor {
    Executor::Runtime {
        runtime: tokio::runtime::Handle::current(),
        short_rows,
    }
}

/// On one thread everything happens in an order that is known: the requests that are ready come first.
#[tokio::test]
async fn beside_the_connections_what_is_ready_is_executed_together() {
    let scheduler = start_on(&here(), vec![FakeModel::open()], config());
    let answers: Vec<_> = (0..6_u8)
        .map(|value| {
            let scheduler = scheduler.clone();
            tokio::spawn(
                async move { scheduler.submit(request(&[f32::from(value)], soon())).await },
            )
        })
        .collect();
    for (value, answer) in (0..6_u8).zip(answers) {
        let answer = answer.await.unwrap().unwrap();
        assert_eq!(values(&answer), [f32::from(value) + 1.0]);
        assert_eq!(answer.batch_rows, 6);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn beside_the_connections_each_request_is_answered_once_and_by_its_own_values() {
    let models = (0..3).map(|_| FakeModel::open()).collect();
    let scheduler = start_on(
        &here(),
        models,
        BatchingConfig {
            max_queue_size: 1 << 20,
            ..config()
        },
    );
    let clients: Vec<_> = (0..16_u16)
        .map(|client| {
            let scheduler = scheduler.clone();
            tokio::spawn(async move {
                for number in 0..500_u16 {
                    let value = f32::from(client) * 1000.0 + f32::from(number);
                    let answer = scheduler.submit(request(&[value], soon())).await.unwrap();
                    assert_eq!(values(&answer), [value + 1.0]);
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    scheduler.close();
    assert!(tokio::task::block_in_place(|| scheduler.join(soon())));
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_the_connections_a_panic_is_an_answer_and_closing_executes_what_waits() {
    let scheduler = start_on(&here(), vec![FakeModel::open()], config());
    let error = scheduler
        .submit(request(&[f32::INFINITY], soon()))
        .await
        .unwrap_err();
    assert!(matches!(error, ScheduleError::Internal(_)), "{error}");
    let answer = scheduler.submit(request(&[1.0], soon())).await.unwrap();
    assert_eq!(values(&answer), [2.0]);
    let late = Instant::now();
    let error = scheduler.submit(request(&[1.0], late)).await.unwrap_err();
    assert!(matches!(error, ScheduleError::DeadlineExceeded), "{error}");
    scheduler.close();
    let refused = scheduler.submit(request(&[1.0], soon())).await.unwrap_err();
    assert!(matches!(refused, ScheduleError::ShuttingDown), "{refused}");
    assert!(tokio::task::block_in_place(|| scheduler.join(soon())));
    assert_eq!(scheduler.check(Instant::now()), InstanceHealth::Healthy);
}

#[tokio::test]
async fn beside_the_connections_the_queue_delay_holds() {
    let delay = Duration::from_millis(50);
    let scheduler = start_on(
        &here(),
        vec![FakeModel::open()],
        BatchingConfig {
            max_queue_delay: delay,
            ..config()
        },
    );
    let answer = scheduler.submit(request(&[1.0], soon())).await.unwrap();
    assert!(answer.timings.queue >= delay, "{:?}", answer.timings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_long_run_beside_the_connections_holds_them_up_once() {
    let (model, gate) = FakeModel::gated();
    let scheduler = start_on(&here(), vec![model], config());
    let submit = |value| {
        let scheduler = scheduler.clone();
        tokio::spawn(async move { scheduler.submit(request(&[value], soon())).await })
    };
    let first = submit(1.0);
    tokio::task::block_in_place(|| {
        gate.wait_for_run();
        // Long enough not to be taken for a short one.
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(15) {
            std::thread::yield_now();
        }
        gate.open();
    });
    assert_eq!(values(&first.await.unwrap().unwrap()), [2.0]);
    // From now on each run is made where it holds up nothing.
    for value in [2.0, 3.0, 4.0] {
        assert_eq!(
            values(&submit(value).await.unwrap().unwrap()),
            [value + 1.0]
        );
    }
}

/// Teaches `scheduler` that a run of `rows` rows takes `duration`.
fn teach(scheduler: &Scheduler, rows: usize, duration: Duration) {
    for _ in 0..10 {
        let now = Instant::now();
        scheduler.shared.queue.record(rows, duration, true, now);
    }
}

fn executors() -> [Executor; 2] {
    [Executor::Threads, here()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_run_in_progress_is_a_reason_to_refuse_a_short_deadline() {
    for executor in executors() {
        let (model, gate) = FakeModel::gated();
        let executed = model.executed_rows();
        let scheduler = start_on(&executor, vec![model], config());
        teach(&scheduler, 1, Duration::from_secs(10));
        let submit = |seconds| {
            let scheduler = scheduler.clone();
            let deadline = Instant::now() + Duration::from_secs(seconds);
            tokio::spawn(async move { scheduler.submit(request(&[1.0], deadline)).await })
        };
        let busy = submit(60);
        tokio::task::block_in_place(|| gate.wait_for_run());
        // Nothing waits, but the run takes ten seconds, and its own would take as long.
        let refused = submit(15).await.unwrap();
        let Err(ScheduleError::Overloaded {
            reason,
            retry_after,
        }) = refused
        else {
            panic!("{refused:?}")
        };
        assert_eq!(reason, "the deadline cannot be met");
        assert!((1..=10).contains(&retry_after.as_secs()), "{retry_after:?}");
        let wait = scheduler.predicted_wait();
        assert!((1..=10).contains(&wait.as_secs()), "{wait:?}");
        let waiting = submit(60);
        while scheduler.shared.queue.rows() < 1 {
            tokio::task::yield_now().await;
        }
        gate.open();
        assert!(busy.await.unwrap().is_ok());
        assert!(waiting.await.unwrap().is_ok());
        assert_eq!(executed.load(std::sync::atomic::Ordering::Relaxed), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_cannot_be_finished_any_more_is_refused_instead_of_executed() {
    for executor in executors() {
        let (model, gate) = FakeModel::gated();
        let executed = model.executed_rows();
        let scheduler = start_on(&executor, vec![model], config());
        let submit = |rows, deadline| {
            let scheduler = scheduler.clone();
            let values = vec![1.0; rows];
            tokio::spawn(async move { scheduler.submit(request(&values, deadline)).await })
        };
        let busy = submit(1, soon());
        tokio::task::block_in_place(|| gate.wait_for_run());
        let deadline = Instant::now() + Duration::from_secs(50);
        let late = submit(8, deadline);
        let fine = submit(8, Instant::now() + Duration::from_secs(3600));
        while scheduler.shared.queue.rows() < 16 {
            tokio::task::yield_now().await;
        }
        // Nothing was known when they came. Since then it turned out that eight rows take too long for one of them.
        teach(&scheduler, 8, Duration::from_secs(100));
        gate.open();
        assert!(busy.await.unwrap().is_ok());
        let late = late.await.unwrap();
        assert!(matches!(late, Err(ScheduleError::DeadlineExceeded)));
        assert!(Instant::now() < deadline, "it is told at once");
        assert!(fine.await.unwrap().is_ok());
        assert_eq!(executed.load(std::sync::atomic::Ordering::Relaxed), 9);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_run_that_is_too_long_for_the_deadline_is_not_begun_and_tried_again_later() {
    for executor in executors() {
        let model = FakeModel::open();
        let executed = model.executed_rows();
        let scheduler = start_on(&executor, vec![model], config());
        teach(&scheduler, 1, Duration::from_secs(100));
        let deadline = Instant::now() + Duration::from_secs(50);
        let refused = scheduler.submit(request(&[1.0], deadline)).await;
        assert!(matches!(refused, Err(ScheduleError::DeadlineExceeded)));
        assert!(Instant::now() < deadline, "it is told at once");
        assert_eq!(executed.load(std::sync::atomic::Ordering::Relaxed), 0);
        // Once what is known is not fresh any more, it is put to the test, and found to be wrong.
        loop {
            let deadline = Instant::now() + Duration::from_secs(50);
            match scheduler.submit(request(&[1.0], deadline)).await {
                Ok(response) => break assert_eq!(values(&response), [2.0]),
                Err(ScheduleError::DeadlineExceeded) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
        let deadline = Instant::now() + Duration::from_secs(50);
        let answer = scheduler.submit(request(&[1.0], deadline)).await;
        assert!(answer.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_teaches_how_long_runs_take() {
    let (model, gate) = FakeModel::gated();
    let scheduler = start(model, config());
    // On a busy machine so short a deadline may pass in the queue; then nothing runs, and another request must.
    while !gate.has_run() {
        let deadline = Instant::now() + Duration::from_millis(20);
        let late = scheduler.submit(request(&[1.0], deadline)).await;
        assert!(matches!(late, Err(ScheduleError::DeadlineExceeded)));
    }
    assert_eq!(scheduler.check(Instant::now()), InstanceHealth::Healthy);
    // Whatever was submitted before is over when the next one is executed.
    assert!(scheduler.submit(request(&[1.0; 2], soon())).await.is_ok());
    gate.close();
    let busy = tokio::spawn({
        let scheduler = scheduler.clone();
        async move { scheduler.submit(request(&[1.0], soon())).await }
    });
    gate.wait_for_run();
    let wait = scheduler.predicted_wait();
    assert!(wait >= Duration::from_millis(1), "{wait:?}");
    gate.open();
    assert!(busy.await.unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_inputs_disagree_teaches_nothing_about_others() {
    let signature = metadata(
        &[("x", &["N", "L"]), ("z", &["N", "L"])],
        &[("y", &["N", "L"])],
    );
    let scheduler = start(FakeModel::open(), config());
    for (widths, known) in [([1, 2], false), ([1, 1], true)] {
        let tensor = |width: usize| {
            let zeros = TensorData::from(vec![0.0_f32; width]);
            Tensor::new(Shape::from_slice(&[1, width]), zeros).unwrap()
        };
        let inputs = widths.map(tensor).into_iter().collect();
        let request =
            InferenceRequest::new(&signature, inputs, 64, soon(), Reservation::none()).unwrap();
        assert_eq!(request.disagreement().is_none(), known);
        scheduler.submit(request).await.unwrap();
        assert_eq!(scheduler.shared.queue.has_run_times(), known);
    }
}

/// As many values as there are rows, each its own.
fn ascending(rows: u16) -> Vec<f32> {
    (0..rows).map(f32::from).collect()
}

fn plus_one(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| value + 1.0).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_more_rows_than_an_execution_is_executed_in_parts() {
    for executor in [Executor::Threads, here()] {
        let model = FakeModel::open();
        let executions = model.executions();
        let scheduler = start_on(&executor, vec![model], config());
        let given = ascending(21);
        let answer = scheduler.submit(request(&given, soon())).await.unwrap();
        assert_eq!(values(&answer), plus_one(&given));
        assert_eq!(answer.outputs[0].shape(), [21, 1]);
        assert_eq!(answer.batch_rows, 8);
        assert_eq!(*executions.lock(), [8, 8, 5]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_are_padded_like_other_executions() {
    let model = FakeModel::open();
    let executions = model.executions();
    let buckets = Some(Buckets::up_to(8));
    let config = BatchingConfig {
        buckets,
        ..config()
    };
    let scheduler = start(model, config);
    let given = ascending(19);
    let answer = scheduler.submit(request(&given, soon())).await.unwrap();
    assert_eq!(values(&answer), plus_one(&given));
    assert_eq!(*executions.lock(), [8, 8, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_batching_a_request_is_executed_as_it_is() {
    let model = FakeModel::open();
    let executions = model.executions();
    let config = BatchingConfig {
        max_batch_size: 1,
        merge_rows: 1,
        ..config()
    };
    let scheduler = start(model, config);
    let given = ascending(21);
    let answer = scheduler.submit(request(&given, soon())).await.unwrap();
    assert_eq!(values(&answer), plus_one(&given));
    assert_eq!(*executions.lock(), [21]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_behind_a_large_request_waits_for_one_part_of_it() {
    let (model, gate) = FakeModel::gated();
    let executions = model.executions();
    let scheduler = start(model, config());
    let submit = |rows: u16| {
        let scheduler = scheduler.clone();
        tokio::spawn(async move { scheduler.submit(request(&ascending(rows), soon())).await })
    };
    let large = submit(24);
    gate.wait_for_run();
    let second = submit(10);
    while scheduler.shared.queue.rows() < 10 {
        tokio::task::yield_now().await;
    }
    let small = [submit(2), submit(3)];
    while scheduler.shared.queue.rows() < 15 {
        tokio::task::yield_now().await;
    }
    gate.open();
    for (answer, rows) in [(large, 24), (second, 10)] {
        let answer = answer.await.unwrap().unwrap();
        assert_eq!(values(&answer), plus_one(&ascending(rows)));
    }
    for (answer, rows) in small.into_iter().zip([2, 3]) {
        let answer = answer.await.unwrap().unwrap();
        assert_eq!(values(&answer), plus_one(&ascending(rows)));
        assert_eq!(answer.batch_rows, 5, "they share an execution");
    }
    assert_eq!(*executions.lock(), [8, 5, 8, 8, 8, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parts_of_a_request_end_with_its_deadline_or_its_client() {
    for abandon in [false, true] {
        let (model, gate) = FakeModel::gated();
        let executions = model.executions();
        let scheduler = start(model, config());
        let time = Duration::from_millis(if abandon { 60_000 } else { 20 });
        // On a busy machine so short a deadline may pass in the queue; then nothing runs, and another request must.
        let large = loop {
            let deadline = Instant::now() + time;
            let large = tokio::spawn({
                let scheduler = scheduler.clone();
                async move { scheduler.submit(request(&ascending(24), deadline)).await }
            });
            while !gate.has_run() && !large.is_finished() {
                tokio::task::yield_now().await;
            }
            if gate.has_run() {
                break large;
            }
        };
        if abandon {
            large.abort();
            assert!(large.await.unwrap_err().is_cancelled());
        } else {
            let error = large.await.unwrap().unwrap_err();
            assert!(matches!(error, ScheduleError::DeadlineExceeded), "{error}");
        }
        gate.open();
        scheduler.close();
        assert!(scheduler.join(soon()));
        assert_eq!(*executions.lock(), [8], "the part that ran is the last one");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parts_of_a_request_end_when_what_is_left_would_be_late() {
    for comparable_runs in [true, false] {
        let (model, gate) = FakeModel::gated();
        let executions = model.executions();
        let config = BatchingConfig {
            comparable_runs,
            ..config()
        };
        let scheduler = start(model, config);
        let deadline = Instant::now() + Duration::from_secs(50);
        let large = tokio::spawn({
            let scheduler = scheduler.clone();
            async move { scheduler.submit(request(&ascending(12), deadline)).await }
        });
        gate.wait_for_run();
        // Nothing was known when it came. Since then it turned out that its second part takes too long.
        teach(&scheduler, 4, Duration::from_secs(100));
        gate.open();
        let answer = large.await.unwrap();
        assert!(Instant::now() < deadline, "it is told at once");
        if comparable_runs {
            let error = answer.unwrap_err();
            assert!(matches!(error, ScheduleError::DeadlineExceeded), "{error}");
            assert_eq!(*executions.lock(), [8]);
        } else {
            assert_eq!(values(&answer.unwrap()), plus_one(&ascending(12)));
            assert_eq!(*executions.lock(), [8, 4]);
        }
    }
}

/// Keeps the messages of the log.
#[derive(Clone, Default)]
struct Messages(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Messages {
    fn on_event(
        &self,
        event: &tracing::Event<'_>,
        _context: tracing_subscriber::layer::Context<'_, S>,
    ) {
        event.record(
            &mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                if field.name() == "message" {
                    self.0.lock().push(format!("{value:?}"));
                }
            },
        );
    }
}

#[tokio::test]
async fn a_part_that_nobody_waits_for_is_interrupted_without_a_warning() {
    let messages = Messages::default();
    let log = tracing_subscriber::registry().with(messages.clone());
    let _log = tracing::subscriber::set_default(log);
    let failures = || {
        let messages = messages.0.lock();
        let failures = messages
            .iter()
            .filter(|message| message.contains("an execution failed"));
        failures.count()
    };
    let (model, gate) = FakeModel::gated();
    // On this thread, whose log it is.
    let scheduler = start_on(&here(), vec![model], config());
    let deadline = soon();
    let watchdog = std::thread::spawn({
        let scheduler = scheduler.clone();
        move || {
            gate.wait_for_run();
            scheduler.check(deadline + Duration::from_secs(1))
        }
    });
    let late = scheduler.submit(request(&ascending(24), deadline)).await;
    assert!(matches!(late, Err(ScheduleError::DeadlineExceeded)));
    assert_eq!(watchdog.join().unwrap(), InstanceHealth::Healthy);
    assert_eq!(failures(), 0);
    // What does fail is told.
    let refused = scheduler.submit(request(&[-1.0; 24], soon())).await;
    assert!(matches!(refused, Err(ScheduleError::Refused { .. })));
    assert_eq!(failures(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_finishes_the_parts_that_are_left() {
    let (model, gate) = FakeModel::gated();
    let scheduler = start(model, config());
    let large = tokio::spawn({
        let scheduler = scheduler.clone();
        async move { scheduler.submit(request(&ascending(24), soon())).await }
    });
    gate.wait_for_run();
    scheduler.close();
    gate.open();
    let answer = large.await.unwrap().unwrap();
    assert_eq!(values(&answer), plus_one(&ascending(24)));
    assert!(scheduler.join(soon()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_in_one_part_fails_the_request_and_nobody_else() {
    let scheduler = start(FakeModel::open(), config());
    let mut given = ascending(24);
    given[20] = -1.0;
    let error = scheduler.submit(request(&given, soon())).await.unwrap_err();
    assert!(matches!(error, ScheduleError::Refused { .. }), "{error}");
    given[20] = f32::INFINITY;
    let error = scheduler.submit(request(&given, soon())).await.unwrap_err();
    assert!(matches!(error, ScheduleError::Internal(_)), "{error}");
    given[20] = 0.0;
    let answer = scheduler.submit(request(&given, soon())).await.unwrap();
    assert_eq!(values(&answer), plus_one(&given));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_run_of_more_rows_than_were_tried_holds_up_no_connection() {
    let (model, gate) = FakeModel::gated();
    let scheduler = start_on(&here_up_to(4), vec![model], config());
    let first = tokio::spawn({
        let scheduler = scheduler.clone();
        async move { scheduler.submit(request(&ascending(5), soon())).await }
    });
    // The only thread of the runtime would stand at the gate.
    let connection = tokio::spawn(async move {
        tokio::task::block_in_place(|| gate.wait_for_run());
        gate.open();
    });
    connection.await.unwrap();
    assert_eq!(
        values(&first.await.unwrap().unwrap()),
        plus_one(&ascending(5))
    );
}
