//! The way to the first beat, from beat to beat, and out of every doubt.
//!
//! ```text
//!  Start ─▶ ReadTail ─▶ OpenTransactions ─▶ ReadTail ─▶ DrawLine ─▶ WaitForBeat ─▶ Publish ─┐
//!                             ▲                                         ▲                   │ Committed
//!                             │ InDoubt                                 └───────────────────┤
//!                             └─────────────────────────────────────────────────────────────┤
//!        ReadTail ◀─ WaitForRival ◀──────────────────────────────────────────────────────── ┘ Fenced
//! ```
//!
//! Opening the transactional id fences every earlier leader; only what the log says after that is
//! believed. This is the part of a node without peers; elections come before it.

use backbeat_schemas::{BeatFrame, Timestamp};

use super::{Line, Metronome};

/// After the beat that a rival would have sent, how long we wait to see it.
const RIVAL_MARGIN_MS: i64 = 1_000;

/// What the shell found out.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The newest committed frame, and whether `barreports` is empty too.
    Tail {
        /// `None` if there is no frame.
        frame: Option<BeatFrame>,
        /// No report was ever written.
        no_reports: bool,
    },
    /// The transactional id is ours: every earlier leader is fenced.
    TransactionsOpen,
    /// A first line, drawn after the fence.
    LineDrawn,
    /// The wait is over.
    Due,
    /// The frame that was to be published is committed.
    Committed,
    /// It may be there or not.
    InDoubt,
    /// Another producer holds the transactional id.
    Fenced,
}

/// What the shell is to do next; each is answered by one event.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Read the newest committed frame: answered by `Tail`.
    ReadTail,
    /// Open the transactional id, as often as it takes: `TransactionsOpen` or `Fenced`.
    OpenTransactions,
    /// Ask for the ends of `statusclaims`: `LineDrawn`.
    DrawLine,
    /// Wait until this instant, at most one period: `Due`.
    WaitForBeat {
        /// `None`: at once.
        at: Option<Timestamp>,
        /// The longest wait, whatever the wall clock says, in milliseconds.
        at_most_ms: i64,
    },
    /// Wait until a rival's next beat must be there, and a random while longer: `Due`.
    WaitForRival {
        /// When it must be there.
        until: Timestamp,
        /// The longest wait, in milliseconds.
        at_most_ms: i64,
    },
    /// Publish the next beat: `Committed`, `InDoubt` or `Fenced`.
    Publish(Box<BeatFrame>),
    /// Give up.
    Stop(StopReason),
}

/// Why pulse cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// The topics belong to another cluster.
    #[error("beatframes belongs to cluster {found:?}, not to {ours:?}: choose another --topic-prefix or --cluster")]
    OtherCluster {
        /// The cluster of the last frame.
        found: String,
        /// Ours.
        ours: String,
    },
    /// Another pulse beats for this cluster.
    #[error(
        "fenced: another pulse, node {node:?}, has published beat {beat} of this cluster; a pulse without peers gives way"
    )]
    Rival {
        /// Its node name.
        node: String,
        /// Its newest beat.
        beat: i64,
    },
    /// Frames are gone that reports were made from.
    #[error(
        "beatframes is empty but barreports is not: the frames were lost or deleted, and beats must not begin at 0 again"
    )]
    FramesLost,
}

/// Where we are.
#[derive(Debug, Clone, PartialEq)]
enum State {
    /// Reading the tail before the fence.
    Approaching,
    /// Opening the transactional id.
    Opening,
    /// Reading the tail behind the fence.
    Resuming,
    Drawing,
    Waiting,
    Publishing(Box<BeatFrame>),
    /// Fenced: giving a rival the time to show itself.
    Listening,
    /// Fenced: reading whether it did.
    Suspecting,
}

/// Decides what pulse does, event by event.
#[derive(Debug)]
pub struct Leadership {
    metronome: Metronome,
    cluster_id: String,
    state: State,
    leading: bool,
    /// The frame whose fate is in doubt since the last tail was read.
    in_doubt: Option<Box<BeatFrame>>,
}

impl Leadership {
    /// A node that has done nothing yet; begin with [`Leadership::start`].
    pub fn new(metronome: Metronome, cluster_id: String) -> Self {
        Self { metronome, cluster_id, state: State::Approaching, leading: false, in_doubt: None }
    }

    /// The first command.
    pub fn start(&self) -> Command {
        Command::ReadTail
    }

    /// The schedule.
    pub fn metronome(&self) -> &Metronome {
        &self.metronome
    }

    /// Whether this node beats.
    pub fn is_leader(&self) -> bool {
        matches!(self.state, State::Waiting | State::Publishing(_))
    }

