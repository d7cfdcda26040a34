//! `make chaos KILLS=1000 SEED=1 LOAD=2`: pulse, reverb and agents under that many faults, then all reports compared with
//! the oracle's.

#![allow(clippy::print_stdout, reason = "the result is the output")]

use backbeat_tests::{Chaos, percentile};

fn main() {
    let number = |name: &str, default: u64| {
        let text = std::env::var(name).ok().filter(|text| !text.is_empty());
        text.map_or(default, |text| text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
    };
    let chaos = Chaos {
        faults: number("KILLS", 50) as usize,
        seed: number("SEED", 1),
        load: number("LOAD", 0) as usize,
        agents: number("AGENTS", 100) as usize,
    };
    let result = chaos.run();
    println!("faults: {:?}", result.faults);
    println!("{} reports of {} claims, all equal to the oracle's", result.reports, result.claims);
    println!("{} takeovers or renewals of the merge, {} shares rescued", result.merging_records, result.rescued);
    println!(
        "from a window's closing frame to its report, without the hangs of kafka: p50 {:.0} ms, p90 {:.0} ms, p99 {:.0} ms, longest {:.0} ms",
        percentile(&result.delays_ms, 50),
        percentile(&result.delays_ms, 90),
        percentile(&result.delays_ms, 99),
        percentile(&result.delays_ms, 100),
    );
}
