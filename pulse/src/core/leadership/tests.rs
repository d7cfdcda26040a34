use backbeat_schemas::{Tempo, Timestamp};

use super::*;
use crate::core::InitialConfig;

const ELECTION: Duration = Duration::from_millis(300);

/// A node, and the time as it sees it: both clocks show `millis`.
struct Node {
    core: Leadership,
    millis: u64,
}

fn tempo(bpm: &str) -> Tempo {
    bpm.parse().expect("a tempo")
}

fn at(millis: u64) -> Now {
    Now { wall_micros: millis as i64 * 1_000, monotonic: Duration::from_millis(millis), random: 0.0 }
}

fn node_of(cluster: &str, name: &str) -> Node {
    let initial_config =
        InitialConfig { cluster_id: cluster.into(), tempo: tempo("60"), bar_length: 4, grace_beats: 0 };
    let metronome = Metronome::new(initial_config, name.into(), name.len() as u16);
    let bounds = Bounds { min: tempo("1"), max: tempo("120") };
    Node { core: Leadership::new(metronome, bounds, ELECTION, at(0)), millis: 0 }
}

fn node(name: &str) -> Node {
    node_of("c", name)
}

fn tail(frame: Option<&BeatFrame>) -> Event {
    Event::Tail { frame: frame.cloned().map(Box::new), no_reports: true }
}

fn leader(term: u64) -> Event {
    Event::Raft(RaftRole::Leader { term, alone: false })
}

fn alone() -> Event {
    Event::Raft(RaftRole::Leader { term: 1, alone: true })
}

fn follower() -> Event {
    Event::Raft(RaftRole::Follower { leader: "other".into() })
}

impl Node {
    fn on(&mut self, event: Event) -> Vec<Command> {
        self.core.on(event, at(self.millis), &Boundary::default())
    }

    fn at(&mut self, millis: u64) -> &mut Self {
        self.millis = millis;
        self
    }

    /// The answer to the last question.
    fn quorum(&mut self, confirmed: bool) -> Vec<Command> {
        let ticket = self.core.quorum.ticket;
        self.on(Event::Quorum { ticket, confirmed })
    }

    /// From a question to the wait for its next beat.
    fn take_over(&mut self, last: Option<&BeatFrame>) {
        assert_eq!(self.quorum(true), [Command::ReadTail]);
        assert_eq!(self.on(tail(last)), [Command::InitTransactions]);
        assert_eq!(self.on(Event::TransactionsInitialized), [Command::ReadTail]);
        assert_eq!(self.on(tail(last)), [Command::SampleBoundary]);
        assert!(matches!(self.on(Event::BoundarySampled)[..], [Command::ConfirmQuorum { .. }]));
        assert_eq!(self.quorum(true), []);
    }

    fn lead(&mut self, event: Event, last: Option<&BeatFrame>) {
        assert!(matches!(self.on(event)[..], [Command::ConfirmQuorum { .. }]));
        self.take_over(last);
    }

    /// The frame of the beat that is due.
    fn due(&mut self) -> BeatFrame {
        match &self.on(Event::Elapsed)[..] {
            [Command::Publish(frame)] => (**frame).clone(),
            other => panic!("expected a frame, not {other:?}"),
        }
    }

    /// Confirmed just now, so that a beat is not degraded for want of asking.
    fn confirmed(&mut self) {
        self.core.question(at(self.millis));
        assert_eq!(self.quorum(true), []);
    }
}

#[test]
fn a_leader_is_one_by_a_quorums_word_and_behind_the_fence() {
    let mut node = node("a");
    node.at(1_000).lead(leader(3), None);
    assert_eq!(node.core.role(), Role::Leader);
    let first = node.due();
    assert_eq!((first.beat_index.get(), first.term, first.degraded), (0, 3, false));
    assert_eq!(node.at(1_010).on(Event::Committed), []);
    assert_eq!(node.core.deadline(), Some(Duration::from_millis(1_300)), "the next question to the quorum");
    node.at(1_300).on(Event::Elapsed);
    node.quorum(true);
    node.at(1_975).confirmed();
    assert_eq!(node.core.deadline(), Some(Duration::from_millis(1_975)));
    assert_eq!(node.on(Event::Elapsed), [Command::RefreshBoundary]);
    assert_eq!(node.core.deadline(), Some(Duration::from_secs(2)));
    assert_eq!(node.at(2_000).due().beat_index.get(), 1);
}

