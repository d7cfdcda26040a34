//! The thread in which a member follows the log and merges.

use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backbeat_service::Shutdown;

use super::events::MergeFailed;
use super::frame_table::TableError;
use super::merge_context::{MergeContext, Reached};
use super::merger::{MergeError, MergeLoop};
use super::share_records::ShareRecordProducer;

/// The pause after a failure. It doubles with each further one that comes soon.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(10);
/// The interval at which the end of a pause is checked.
const PAUSE_STEP: Duration = Duration::from_millis(5);

/// The thread of a member's merge. Dropping it stops the merge and waits until it has ended.
pub(crate) struct MergeThread {
    stop: Shutdown,
    failure: Receiver<anyhow::Error>,
    thread: Option<JoinHandle<()>>,
}

impl MergeThread {
    /// Starts the merge of the member `name`, which sends dead letters and rosters of rescued shares with `share_records`.
    /// If it fails after `shutdown`, it is not started again: a start takes long while Kafka or the registry hangs.
    pub(crate) fn start(
        context: MergeContext,
        name: String,
        share_records: ShareRecordProducer,
        reached: Reached,
        shutdown: Shutdown,
    ) -> std::io::Result<Self> {
        let stop = Shutdown::new();
        let (sender, failure) = channel();
        let thread = std::thread::Builder::new().name("merge".into()).spawn({
            let stop = stop.clone();
            move || {
                if let Err(error) = run(&context, &name, &share_records, &reached, &stop, &shutdown) {
                    // Fails only if the receiver was dropped.
                    let _ = sender.send(error);
                }
                context.status.update(|member| member.merging = false);
            }
        })?;
        Ok(Self { stop, failure, thread: Some(thread) })
    }

    /// Returns the error if the log is inconsistent, so that the merge has ended.
    pub(crate) fn failure(&self) -> Option<anyhow::Error> {
        self.failure.try_recv().ok()
    }
}

impl Drop for MergeThread {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Follows the log until `stop`, until a failure after `shutdown`, or until the log proves inconsistent.
fn run(
    context: &MergeContext,
    name: &str,
    share_records: &ShareRecordProducer,
    reached: &Reached,
    stop: &Shutdown,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let mut pause = MIN_PAUSE;
    while !stop.is_cancelled() {
        let started_at = Instant::now();
        let started = MergeLoop::start(context, name, share_records.clone(), reached.clone());
        let error = match started.and_then(|mut merge| merge.run(stop)) {
            Ok(()) => return Ok(()),
            Err(MergeError::Table(TableError::Frame(error))) => return Err(error.into()),
            Err(error) => error,
        };
        MergeFailed { error: &error }.emit(&context.metrics);
        context.status.update(|member| member.merging = false);
        if started_at.elapsed() >= SOON {
            pause = MIN_PAUSE;
        }
        let until = Instant::now() + pause;
        while Instant::now() < until && !stop.is_cancelled() {
            std::thread::sleep(PAUSE_STEP);
        }
        if shutdown.is_cancelled() {
            break;
        }
        pause = (pause * 2).min(MAX_PAUSE);
    }
    Ok(())
}
