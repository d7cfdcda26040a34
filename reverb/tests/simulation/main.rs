//! Simulates a whole group of reverb's cores with faults, from a seed: crashes, rebalances, zombies, resets, retention,
//! lost and repeated partials. The same seed gives the same trace, byte for byte.
//!
//! `make simulate SEEDS=100000` runs more seeds. `FIRST=17 SEEDS=1` runs one and prints its trace.

mod counts;
mod kafka;
mod member;
mod merger;
mod model;
mod timeline;
mod world;

use std::sync::Mutex;

use backbeat_simulation::{SeedResult, assert_same_trace, detects_violation, run_seeds};
use counts::Counts;
use world::{Sabotage, World};

/// The number of seeds in `make test`.
const SEEDS: u64 = 300;

/// Rare paths, each of which must be taken in the seeds of `make test`.
const RARE_PATHS: [&str; 11] = [
    "taken over",
    "fenced",
    "in doubt",
    "rescued share",
    "windows rescued together",
    "recomputed",
    "dropped",
    "skipped",
    "verified",
    "of an earlier logic",
    "of a later logic",
];

/// Runs the simulation of one seed.
fn run(seed: u64, sabotage: Option<Sabotage>) -> SeedResult {
    run_counting(seed, sabotage, &Mutex::default())
}

fn run_counting(seed: u64, sabotage: Option<Sabotage>, counts: &Mutex<Counts>) -> SeedResult {
    let mut world = World::new(seed, sabotage);
    let outcome = world.run();
    counts.lock().expect("no run has panicked").extend(&world.counts);
    (world.into_trace(), outcome)
}

#[test]
fn group_under_faults_publishes_one_correct_report_per_window() {
    let counts = Mutex::default();
    let (seeds, reports) = run_seeds(SEEDS, |seed| run_counting(seed, None, &counts));
    assert!(reports > 20 * seeds, "{reports} reports in {seeds} seeds are too few to prove anything");
    let counts = counts.into_inner().expect("no run has panicked");
    eprintln!("{seeds} seeds: {counts:?}");
    let never: Vec<&str> = RARE_PATHS.into_iter().filter(|path| counts.get(path) == 0).collect();
    assert!(never.is_empty() || seeds < SEEDS, "never happened in {seeds} seeds: {never:?}");
}

#[test]
fn same_seed_run_twice_gives_the_same_trace() {
    assert_same_trace(1..4, |seed| run(seed, None));
}

/// Breaks each invariant on purpose: the check of the invariant must fail.
#[test]
fn each_invariant_broken_on_purpose_fails_its_check() {
    let caught = |sabotage: &Sabotage| detects_violation(sabotage.caught_by(), 100, |seed| run(seed, Some(*sabotage)));
    let missed: Vec<Sabotage> = Sabotage::ALL.into_iter().filter(|sabotage| !caught(sabotage)).collect();
    assert!(missed.is_empty(), "not caught by its check: {missed:?}");
}
