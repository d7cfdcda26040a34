//! Times, percentiles, and what a process uses, from Linux's `/proc`.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the time of the wall clock, in milliseconds since the Unix epoch.
pub fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970").as_secs_f64() * 1_000.0
}

/// Returns the smallest of `values` that at least `percent` % of them do not exceed.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

/// The user and system time that a process has used so far, in seconds.
pub fn cpu_seconds(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process exists");
    // The fields after the process name, which may contain any character: state is field 3, utime and stime are 14 and
    // 15.
    let fields: Vec<&str> = stat.rsplit(')').next().expect("stat is not empty").split_whitespace().collect();
    let ticks = |field: usize| fields[field - 3].parse::<f64>().expect("the field is a number of ticks");
    (ticks(14) + ticks(15)) / rustix::param::clock_ticks_per_second() as f64
}

/// The peak resident memory of a process, in MiB.
pub fn peak_mib(pid: i32) -> f64 {
    memory_mib(pid, "VmHWM:")
}

/// The resident memory of a process, in MiB.
pub fn resident_mib(pid: i32) -> f64 {
    memory_mib(pid, "VmRSS:")
}

fn memory_mib(pid: i32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process exists");
    let value = status.lines().find_map(|line| line.strip_prefix(field)).expect("status has the field");
    let kib: f64 = value.trim().trim_end_matches(" kB").parse().expect("the value is a number of KiB");
    kib / 1_024.0
}
