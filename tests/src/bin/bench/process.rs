//! CPU time and memory of a process, from Linux's `/proc`.

use std::fs;

/// The user and system time that a process has used so far, in seconds.
pub(crate) fn cpu_seconds(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process exists");
    // The fields after the process name, which may contain any character: state is field 3, utime and stime are 14 and
    // 15.
    let fields: Vec<&str> = stat.rsplit(')').next().expect("stat is not empty").split_whitespace().collect();
    let ticks = |field: usize| fields[field - 3].parse::<f64>().expect("the field is a number of ticks");
    (ticks(14) + ticks(15)) / rustix::param::clock_ticks_per_second() as f64
}

/// The peak resident memory of a process, in MiB.
pub(crate) fn peak_mib(pid: i32) -> f64 {
    memory_mib(pid, "VmHWM:")
}

/// The resident memory of a process, in MiB.
pub(crate) fn resident_mib(pid: i32) -> f64 {
    memory_mib(pid, "VmRSS:")
}

fn memory_mib(pid: i32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process exists");
    let value = status.lines().find_map(|line| line.strip_prefix(field)).expect("status has the field");
    let kib: f64 = value.trim().trim_end_matches(" kB").parse().expect("the value is a number of KiB");
    kib / 1_024.0
}
