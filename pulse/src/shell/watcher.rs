//! The watcher thread: reads the committed frames of all nodes. The core needs them because a node that knows no leader
//! takes over only if beats are missing; the status shows the newest frame, and a file keeps its beat.

use std::sync::mpsc::Sender;
use std::time::Duration;

use backbeat_broker::{Broker, LogReader, ReadError, Registry, TopicName};
use backbeat_schemas::BeatFrame;
use backbeat_service::Shutdown;
use tokio::runtime::Handle;

use super::conductor::ConductorInput;
use super::newest_beat::NewestBeat;
use super::status::SharedStatus;
use crate::core::Event;

const POLL: Duration = Duration::from_millis(100);
const RETRY_PAUSE: Duration = Duration::from_millis(500);

pub(crate) struct Watcher {
    frames: LogReader<BeatFrame>,
    status: SharedStatus,
    newest_beat: NewestBeat,
}

impl Watcher {
    /// Creates the watcher; call inside a Tokio runtime.
    pub(crate) fn new(
        broker: &Broker,
        registry: &Registry,
        status: SharedStatus,
        newest_beat: NewestBeat,
    ) -> Result<Self, ReadError> {
        let frames = LogReader::new(broker, registry, &Handle::current(), TopicName::BeatFrames)?;
        Ok(Self { frames, status, newest_beat })
    }

    /// Reads until `shutdown`.
    pub(crate) fn run(mut self, conductor: &Sender<ConductorInput>, shutdown: &Shutdown) {
        while !shutdown.is_cancelled() {
            if let Err(error) = self.read_frames(conductor, shutdown) {
                tracing::warn!(%error, "cannot read beatframes");
                std::thread::sleep(RETRY_PAUSE);
            }
        }
    }

    fn read_frames(&mut self, conductor: &Sender<ConductorInput>, shutdown: &Shutdown) -> Result<(), ReadError> {
        match self.frames.last()? {
            Some(last) => {
                self.frames.seek(last.offset + 1)?;
                self.report(last.record, conductor);
            }
            None => self.frames.seek(0)?,
        }
        while !shutdown.is_cancelled() {
            if let Some(entry) = self.frames.poll(POLL)? {
                self.report(entry.record, conductor);
            }
        }
        Ok(())
    }

    fn report(&mut self, frame: BeatFrame, conductor: &Sender<ConductorInput>) {
        self.status.update(|status| status.last_beat = Some(frame.clone()));
        self.newest_beat.record(frame.beat_index);
        // Fails only if the conductor has ended, after which pulse stops.
        let _ = conductor.send(ConductorInput::Event(Event::FrameRead(Box::new(frame))));
    }
}
