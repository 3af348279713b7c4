//! The phases of a connection: who is waited for, how long, and what is still owed.
//!
//! Plain data, without a socket and without a clock: it is told what happened and when, and says when to give up.
//! Invariant: whenever the peer is waited for there is a deadline, and an answer that has begun has no other than the
//! peer's own: it ends when the socket has all of it, or when the peer does not take it.

use std::time::Duration;

/// Microseconds since the connection began.
pub(super) type Micros = u64;

/// How long a connection that owes nothing is kept after accepting stopped: a request that is on its way then is still
/// answered.
const LINGER: Micros = 500_000;

/// How long what a peer still sends is read after the answer. Closing a socket with unread bytes makes the kernel reset
/// the connection, and the client may lose an answer it has not read yet.
const LINGERING_CLOSE: Micros = 2_000_000;

/// The bytes of an answer that a peer has to take each second, on average, while it is waited for.
///
/// The slowest mobile networks still in use (GPRS) carry some five kilobytes a second, a bad connection of today some
/// tens. Who takes less holds an answer's memory rather than reading it. A pause is forgiven, up to the write timeout.
pub(super) const LEAST_BYTES_PER_SECOND: u64 = 4 << 10;

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Accepted, and silent.
    AwaitingFirstByte,
    /// Some of a request's head has come.
    ReadingHead,
    /// Some request is being received, handled, or its answer produced. It keeps its own deadlines.
    InRequest,
    /// All answers are complete, and the socket does not have all of them yet.
    Sending,
    /// Between an answer and the next request.
    Idle,
    /// The last answer has gone; what the peer still sends is read and thrown away.
    Closing,
}

impl Phase {
    const ALL: [Self; 6] = [
        Self::AwaitingFirstByte,
        Self::ReadingHead,
        Self::InRequest,
        Self::Sending,
        Self::Idle,
        Self::Closing,
    ];

    /// A number to keep it by.
    pub(super) const fn index(self) -> u8 {
        self as u8
    }

    /// The phase of this number.
    pub(super) fn from_index(index: u8) -> Self {
        Self::ALL
            .get(usize::from(index))
            .copied()
            .unwrap_or(Self::Closing)
    }
}

/// What can happen to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Bytes of the peer were read.
    BytesArrived,
    /// A head is complete, and its handler called.
    RequestBegan,
    /// The last piece of an answer waits to be written.
    AnswerComplete,
    /// The peer, or the kernel for it, took so many bytes.
    BytesTaken(usize),
    /// The peer takes no more bytes for now.
    WriteBlocked,
    /// Nothing waits to be written.
    AllWritten,
    /// The peer was told that no more comes.
    WriteClosed,
}

/// How long the peer is waited for, by what is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) first_byte: Micros,
    pub(super) head: Micros,
    pub(super) write: Micros,
    pub(super) keep_alive: Micros,
}

impl Limits {
    /// The shortest: looking that often means to be late for none.
    fn shortest(&self) -> Micros {
        self.first_byte
            .min(self.head)
            .min(self.write)
            .min(self.keep_alive)
    }
}

/// What is to be done with a connection now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Close it: the peer is late, or the server stops and owes nothing.
    Close,
    /// Look again then.
    KeepUntil(Micros),
}

/// A connection, as far as its deadlines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    pub(super) phase: Phase,
    /// Requests whose answers are not complete: one at most over HTTP/1.1, many over HTTP/2.
    pub(super) open: u32,
    /// When the phase began. Of phases without a deadline nobody asks, and it is not kept.
    pub(super) since: Micros,
    /// Since when the peer has taken no bytes, if some wait for it.
    pub(super) blocked: Option<Micros>,
    /// How long the peer was waited for beyond what the bytes that it took since are worth.
    pub(super) arrears: Micros,
}

impl State {
    pub(super) const fn new() -> Self {
        Self {
            phase: Phase::AwaitingFirstByte,
            open: 0,
            since: 0,
            blocked: None,
            arrears: 0,
        }
    }

