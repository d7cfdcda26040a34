//! Three nodes' cores in a world that fails, from a seed: crashes, pauses, partitions, wrong clocks,
//! commits in doubt. The same seed gives the same trace, byte for byte.
//!
//! `make simulate SEEDS=100000` runs more of them; `FIRST=17 SEEDS=1` one, whose trace it prints.

#![allow(clippy::print_stdout, reason = "a trace that was asked for is the output")]

mod checks;
mod kafka;
mod raft;
mod world;

use std::env;
use std::fmt::Write as _;
use std::thread;

use checks::Violation;
use world::{Sabotage, World};

/// What `make test` runs.
const SEEDS: u64 = 400;

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// Runs a seed to its end: its trace, and what it broke.
fn run(seed: u64, sabotage: Option<Sabotage>) -> (String, Result<u64, Violation>) {
    let mut world = World::new(seed, sabotage);
    let outcome = world.run();
    (world.into_trace(), outcome)
}

#[test]
fn whatever_fails_the_beats_go_on_as_they_must() {
    let first = number("FIRST").unwrap_or(0);
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let workers = thread::available_parallelism().map_or(1, usize::from) as u64;
    let work = |worker: u64| {
        let mut beats = 0;
        for seed in (first..first + seeds).filter(|seed| seed % workers == worker) {
            let (trace, outcome) = run(seed, None);
            match outcome {
                Ok(committed) => beats += committed,
                Err(violation) => panic!("seed {seed}: {violation}\nthe end of its trace:\n{}", end(&trace)),
            }
            if seeds == 1 {
                println!("{trace}");
            }
        }
        beats
    };
    let beats: u64 = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        workers.into_iter().map(|worker| worker.join().expect("a seed failed: see above")).sum()
    });
    assert!(beats > 20 * seeds, "{beats} beats in {seeds} seeds are too few to show anything");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [1, 2, 3] {
        let (first, _) = run(seed, None);
        let (second, _) = run(seed, None);
        assert!(first.len() > 10_000);
        assert!(first == second, "seed {seed} gave two traces");
    }
}

/// Each invariant, broken on purpose, is seen to be broken by the check that is there for it.
#[test]
fn every_check_notices_what_it_is_there_for() {
    let mut missed = String::new();
    for sabotage in Sabotage::ALL {
        let caught = (0..20).find_map(|seed| run(seed, Some(sabotage)).1.err());
        if caught.as_ref().map(|violation| violation.check) != Some(sabotage.caught_by()) {
            writeln!(missed, "{sabotage:?} should be caught by {}: {caught:?}", sabotage.caught_by())
                .expect("a string");
        }
    }
    assert!(missed.is_empty(), "{missed}");
}

fn end(trace: &str) -> String {
    let lines: Vec<&str> = trace.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
