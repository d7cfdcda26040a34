use backbeat_schemas::{Tempo, Timestamp};

use super::kafka::KAFKA_PAUSE;
use super::*;
use crate::core::quorum_checks::RETRIES_PER_ELECTION_TIMEOUT;
use crate::core::{InitialConfig, KafkaResponse, StopReason};

const ELECTION: Duration = Duration::from_millis(300);

/// A node and its time: both of its clocks show `millis`.
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

fn node_of_cluster(cluster: &str, name: &str) -> Node {
    let first_beat = BeatIndex::ZERO;
    let initial_config =
        InitialConfig { cluster_id: cluster.into(), tempo: tempo("60"), bar_length: 4, grace_beats: 0, first_beat };
    let metronome = Metronome::new(initial_config, name.into(), name.len() as u16);
    let bounds = TempoBounds { min: tempo("1"), max: tempo("120") };
    Node {
        core: Leadership::new(metronome, bounds, RaftTimeouts { election: ELECTION, ..RaftTimeouts::DEFAULT }, at(0)),
        millis: 0,
    }
}

fn node(name: &str) -> Node {
    node_of_cluster("c", name)
}

fn tail(frame: Option<&BeatFrame>) -> Event {
    tail_with_open(frame, None)
}

fn tail_with_open(frame: Option<&BeatFrame>, open_frame: Option<&BeatFrame>) -> Event {
    let boxed = |frame: Option<&BeatFrame>| frame.cloned().map(Box::new);
    Event::Kafka(KafkaResponse::Tail { frame: boxed(frame), open_frame: boxed(open_frame), newest_reported: None })
}

fn leader(raft_term: u64) -> Event {
    Event::RaftRoleChanged(RaftRole::Leader { raft_term, sole_voter: false })
}

fn sole_voter() -> Event {
    Event::RaftRoleChanged(RaftRole::Leader { raft_term: 1, sole_voter: true })
}

fn follower() -> Event {
    Event::RaftRoleChanged(RaftRole::Follower { leader: "other".into() })
}

impl Node {
    fn on(&mut self, event: Event) -> Vec<Command> {
        self.core.on(event, at(self.millis), &Boundary::default())
    }

    fn at(&mut self, millis: u64) -> &mut Self {
        self.millis = millis;
        self
    }

    /// Answers the last quorum check.
    fn answer_quorum_check(&mut self, confirmed: bool) -> Vec<Command> {
        let check_id = self.core.quorum_checks.last_id();
        self.on(Event::QuorumChecked { check_id, confirmed })
    }

    /// Drives the node from a quorum check to the wait for its next beat.
    fn take_over(&mut self, last: Option<&BeatFrame>) {
        assert_eq!(self.answer_quorum_check(true), [Command::Kafka(KafkaCommand::ReadTail)]);
        assert_eq!(self.on(tail(last)), [Command::Kafka(KafkaCommand::InitTransactions)]);
        assert_eq!(
            self.on(Event::Kafka(KafkaResponse::TransactionsInitialized)),
            [Command::Kafka(KafkaCommand::ReadTail)]
        );
        assert_eq!(self.on(tail(last)), [Command::Kafka(KafkaCommand::SampleBoundary)]);
        assert!(matches!(self.on(Event::Kafka(KafkaResponse::BoundarySampled))[..], [Command::CheckQuorum { .. }]));
        assert_eq!(self.answer_quorum_check(true), []);
    }

    fn lead(&mut self, event: Event, last: Option<&BeatFrame>) {
        assert!(matches!(self.on(event)[..], [Command::CheckQuorum { .. }]));
        self.take_over(last);
    }

    /// Lets the deadline elapse and returns the frame that is published.
    fn publish_due_beat(&mut self) -> BeatFrame {
        match &self.on(Event::Elapsed)[..] {
            [Command::Kafka(KafkaCommand::Publish(frame))] => (**frame).clone(),
            other => panic!("expected a frame to be published, not {other:?}"),
        }
    }

    /// Completes a quorum check now, so that the next beat is not degraded.
    fn confirm_quorum(&mut self) {
        self.core.quorum_check(at(self.millis));
        assert_eq!(self.answer_quorum_check(true), []);
    }
}

