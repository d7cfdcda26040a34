//! `make bench`: each figure beside what it is compared to in the same run, as a table and in
//! `target/bench.json`.

#![allow(clippy::print_stdout, reason = "the table is the output")]

mod claims_per_second;
mod table;

use table::Table;

fn main() {
    // `cargo test --benches` and the like only want to know that it builds.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    backbeat_tests::start_stack_for_throughput();
    let mut table = Table::default();
    claims_per_second::run(&mut table);
    table.print();
    table.write();
}
