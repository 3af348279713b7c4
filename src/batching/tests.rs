//! The scheduler as a whole, with a model that can be held back.

use super::testing::{FakeModel, metadata, metrics, request};
use super::*;

fn config() -> BatchingConfig {
    BatchingConfig {
        max_batch_size: 8,
        max_queue_delay: Duration::ZERO,
        max_queue_size: 16,
        default_timeout: Duration::from_secs(30),
        buckets: None,
    }
}

fn start(model: FakeModel, config: BatchingConfig) -> Scheduler {
    let metadata = metadata(&[("x", &["N", "1"])], &[("y", &["N", "1"])]);
    Scheduler::start(
        &metadata,
        vec![Box::new(model)],
        config,
        &Arc::default(),
        metrics(),
    )
    .unwrap()
}

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
    let (model, gate) = FakeModel::gated();
    let scheduler = start(model, config());
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
            Err(ScheduleError::Refused(_)) => assert!(value < 0.0),
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
    assert_eq!(scheduler.check(Instant::now()), InstanceHealth::Well);
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
    let deadline = Instant::now() + Duration::from_millis(20);
    let error = scheduler
        .submit(request(&[1.0], deadline))
        .await
        .unwrap_err();
    assert!(matches!(error, ScheduleError::DeadlineExceeded), "{error}");
    gate.wait_for_run();
    assert_eq!(scheduler.check(Instant::now()), InstanceHealth::Well);
    // The interrupt opens the fake model's gate, so the instance is free again.
    assert_eq!(
        values(&scheduler.submit(request(&[1.0], soon())).await.unwrap()),
        [2.0]
    );
    assert_eq!(
        scheduler.check(Instant::now() + Duration::from_secs(3600)),
        InstanceHealth::Well
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
