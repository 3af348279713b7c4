//! Who gives way when every place is taken: the connection that has waited longest for its client.
//!
//! Plain data, without a socket and without a clock. Invariant: on a regular place, nobody gives way that owes an answer;
//! on a reserve place, nobody that is being answered and takes its answer.

use super::phase::{Micros, Phase, State};

/// How long a connection on a regular place may take for its first request before it gives way to another: what a client
/// takes that resolves, connects and sends over a slow network, and far below the timeouts that hold when there is room.
const FAIR_CHANCE: Micros = 1_000_000;

/// The same on a reserve place. A client sends its head right behind the end of the handshake, whatever the distance; only
/// a busy machine comes in between. With it, and the number of places in reserve, a backlog full of silent peers (4096) is
/// gone through in less than a second.
const BRIEF_CHANCE: Micros = 20_000;

/// What kind of place a connection has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One of `--max-connections`.
    Regular,
    /// One of the few beyond, for probes, and for requests until they have a regular one.
    Reserve,
}

/// How long a connection has waited for its client, if it may give way.
pub(super) fn waiting(state: &State, kind: Kind, now: Micros) -> Option<Micros> {
    let in_phase = now.saturating_sub(state.since);
    let (waited, chance) = match (kind, state.phase) {
        (Kind::Regular, Phase::Idle) => (in_phase, 0),
        (Kind::Regular, Phase::AwaitingFirstByte | Phase::ReadingHead | Phase::Closing) => {
            (in_phase, FAIR_CHANCE)
        }
        // They have deadlines of their own, and are not cut for anybody.
        (Kind::Regular, Phase::InRequest | Phase::Sending) => return None,
        // Whoever does not take the answer of a probe can hold no reserve place with it.
        (Kind::Reserve, Phase::InRequest | Phase::Sending) => {
            (now.saturating_sub(state.blocked?), BRIEF_CHANCE)
        }
        (Kind::Reserve, _) => (in_phase, BRIEF_CHANCE),
    };
    (waited >= chance).then_some(waited)
}

/// The one among `candidates` on places of this kind that gives way; each comes with its state and its own time.
pub(super) fn first_to_give_way<C>(
    candidates: impl IntoIterator<Item = (C, State, Micros)>,
    kind: Kind,
) -> Option<C> {
    let waiting = candidates
        .into_iter()
        .filter_map(|(candidate, state, now)| {
            waiting(&state, kind, now).map(|waited| (waited, candidate))
        });
    waiting
        .max_by_key(|(waited, _)| *waited)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::super::phase::Event;
    use super::super::phase::Event::{
        AllWritten, AnswerComplete, BytesArrived, RequestBegan, WriteBlocked, WriteClosed,
    };
    use super::*;

    const MILLISECOND: Micros = 1_000;

    /// The state after `events`, each at its millisecond.
    fn after(events: &[(u64, Event)]) -> State {
        events.iter().fold(State::new(), |state, (at, event)| {
            state.on(*event, || at * MILLISECOND)
        })
    }

    fn silent() -> State {
        after(&[])
    }

    fn half_head_since(at: u64) -> State {
        after(&[(at, BytesArrived)])
    }

    fn idle_since(at: u64) -> State {
        after(&[
            (0, BytesArrived),
            (0, RequestBegan),
            (0, AnswerComplete),
            (at, AllWritten),
        ])
    }

    fn in_request() -> State {
        after(&[(0, BytesArrived), (0, RequestBegan)])
    }

    fn not_taking_its_answer_since(at: u64) -> State {
        after(&[
            (0, BytesArrived),
            (0, RequestBegan),
            (0, AnswerComplete),
            (at, WriteBlocked),
        ])
    }

    fn closing_since(at: u64) -> State {
        after(&[(0, RequestBegan), (at, WriteClosed)])
    }

    /// Which of `states` gives way at this millisecond.
    fn first(states: &[State], kind: Kind, now: u64) -> Option<usize> {
        let candidates = states.iter().enumerate();
        let candidates = candidates.map(|(index, state)| (index, *state, now * MILLISECOND));
        first_to_give_way(candidates, kind)
    }

    #[test]
    fn the_connection_that_has_waited_longest_gives_way() {
        let states = [
            idle_since(2_000),
            idle_since(500),
            idle_since(900),
            in_request(),
        ];
        assert_eq!(first(&states, Kind::Regular, 3_000), Some(1));
        let states = [idle_since(700), half_head_since(600), idle_since(800)];
        assert_eq!(
            first(&states, Kind::Regular, 3_000),
            Some(1),
            "longer than the idle ones"
        );
        assert_eq!(first(&states, Kind::Regular, 1_000), Some(0), "not yet");
        assert_eq!(
            first(&[silent(), idle_since(1)], Kind::Regular, 1_500),
            Some(0)
        );
    }

    #[test]
    fn who_just_came_has_a_fair_chance_to_send_a_request() {
        let new = [silent(), half_head_since(100)];
        assert_eq!(first(&new, Kind::Regular, 999), None);
        assert_eq!(first(&new, Kind::Regular, 1_000), Some(0));
        assert_eq!(first(&new[1..], Kind::Regular, 1_099), None);
        assert_eq!(first(&new[1..], Kind::Regular, 1_100), Some(0));
        assert_eq!(first(&[silent()], Kind::Reserve, 19), None);
        assert_eq!(first(&[silent()], Kind::Reserve, 20), Some(0));
    }

    #[test]
    fn nobody_on_a_regular_place_gives_way_who_is_owed_an_answer() {
        let states = [in_request(), not_taking_its_answer_since(1)];
        assert_eq!(first(&states, Kind::Regular, 1_000_000), None);
    }

    #[test]
    fn on_a_reserve_place_whoever_keeps_the_server_waiting_gives_way() {
        let now = 50;
        assert_eq!(first(&[in_request()], Kind::Reserve, now), None);
        for state in [
            silent(),
            half_head_since(1),
            not_taking_its_answer_since(1),
            closing_since(1),
        ] {
            let found = first(&[in_request(), state], Kind::Reserve, now);
            assert_eq!(found, Some(1), "{state:?}");
        }
        let states = [half_head_since(20), not_taking_its_answer_since(10)];
        assert_eq!(first(&states, Kind::Reserve, now), Some(1));
    }
}