#[test]
fn elected_node_confirmed_by_a_quorum_leads_after_init_transactions() {
    let mut node = node("a");
    node.at(1_000).lead(leader(3), None);
    assert_eq!(node.core.role(), Role::Leader);
    let first = node.publish_due_beat();
    assert_eq!((first.beat_index.get(), first.term, first.degraded), (0, 3, false));
    assert_eq!(node.at(1_010).on(Event::Kafka(KafkaResponse::Committed)), []);
    assert_eq!(node.core.deadline(), Some(Duration::from_millis(1_300)), "the next quorum check");
    node.at(1_300).on(Event::Elapsed);
    node.answer_quorum_check(true);
    node.at(1_975).confirm_quorum();
    assert_eq!(node.core.deadline(), Some(Duration::from_millis(1_975)));
    assert_eq!(node.on(Event::Elapsed), [Command::RefreshBoundary]);
    assert_eq!(node.core.deadline(), Some(Duration::from_secs(2)));
    assert_eq!(node.at(2_000).publish_due_beat().beat_index.get(), 1);
}

#[test]
fn elapsed_before_the_deadline_changes_nothing() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    node.publish_due_beat();
    node.at(1_010).on(Event::Kafka(KafkaResponse::Committed));
    let (state, deadline) = (node.core.state.clone(), node.core.deadline());
    assert!(deadline.is_some_and(|deadline| deadline > Duration::from_millis(1_200)));
    for millis in [1_010, 1_200] {
        assert_eq!(node.at(millis).on(Event::Elapsed), []);
        assert_eq!((&node.core.state, node.core.deadline()), (&state, deadline));
    }
}

#[test]
fn elected_node_without_a_quorum_does_not_take_over() {
    let mut node = node("a");
    node.on(leader(1));
    assert_eq!(node.answer_quorum_check(false), [Command::Kafka(KafkaCommand::CloseProducer)]);
    assert_eq!(node.core.deadline(), Some(ELECTION / RETRIES_PER_ELECTION_TIMEOUT), "the quorum check is retried");
    // A quorum that is lost during the takeover ends it, too.
    node.at(50).on(Event::Elapsed);
    node.answer_quorum_check(true);
    node.on(tail(None));
    node.on(Event::Kafka(KafkaResponse::TransactionsInitialized));
    node.on(tail(None));
    node.on(Event::Kafka(KafkaResponse::BoundarySampled));
    assert_eq!(node.answer_quorum_check(false), [Command::Kafka(KafkaCommand::CloseProducer)]);
    assert_eq!(node.core.role(), Role::Leaderless);
}

#[test]
fn quorum_check_with_an_old_id_is_ignored() {
    let mut node = node("a");
    node.on(leader(1));
    assert_eq!(node.on(Event::QuorumChecked { check_id: 0, confirmed: true }), []);
    assert_eq!(node.core.role(), Role::TakingOver);
}

#[test]
fn beat_in_doubt_found_in_the_tail_is_not_published_again() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    let first = node.publish_due_beat();
    assert_eq!(
        node.at(1_500).on(Event::Kafka(KafkaResponse::InDoubt)),
        [Command::Kafka(KafkaCommand::InitTransactions)]
    );
    assert_eq!(node.on(Event::Kafka(KafkaResponse::TransactionsInitialized)), [Command::Kafka(KafkaCommand::ReadTail)]);
    assert_eq!(node.on(tail(Some(&first))), [Command::Kafka(KafkaCommand::SampleBoundary)]);
    node.on(Event::Kafka(KafkaResponse::BoundarySampled));
    node.answer_quorum_check(true);
    let next = node.at(2_000).publish_due_beat();
    assert_eq!((next.beat_index.get(), next.term), (1, first.term));
}

#[test]
fn beat_whose_transaction_has_no_marker_is_not_published_again() {
    let mut node_a = node("a");
    node_a.at(1_000).lead(leader(1), None);
    let first = node_a.publish_due_beat();
    node_a.at(1_500).on(Event::Kafka(KafkaResponse::Committed));
    let unmarked = node_a.at(2_000).publish_due_beat();
    let mut node_b = node("b");
    // Before `InitTransactions` it may be that of a leader that is about to commit or to abort it.
    node_b.at(3_000).on(leader(2));
    node_b.answer_quorum_check(true);
    node_b.on(tail_with_open(Some(&first), Some(&unmarked)));
    node_b.on(Event::Kafka(KafkaResponse::TransactionsInitialized));
    node_b.on(tail_with_open(Some(&first), Some(&unmarked)));
    node_b.on(Event::Kafka(KafkaResponse::BoundarySampled));
    node_b.answer_quorum_check(true);
    let next = node_b.at(4_000).publish_due_beat();
    assert_eq!((next.beat_index.get(), next.term), (2, unmarked.term + 1));
}

