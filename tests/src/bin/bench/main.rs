//! `make bench`: each figure beside what it is compared to in the same run, as a table and in
//! `target/bench.json`.

#![allow(clippy::print_stdout, reason = "the table is the output")]

mod agents;
mod beats;
mod claims;
mod claims_per_second;
mod drift;
mod memory;
mod perf_test;
mod process;
mod reports;
mod reverb_takeover;
mod table;
mod takeover;

use table::Table;

/// A part's name, and what measures it.
type Part = (&'static str, fn(&mut Table));

fn main() {
    let parts: [Part; 8] = [
        ("takeover", takeover::run),
        ("beats", beats::run),
        ("claims", claims_per_second::run),
        ("reports", reports::run),
        ("reverb-takeover", reverb_takeover::run),
        ("memory", memory::run),
        ("drift", drift::run),
        ("agents", agents::run),
    ];
    let chosen: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = chosen.iter().find(|name| parts.iter().all(|(part, _)| part != name)) {
        let names = parts.map(|(name, _)| name).join(", ");
        eprintln!("no part {unknown:?}; there are {names}, all of them by default");
        std::process::exit(2);
    }
    backbeat_tests::start_stack_for_throughput();
    let mut table = Table::default();
    for (name, run) in parts {
        if chosen.is_empty() || chosen.iter().any(|chosen| chosen == name) {
            eprintln!("measuring {name}");
            run(&mut table);
        }
    }
    table.print();
    table.write();
}
