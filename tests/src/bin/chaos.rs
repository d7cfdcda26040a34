//! `make chaos KILLS=1000 SEED=1 LOAD=2`: pulse, reverb and agents under that many faults, then all reports compared with
//! the oracle's.

#![allow(clippy::print_stdout, reason = "the result is the output")]

use backbeat_tests::Chaos;

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
    let percentile = |percent: usize| {
        let delays = &result.delays_ms;
        delays.get((delays.len() * percent / 100).min(delays.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    };
    println!("faults: {:?}", result.faults);
    println!("{} reports of {} claims, all equal to the oracle's", result.reports, result.claims);
    println!("{} takeovers or renewals of the merge, {} shares rescued", result.merging_records, result.rescued);
    println!(
        "from a window's closing frame to its report, without the hangs of kafka: p50 {:.0} ms, p90 {:.0} ms, p99 {:.0} ms, longest {:.0} ms",
        percentile(50),
        percentile(90),
        percentile(99),
        percentile(100),
    );
}