#[test]
fn beat_in_doubt_missing_from_the_tail_is_published_again() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    let first = node.publish_due_beat();
    node.at(1_500).on(Event::Kafka(KafkaResponse::InDoubt));
    node.on(Event::Kafka(KafkaResponse::TransactionsInitialized));
    assert_eq!(node.on(tail(None)), [Command::Kafka(KafkaCommand::SampleBoundary)]);
    node.on(Event::Kafka(KafkaResponse::BoundarySampled));
    node.answer_quorum_check(true);
    let again = node.publish_due_beat();
    assert_eq!(again.beat_index, first.beat_index);
    assert!(again.hlc.is_after(first.hlc));
}

#[test]
fn leader_that_lost_its_quorum_continues_degraded_with_the_plan_frozen() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    node.publish_due_beat();
    node.on(Event::Kafka(KafkaResponse::Committed));
    node.on(Event::PlanApplied(Plan { from: BeatIndex::ZERO, tempo: tempo("66"), bar_length: 1 }));
    for beat in 1..=4 {
        let now = 1_000 + beat * 1_000 - 500;
        node.at(now).core.quorum_check(at(now));
        node.answer_quorum_check(false);
        let frame = node.at(1_000 + beat * 1_000).publish_due_beat();
        assert_eq!(
            (frame.degraded, frame.tempo_bpm),
            (beat > 1, tempo("60")),
            "one failed check does not degrade a beat"
        );
        node.on(Event::Kafka(KafkaResponse::Committed));
    }
    assert_eq!(node.core.role(), Role::DegradedLeader);
    assert!(!node.core.knows_leader(at(node.millis)));
    assert!(matches!(node.core.propose(PlanRequest::Cancel), Err(Refusal::Unavailable(_))));
    node.confirm_quorum();
    let frame = node.at(6_000).publish_due_beat();
    assert_eq!((frame.degraded, frame.beat_index.get()), (false, 5));
}

#[test]
fn leader_that_was_suspended_checks_the_quorum_before_its_beat() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    node.publish_due_beat();
    node.on(Event::Kafka(KafkaResponse::Committed));
    let commands = node.at(60_000).on(Event::Elapsed);
    assert!(matches!(commands[..], [Command::CheckQuorum { .. }]));
    assert!(matches!(node.answer_quorum_check(true)[..], [Command::Kafka(KafkaCommand::Publish(_))]));
}

#[test]
fn quorum_confirmation_from_before_a_suspension_is_checked_again() {
    let mut node = node("a");
    node.on(leader(1));
    node.at(5_000);
    assert!(matches!(node.answer_quorum_check(true)[..], [Command::CheckQuorum { .. }]));
    assert_eq!(node.answer_quorum_check(true), [Command::Kafka(KafkaCommand::ReadTail)]);
}

#[test]
fn leader_that_learns_of_another_closes_its_producer() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    node.publish_due_beat();
    assert_eq!(node.on(follower()), [], "it waits for the commit in flight");
    assert_eq!(node.on(Event::Kafka(KafkaResponse::Committed)), [Command::Kafka(KafkaCommand::CloseProducer)]);
    assert_eq!((node.core.role(), node.core.deadline()), (Role::Follower, None));
}

