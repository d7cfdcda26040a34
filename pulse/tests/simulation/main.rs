//! Three nodes' cores in a world that fails, from a seed: crashes, pauses, partitions, wrong clocks,
//! commits in doubt. The same seed gives the same trace, byte for byte.
//!
//! `make simulate SEEDS=100000` runs more of them; `FIRST=17 SEEDS=1` one, whose trace it prints.

mod checks;
mod kafka;
mod raft;
mod world;

use backbeat_simulation::{Run, assert_same_trace, is_caught, over_seeds};
use world::{Sabotage, World};

/// What `make test` runs.
const SEEDS: u64 = 400;

/// Runs a seed to its end.
fn run(seed: u64, sabotage: Option<Sabotage>) -> Run {
    let mut world = World::new(seed, sabotage);
    let outcome = world.run();
    (world.into_trace(), outcome)
}

#[test]
fn whatever_fails_the_beats_go_on_as_they_must() {
    let (seeds, beats) = over_seeds(SEEDS, |seed| run(seed, None));
    assert!(beats > 20 * seeds, "{beats} beats in {seeds} seeds are too few to show anything");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    assert_same_trace(1..4, |seed| run(seed, None));
}

/// Each invariant, broken on purpose, is seen to be broken by the check that is there for it.
#[test]
fn every_check_notices_what_it_is_there_for() {
    let caught = |sabotage: &Sabotage| is_caught(sabotage.caught_by(), 20, |seed| run(seed, Some(*sabotage)));
    let missed: Vec<Sabotage> = Sabotage::ALL.into_iter().filter(|sabotage| !caught(sabotage)).collect();
    assert!(missed.is_empty(), "not caught by the check that is there for it: {missed:?}");
}