#[test]
fn a_leader_without_a_quorum_does_not_begin() {
    let mut node = node("a");
    node.on(leader(1));
    assert_eq!(node.quorum(false), [Command::Close]);
    assert_eq!(node.core.deadline(), Some(ELECTION / NO_ANSWERS_PER_TIMEOUT), "it asks again");
    // A quorum that is lost on the way stops it too.
    node.at(50).on(Event::Elapsed);
    node.quorum(true);
    node.on(tail(None));
    node.on(Event::TransactionsInitialized);
    node.on(tail(None));
    node.on(Event::BoundarySampled);
    assert_eq!(node.quorum(false), [Command::Close]);
    assert_eq!(node.core.role(), Role::Leaderless);
}

#[test]
fn an_answer_to_an_earlier_question_counts_for_nothing() {
    let mut node = node("a");
    node.on(leader(1));
    assert_eq!(node.on(Event::Quorum { ticket: 0, confirmed: true }), []);
    assert_eq!(node.core.role(), Role::TakingOver);
}

#[test]
fn a_beat_in_doubt_that_is_there_is_not_sent_again() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    let first = node.due();
    assert_eq!(node.at(1_500).on(Event::InDoubt), [Command::InitTransactions]);
    assert_eq!(node.on(Event::TransactionsInitialized), [Command::ReadTail]);
    assert_eq!(node.on(tail(Some(&first))), [Command::SampleBoundary]);
    node.on(Event::BoundarySampled);
    node.quorum(true);
    let next = node.at(2_000).due();
    assert_eq!((next.beat_index.get(), next.term), (1, first.term));
}

#[test]
fn a_beat_in_doubt_that_is_not_there_is_sent() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    let first = node.due();
    node.at(1_500).on(Event::InDoubt);
    node.on(Event::TransactionsInitialized);
    assert_eq!(node.on(tail(None)), [Command::SampleBoundary]);
    node.on(Event::BoundarySampled);
    node.quorum(true);
    let again = node.due();
    assert_eq!(again.beat_index, first.beat_index);
    assert!(again.hlc.is_after(first.hlc));
}

#[test]
fn a_leader_that_lost_its_quorum_goes_on_degraded_with_the_plan_frozen() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    node.due();
    node.on(Event::Committed);
    node.on(Event::Planned(Plan { from: BeatIndex::ZERO, tempo: tempo("66"), bar_length: 1 }));
    for beat in 1..=4 {
        let now = 1_000 + beat * 1_000 - 500;
        node.at(now).core.question(at(now));
        node.quorum(false);
        let frame = node.at(1_000 + beat * 1_000).due();
        assert_eq!((frame.degraded, frame.tempo_bpm), (beat > 1, tempo("60")), "at first it may be a slow answer");
        node.on(Event::Committed);
    }
    assert_eq!(node.core.role(), Role::DegradedLeader);
    assert!(!node.core.is_led(at(node.millis)));
    assert!(matches!(node.core.propose(Request::Cancel), Err(Refusal::NotNow(_))));
    node.confirmed();
    let frame = node.at(6_000).due();
    assert_eq!((frame.degraded, frame.beat_index.get()), (false, 5));
}

#[test]
fn a_node_that_slept_asks_before_its_beat() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    node.due();
    node.on(Event::Committed);
    let woken = node.at(60_000).on(Event::Elapsed);
    assert!(matches!(woken[..], [Command::ConfirmQuorum { .. }]));
    assert!(matches!(node.quorum(true)[..], [Command::Publish(_)]));
}

#[test]
fn an_answer_that_lay_about_while_it_slept_is_not_believed() {
    let mut node = node("a");
    node.on(leader(1));
    node.at(5_000);
    assert!(matches!(node.quorum(true)[..], [Command::ConfirmQuorum { .. }]));
    assert_eq!(node.quorum(true), [Command::ReadTail]);
}

#[test]
fn where_another_leads_it_lets_go() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    node.due();
    assert_eq!(node.on(follower()), [], "a commit under way is waited for");
    assert_eq!(node.on(Event::Committed), [Command::Close]);
    assert_eq!((node.core.role(), node.core.deadline()), (Role::Follower, None));
}

