//! Simulates a whole group of reverb's cores with faults, from a seed: crashes, rebalances, zombies, resets, retention,
//! lost and repeated partials. The same seed gives the same trace, byte for byte.
//!
//! `make simulate SEEDS=100000` runs more seeds. `FIRST=17 SEEDS=1` runs one and prints its trace.

mod kafka;
mod member;
mod merger;
mod model;
mod world;

use backbeat_simulation::{SeedResult, assert_same_trace, detects_violation, run_seeds};
use world::{Sabotage, World};

/// The number of seeds in `make test`.
const SEEDS: u64 = 300;

/// Runs the simulation of one seed.
fn run(seed: u64, sabotage: Option<Sabotage>) -> SeedResult {
    let mut world = World::new(seed, sabotage);
    let outcome = world.run();
    (world.into_trace(), outcome)
}

#[test]
fn group_under_faults_publishes_one_correct_report_per_window() {
    let (seeds, reports) = run_seeds(SEEDS, |seed| run(seed, None));
    assert!(reports > 20 * seeds, "{reports} reports in {seeds} seeds are too few to prove anything");
}

#[test]
fn same_seed_run_twice_gives_the_same_trace() {
    assert_same_trace(1..4, |seed| run(seed, None));
}

/// Breaks each invariant on purpose: the check of the invariant must fail.
#[test]
fn each_invariant_broken_on_purpose_fails_its_check() {
    let caught = |sabotage: &Sabotage| detects_violation(sabotage.caught_by(), 40, |seed| run(seed, Some(*sabotage)));
    let missed: Vec<Sabotage> = Sabotage::ALL.into_iter().filter(|sabotage| !caught(sabotage)).collect();
    assert!(missed.is_empty(), "not caught by its check: {missed:?}");
}
