//! The end of a test run that hangs.

use std::fs;
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

/// A run takes some 25 minutes, and CI ends after 90 without a word.
const LIMIT: Duration = Duration::from_mins(70);

/// Aborts the process if it still runs after 70 minutes, and prints what each of its threads does. The threads of tests are
/// named after them.
pub(crate) fn start() {
    thread::spawn(|| {
        thread::sleep(LIMIT);
        let mut lines =
            vec![format!("the tests still run after {LIMIT:?}; threads by id, name, kernel function, system call:")];
        for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let [name, function, call] = ["comm", "wchan", "syscall"]
                .map(|file| fs::read_to_string(task.path().join(file)).unwrap_or_default().trim().to_owned());
            lines.push(format!("{} {name} {function} {call}", task.file_name().display()));
        }
        // Not by `eprintln`, whose output belongs to the test that started this thread, and would be lost with it.
        let _ = writeln!(io::stderr(), "{}", lines.join("\n"));
        std::process::abort();
    });
}