    /// What to do after `event`, at `now`, with the line as it is known now.
    pub fn on(&mut self, event: Event, now: Timestamp, line: &Line) -> Command {
        match (std::mem::replace(&mut self.state, State::Approaching), event) {
            (State::Approaching, Event::Tail { frame, no_reports }) => self.approach(frame.as_ref(), no_reports),
            (State::Suspecting, Event::Tail { frame, .. }) => self.suspect(frame.as_ref()),
            (State::Resuming, Event::Tail { frame, no_reports }) => self.resume(frame, no_reports),
            (State::Opening, Event::TransactionsOpen) => self.enter(State::Resuming, Command::ReadTail),
            (State::Drawing, Event::LineDrawn) => self.wait(),
            (State::Waiting, Event::Due) => {
                let frame = Box::new(self.metronome.beat(now, line));
                self.enter(State::Publishing(frame.clone()), Command::Publish(frame))
            }
            (State::Publishing(frame), Event::Committed) => {
                self.metronome.resume(*frame);
                self.wait()
            }
            (State::Publishing(frame), Event::InDoubt) => {
                self.in_doubt = Some(frame);
                self.enter(State::Opening, Command::OpenTransactions)
            }
            (State::Publishing(frame), Event::Fenced) => {
                self.in_doubt = Some(frame);
                self.listen(now)
            }
            (State::Opening, Event::Fenced) => self.listen(now),
            (State::Listening, Event::Due) => self.enter(State::Suspecting, Command::ReadTail),
            (state, event) => unreachable!("{event:?} answers no command of {state:?}"),
        }
    }

    fn enter(&mut self, state: State, command: Command) -> Command {
        self.state = state;
        command
    }

    fn approach(&mut self, frame: Option<&BeatFrame>, no_reports: bool) -> Command {
        match self.refusal(frame, no_reports) {
            Some(reason) => Command::Stop(reason),
            None => self.enter(State::Opening, Command::OpenTransactions),
        }
    }

    /// Behind the fence: nobody but us can add a frame now.
    fn resume(&mut self, frame: Option<BeatFrame>, no_reports: bool) -> Command {
        if let Some(reason) = self.refusal(frame.as_ref(), no_reports) {
            return Command::Stop(reason);
        }
        if self.leading
            && let Some(reason) = self.rival(frame.as_ref())
        {
            return Command::Stop(reason);
        }
        self.in_doubt = None;
        if let Some(frame) = frame {
            self.metronome.resume(frame);
        }
        if !self.leading {
            self.leading = true;
            self.metronome.take_over();
        }
        self.enter(State::Drawing, Command::DrawLine)
    }

    /// Fenced: by a rival, or by a broker that timed our transaction out?
    fn suspect(&mut self, frame: Option<&BeatFrame>) -> Command {
        match self.rival(frame) {
            Some(reason) => Command::Stop(reason),
            None => self.enter(State::Opening, Command::OpenTransactions),
        }
    }

    fn refusal(&self, frame: Option<&BeatFrame>, no_reports: bool) -> Option<StopReason> {
        match frame {
            None if !no_reports => Some(StopReason::FramesLost),
            Some(frame) if frame.cluster_id != self.cluster_id => {
                Some(StopReason::OtherCluster { found: frame.cluster_id.clone(), ours: self.cluster_id.clone() })
            }
            _ => None,
        }
    }

    /// The newest frame is neither the last that we know to be committed nor the one in doubt.
    fn rival(&self, frame: Option<&BeatFrame>) -> Option<StopReason> {
        let frame = frame?;
        let known = self.metronome.last() == Some(frame) || self.in_doubt.as_deref() == Some(frame);
        (!known).then(|| StopReason::Rival { node: frame.node.clone(), beat: frame.beat_index.get() })
    }

    fn wait(&mut self) -> Command {
        let command = Command::WaitForBeat { at: self.metronome.due(), at_most_ms: self.metronome.tempo().period_ms() };
        self.enter(State::Waiting, command)
    }

    fn listen(&mut self, now: Timestamp) -> Command {
        let until = self.metronome.due().unwrap_or(now).plus_millis(RIVAL_MARGIN_MS);
        let at_most_ms = self.metronome.tempo().period_ms() + RIVAL_MARGIN_MS;
        self.enter(State::Listening, Command::WaitForRival { until, at_most_ms })
    }
}

#[cfg(test)]
mod tests {
    use backbeat_schemas::BeatIndex;

    use super::*;
    use crate::core::Plan;

    fn plan() -> Plan {
        Plan { cluster_id: "c".into(), tempo: "60".parse().expect("a tempo"), bar_length: 4, grace_beats: 0 }
    }

    fn node(name: &str) -> Leadership {
        Leadership::new(Metronome::new(plan(), name.into(), name.len() as u16), "c".into())
    }

    fn tail(frame: Option<&BeatFrame>) -> Event {
        Event::Tail { frame: frame.cloned(), no_reports: true }
    }

    fn on(node: &mut Leadership, event: Event, now: i64) -> Command {
        node.on(event, Timestamp::from_millis(now), &Line::default())
    }

    /// Leads `node` to the publication of its next beat.
    fn publish(node: &mut Leadership, last: Option<&BeatFrame>, now: i64) -> BeatFrame {
        assert_eq!(on(node, tail(last), now), Command::OpenTransactions);
        assert_eq!(on(node, Event::TransactionsOpen, now), Command::ReadTail);
        assert_eq!(on(node, tail(last), now), Command::DrawLine);
        assert!(matches!(on(node, Event::LineDrawn, now), Command::WaitForBeat { .. }));
        due(node, now)
    }

