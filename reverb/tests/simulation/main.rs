//! A whole group of reverb's cores in a world that fails, from a seed: crashes, rebalances, zombies, resets,
//! retention, lost and repeated partials. The same seed gives the same trace, byte for byte.
//!
//! `make simulate SEEDS=100000` runs more of them; `FIRST=17 SEEDS=1` one, whose trace it prints.

#![allow(clippy::print_stdout, reason = "a trace that was asked for is the output")]

mod kafka;
mod member;
mod merger;
mod model;
mod world;

use std::env;
use std::fmt::Write as _;
use std::thread;

use model::Violation;
use world::{Sabotage, World};

/// What `make test` runs.
const SEEDS: u64 = 300;

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// Runs a seed to its end: its trace, and what it broke.
fn run(seed: u64, sabotage: Option<Sabotage>) -> (String, Result<usize, Violation>) {
    let mut world = World::new(seed, sabotage);
    let outcome = world.run();
    (world.into_trace(), outcome)
}

#[test]
fn whatever_fails_every_window_has_one_report_and_the_right_one() {
    let first = number("FIRST").unwrap_or(0);
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let workers = thread::available_parallelism().map_or(1, usize::from) as u64;
    let work = |worker: u64| {
        let mut reports = 0;
        for seed in (first..first + seeds).filter(|seed| seed % workers == worker) {
            let (trace, outcome) = run(seed, None);
            match outcome {
                Ok(found) => reports += found as u64,
                Err(violation) => panic!("seed {seed}: {violation}\nthe end of its trace:\n{}", end(&trace)),
            }
            if seeds == 1 {
                println!("{trace}");
            }
        }
        reports
    };
    let reports: u64 = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        workers.into_iter().map(|worker| worker.join().expect("a seed failed: see above")).sum()
    });
    assert!(reports > 20 * seeds, "{reports} reports in {seeds} seeds are too few to show anything");
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
        let mut violations = (0..40).filter_map(|seed| run(seed, Some(sabotage)).1.err());
        if !violations.any(|violation| violation.check == sabotage.caught_by()) {
            writeln!(missed, "{sabotage:?} should be caught by {}", sabotage.caught_by()).expect("a string");
        }
    }
    assert!(missed.is_empty(), "{missed}");
}

fn end(trace: &str) -> String {
    let lines: Vec<&str> = trace.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
