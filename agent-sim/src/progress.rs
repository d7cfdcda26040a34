//! A line on the terminal that says how far a run is.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::summary::Summary;

/// The line. Where standard error is no terminal, there is none.
pub(crate) struct Progress {
    line: ProgressBar,
    /// When it was last shown, and the claims acknowledged by then.
    last: (Instant, u64),
}

impl Progress {
    pub(crate) fn new() -> Self {
        let style = ProgressStyle::with_template("{msg}").expect("a template");
        Self { line: ProgressBar::new_spinner().with_style(style), last: (Instant::now(), 0) }
    }

    pub(crate) fn show(&mut self, summary: &Summary) {
        let Some(beat) = summary.beat_index else { return self.line.set_message("no beat yet") };
        let (at, before) = self.last;
        let passed = at.elapsed().max(Duration::from_millis(1)).as_secs_f64();
        let rate = (summary.claims_acknowledged - before) as f64 / passed;
        self.last = (Instant::now(), summary.claims_acknowledged);
        self.line.set_message(format!(
            "beat {beat}: {} claims acknowledged, {rate:.0} a second; {} on their way; {} failed; p99 {:.1} ms",
            summary.claims_acknowledged, summary.claims_unsent, summary.claims_failed, summary.latency_ms.p99
        ));
    }

    pub(crate) fn clear(&self) {
        self.line.finish_and_clear();
    }
}
