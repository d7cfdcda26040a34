//! The thread that reads every committed frame, whoever wrote it: a node without a leader must know
//! whether the beats go on, and every node can tell of the newest.

use std::sync::mpsc::Sender;
use std::time::Duration;

use backbeat_broker::{Broker, LogReader, ReadError, Registry, TopicName};
use backbeat_schemas::BeatFrame;
use backbeat_service::Shutdown;
use tokio::runtime::Handle;

use super::conductor::ConductorInput;
use super::status::SharedStatus;
use crate::core::Event;

const POLL: Duration = Duration::from_millis(100);
const RETRY_PAUSE: Duration = Duration::from_millis(500);

pub(crate) struct Watcher {
    frames: LogReader<BeatFrame>,
    status: SharedStatus,
}

impl Watcher {
    /// Call inside a runtime.
    pub(crate) fn new(broker: &Broker, registry: &Registry, status: SharedStatus) -> Result<Self, ReadError> {
        Ok(Self { frames: LogReader::new(broker, registry, &Handle::current(), TopicName::BeatFrames)?, status })
    }

    /// Reads until `shutdown`.
    pub(crate) fn run(mut self, heard: &Sender<ConductorInput>, shutdown: &Shutdown) {
        while !shutdown.is_cancelled() {
            if let Err(error) = self.follow(heard, shutdown) {
                tracing::warn!(%error, "beats cannot be read now");
                std::thread::sleep(RETRY_PAUSE);
            }
        }
    }

    fn follow(&mut self, heard: &Sender<ConductorInput>, shutdown: &Shutdown) -> Result<(), ReadError> {
        match self.frames.last()? {
            Some(last) => {
                self.frames.seek(last.offset + 1)?;
                self.hear(last.record, heard);
            }
            None => self.frames.seek(0)?,
        }
        while !shutdown.is_cancelled() {
            if let Some(entry) = self.frames.poll(POLL)? {
                self.hear(entry.record, heard);
            }
        }
        Ok(())
    }

    fn hear(&self, frame: BeatFrame, heard: &Sender<ConductorInput>) {
        self.status.update(|status| status.last_beat = Some(frame.clone()));
        // Nobody listens any more: shutdown comes next.
        let _ = heard.send(ConductorInput::Event(Event::Heard(Box::new(frame))));
    }
}