#[test]
fn follower_without_a_leader_or_beats_takes_over_degraded() {
    let mut leading = node("a");
    leading.at(1_000).lead(leader(1), None);
    let last = leading.publish_due_beat();
    let mut node = node("b");
    node.on(follower());
    node.at(1_000).on(Event::FrameRead(Box::new(last.clone())));
    node.at(1_200).on(Event::RaftRoleChanged(RaftRole::Leaderless));
    // Two periods after the beat, and by then five election timeouts after the leader was lost.
    assert_eq!(node.core.deadline(), Some(Duration::from_secs(3)));
    assert_eq!(node.at(3_000).on(Event::Elapsed), [Command::Kafka(KafkaCommand::ReadTail)]);
    assert_eq!(node.on(tail(Some(&last))), [Command::Kafka(KafkaCommand::InitTransactions)]);
    node.on(Event::Kafka(KafkaResponse::TransactionsInitialized));
    node.on(tail(Some(&last)));
    assert_eq!(node.on(Event::Kafka(KafkaResponse::BoundarySampled)), [], "no quorum is needed");
    let frame = node.publish_due_beat();
    assert_eq!((frame.beat_index.get(), frame.degraded, frame.term), (1, true, 2));
    // Elected and confirmed, it continues in the same term.
    node.on(Event::Kafka(KafkaResponse::Committed));
    node.on(leader(7));
    node.confirm_quorum();
    let next = node.at(4_000).publish_due_beat();
    assert_eq!((next.degraded, next.term), (false, 2));
}

#[test]
fn degraded_takeover_after_a_newer_beat_is_abandoned() {
    let mut leading = node("a");
    leading.at(1_000).lead(leader(1), None);
    let last = leading.publish_due_beat();
    leading.on(Event::Kafka(KafkaResponse::Committed));
    leading.at(2_000).confirm_quorum();
    let newer = leading.publish_due_beat();
    let mut node = node("b");
    node.at(1_000).on(Event::FrameRead(Box::new(last)));
    assert_eq!(node.at(3_000).on(Event::Elapsed), [Command::Kafka(KafkaCommand::ReadTail)]);
    assert_eq!(node.on(tail(Some(&newer))), [Command::Kafka(KafkaCommand::CloseProducer)]);
    assert_eq!(node.core.deadline(), Some(Duration::from_secs(5)));
}

#[test]
fn empty_cluster_without_a_quorum_gets_no_beat() {
    let mut node = node("a");
    assert_eq!(node.core.deadline(), None);
    assert_eq!(node.at(60_000).on(Event::Elapsed), []);
}

#[test]
fn fenced_leader_confirmed_by_a_quorum_takes_over_with_a_new_term() {
    let mut node_a = node("a");
    node_a.at(1_000).lead(leader(1), None);
    let first = node_a.publish_due_beat();
    node_a.on(Event::Kafka(KafkaResponse::Committed));
    node_a.at(2_000).confirm_quorum();
    node_a.publish_due_beat();
    let mut competitor = node("competitor");
    competitor.at(2_000).lead(leader(1), Some(&first));
    let competing_frame = competitor.publish_due_beat();
    assert_eq!(node_a.on(Event::Kafka(KafkaResponse::Fenced)), [Command::Kafka(KafkaCommand::CloseProducer)]);
    let until = node_a.core.deadline().expect("a deadline").as_millis() as u64;
    assert!(until > 2_000);
    assert!(matches!(node_a.at(until).on(Event::Elapsed)[..], [Command::CheckQuorum { .. }]));
    node_a.take_over(Some(&competing_frame));
    node_a.at(3_000).confirm_quorum();
    let next = node_a.publish_due_beat();
    assert_eq!(next.beat_index.get(), 2);
    assert!(next.term > competing_frame.term);
}

#[test]
fn fenced_leader_without_a_quorum_stands_by() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    node.publish_due_beat();
    node.on(Event::Kafka(KafkaResponse::Fenced));
    node.at(2_000).on(Event::Elapsed);
    assert_eq!(node.answer_quorum_check(false), [Command::Kafka(KafkaCommand::CloseProducer)]);
    assert_eq!(node.core.role(), Role::Leaderless);
}

#[test]
fn leader_suspended_during_a_commit_checks_the_quorum_before_fencing() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    node.publish_due_beat();
    let commands = node.at(9_000).on(Event::Kafka(KafkaResponse::InDoubt));
    assert!(matches!(commands[..], [Command::CheckQuorum { .. }]), "{commands:?}");
    assert_eq!(node.answer_quorum_check(false), [Command::Kafka(KafkaCommand::CloseProducer)]);
}