#[test]
fn without_a_leader_and_without_beats_it_takes_over_degraded() {
    let mut leading = node("a");
    leading.at(1_000).lead(leader(1), None);
    let last = leading.due();
    let mut node = node("b");
    node.on(follower());
    node.at(1_000).on(Event::Heard(Box::new(last.clone())));
    node.at(1_200).on(Event::Raft(RaftRole::Leaderless));
    // Five election timeouts after the leader was gone, and two periods after the beat.
    assert_eq!(node.core.deadline(), Some(Duration::from_secs(3)));
    assert_eq!(node.at(3_000).on(Event::Elapsed), [Command::ReadTail]);
    assert_eq!(node.on(tail(Some(&last))), [Command::InitTransactions]);
    node.on(Event::TransactionsInitialized);
    node.on(tail(Some(&last)));
    assert_eq!(node.on(Event::BoundarySampled), [], "no quorum is needed");
    let frame = node.due();
    assert_eq!((frame.beat_index.get(), frame.degraded, frame.term), (1, true, 2));
    // Elected and confirmed, it goes on as it is.
    node.on(Event::Committed);
    node.on(leader(7));
    node.confirmed();
    let next = node.at(4_000).due();
    assert_eq!((next.degraded, next.term), (false, 2));
}

#[test]
fn where_another_was_faster_it_does_not() {
    let mut leading = node("a");
    leading.at(1_000).lead(leader(1), None);
    let last = leading.due();
    leading.on(Event::Committed);
    leading.at(2_000).confirmed();
    let newer = leading.due();
    let mut node = node("b");
    node.at(1_000).on(Event::Heard(Box::new(last)));
    assert_eq!(node.at(3_000).on(Event::Elapsed), [Command::ReadTail]);
    assert_eq!(node.on(tail(Some(&newer))), [Command::Close]);
    assert_eq!(node.core.deadline(), Some(Duration::from_secs(5)));
}

#[test]
fn an_empty_cluster_begins_with_a_quorum_only() {
    let mut node = node("a");
    assert_eq!(node.core.deadline(), None);
    assert_eq!(node.at(60_000).on(Event::Elapsed), []);
}

#[test]
fn fenced_and_still_the_leader_it_takes_over_again_with_a_new_term() {
    let mut ours = node("a");
    ours.at(1_000).lead(leader(1), None);
    let first = ours.due();
    ours.on(Event::Committed);
    ours.at(2_000).confirmed();
    ours.due();
    let mut rival = node("rival");
    rival.at(2_000).lead(leader(1), Some(&first));
    let theirs = rival.due();
    assert_eq!(ours.on(Event::Fenced), [Command::Close]);
    let until = ours.core.deadline().expect("it waits").as_millis() as u64;
    assert!(until > 2_000);
    assert!(matches!(ours.at(until).on(Event::Elapsed)[..], [Command::ConfirmQuorum { .. }]));
    ours.take_over(Some(&theirs));
    ours.at(3_000).confirmed();
    let next = ours.due();
    assert_eq!(next.beat_index.get(), 2);
    assert!(next.term > theirs.term);
}

#[test]
fn fenced_without_a_quorum_it_stays_quiet() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    node.due();
    node.on(Event::Fenced);
    node.at(2_000).on(Event::Elapsed);
    assert_eq!(node.quorum(false), [Command::Close]);
    assert_eq!(node.core.role(), Role::Leaderless);
}

#[test]
fn a_node_that_slept_while_it_published_asks_before_it_fences_anybody() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    node.due();
    let woken = node.at(9_000).on(Event::InDoubt);
    assert!(matches!(woken[..], [Command::ConfirmQuorum { .. }]), "{woken:?}");
    assert_eq!(node.quorum(false), [Command::Close]);
}

#[test]
fn a_tail_that_lacks_what_was_heard_is_not_believed() {
    let mut other = node("o");
    other.lead(leader(1), None);
    let first = other.due();
    other.on(Event::Committed);
    other.at(1_000).confirmed();
    let second = other.due();
    let mut ours = node("a");
    ours.on(Event::Heard(Box::new(second.clone())));
    ours.on(leader(2));
    ours.quorum(true);
    assert_eq!(ours.on(tail(Some(&first))), [Command::Close], "it tries again");
    let mut ours = node("a");
    ours.on(Event::Heard(Box::new(second)));
    ours.on(leader(2));
    ours.quorum(true);
    assert_eq!(ours.on(tail(None)), [Command::Stop(StopReason::FramesLost)]);
}

#[test]
fn the_time_between_beats_does_not_count_as_trying() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    node.due();
    node.on(Event::Committed);
    // A slow tempo: the next beat is a minute later.
    node.at(60_900).confirmed();
    node.at(61_000).due();
    node.at(61_100).confirmed();
    assert_eq!(node.on(Event::InDoubt), [Command::InitTransactions]);
}

