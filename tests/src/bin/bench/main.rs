//! `make bench`: each figure beside what it is compared to in the same run, as a table and in
//! `target/bench.json`.

#![allow(clippy::print_stdout, reason = "the table is the output")]

mod claims_per_second;
mod table;

use table::Table;

fn main() {
    backbeat_tests::start_stack_for_throughput();
    let mut table = Table::default();
    claims_per_second::run(&mut table);
    table.print();
    table.write();
}