#[test]
fn tail_older_than_an_observed_frame_is_stale() {
    let mut other = node("o");
    other.lead(leader(1), None);
    let first = other.publish_due_beat();
    other.on(Event::Kafka(KafkaResponse::Committed));
    other.at(1_000).confirm_quorum();
    let second = other.publish_due_beat();
    let mut node_a = node("a");
    node_a.on(Event::FrameRead(Box::new(second.clone())));
    node_a.on(leader(2));
    node_a.answer_quorum_check(true);
    assert_eq!(
        node_a.on(tail(Some(&first))),
        [Command::Kafka(KafkaCommand::CloseProducer)],
        "it pauses and tries again"
    );
    let mut node_a = node("a");
    node_a.on(Event::FrameRead(Box::new(second)));
    node_a.on(leader(2));
    node_a.answer_quorum_check(true);
    let known = BeatIndex::ZERO.plus(1);
    assert_eq!(node_a.on(tail(None)), [Command::Stop(StopReason::FramesLost { found: None, known })]);
}

#[test]
fn commit_timeout_excludes_the_wait_between_beats() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    node.publish_due_beat();
    node.on(Event::Kafka(KafkaResponse::Committed));
    // At a slow tempo the next beat is a minute later.
    node.at(60_900).confirm_quorum();
    node.at(61_000).publish_due_beat();
    node.at(61_100).confirm_quorum();
    assert_eq!(node.on(Event::Kafka(KafkaResponse::InDoubt)), [Command::Kafka(KafkaCommand::InitTransactions)]);
}

#[test]
fn leader_that_cannot_commit_steps_down() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    node.publish_due_beat();
    node.at(10_800).confirm_quorum();
    assert_eq!(
        node.at(10_900).on(Event::Kafka(KafkaResponse::InDoubt)),
        [Command::Kafka(KafkaCommand::InitTransactions)]
    );
    assert_eq!(node.on(Event::Kafka(KafkaResponse::KafkaUnavailable)), [Command::Kafka(KafkaCommand::CloseProducer)]);
    node.at(11_200).on(Event::Elapsed);
    assert_eq!(
        node.answer_quorum_check(true),
        [Command::Kafka(KafkaCommand::ReadTail)],
        "it tries again after the pause"
    );
    assert_eq!(
        node.on(Event::Kafka(KafkaResponse::KafkaUnavailable)),
        [Command::Kafka(KafkaCommand::CloseProducer), Command::StepDown]
    );
    let mut until = node.core.deadline().expect("stepping down is limited in time");
    assert_eq!(until, Duration::from_millis(11_200) + ELECTION * 5);
    // No other node was elected: it tries again.
    node.millis = until.as_millis() as u64;
    assert!(matches!(node.on(Event::Elapsed)[..], [Command::Rejoin, Command::CheckQuorum { .. }]));
    node.answer_quorum_check(true);
    node.on(Event::Kafka(KafkaResponse::KafkaUnavailable));
    until = node.core.deadline().expect("a deadline");
    assert_eq!(until, Duration::from_millis(node.millis) + KAFKA_PAUSE, "the commit timeout starts anew");
}

#[test]
fn sole_voter_fenced_by_a_competing_leader_stops_and_names_it() {
    let mut node_a = node("a");
    node_a.at(1_000).lead(sole_voter(), None);
    let first = node_a.publish_due_beat();
    node_a.on(Event::Kafka(KafkaResponse::Committed));
    let mut competitor = node("competitor");
    competitor.at(2_000).lead(sole_voter(), Some(&first));
    let competing_frame = competitor.publish_due_beat();
    node_a.at(2_000).confirm_quorum();
    node_a.publish_due_beat();
    assert_eq!(node_a.on(Event::Kafka(KafkaResponse::Fenced)), [Command::Kafka(KafkaCommand::CloseProducer)]);
    assert_eq!(node_a.core.state, State::AwaitingCompetingLeader { until: Duration::from_secs(3) });
    assert_eq!(node_a.at(3_000).on(Event::Elapsed), [Command::Kafka(KafkaCommand::ReadTail)]);
    let stop = node_a.on(tail(Some(&competing_frame)));
    assert_eq!(stop, [Command::Stop(StopReason::CompetingLeader { node: "competitor".into(), beat: 1 })]);
}

