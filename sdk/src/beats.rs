//! The beats as an agent hears them, and as it keeps them where it hears none.

use std::time::{Duration, Instant};

use backbeat_broker::{Broker, LogReader, ReadError, Registry, TopicName};
use backbeat_schemas::{BeatFrame, BeatIndex};
use tokio::runtime::Handle;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};

use crate::clock::{Beat, BeatClock};

/// Beats that a listener may lag behind before it misses some.
const MAX_BEHIND: usize = 1_024;
/// Frames on their way from the reader to the clock.
const MAX_AHEAD: usize = 256;
const POLL: Duration = Duration::from_millis(100);
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A stream of beats: heard ones, their indices strictly rising, and local ones where none is heard in time.
///
/// Each clone is a listener of its own, from the next beat on. Whoever is slow misses beats, but no period: the next
/// beat that it gets stands for those it missed, too.
pub struct Beats {
    stream: broadcast::Receiver<(Beat, u64)>,
    /// Periods since the stream began.
    periods: watch::Receiver<u64>,
    /// How many of them this listener was told of.
    told: u64,
}

impl Clone for Beats {
    fn clone(&self) -> Self {
        let periods = self.periods.clone();
        let told = *periods.borrow();
        Self { stream: self.stream.resubscribe(), periods, told }
    }
}

impl Beats {
    pub(crate) fn start(broker: &Broker, registry: &Registry, runtime: &Handle) -> Result<Self, ReadError> {
        let reader = LogReader::new(broker, registry, runtime, TopicName::BeatFrames)?;
        let (heard, frames) = mpsc::channel(MAX_AHEAD);
        let (sender, stream) = broadcast::channel(MAX_BEHIND);
        let (total, periods) = watch::channel(0);
        runtime.spawn_blocking(move || listen(reader, &heard));
        runtime.spawn(keep(frames, sender, total));
        Ok(Self { stream, periods, told: 0 })
    }

    /// The next beat; `None` once the runtime shuts down.
    pub async fn next(&mut self) -> Option<Beat> {
        loop {
            match self.stream.recv().await {
                Ok((beat, total)) => {
                    let periods = u32::try_from(total - self.told).unwrap_or(u32::MAX);
                    self.told = total;
                    return Some(Beat { periods, ..beat });
                }
                Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "too slow for the beats"),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Periods that this listener was told of.
    pub(crate) fn told(&self) -> u64 {
        self.told
    }

    /// Periods that have gone by since the stream began, and how they go on.
    pub(crate) fn periods(&self) -> watch::Receiver<u64> {
        self.periods.clone()
    }
}

/// Keeps the beat for as long as somebody listens.
async fn keep(mut frames: mpsc::Receiver<BeatFrame>, beats: broadcast::Sender<(Beat, u64)>, total: watch::Sender<u64>) {
    let began = Instant::now();
    let mut clock = BeatClock::new(Duration::ZERO);
    loop {
        let overdue_at = tokio::time::Instant::from_std(began + clock.overdue_at());
        let beat = tokio::select! {
            frame = frames.recv() => match frame {
                Some(frame) => clock.heard(frame, began.elapsed()),
                None => return,
            },
            () = tokio::time::sleep_until(overdue_at) => clock.overdue(began.elapsed()),
        };
        let Some(beat) = beat else { continue };
        let periods = *total.borrow() + u64::from(beat.periods);
        // Counted first: whoever hears the beat finds its period.
        total.send_replace(periods);
        let listened = beats.send((beat, periods)).is_ok();
        if !listened && total.is_closed() {
            return;
        }
    }
}

/// Reads frames until nobody hears them.
fn listen(mut reader: LogReader<BeatFrame>, heard: &mpsc::Sender<BeatFrame>) {
    let mut last = None::<BeatIndex>;
    while !heard.is_closed() {
        if let Err(error) = follow(&mut reader, heard, &mut last) {
            tracing::warn!(%error, "reading beats");
            std::thread::sleep(RETRY_PAUSE);
        }
    }
}

fn follow(
    reader: &mut LogReader<BeatFrame>,
    heard: &mpsc::Sender<BeatFrame>,
    last: &mut Option<BeatIndex>,
) -> Result<(), ReadError> {
    // The newest beat is the present one, unless it was heard before an error.
    let newest = reader.last()?;
    let start = match &newest {
        Some(entry) => entry.offset,
        None => reader.low()?,
    };
    reader.seek(start)?;
    while !heard.is_closed() {
        let Some(entry) = reader.poll(POLL)? else { continue };
        let beat = entry.record.beat_index;
        if last.is_none_or(|last| beat > last) {
            *last = Some(beat);
            if heard.blocking_send(entry.record).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