    /// The state after `event`. The time is asked for only where it counts, because asking costs more than the rest.
    pub(super) fn on(self, event: Event, now: impl FnOnce() -> Micros) -> Self {
        use Phase::{AwaitingFirstByte, Closing, Idle, InRequest, ReadingHead, Sending};
        match (event, self.phase) {
            (Event::BytesArrived, AwaitingFirstByte | Idle) => self.enter(ReadingHead, now()),
            // Also while the answer before waits to be written, where the client did not wait for it.
            (Event::RequestBegan, _) => Self {
                phase: InRequest,
                open: self.open.saturating_add(1),
                ..self
            },
            (Event::AnswerComplete, InRequest) => Self {
                phase: if self.open > 1 { InRequest } else { Sending },
                open: self.open.saturating_sub(1),
                ..self
            },
            (Event::BytesTaken(bytes), _) => {
                let waited = self.blocked.map_or(0, |since| now().saturating_sub(since));
                Self {
                    blocked: None,
                    arrears: self
                        .arrears
                        .saturating_add(waited)
                        .saturating_sub(worth(bytes)),
                    ..self
                }
            }
            (Event::WriteBlocked, _) if self.blocked.is_none() => Self {
                blocked: Some(now()),
                ..self
            },
            // What is written is no longer waited for; the next answer begins with a clean slate.
            (Event::AllWritten, phase) => {
                let settled = Self {
                    blocked: None,
                    arrears: 0,
                    ..self
                };
                match phase {
                    Sending => settled.enter(Idle, now()),
                    _ => settled,
                }
            }
            (Event::WriteClosed, _) => self.enter(Closing, now()),
            (Event::BytesArrived | Event::AnswerComplete | Event::WriteBlocked, _) => self,
        }
    }

    fn enter(self, phase: Phase, now: Micros) -> Self {
        Self {
            phase,
            since: now,
            ..self
        }
    }

    /// Whether a request was received whose answer has not been written to its end.
    pub(super) fn owes_an_answer(&self) -> bool {
        matches!(self.phase, Phase::InRequest | Phase::Sending)
    }

    /// Whether the connection is late, and if not, when to look again. `stopped` is when accepting ended, if it has.
    pub(super) fn verdict(&self, limits: &Limits, stopped: Option<Micros>, now: Micros) -> Verdict {
        let phase_ends = match self.phase {
            Phase::AwaitingFirstByte => Some(limits.first_byte),
            Phase::ReadingHead => Some(limits.head),
            Phase::Idle => Some(limits.keep_alive),
            Phase::Closing => Some(LINGERING_CLOSE),
            Phase::InRequest | Phase::Sending => None,
        }
        .map(|limit| self.since.saturating_add(limit));
        let write_ends = self
            .blocked
            .map(|since| since.saturating_add(limits.write.saturating_sub(self.arrears)));
        // Whoever owes nothing is waited for a little longer. A client whose answer ended after the stop was not told to
        // go elsewhere, so its time begins then.
        let stop_ends = stopped
            .filter(|_| !self.owes_an_answer() && self.phase != Phase::Closing)
            .map(|stopped| stopped.max(self.since) + LINGER);
        let deadline = [phase_ends, write_ends, stop_ends]
            .into_iter()
            .flatten()
            .min();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Verdict::Close;
        }
        // A phase that begins later ends later than this, and is not missed. Arrears may be noticed so much too late.
        let interval = match stopped {
            Some(_) => limits.shortest().min(LINGER),
            None => limits.shortest(),
        };
        let next = now.saturating_add(interval);
        Verdict::KeepUntil(deadline.map_or(next, |deadline| deadline.min(next)))
    }
}

/// The time in which a peer has to take so many bytes.
fn worth(bytes: usize) -> Micros {
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    bytes.saturating_mul(1_000_000) / LEAST_BYTES_PER_SECOND
}