#[test]
fn a_leader_that_cannot_commit_lets_another_try() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    node.due();
    node.at(10_800).confirmed();
    assert_eq!(node.at(10_900).on(Event::InDoubt), [Command::InitTransactions]);
    assert_eq!(node.on(Event::KafkaUnavailable), [Command::Close]);
    node.at(11_200).on(Event::Elapsed);
    assert_eq!(node.quorum(true), [Command::ReadTail], "a pause later");
    assert_eq!(node.on(Event::KafkaUnavailable), [Command::Close, Command::StepDown]);
    let mut until = node.core.deadline().expect("not for ever");
    assert_eq!(until, Duration::from_millis(11_200) + ELECTION * 5);
    // Nobody else was elected: it starts over.
    node.millis = until.as_millis() as u64;
    assert!(matches!(node.on(Event::Elapsed)[..], [Command::Rejoin, Command::ConfirmQuorum { .. }]));
    node.quorum(true);
    node.on(Event::KafkaUnavailable);
    until = node.core.deadline().expect("it pauses");
    assert_eq!(until, Duration::from_millis(node.millis) + KAFKA_PAUSE, "it has its ten seconds again");
}

#[test]
fn without_peers_fenced_by_a_rival_it_stops_and_names_it() {
    let mut ours = node("a");
    ours.at(1_000).lead(alone(), None);
    let first = ours.due();
    ours.on(Event::Committed);
    let mut rival = node("rival");
    rival.at(2_000).lead(alone(), Some(&first));
    let theirs = rival.due();
    ours.at(2_000).confirmed();
    ours.due();
    assert_eq!(ours.on(Event::Fenced), [Command::Close]);
    assert_eq!(ours.core.state, State::AwaitingCompetingLeader { until: Duration::from_secs(3) });
    assert_eq!(ours.at(3_000).on(Event::Elapsed), [Command::ReadTail]);
    let stop = ours.on(tail(Some(&theirs)));
    assert_eq!(stop, [Command::Stop(StopReason::CompetingLeader { node: "rival".into(), beat: 1 })]);
}

#[test]
fn without_peers_fenced_by_a_timeout_it_opens_again() {
    let mut node = node("a");
    node.at(1_000).lead(alone(), None);
    let first = node.due();
    node.on(Event::Committed);
    node.at(2_000).confirmed();
    let second = node.due();
    node.on(Event::Fenced);
    node.at(3_000).on(Event::Elapsed);
    assert_eq!(node.on(tail(Some(&first))), [Command::InitTransactions]);
    node.on(Event::TransactionsInitialized);
    // The frame in doubt had made it after all.
    assert_eq!(node.on(tail(Some(&second))), [Command::SampleBoundary]);
    node.on(Event::BoundarySampled);
    node.quorum(true);
    let next = node.due();
    assert_eq!((next.beat_index.get(), next.term), (2, first.term));
}

#[test]
fn another_clusters_frames_are_refused() {
    let mut other = node_of("other", "o");
    other.lead(leader(1), None);
    let foreign = other.due();
    let mut node = node("a");
    node.on(leader(1));
    node.quorum(true);
    let stop = node.on(tail(Some(&foreign)));
    assert_eq!(stop, [Command::Stop(StopReason::OtherCluster { found: "other".into(), ours: "c".into() })]);
}

#[test]
fn no_beat_0_where_reports_are() {
    let mut node = node("a");
    node.on(leader(1));
    node.quorum(true);
    let stop = node.on(Event::Tail { frame: None, no_reports: false });
    assert_eq!(stop, [Command::Stop(StopReason::FramesLost)]);
}

#[test]
fn a_wall_clock_that_jumped_delays_a_beat_by_little_more_than_a_period() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    node.due();
    let behind = Now { wall_micros: -300_000_000, ..at(1_010) };
    node.core.on(Event::Committed, behind, &Boundary::default());
    let State::Waiting { due, .. } = node.core.state else { panic!("it waits") };
    assert_eq!(due, Duration::from_millis(2_135));
}

fn change(bpm: &str, ramp: bool) -> Request {
    Request::Change { tempo: Some(tempo(bpm)), ramp, bar_length: None }
}

