//! A whole group of reverb's cores in a world that fails, from a seed: crashes, rebalances, zombies, resets,
//! retention, lost and repeated partials. The same seed gives the same trace, byte for byte.
//!
//! `make simulate SEEDS=100000` runs more of them; `FIRST=17 SEEDS=1` one, whose trace it prints.

mod kafka;
mod member;
mod merger;
mod model;
mod world;

use backbeat_simulation::{Run, assert_same_trace, is_caught, over_seeds};
use world::{Sabotage, World};

/// What `make test` runs.
const SEEDS: u64 = 300;

/// Runs a seed to its end.
fn run(seed: u64, sabotage: Option<Sabotage>) -> Run {
    let mut world = World::new(seed, sabotage);
    let outcome = world.run();
    (world.into_trace(), outcome)
}

#[test]
fn whatever_fails_every_window_has_one_report_and_the_right_one() {
    let (seeds, reports) = over_seeds(SEEDS, |seed| run(seed, None));
    assert!(reports > 20 * seeds, "{reports} reports in {seeds} seeds are too few to show anything");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    assert_same_trace(1..4, |seed| run(seed, None));
}

/// Each invariant, broken on purpose, is seen to be broken by the check that is there for it.
#[test]
fn every_check_notices_what_it_is_there_for() {
    let caught = |sabotage: &Sabotage| is_caught(sabotage.caught_by(), 40, |seed| run(seed, Some(*sabotage)));
    let missed: Vec<Sabotage> = Sabotage::ALL.into_iter().filter(|sabotage| !caught(sabotage)).collect();
    assert!(missed.is_empty(), "not caught by the check that is there for it: {missed:?}");
}
