//! Keeps the line fresh in the background, so that drawing it costs a beat no jitter.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backbeat_broker::ClaimEnds;
use rand::Rng;

use crate::core::Line;

const QUERY_TIMEOUT: Duration = Duration::from_secs(2);
/// At least this often, whatever the tempo.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// Added partitions and moved leaders are seen within this.
const METADATA_EVERY: Duration = Duration::from_secs(5);
/// A log end below the line for this long is no stale answer: the topic was lost or made anew.
const LOST_AFTER: Duration = Duration::from_secs(30);

/// The line as it was last drawn.
#[derive(Debug, Clone, Default)]
struct Drawn {
    line: Line,
    /// When the newest complete answer was asked for.
    asked: Option<Instant>,
    /// Since when a partition's end lies below its line, and how.
    below: BTreeMap<i32, (Instant, i64)>,
}

/// A partition of `statusclaims` that ends before offsets it once had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "statusclaims-{partition} ends at offset {end}, below the line {line} already drawn, for over 30 s: \
     the topic was lost or made anew, and its claims no longer match the beats"
)]
pub(crate) struct LogLost {
    partition: i32,
    end: i64,
    line: i64,
}

/// A thread that draws lines. It ends when this is dropped.
pub(crate) struct Lines {
    drawn: Arc<Mutex<Drawn>>,
    wake: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Lines {
    pub(crate) fn start(ends: ClaimEnds) -> std::io::Result<Self> {
        let drawn = Arc::<Mutex<Drawn>>::default();
        let (wake, woken) = channel();
        let thread = std::thread::Builder::new().name("lines".into()).spawn({
            let drawn = Arc::clone(&drawn);
            move || keep_fresh(&ends, &drawn, &woken)
        })?;
        Ok(Self { drawn, wake: Some(wake), thread: Some(thread) })
    }

    /// Draws the line anew, now, in the background.
    pub(crate) fn refresh(&self) {
        if let Some(wake) = &self.wake {
            // The thread lives as long as we do.
            let _ = wake.send(());
        }
    }

    /// Never below `line`: the last frame's, behind which no line goes back.
    pub(crate) fn at_least(&self, line: Line) {
        let mut drawn = lock(&self.drawn);
        let mut merged = line;
        merged.advance_to(&drawn.line);
        drawn.line = merged;
    }

    /// The line, and whether it was asked for since `since`.
    pub(crate) fn current(&self, since: Instant) -> (Line, bool) {
        let drawn = lock(&self.drawn);
        (drawn.line.clone(), drawn.asked.is_some_and(|asked| asked >= since))
    }

    /// Whether claims were lost under us.
    pub(crate) fn check(&self) -> Result<(), LogLost> {
        let drawn = lock(&self.drawn);
        let lost = drawn.below.iter().find(|(_, (since, _))| since.elapsed() >= LOST_AFTER);
        lost.map_or(Ok(()), |(partition, (_, end))| {
            Err(LogLost { partition: *partition, end: *end, line: drawn.line.end(*partition).unwrap_or(0) })
        })
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn keep_fresh(ends: &ClaimEnds, drawn: &Mutex<Drawn>, woken: &Receiver<()>) {
    let mut leaders = BTreeMap::new();
    let mut leaders_as_of = None::<Instant>;
    loop {
        if leaders.is_empty() || leaders_as_of.is_none_or(|as_of| as_of.elapsed() >= METADATA_EVERY) {
            match ends.partitions(QUERY_TIMEOUT) {
                Ok(found) => {
                    leaders = found;
                    leaders_as_of = Some(Instant::now());
                }
                Err(error) => tracing::warn!(%error, "the leaders of statusclaims are not to be had now"),
            }
        }
        let asked = Instant::now();
        let answers = ends.read(&leaders, QUERY_TIMEOUT);
        let complete = !answers.is_empty() && answers.len() == leaders.values().map(Vec::len).sum::<usize>();
        if !complete {
            leaders_as_of = None;
        }
        note(&mut lock(drawn), &answers, complete.then_some(asked));
        // Spread out, so that nodes which started together do not ask together.
        let pause = REFRESH_EVERY.mul_f64(rand::rng().random_range(0.8..1.0));
        match woken.recv_timeout(pause) {
            Ok(()) => while woken.try_recv().is_ok() {},
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn note(drawn: &mut Drawn, answers: &[(i32, i64)], asked: Option<Instant>) {
    for (partition, end) in answers {
        if drawn.line.end(*partition).is_some_and(|line| *end < line) {
            drawn.below.entry(*partition).or_insert((Instant::now(), *end)).1 = *end;
        } else {
            drawn.below.remove(partition);
        }
        drawn.line.advance(*partition, *end);
    }
    drawn.asked = asked.or(drawn.asked);
}

fn lock(drawn: &Mutex<Drawn>) -> std::sync::MutexGuard<'_, Drawn> {
    drawn.lock().unwrap_or_else(PoisonError::into_inner)
}
