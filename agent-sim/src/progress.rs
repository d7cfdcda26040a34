//! The progress line of a run on the terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::summary::Summary;

/// The progress line; not shown if standard error is not a terminal.
pub(crate) struct Progress {
    line: ProgressBar,
    /// The time of the last update, and the claims acknowledged by then.
    last: (Instant, u64),
}

impl Progress {
    pub(crate) fn new() -> Self {
        let style = ProgressStyle::with_template("{msg}").expect("the template is valid");
        Self { line: ProgressBar::new_spinner().with_style(style), last: (Instant::now(), 0) }
    }

    pub(crate) fn show(&mut self, summary: &Summary) {
        let Some(beat) = summary.beat_index else { return self.line.set_message("no beat yet") };
        let (at, before) = self.last;
        let elapsed = at.elapsed().max(Duration::from_millis(1)).as_secs_f64();
        let rate = (summary.claims_acknowledged - before) as f64 / elapsed;
        self.last = (Instant::now(), summary.claims_acknowledged);
        self.line.set_message(format!(
            "beat {beat}: {} claims acknowledged, {rate:.0}/s; {} in flight; {} failed; p99 {:.1} ms",
            summary.claims_acknowledged, summary.claims_outstanding, summary.claims_failed, summary.latency_ms.p99
        ));
    }

    pub(crate) fn clear(&self) {
        self.line.finish_and_clear();
    }
}
