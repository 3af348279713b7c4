//! The state of a queue, by instants that a test says.

use tokio::sync::oneshot;

use super::*;
use crate::batching::testing::{Answer, pending, queue_config as config};

#[test]
fn a_request_that_is_executed_in_parts_counts_as_one_part() {
    let mut scene = Scene::of(
        QueueConfig {
            part_rows: Some(8),
            ..config(1, 8, 20)
        },
        |_| 5,
    );
    scene.push(1000, 0, 60_000).unwrap();
    assert_eq!(scene.take(0, 0), [60_000]);
    // It takes five seconds, but who asks for one row waits for one part.
    scene.push(1000, 0, 60_001).unwrap();
    for deadline in [100, 101, 102] {
        scene.push(1, 0, deadline).unwrap();
    }
    scene.push(9, 0, 60_002).unwrap();
    // As many rows wait as may.
    assert!(matches!(scene.push(2, 0, 60_003), Err(PushError::Full(_))));
    assert!(matches!(
        scene.push(500, 0, 60_003),
        Err(PushError::Full(_))
    ));
    scene.push(1, 0, 103).unwrap();
    assert_eq!((scene.state.rows, scene.state.counted), (1013, 20));
    assert_eq!(scene.take(0, 0), [60_001]);
    scene.push(8, 0, 60_004).unwrap();
    assert_eq!(scene.take(0, 0), [100, 101, 102]);
    assert_eq!(scene.take(0, 0), [60_002]);
    assert_eq!(scene.take(0, 0), [103]);
    assert_eq!(scene.take(0, 0), [60_004]);
    let state = &scene.state;
    assert_eq!((state.rows, state.counted), (0, 0));
    assert_eq!(
        (state.alone, state.alone_rows, state.alone_counted),
        (0, 0, 0)
    );
}

#[test]
fn a_request_in_parts_takes_the_time_of_all_of_them() {
    let in_parts = QueueConfig {
        part_rows: Some(8),
        ..config(1, 8, 1000)
    };
    let mut scene = Scene::of(in_parts, |_| 5);
    // 125 parts of 5 ms.
    assert_eq!(scene.push(1000, 0, 620).unwrap_err(), PushError::TooShort);
    scene.push(1000, 0, 630).unwrap();
    assert_eq!(scene.take(0, 0), [630]);
    scene.push(1000, 0, 700).unwrap();
    assert_eq!(scene.take(0, 80), [0; 0], "it is too late now");
    // 25 parts, the last one of four rows.
    for (rows, deadline, expected) in [(196, 120, false), (196, 130, true), (4, 4, false)] {
        let finishes = scene
            .state
            .can_finish(rows, scene.at(deadline), scene.start);
        assert_eq!(finishes, expected, "{rows} rows in {deadline} ms");
    }
    // Once that is not fresh any more, one is let in to find out.
    scene.push(1000, 1500, 1600).unwrap();
    assert_eq!(scene.take(0, 1500), [1600]);
    assert_eq!(scene.push(1000, 1500, 1600), Err(PushError::TooShort));
    // Where runs are not comparable, none of that is known.
    let mut mixed = Scene::of(
        QueueConfig {
            comparable: false,
            ..in_parts
        },
        |_| 5,
    );
    mixed.push(1000, 0, 10).unwrap();
    assert!(mixed.state.can_finish(1000, mixed.at(1), mixed.start));
}

/// State of a queue whose model is known to take `ms(rows)` milliseconds.
fn taught(config: QueueConfig, ms: fn(u64) -> u64, now: Instant) -> QueueState {
    let mut state = QueueState::new(config);
    let merge_rows = config.policy.merge_rows;
    for rows in [1, 2, 4, 8].into_iter().filter(|rows| *rows <= merge_rows) {
        for _ in 0..30 {
            let elapsed = Duration::from_millis(ms(rows as u64));
            state.record(rows, elapsed, RunEnd::Completed, now);
        }
    }
    state
}

struct Scene {
    state: QueueState,
    start: Instant,
    answers: Vec<Answer>,
}

impl Scene {
    fn new(instances: usize, merge_rows: usize, ms: fn(u64) -> u64) -> Self {
        Self::of(config(instances, merge_rows, 1000), ms)
    }