#[test]
fn what_is_refused_says_what_is_allowed() {
    let mut node = node("a");
    let too_early = node.core.propose(change("60", false)).expect_err("it does not beat");
    assert_eq!(too_early.to_string(), "the leader does not beat yet");
    node.at(1_000).lead(leader(1), None);
    node.due();
    node.on(Event::Committed);
    let refused = |node: &mut Node, request| node.core.propose(request).expect_err("refused").to_string();
    assert_eq!(refused(&mut node, change("121", true)), "tempo 121 BPM is out of bounds; allowed are 1 to 120 BPM");
    assert_eq!(
        refused(&mut node, change("66.001", false)),
        "tempo 66.001 BPM is more than 10 % from the current 60 BPM; allowed are 54 to 66 BPM, or a ramp \
         (\"ramp\": true) that changes it by 10 % a bar"
    );
    assert_eq!(refused(&mut node, Request::Cancel), "no change is under way");
    let no_bar = Request::Change { tempo: None, ramp: false, bar_length: Some(0) };
    assert!(refused(&mut node, no_bar).starts_with("bar_length 0 is out of range"));
}

#[test]
fn one_change_at_a_time_from_the_next_downbeat() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    node.due();
    node.on(Event::Committed);
    let plan = node.core.propose(change("120", true)).expect("executed");
    assert_eq!(plan, Plan { from: BeatIndex::ZERO.plus(4), tempo: tempo("120"), bar_length: 4 });
    assert_eq!(node.core.propose(change("60", false)), Err(Refusal::NotNow("another change is being agreed on")));
    node.on(Event::Planned(plan));
    let pending = node.core.propose(change("60", false)).expect_err("it is under way");
    assert_eq!(pending, Refusal::Pending { plan, current: tempo("60") });
    let cancelled = node.core.propose(Request::Cancel).expect("there is something to cancel");
    assert_eq!((cancelled.tempo, cancelled.from.get()), (tempo("60"), 0));
    node.on(Event::Planned(cancelled));
    assert!(node.core.propose(change("66", false)).is_ok());
}

#[test]
fn a_granted_change_is_never_in_force_before_it_says() {
    let mut node = node("a");
    node.at(0).lead(leader(1), None);
    for beat in 0..4 {
        node.at(beat * 1_000).confirmed();
        node.due();
        node.on(Event::Committed);
    }
    node.at(4_000).confirmed();
    let downbeat = node.due();
    assert!(downbeat.downbeat);
    let plan = node.core.propose(change("66", false)).expect("executed");
    assert_eq!(plan.from.get(), 8, "the downbeat under way is too late for it");
    node.on(Event::Planned(plan));
    // The downbeat was not committed and is made again, now with the plan known.
    node.on(Event::InDoubt);
    node.on(Event::TransactionsInitialized);
    let last = node.core.metronome().last().cloned();
    node.on(tail(last.as_ref()));
    node.on(Event::BoundarySampled);
    node.quorum(true);
    assert_eq!(node.due().tempo_bpm, tempo("60"));
}

#[test]
fn the_hlc_rises_over_leaders_whose_clocks_are_minutes_apart() {
    let mut last: Option<BeatFrame> = None;
    for skew in [0, -300_000, 600_000, -120_000] {
        let mut node = node("a");
        let now = Now { wall_micros: (1_000_000 + skew) * 1_000, ..at(5_000) };
        let boundary = Boundary::default();
        node.core.on(leader(1), now, &boundary);
        let confirmed = |node: &Node| Event::Quorum { ticket: node.core.quorum.ticket, confirmed: true };
        node.core.on(confirmed(&node), now, &boundary);
        for event in [tail(last.as_ref()), Event::TransactionsInitialized, tail(last.as_ref()), Event::BoundarySampled]
        {
            node.core.on(event, now, &boundary);
        }
        node.core.on(confirmed(&node), now, &boundary);
        let due = Now {
            monotonic: node.core.deadline().expect("it waits").max(now.monotonic) + Duration::from_secs(1),
            ..now
        };
        node.core.on(Event::Elapsed, due, &boundary);
        let commands = node.core.on(Event::Elapsed, due, &boundary);
        let commands = if commands.is_empty() { node.core.on(confirmed(&node), due, &boundary) } else { commands };
        let State::Publishing(frame) = &node.core.state else { panic!("it publishes, not {commands:?}") };
        if let Some(last) = &last {
            assert!(frame.hlc.is_after(last.hlc));
            assert!(frame.scheduled_at > last.scheduled_at);
            assert!(frame.deadline_at > Timestamp::from_millis(0));
        }
        last = Some((**frame).clone());
    }
}
