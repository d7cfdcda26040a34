//! What the simulations of pulse and of reverb share: seeds, traces, violations, and checks that are seen to check.
//!
//! `make simulate SEEDS=100000` runs more seeds; `FIRST=17 SEEDS=1` one, whose trace it prints.

#![allow(clippy::print_stdout, reason = "a trace that was asked for is the output")]

use std::fmt;
use std::thread;

/// Trace lines shown of a seed that failed.
const TRACE_END: usize = 60;

/// An invariant, broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which check says so.
    pub check: &'static str,
    /// What it saw.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.detail)
    }
}

/// A violation of `check`, unless it holds.
pub fn ensure(holds: bool, check: &'static str, detail: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { check, detail: detail() }) }
}

/// A run's trace, and how much came of it or what it broke.
pub type Run = (String, Result<u64, Violation>);

/// Runs seeds on all cores, as many as `SEEDS` says or `default`, and returns their count and the sum of what came
/// of them.
///
/// # Panics
///
/// If one of them breaks something, with the end of its trace.
pub fn over_seeds(default: u64, run: impl Fn(u64) -> Run + Sync) -> (u64, u64) {
    let first = number("FIRST").unwrap_or(0);
    let seeds = number("SEEDS").unwrap_or(default);
    let workers = thread::available_parallelism().map_or(1, usize::from) as u64;
    let work = |worker: u64| {
        let mut sum = 0;
        for seed in (first..first + seeds).filter(|seed| seed % workers == worker) {
            let (trace, outcome) = run(seed);
            match outcome {
                Ok(came) => sum += came,
                Err(violation) => panic!("seed {seed}: {violation}\nthe end of its trace:\n{}", end(&trace)),
            }
            if seeds == 1 {
                println!("{trace}");
            }
        }
        sum
    };
    let sum = thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        workers.into_iter().map(|worker| worker.join().expect("a seed failed: see above")).sum()
    });
    (seeds, sum)
}

/// Checks that a seed gives the same trace twice, byte for byte.
///
/// # Panics
///
/// If it does not.
pub fn assert_same_trace(seeds: impl IntoIterator<Item = u64>, run: impl Fn(u64) -> Run) {
    for seed in seeds {
        let (first, second) = (run(seed).0, run(seed).0);
        assert!(first.len() > 10_000, "seed {seed} has hardly a trace");
        assert!(first == second, "seed {seed} gave two traces");
    }
}

/// Whether, in one of a few seeds, `run` breaks the invariant of `check`.
pub fn is_caught(check: &'static str, seeds: u64, run: impl Fn(u64) -> Run) -> bool {
    (0..seeds).filter_map(|seed| run(seed).1.err()).any(|violation| violation.check == check)
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

fn end(trace: &str) -> String {
    let lines: Vec<&str> = trace.lines().collect();
    lines[lines.len().saturating_sub(TRACE_END)..].join("\n")
}