/// `duration` in the machine's unit.
pub(super) fn micros(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::Event::{
        AllWritten, AnswerComplete, BytesArrived, BytesTaken, RequestBegan, WriteBlocked,
        WriteClosed,
    };
    use super::Phase::{AwaitingFirstByte, Closing, Idle, InRequest, ReadingHead, Sending};
    use super::*;

    const SECOND: Micros = 1_000_000;

    const LIMITS: Limits = Limits {
        first_byte: 10 * SECOND,
        head: 11 * SECOND,
        write: 30 * SECOND,
        keep_alive: 75 * SECOND,
    };

    /// The state after `events`, each at its second.
    fn after(events: &[(u64, Event)]) -> State {
        events.iter().fold(State::new(), |state, (second, event)| {
            state.on(*event, || second * SECOND)
        })
    }

    /// The second at which a connection in `state` is closed if nothing happens any more; none if it is kept.
    fn closed_at(state: &State, stopped: Option<u64>) -> Option<u64> {
        let stopped = stopped.map(|second| second * SECOND);
        let mut now = 0;
        while now < 1_000 * SECOND {
            match state.verdict(&LIMITS, stopped, now) {
                Verdict::Close => return Some(now / SECOND),
                Verdict::KeepUntil(at) => {
                    assert!(at > now && at <= now + LIMITS.first_byte);
                    now = at;
                }
            }
        }
        None
    }

    #[test]
    fn each_phase_but_a_request_has_its_own_end() {
        let begun = [(1, BytesArrived), (2, RequestBegan)];
        let answered = [&begun[..], &[(3, AnswerComplete)]].concat();
        let sending = [&answered[..], &[(3, BytesTaken(9)), (3, WriteBlocked)]].concat();
        let idle = [&sending[..], &[(9, BytesTaken(9)), (9, AllWritten)]].concat();
        let again = [&idle[..], &[(20, BytesArrived)]].concat();
        let closing = [&idle[..], &[(9, WriteClosed)]].concat();
        for (events, phase, ends, ends_when_stopped) in [
            (&[][..], AwaitingFirstByte, Some(10), Some(5)),
            (&begun[..1], ReadingHead, Some(12), Some(5)),
            (&begun, InRequest, None, None),
            (&answered, Sending, None, None),
            (&sending, Sending, Some(33), Some(33)),
            (&idle, Idle, Some(84), Some(9)),
            (&again, ReadingHead, Some(31), Some(20)),
            (&closing, Closing, Some(11), Some(11)),
        ] {
            let state = after(events);
            assert_eq!(state.phase, phase, "{events:?}");
            assert_eq!(closed_at(&state, None), ends, "{events:?}");
            assert_eq!(closed_at(&state, Some(5)), ends_when_stopped, "{events:?}");
            assert_eq!(
                state.owes_an_answer(),
                matches!(phase, InRequest | Sending),
                "{events:?}"
            );
            assert_eq!(Phase::from_index(phase.index()), phase);
        }
    }

    #[test]
    fn events_of_other_phases_change_nothing() {
        for (events, event) in [
            (&[(1, BytesArrived)][..], AllWritten),
            (&[(1, BytesArrived)], AnswerComplete),
            (&[(1, BytesArrived)], BytesArrived),
            // The body of a request, and the answer that asks for it.
            (&[(1, RequestBegan)], BytesArrived),
            (&[(1, RequestBegan)], AllWritten),
            // The next request, while the answer is written.
            (&[(1, RequestBegan), (1, AnswerComplete)], BytesArrived),
            (&[(1, RequestBegan), (2, WriteBlocked)], WriteBlocked),
        ] {
            let before = after(events);
            assert_eq!(
                before.on(event, || 5 * SECOND),
                before,
                "{events:?} {event:?}"
            );
        }
    }

    #[test]
    fn a_connection_with_several_requests_waits_for_nobody_until_all_are_answered() {
        let two = [(1, BytesArrived), (1, RequestBegan), (2, RequestBegan)];
        let one = [&two[..], &[(3, AnswerComplete), (3, AllWritten)]].concat();
        let none = [&one[..], &[(4, AnswerComplete)]].concat();
        let idle = [&none[..], &[(5, AllWritten)]].concat();
        for (events, phase, ends) in [
            (&two[..], InRequest, None),
            (&one, InRequest, None),
            (&none, Sending, None),
            (&idle, Idle, Some(80)),
        ] {
            let state = after(events);
            assert_eq!(state.phase, phase, "{events:?}");
            assert_eq!(closed_at(&state, None), ends, "{events:?}");
        }
        // A peer that takes none of the answers is late, however many requests are open.
        let blocked = [&one[..], &[(6, WriteBlocked)]].concat();
        assert_eq!(closed_at(&after(&blocked), None), Some(36));
    }

    #[test]
    fn the_next_request_may_begin_before_the_answer_is_written() {
        let state = after(&[
            (1, RequestBegan),
            (1, AnswerComplete),
            (1, WriteBlocked),
            (2, RequestBegan),
            (3, BytesTaken(1 << 20)),
            (3, AllWritten),
        ]);
        assert_eq!(state.phase, InRequest);
    }

    /// Until when a peer is waited for that takes `bytes` every `seconds`, if it does not take everything before.
    fn kept(bytes: usize, seconds: u64) -> Option<u64> {
        let mut state = after(&[(0, RequestBegan), (0, AnswerComplete), (0, WriteBlocked)]);
        for second in (seconds..10_000).step_by(usize::try_from(seconds).unwrap()) {
            if state.verdict(&LIMITS, None, second * SECOND) == Verdict::Close {
                return Some(second);
            }
            state = state
                .on(BytesTaken(bytes), || second * SECOND)
                .on(WriteBlocked, || second * SECOND);
        }
        None
    }

    #[test]
    fn a_peer_is_kept_while_it_takes_enough_and_forgiven_short_pauses() {
        let least = usize::try_from(LEAST_BYTES_PER_SECOND).unwrap();
        assert_eq!(kept(0, 1), Some(30), "nothing");
        assert_eq!(kept(1, 1), Some(31), "a byte now and then");
        assert_eq!(kept(least / 2, 1), Some(59), "half of what it should");
        assert_eq!(kept(least, 1), None, "just enough");
        assert_eq!(kept(1 << 20, 29), None, "much, with pauses");
        assert_eq!(kept(1 << 30, 31), Some(31), "a pause too long");
        assert_eq!(kept(60 << 10, 29), Some(58), "little, with pauses");
    }

    #[test]
    fn what_was_waited_for_one_answer_is_not_held_against_the_next() {
        let first = [
            (0, RequestBegan),
            (0, AnswerComplete),
            (0, WriteBlocked),
            (29, BytesTaken(100)),
            (29, WriteBlocked),
        ];
        assert_eq!(closed_at(&after(&first), None), Some(30));
        let second = [
            (29, BytesTaken(100)),
            (29, AllWritten),
            (30, RequestBegan),
            (30, AnswerComplete),
            (30, WriteBlocked),
        ];
        let both = [first, second].concat();
        assert_eq!(closed_at(&after(&both), None), Some(60));
    }

    #[test]
    fn time_without_bounds_does_not_overflow() {
        let limits = Limits {
            first_byte: Micros::MAX,
            head: Micros::MAX,
            write: Micros::MAX,
            keep_alive: Micros::MAX,
        };
        let state = after(&[(1, WriteBlocked)]).on(BytesTaken(usize::MAX), || Micros::MAX);
        let verdict = state.verdict(&limits, Some(5), 5);
        assert!(matches!(verdict, Verdict::KeepUntil(_)));
    }
}