#[test]
fn sole_voter_fenced_by_a_transaction_timeout_initializes_transactions_again() {
    let mut node = node("a");
    node.at(1_000).lead(sole_voter(), None);
    let first = node.publish_due_beat();
    node.on(Event::Kafka(KafkaResponse::Committed));
    node.at(2_000).confirm_quorum();
    let second = node.publish_due_beat();
    node.on(Event::Kafka(KafkaResponse::Fenced));
    node.at(3_000).on(Event::Elapsed);
    assert_eq!(node.on(tail(Some(&first))), [Command::Kafka(KafkaCommand::InitTransactions)]);
    node.on(Event::Kafka(KafkaResponse::TransactionsInitialized));
    // The frame in doubt was committed after all.
    assert_eq!(node.on(tail(Some(&second))), [Command::Kafka(KafkaCommand::SampleBoundary)]);
    node.on(Event::Kafka(KafkaResponse::BoundarySampled));
    node.answer_quorum_check(true);
    let next = node.publish_due_beat();
    assert_eq!((next.beat_index.get(), next.term), (2, first.term));
}

#[test]
fn frames_of_another_cluster_stop_the_node() {
    let mut other = node_of_cluster("other", "o");
    other.lead(leader(1), None);
    let foreign = other.publish_due_beat();
    let mut node = node("a");
    node.on(leader(1));
    node.answer_quorum_check(true);
    let stop = node.on(tail(Some(&foreign)));
    assert_eq!(stop, [Command::Stop(StopReason::OtherCluster { found: "other".into(), configured: "c".into() })]);
}

#[test]
fn empty_beatframes_with_reports_stop_the_node() {
    let mut node = node("a");
    node.on(leader(1));
    node.answer_quorum_check(true);
    let known = BeatIndex::ZERO.plus(7);
    let stop =
        node.on(Event::Kafka(KafkaResponse::Tail { frame: None, open_frame: None, newest_reported: Some(known) }));
    assert_eq!(stop, [Command::Stop(StopReason::FramesLost { found: None, known })]);
}

#[test]
fn frames_that_end_before_a_published_beat_stop_the_node_after_half_a_minute() {
    let mut other = node("o");
    other.lead(leader(1), None);
    let first = other.publish_due_beat();
    let known = BeatIndex::ZERO.plus(7);
    for (published, reported) in [(Some(known), None), (None, Some(known))] {
        let mut node = node("a");
        if let Some(beat) = published {
            node.core.remember(beat);
        }
        node.on(leader(1));
        node.answer_quorum_check(true);
        let tail = || {
            Event::Kafka(KafkaResponse::Tail {
                frame: Some(Box::new(first.clone())),
                open_frame: None,
                newest_reported: reported,
            })
        };
        assert_eq!(node.on(tail()), [Command::Kafka(KafkaCommand::CloseProducer)], "it pauses and tries again");
        node.at(31_000).on(Event::Elapsed);
        node.answer_quorum_check(true);
        let stop = node.on(tail());
        let found = Some(first.beat_index);
        assert_eq!(stop, [Command::Stop(StopReason::FramesLost { found, known })]);
    }
}

#[test]
fn wall_clock_that_jumped_back_delays_a_beat_by_little_more_than_a_period() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    node.publish_due_beat();
    let behind = Now { wall_micros: -300_000_000, ..at(1_010) };
    node.core.on(Event::Kafka(KafkaResponse::Committed), behind, &Boundary::default());
    let State::Waiting { due, .. } = node.core.state else { panic!("not waiting") };
    assert_eq!(due, Duration::from_millis(2_135));
}

fn change(bpm: &str, ramp: bool) -> PlanRequest {
    PlanRequest::Change { tempo: Some(tempo(bpm)), ramp, bar_length: None }
}

#[test]
fn refused_change_names_what_is_allowed() {
    let mut node = node("a");
    let too_early = node.core.propose(change("60", false)).expect_err("not leading yet");
    assert_eq!(too_early.to_string(), "this node is not publishing beats");
    node.at(1_000).lead(leader(1), None);
    node.publish_due_beat();
    node.on(Event::Kafka(KafkaResponse::Committed));
    let refused =
        |node: &mut Node, request| node.core.propose(request).expect_err("the request is refused").to_string();
    assert_eq!(refused(&mut node, change("121", true)), "tempo 121 BPM is out of bounds; must be 1 to 120 BPM");
    assert_eq!(
        refused(&mut node, change("66.001", false)),
        "tempo 66.001 BPM is more than 10 % from the current 60 BPM; must be 54 to 66 BPM without a ramp \
         (\"ramp\": true), which changes it by 10 % a bar"
    );
    assert_eq!(refused(&mut node, PlanRequest::Cancel), "no change is pending");
    let no_bar = PlanRequest::Change { tempo: None, ramp: false, bar_length: Some(0) };
    assert!(refused(&mut node, no_bar).starts_with("bar_length 0 is out of range"));
}