    fn due(node: &mut Leadership, now: i64) -> BeatFrame {
        match on(node, Event::Due, now) {
            Command::Publish(frame) => *frame,
            other => panic!("expected a frame, not {other:?}"),
        }
    }

    #[test]
    fn a_committed_beat_is_followed_by_the_next_on_schedule() {
        let mut node = node("a");
        let first = publish(&mut node, None, 1_000);
        let wait = on(&mut node, Event::Committed, 1_010);
        assert_eq!(wait, Command::WaitForBeat { at: Some(first.deadline_at), at_most_ms: 1_000 });
        assert_eq!(due(&mut node, 2_000).beat_index, BeatIndex::ZERO.plus(1));
    }

    #[test]
    fn a_beat_in_doubt_that_is_there_is_not_sent_again() {
        let mut node = node("a");
        let first = publish(&mut node, None, 1_000);
        assert_eq!(on(&mut node, Event::InDoubt, 1_500), Command::OpenTransactions);
        assert_eq!(on(&mut node, Event::TransactionsOpen, 1_600), Command::ReadTail);
        assert_eq!(on(&mut node, tail(Some(&first)), 1_700), Command::DrawLine);
        on(&mut node, Event::LineDrawn, 1_700);
        let next = due(&mut node, 2_000);
        assert_eq!((next.beat_index.get(), next.term), (1, first.term));
    }

    #[test]
    fn a_beat_in_doubt_that_is_not_there_is_sent() {
        let mut node = node("a");
        let first = publish(&mut node, None, 1_000);
        on(&mut node, Event::InDoubt, 1_500);
        on(&mut node, Event::TransactionsOpen, 1_600);
        assert_eq!(on(&mut node, tail(None), 1_700), Command::DrawLine);
        on(&mut node, Event::LineDrawn, 1_700);
        let again = due(&mut node, 1_700);
        assert_eq!(again.beat_index, first.beat_index);
        assert!(again.hlc.is_after(first.hlc));
    }

    #[test]
    fn fenced_by_a_rival_it_stops_and_names_it() {
        let mut ours = node("a");
        let first = publish(&mut ours, None, 1_000);
        on(&mut ours, Event::Committed, 1_010);
        let mut rival = node("rival");
        let theirs = publish(&mut rival, Some(&first), 2_000);
        due(&mut ours, 2_000);
        let wait = on(&mut ours, Event::Fenced, 2_005);
        assert_eq!(wait, Command::WaitForRival { until: Timestamp::from_millis(3_000), at_most_ms: 2_000 });
        assert_eq!(on(&mut ours, Event::Due, 3_000), Command::ReadTail);
        let stop = on(&mut ours, tail(Some(&theirs)), 3_000);
        assert_eq!(stop, Command::Stop(StopReason::Rival { node: "rival".into(), beat: 1 }));
    }

    #[test]
    fn fenced_by_a_timeout_it_opens_again() {
        let mut node = node("a");
        let first = publish(&mut node, None, 1_000);
        on(&mut node, Event::Committed, 1_010);
        let second = due(&mut node, 2_000);
        on(&mut node, Event::Fenced, 2_005);
        on(&mut node, Event::Due, 3_000);
        assert_eq!(on(&mut node, tail(Some(&first)), 3_000), Command::OpenTransactions);
        on(&mut node, Event::TransactionsOpen, 3_000);
        // The frame in doubt had made it after all.
        assert_eq!(on(&mut node, tail(Some(&second)), 3_000), Command::DrawLine);
        on(&mut node, Event::LineDrawn, 3_000);
        assert_eq!(due(&mut node, 3_000).beat_index.get(), 2);
    }

    #[test]
    fn a_rival_that_beat_before_we_opened_again_is_noticed_behind_the_fence() {
        let mut ours = node("a");
        let first = publish(&mut ours, None, 1_000);
        on(&mut ours, Event::Committed, 1_010);
        due(&mut ours, 2_000);
        on(&mut ours, Event::Fenced, 2_005);
        on(&mut ours, Event::Due, 3_000);
        on(&mut ours, tail(Some(&first)), 3_000);
        on(&mut ours, Event::TransactionsOpen, 3_000);
        let theirs = publish(&mut node("rival"), Some(&first), 2_000);
        assert!(matches!(on(&mut ours, tail(Some(&theirs)), 3_000), Command::Stop(StopReason::Rival { .. })));
    }

    #[test]
    fn another_clusters_frames_are_refused() {
        let plan = Plan { cluster_id: "other".into(), ..plan() };
        let mut other = Leadership::new(Metronome::new(plan, "o".into(), 9), "other".into());
        let foreign = publish(&mut other, None, 0);
        let stop = on(&mut node("a"), tail(Some(&foreign)), 1_000);
        assert_eq!(stop, Command::Stop(StopReason::OtherCluster { found: "other".into(), ours: "c".into() }));
    }

    #[test]
    fn no_beat_0_where_reports_are() {
        let stop = on(&mut node("a"), Event::Tail { frame: None, no_reports: false }, 1_000);
        assert_eq!(stop, Command::Stop(StopReason::FramesLost));
    }
}
