//! `make bench`: measures each figure together with its baseline in the same run, and writes both as a table and to
//! `target/bench.json`.

#![allow(clippy::print_stdout, reason = "the table is the output")]

mod agents;
mod beats;
mod chart;
mod claim_source;
mod claims_per_second;
mod drift;
mod hostile;
mod memory;
mod page;
mod peers;
mod perf_test;
mod reports;
mod reverb_takeover;
mod rosters;
mod scale;
mod startup;
mod table;
mod takeover;

use table::Table;

/// A benchmark's name and its function.
type Benchmark = (&'static str, fn(&mut Table));

fn main() {
    let benchmarks: [Benchmark; 14] = [
        ("takeover", takeover::run),
        ("beats", beats::run),
        ("claims", claims_per_second::run),
        ("reports", reports::run),
        ("reverb-takeover", reverb_takeover::run),
        ("memory", memory::run),
        ("hostile", hostile::run),
        ("drift", drift::run),
        ("agents", agents::run),
        ("peers", peers::run),
        ("startup", startup::run),
        ("rosters", rosters::run),
        ("page", page::run),
        ("scale", scale::run),
    ];
    let chosen: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = chosen.iter().find(|chosen| benchmarks.iter().all(|(name, _)| name != chosen)) {
        let names = benchmarks.map(|(name, _)| name).join(", ");
        eprintln!("unknown benchmark {unknown:?}; the benchmarks are {names}; without arguments all of them run");
        std::process::exit(2);
    }
    backbeat_tests::start_stack_for_throughput();
    let mut table = Table::default();
    for (name, run) in benchmarks {
        if chosen.is_empty() || chosen.iter().any(|chosen| chosen == name) {
            eprintln!("measuring {name}");
            run(&mut table);
            // After each, because the next one may fail.
            table.write();
        }
    }
    table.print();
    println!("\nwritten to target/bench.json");
}
