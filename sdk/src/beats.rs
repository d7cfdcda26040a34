//! The beats as an agent hears them.

use std::time::Duration;

use backbeat_broker::{Broker, LogReader, ReadError, Registry, TopicName};
use backbeat_schemas::{BeatFrame, BeatIndex};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Beats that an agent may lag behind before the reader waits for it.
const MAX_AHEAD: usize = 256;
const POLL: Duration = Duration::from_millis(100);
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A stream of frames, their indices strictly rising.
pub struct Beats {
    frames: Receiver<BeatFrame>,
}

impl Beats {
    pub(crate) fn start(broker: &Broker, registry: &Registry, runtime: &Handle) -> Result<Self, ReadError> {
        let reader = LogReader::new(broker, registry, runtime, TopicName::BeatFrames)?;
        let (heard, frames) = channel(MAX_AHEAD);
        runtime.spawn_blocking(move || listen(reader, &heard));
        Ok(Self { frames })
    }

    /// The next beat.
    pub async fn next(&mut self) -> Option<BeatFrame> {
        self.frames.recv().await
    }
}

/// Reads frames until nobody hears them.
fn listen(mut reader: LogReader<BeatFrame>, heard: &Sender<BeatFrame>) {
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
    heard: &Sender<BeatFrame>,
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
