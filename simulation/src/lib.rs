//! The harness of the simulations of pulse and of reverb: runs over seeds, traces, violations of invariants, and a test
//! that each check detects the violation that it is meant for.
//!
//! `make simulate SEEDS=100000` runs more seeds; `make simulate FIRST=17 SEEDS=1` runs one and prints its trace.

#![allow(clippy::print_stdout, reason = "the trace of a single seed is the output")]

use std::fmt;
use std::thread;

/// The number of trace lines printed for a seed that failed.
const TRACE_TAIL_LINES: usize = 60;

/// A violated invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The name of the check that found it.
    pub check: &'static str,
    /// The observed state.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.detail)
    }
}

/// Returns a violation of `check` unless `holds`.
pub fn ensure(holds: bool, check: &'static str, detail: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { check, detail: detail() }) }
}

/// The result of one seed: its trace, and either its count of outputs (such as beats or reports) or the violated
/// invariant.
pub type SeedResult = (String, Result<u64, Violation>);

/// Runs seeds on all cores, and returns their number and the sum of their counts of outputs. The environment variable
/// `SEEDS` overrides the `default` number of seeds; `FIRST` is the first seed, 0 by default.
///
/// # Panics
///
/// If a seed violates an invariant; the message has the end of its trace.
pub fn run_seeds(default: u64, run: impl Fn(u64) -> SeedResult + Sync) -> (u64, u64) {
    let first = env_number("FIRST").unwrap_or(0);
    let seeds = env_number("SEEDS").unwrap_or(default);
    let workers = thread::available_parallelism().map_or(1, usize::from) as u64;
    let work = |worker: u64| {
        let mut sum = 0;
        for seed in (first..first + seeds).filter(|seed| seed % workers == worker) {
            let (trace, outcome) = run(seed);
            match outcome {
                Ok(count) => sum += count,
                Err(violation) => panic!("seed {seed}: {violation}\nthe end of its trace:\n{}", tail(&trace)),
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

/// Asserts that each seed gives the same trace twice, byte for byte.
///
/// # Panics
///
/// If the traces of a seed differ, or are too short to show anything.
pub fn assert_same_trace(seeds: impl IntoIterator<Item = u64>, run: impl Fn(u64) -> SeedResult) {
    for seed in seeds {
        let (first, second) = (run(seed).0, run(seed).0);
        assert!(first.len() > 10_000, "the trace of seed {seed} is too short");
        assert!(first == second, "seed {seed} gave two different traces");
    }
}

/// Returns true if `check` reports a violation in at least one of the first `seeds` seeds.
pub fn detects_violation(check: &'static str, seeds: u64, run: impl Fn(u64) -> SeedResult) -> bool {
    (0..seeds).filter_map(|seed| run(seed).1.err()).any(|violation| violation.check == check)
}

fn env_number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

fn tail(trace: &str) -> String {
    let lines: Vec<&str> = trace.lines().collect();
    lines[lines.len().saturating_sub(TRACE_TAIL_LINES)..].join("\n")
}
