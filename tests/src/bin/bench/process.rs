//! What a process uses, as Linux tells.

use std::fs;

/// User and system time of a process so far, in seconds.
pub(crate) fn cpu_seconds(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
    // After the name, which may hold anything: state is field 3, utime and stime are 14 and 15.
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    let ticks = |field: usize| fields[field - 3].parse::<f64>().expect("ticks");
    (ticks(14) + ticks(15)) / rustix::param::clock_ticks_per_second() as f64
}

/// The most memory that it had resident so far, in MiB.
pub(crate) fn peak_mib(pid: i32) -> f64 {
    memory_mib(pid, "VmHWM:")
}

/// The memory that it has resident now, in MiB.
pub(crate) fn resident_mib(pid: i32) -> f64 {
    memory_mib(pid, "VmRSS:")
}

fn memory_mib(pid: i32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("Linux says so");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib / 1_024.0
}
