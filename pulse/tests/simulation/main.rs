//! Simulates the cores of three nodes under random faults: crashes, pauses, partitions, wrong clocks, commits in
//! doubt. The same seed gives the same trace, byte for byte.
//!
//! `make simulate SEEDS=100000` runs more of them; `FIRST=17 SEEDS=1` one, whose trace it prints.

mod checks;
mod kafka;
mod raft;
mod world;

use backbeat_simulation::{SeedResult, assert_same_trace, detects_violation, run_seeds};
use world::{Sabotage, World};

/// The number of seeds that `make test` runs.
const SEEDS: u64 = 400;

/// Runs a seed to its end.
fn run(seed: u64, sabotage: Option<Sabotage>) -> SeedResult {
    let mut world = World::new(seed, sabotage);
    let outcome = world.run();
    (world.into_trace(), outcome)
}

#[test]
fn beats_under_faults_keep_the_invariants() {
    let (seeds, beats) = run_seeds(SEEDS, |seed| run(seed, None));
    assert!(beats > 20 * seeds, "{beats} beats in {seeds} seeds are too few to test the invariants");
}

#[test]
fn trace_of_the_same_seed_is_the_same() {
    assert_same_trace(1..4, |seed| run(seed, None));
}

/// Each invariant, violated on purpose, is reported by its check.
#[test]
fn sabotage_of_an_invariant_is_caught_by_its_check() {
    let caught = |sabotage: &Sabotage| detects_violation(sabotage.caught_by(), 20, |seed| run(seed, Some(*sabotage)));
    let missed: Vec<Sabotage> = Sabotage::ALL.into_iter().filter(|sabotage| !caught(sabotage)).collect();
    assert!(missed.is_empty(), "not caught by the check of the invariant: {missed:?}");
}