#[test]
fn change_while_another_is_pending_is_refused() {
    let mut node = node("a");
    node.at(1_000).lead(leader(1), None);
    node.publish_due_beat();
    node.on(Event::Kafka(KafkaResponse::Committed));
    let plan = node.core.propose(change("120", true)).expect("the change is accepted");
    assert_eq!(plan, Plan { from: BeatIndex::ZERO.plus(4), tempo: tempo("120"), bar_length: 4 });
    assert_eq!(node.core.propose(change("60", false)), Err(Refusal::Unavailable("another change is being proposed")));
    node.on(Event::PlanApplied(plan));
    let pending = node.core.propose(change("60", false)).expect_err("a change is pending");
    assert_eq!(pending, Refusal::Pending { plan, current: tempo("60") });
    let cancelled = node.core.propose(PlanRequest::Cancel).expect("a pending change");
    assert_eq!((cancelled.tempo, cancelled.from.get()), (tempo("60"), 0));
    node.on(Event::PlanApplied(cancelled));
    assert!(node.core.propose(change("66", false)).is_ok());
}

#[test]
fn accepted_change_takes_effect_no_sooner_than_promised() {
    let mut node = node("a");
    node.at(0).lead(leader(1), None);
    for beat in 0..4 {
        node.at(beat * 1_000).confirm_quorum();
        node.publish_due_beat();
        node.on(Event::Kafka(KafkaResponse::Committed));
    }
    node.at(4_000).confirm_quorum();
    let downbeat = node.publish_due_beat();
    assert!(downbeat.downbeat);
    let plan = node.core.propose(change("66", false)).expect("the change is accepted");
    assert_eq!(plan.from.get(), 8, "the downbeat in flight was built without the plan");
    node.on(Event::PlanApplied(plan));
    // The downbeat was not committed and is built again, now that the plan is known.
    node.on(Event::Kafka(KafkaResponse::InDoubt));
    node.on(Event::Kafka(KafkaResponse::TransactionsInitialized));
    let last = node.core.metronome().last().cloned();
    node.on(tail(last.as_ref()));
    node.on(Event::Kafka(KafkaResponse::BoundarySampled));
    node.answer_quorum_check(true);
    assert_eq!(node.publish_due_beat().tempo_bpm, tempo("60"));
}

#[test]
fn hlc_across_leaders_with_clocks_minutes_apart_rises() {
    let mut last: Option<BeatFrame> = None;
    for skew in [0, -300_000, 600_000, -120_000] {
        let mut node = node("a");
        let now = Now { wall_micros: (1_000_000 + skew) * 1_000, ..at(5_000) };
        let boundary = Boundary::default();
        node.core.on(leader(1), now, &boundary);
        let confirmed =
            |node: &Node| Event::QuorumChecked { check_id: node.core.quorum_checks.last_id(), confirmed: true };
        node.core.on(confirmed(&node), now, &boundary);
        for event in [
            tail(last.as_ref()),
            Event::Kafka(KafkaResponse::TransactionsInitialized),
            tail(last.as_ref()),
            Event::Kafka(KafkaResponse::BoundarySampled),
        ] {
            node.core.on(event, now, &boundary);
        }
        node.core.on(confirmed(&node), now, &boundary);
        let due = Now {
            monotonic: node.core.deadline().expect("a deadline").max(now.monotonic) + Duration::from_secs(1),
            ..now
        };
        node.core.on(Event::Elapsed, due, &boundary);
        let commands = node.core.on(Event::Elapsed, due, &boundary);
        let commands = if commands.is_empty() { node.core.on(confirmed(&node), due, &boundary) } else { commands };
        let State::Publishing(frame) = &node.core.state else {
            panic!("expected a frame to be published, not {commands:?}")
        };
        if let Some(last) = &last {
            assert!(frame.hlc.is_after(last.hlc));
            assert!(frame.scheduled_at > last.scheduled_at);
            assert!(frame.deadline_at > Timestamp::from_millis(0));
        }
        last = Some((**frame).clone());
    }
}