    fn of(config: QueueConfig, ms: fn(u64) -> u64) -> Self {
        let start = Instant::now();
        Self {
            state: taught(config, ms, start),
            start,
            answers: Vec::new(),
        }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    /// A request at `now` ms for `deadline` ms; both count from the start.
    fn push(&mut self, rows: usize, now: u64, deadline: u64) -> Result<(), PushError> {
        let (mut entry, answer) = pending(rows, 2, self.at(deadline));
        entry.enqueued_at = self.at(now);
        self.answers.push(answer);
        self.state.push(entry, self.at(now), &mut Vec::new())
    }

    /// Whether a request of one row would be taken at `now` for `deadline`.
    fn looks(&mut self, now: u64, deadline: u64) -> Result<(), PushError> {
        let (deadline, now) = (self.at(deadline), self.at(now));
        self.state.admits(1, deadline, now, &mut Vec::new())
    }

    /// The deadlines of what `instance` would execute at `now`.
    fn take(&mut self, instance: usize, now: u64) -> Vec<u64> {
        loop {
            match self.state.look(instance, self.at(now)) {
                Look::Batch(batch) => {
                    let deadline = |entry: &Pending| entry.request.deadline() - self.start;
                    let ms = |entry| u64::try_from(deadline(entry).as_millis()).unwrap();
                    return batch.iter().map(ms).collect();
                }
                Look::Pointless(_) => {}
                Look::Empty | Look::Until(_) | Look::Ended => return Vec::new(),
            }
        }
    }
}

#[test]
fn a_request_is_refused_if_what_runs_and_waits_and_its_own_run_take_too_long() {
    let mut scene = Scene::new(1, 1, |_| 100);
    // Executed at once.
    scene.push(1, 0, 1000).unwrap();
    assert_eq!(scene.take(0, 0), [1000]);
    // 60 ms are left of that one.
    assert!(matches!(
        scene.push(1, 40, 195),
        Err(PushError::TooMuchAhead(wait)) if wait.as_millis() == 60
    ));
    scene.push(1, 40, 205).unwrap();
    assert!(matches!(
        scene.push(1, 40, 295),
        Err(PushError::TooMuchAhead(wait)) if wait.as_millis() == 160
    ));
    scene.push(1, 40, 305).unwrap();
    assert_eq!(
        scene.push(1, 40, 60).unwrap_err(),
        PushError::TooShort,
        "whatever waits, it would be too late"
    );
}

#[test]
fn a_run_that_is_late_makes_what_comes_wait_as_long_again() {
    let mut scene = Scene::new(1, 1, |_| 100);
    scene.push(1, 0, 10_000).unwrap();
    assert_eq!(scene.take(0, 0), [10_000]);
    assert!(scene.push(1, 600, 1100).is_err());
    scene.push(1, 600, 1300).unwrap();
}

#[test]
fn a_look_before_the_body_refuses_what_would_be_refused_behind_it() {
    let mut scene = Scene::new(1, 1, |_| 100);
    assert_eq!(scene.looks(0, 150), Ok(()));
    scene.push(1, 0, 1000).unwrap();
    assert_eq!(scene.take(0, 0), [1000]);
    // 60 ms are left of that one, and an own run takes 100.
    let too_much = |result| matches!(result, Err(PushError::TooMuchAhead(_)));
    for _ in 0..2 {
        assert!(too_much(scene.looks(40, 195)));
        assert_eq!(scene.looks(40, 205), Ok(()), "nothing is queued by looking");
    }
    scene.push(1, 40, 205).unwrap();
    assert!(too_much(scene.looks(40, 295)));
    assert_eq!(scene.looks(40, 60), Err(PushError::TooShort));
    scene.state.close();
    assert_eq!(scene.looks(40, 1000), Err(PushError::Closed));
}

#[test]
fn free_instances_are_taken_into_account() {
    let mut scene = Scene::new(2, 1, |_| 100);
    for _ in 0..2 {
        scene.push(1, 0, 110).unwrap();
    }
    assert!(scene.push(1, 0, 110).is_err());
    scene.push(1, 0, 210).unwrap();
    assert_eq!(scene.take(0, 0), [110]);
    assert_eq!(scene.take(1, 0), [110]);
    assert_eq!(scene.take(0, 100), [210]);
}

#[test]
fn what_cannot_be_finished_in_time_is_not_begun() {
    let mut scene = Scene::new(1, 1, |_| 100);
    scene.push(1, 0, 1000).unwrap();
    assert_eq!(scene.take(0, 0), [1000]);
    scene.push(1, 0, 250).unwrap();
    scene.push(1, 0, 400).unwrap();
    // The run took longer than expected.
    assert_eq!(scene.take(0, 180), [400]);
    assert!(matches!(
        scene.answers[1].try_recv(),
        Err(oneshot::error::TryRecvError::Closed)
    ));
}

#[test]
fn who_would_hold_up_a_batch_that_others_fill_is_left_out() {
    // Eight rows take 80 ms.
    let mut scene = Scene::new(1, 8, |rows| 72 + rows);
    scene.push(1, 0, 1000).unwrap();
    assert_eq!(scene.take(0, 0), [1000]);
    scene.push(1, 0, 260).unwrap();
    for _ in 0..16 {
        scene.push(1, 0, 350).unwrap();
    }
    // The first one needs 73 ms and has 76; but two full batches have to be done in 166.
    assert_eq!(scene.take(0, 184), [350; 8]);
}

#[test]
fn who_is_in_a_hurry_gets_a_small_batch_if_that_costs_nobody_the_deadline() {
    let mut scene = Scene::new(1, 8, |rows| 10 * rows);
    scene.push(1, 0, 1000).unwrap();
    assert_eq!(scene.take(0, 0), [1000]);
    scene.push(1, 5, 40).unwrap();
    for _ in 0..7 {
        scene.push(1, 5, 1000).unwrap();
    }
    // 27 ms are enough for two rows.
    assert_eq!(scene.take(0, 13), [40, 1000]);
    assert_eq!(scene.take(0, 33), [1000; 6]);
}

#[test]
fn clients_that_left_are_not_what_others_are_refused_for() {
    let mut scene = Scene::new(1, 1, |_| 100);
    scene.push(1, 0, 1000).unwrap();
    assert_eq!(scene.take(0, 0), [1000]);
    scene.push(1, 0, 1000).unwrap();
    assert!(scene.push(1, 0, 250).is_err());
    scene.answers.clear();
    scene.push(1, 0, 250).unwrap();
}

#[test]
fn an_idle_server_finds_out_whether_what_it_knows_is_still_true() {
    let mut scene = Scene::new(1, 1, |_| 10_000);
    assert_eq!(scene.push(1, 0, 100).unwrap_err(), PushError::TooShort);
    assert_eq!(scene.push(1, 900, 999).unwrap_err(), PushError::TooShort);
    scene.push(1, 1500, 1600).unwrap();
    scene.push(1, 1500, 1600).unwrap_err();
    assert_eq!(scene.take(0, 1500), [1600]);
    // It was quick, so that more are let in.
    let (elapsed, now) = (Duration::from_millis(10), scene.at(1510));
    scene.state.record(1, elapsed, RunEnd::Completed, now);
    assert_eq!(scene.take(0, 1510), [0; 0]);
    scene.push(1, 1520, 1620).unwrap();
    assert_eq!(scene.take(0, 1520), [1620]);
}

#[test]
fn where_runs_are_not_comparable_nobody_is_refused_for_what_others_took() {
    let mixed = QueueConfig {
        comparable: false,
        ..config(1, 8, 1000)
    };
    // Others took a second each, and do so all the time; these may well be done in their 20 ms.
    let mut scene = Scene::of(mixed, |_| 1000);
    for round in 0..5 {
        let now = 100 * round;
        scene.push(1, now, now + 20).unwrap();
        assert_eq!(scene.take(0, now), [now + 20]);
        let (elapsed, end) = (Duration::from_secs(1), scene.at(now));
        scene.state.record(1, elapsed, RunEnd::Completed, end);
        assert_eq!(scene.take(0, now), [0; 0]);
    }
    // Nobody is passed over for others that have more time, and nothing is dropped before its deadline.
    for deadline in [1020, 5000, 1021] {
        scene
            .push(1, 1000, deadline)
            .unwrap_or_else(|error| panic!("{deadline}: {error:?}"));
    }
    assert_eq!(scene.take(0, 1000), [1020, 5000, 1021]);
    // How long one waits for others follows from what they took.
    assert!(matches!(
        scene.push(1, 1000, 1020),
        Err(PushError::TooMuchAhead(_))
    ));
    scene.push(1, 1000, 6000).unwrap();
    scene.push(1, 1000, 6001).unwrap();
    assert_eq!(scene.take(0, 5990), [6000, 6001]);
    assert_eq!(scene.take(0, 6001), [0; 0]);
}

#[test]
fn where_runs_are_not_comparable_what_is_late_is_still_not_executed() {
    let mixed = QueueConfig {
        comparable: false,
        ..config(1, 1, 1000)
    };
    let mut scene = Scene::of(mixed, |_| 100);
    scene.push(1, 0, 1000).unwrap();
    assert_eq!(scene.take(0, 0), [1000]);
    scene.push(1, 0, 250).unwrap();
    scene.push(1, 0, 400).unwrap();
    assert_eq!(scene.take(0, 250), [400]);
}

#[test]
fn parts_of_a_large_request_say_nothing_of_what_small_ones_share() {
    let mut scene = Scene::new(1, 8, |_| 100);
    for _ in 0..16 {
        scene.push(1, 0, 10_000).unwrap();
    }
    let wait = |scene: &mut Scene| {
        let forecast = scene.state.forecast(1, scene.start);
        seconds(forecast.start).as_millis()
    };
    let before = wait(&mut scene);
    for part in [2; 20] {
        scene.state.note_part(0, part, scene.start);
    }
    let after = wait(&mut scene);
    // The part in hand is all that is new.
    assert!((200..220).contains(&before), "{before}");
    assert!((300..320).contains(&after), "{after}");
}

#[test]
fn large_requests_are_executions_of_their_own_and_small_ones_share_theirs() {
    let mut scene = Scene::new(1, 8, |_| 100);
    scene.push(1, 0, 10_000).unwrap();
    assert_eq!(scene.take(0, 0), [10_000]);
    // Two executions of eight rows and more, and one that holds all of the small ones.
    for rows in [8, 9, 1, 2, 3] {
        scene.push(rows, 0, 10_000).unwrap();
    }
    let wait = seconds(scene.state.forecast(1, scene.start).start).as_millis();
    assert!((300..320).contains(&wait), "{wait}");
    assert_eq!(
        (scene.state.rows, scene.state.alone, scene.state.alone_rows),
        (23, 2, 17)
    );
    for expected in [1, 1, 3] {
        assert_eq!(scene.take(0, 0).len(), expected);
    }
    assert_eq!(
        (scene.state.rows, scene.state.alone, scene.state.alone_rows),
        (0, 0, 0)
    );
}
