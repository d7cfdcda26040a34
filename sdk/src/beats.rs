//! The stream of beats: frames that are read from Kafka, and local beats while none arrive.

use std::time::{Duration, Instant};

use backbeat_broker::{Broker, LogReader, ReadError, Registry, TopicName};
use backbeat_schemas::{BeatFrame, BeatIndex};
use tokio::runtime::Handle;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};

use crate::clock::{Beat, BeatClock};

/// The number of beats that a listener may lag behind before it misses some.
const MAX_LAG_BEATS: usize = 1_024;
/// The number of frames queued between the reader and the clock.
const MAX_QUEUED_FRAMES: usize = 256;
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A stream of beats: heard beats, whose indices rise strictly, and local beats when a beat is overdue.
///
/// Each clone is an independent listener that starts at the next beat. A listener that lags behind by more than 1,024
/// beats misses some, but no period: [`Beat::periods`] of the next beat that it receives includes those of the beats
/// that it missed.
pub struct Beats {
    stream: broadcast::Receiver<(Beat, u64)>,
    /// The number of periods since the stream started.
    periods: watch::Receiver<u64>,
    /// The number of these periods that this listener has received.
    received_periods: u64,
}

impl Clone for Beats {
    fn clone(&self) -> Self {
        let periods = self.periods.clone();
        let received_periods = *periods.borrow();
        Self { stream: self.stream.resubscribe(), periods, received_periods }
    }
}

impl Beats {
    pub(crate) fn start(broker: &Broker, registry: &Registry, runtime: &Handle) -> Result<Self, ReadError> {
        let reader = LogReader::new(broker, registry, runtime, TopicName::BeatFrames)?;
        let (frame_sender, frames) = mpsc::channel(MAX_QUEUED_FRAMES);
        let (beat_sender, stream) = broadcast::channel(MAX_LAG_BEATS);
        let (total, periods) = watch::channel(0);
        runtime.spawn_blocking(move || read_frames(reader, &frame_sender));
        runtime.spawn(run_clock(frames, beat_sender, total));
        Ok(Self { stream, periods, received_periods: 0 })
    }

    /// Waits for the next beat. Returns `None` when the runtime shuts down.
    pub async fn next(&mut self) -> Option<Beat> {
        loop {
            match self.stream.recv().await {
                Ok((beat, total)) => {
                    let periods = u32::try_from(total - self.received_periods).unwrap_or(u32::MAX);
                    self.received_periods = total;
                    return Some(Beat { periods, ..beat });
                }
                Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "a listener was too slow and missed beats"),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Returns the number of periods that this listener has received.
    pub(crate) fn received_periods(&self) -> u64 {
        self.received_periods
    }

    /// Returns a watch on the number of periods that have passed since the stream started.
    pub(crate) fn periods(&self) -> watch::Receiver<u64> {
        self.periods.clone()
    }
}

/// Runs the clock until the last listener is dropped: publishes a beat for each frame, and local beats when one is
/// overdue.
async fn run_clock(
    mut frames: mpsc::Receiver<BeatFrame>,
    beats: broadcast::Sender<(Beat, u64)>,
    total: watch::Sender<u64>,
) {
    let started = Instant::now();
    let mut clock = BeatClock::new(Duration::ZERO);
    loop {
        let overdue_at = tokio::time::Instant::from_std(started + clock.overdue_at());
        let beat = tokio::select! {
            frame = frames.recv() => match frame {
                Some(frame) => clock.on_frame(frame, started.elapsed()),
                None => return,
            },
            () = tokio::time::sleep_until(overdue_at) => clock.on_timer(started.elapsed()),
        };
        let Some(beat) = beat else { continue };
        let periods = *total.borrow() + u64::from(beat.periods);
        // Count first, so that a listener that receives the beat finds its period counted.
        total.send_replace(periods);
        let has_listeners = beats.send((beat, periods)).is_ok();
        if !has_listeners && total.is_closed() {
            return;
        }
    }
}

/// Reads frames until the clock stops. Retries after errors.
fn read_frames(mut reader: LogReader<BeatFrame>, frames: &mpsc::Sender<BeatFrame>) {
    let mut last = None::<BeatIndex>;
    while !frames.is_closed() {
        if let Err(error) = follow_from_newest(&mut reader, frames, &mut last) {
            tracing::warn!(%error, "cannot read beats; retrying");
            std::thread::sleep(RETRY_PAUSE);
        }
    }
}

fn follow_from_newest(
    reader: &mut LogReader<BeatFrame>,
    frames: &mpsc::Sender<BeatFrame>,
    last: &mut Option<BeatIndex>,
) -> Result<(), ReadError> {
    // The newest frame is the current beat; after an error it may have been sent already.
    let newest = reader.last()?;
    let start = match &newest {
        Some(entry) => entry.offset,
        None => reader.log_start()?,
    };
    reader.seek(start)?;
    while !frames.is_closed() {
        let Some(entry) = reader.poll(POLL_TIMEOUT)? else { continue };
        let beat = entry.record.beat_index;
        if last.is_none_or(|last| beat > last) {
            *last = Some(beat);
            if frames.blocking_send(entry.record).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
