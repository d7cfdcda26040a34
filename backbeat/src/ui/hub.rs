//! The page's present state and its changes, for any number of streams.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backbeat_schemas::Timestamp;
use serde::Serialize;
use tokio::sync::broadcast;

use super::page::Section;

/// The largest number of changes that wait for a slow stream. It gets a snapshot instead of more.
const MAX_WAITING_CHANGES: usize = 64;
/// The largest number of changes, and of their bytes, that are kept for streams that connect again.
const MAX_KEPT_CHANGES: usize = 512;
const MAX_KEPT_BYTES: usize = 512 * 1024;

/// An event of a stream: elements that replace those with the same ids.
#[derive(Debug)]
pub(crate) struct Change {
    /// The epoch and a sequence number.
    pub(crate) id: String,
    /// The body as JSON.
    pub(crate) data: String,
}

/// The body of an event.
#[derive(Debug, Serialize)]
struct Body<'h> {
    /// The instant at which it was made, in milliseconds since the Unix epoch.
    now: i64,
    /// The module that the page should have. A page with another one loads itself again.
    module: &'h str,
    html: Vec<&'h str>,
}

/// Holds the sections of the page, and sends their changes to the streams.
#[derive(Debug)]
pub(crate) struct Hub {
    /// Distinguishes this process from earlier ones.
    epoch: String,
    module: String,
    state: Mutex<State>,
    changes: broadcast::Sender<Arc<Change>>,
}

#[derive(Debug)]
struct State {
    sections: Vec<Section>,
    sequence: u64,
    /// The last changes, oldest first.
    kept: VecDeque<Arc<Change>>,
    kept_bytes: usize,
}

/// The events with which a stream begins, and those that follow them.
pub(crate) type Subscription = (Vec<Arc<Change>>, broadcast::Receiver<Arc<Change>>);

impl Hub {
    /// Creates a hub of a page that loads `module`.
    pub(crate) fn new(epoch: String, module: String, sections: Vec<Section>) -> Self {
        let state = State { sections, sequence: 0, kept: VecDeque::new(), kept_bytes: 0 };
        Self { epoch, module, state: Mutex::new(state), changes: broadcast::channel(MAX_WAITING_CHANGES).0 }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the sections, and sends the difference to all streams. Returns false if there is none.
    pub(crate) fn publish(&self, sections: Vec<Section>, now: Timestamp) -> bool {
        let mut state = self.lock();
        let pairs = sections.iter().zip(&state.sections);
        let html: Vec<&str> = pairs.flat_map(|(new, old)| new.changes_since(old)).collect();
        if html.is_empty() {
            return false;
        }
        let data = self.body(html, now);
        state.sequence += 1;
        let change = Arc::new(Change { id: self.id(state.sequence), data });
        state.sections = sections;
        state.kept_bytes += change.data.len();
        state.kept.push_back(Arc::clone(&change));
        while state.kept.len() > MAX_KEPT_CHANGES || state.kept_bytes > MAX_KEPT_BYTES {
            let Some(dropped) = state.kept.pop_front() else { break };
            state.kept_bytes -= dropped.data.len();
        }
        // There may be no stream. It is sent under the lock, so that no stream misses it or gets it twice.
        let _ = self.changes.send(change);
        true
    }

    /// Returns the changes after the event `last` and the time, or else a snapshot; and what follows.
    pub(crate) fn subscribe(&self, last: Option<&str>, now: Timestamp) -> Subscription {
        let state = self.lock();
        let missed = last.and_then(|last| self.changes_after(&state, last));
        let (mut first, html) = match missed {
            Some(missed) => (missed, Vec::new()),
            None => (Vec::new(), state.sections.iter().map(|section| section.html.as_str()).collect()),
        };
        // Also if it changes nothing: what was missed has old times in it.
        first.push(Arc::new(Change { id: self.id(state.sequence), data: self.body(html, now) }));
        (first, self.changes.subscribe())
    }

    /// Returns the changes after the event `last`, unless some are not kept any more.
    fn changes_after(&self, state: &State, last: &str) -> Option<Vec<Arc<Change>>> {
        let last: u64 = last.strip_prefix(&self.epoch)?.strip_prefix('-')?.parse().ok()?;
        let missing = usize::try_from(state.sequence.checked_sub(last)?).ok()?;
        let first = state.kept.len().checked_sub(missing)?;
        Some(state.kept.iter().skip(first).cloned().collect())
    }

    /// Returns the body of an event that changes nothing.
    pub(crate) fn time(&self, now: Timestamp) -> String {
        self.body(Vec::new(), now)
    }

    /// Returns the sections, and the id of the last change in them.
    pub(crate) fn sections(&self) -> (Vec<Section>, String) {
        let state = self.lock();
        (state.sections.clone(), self.id(state.sequence))
    }

    fn id(&self, sequence: u64) -> String {
        format!("{}-{sequence}", self.epoch)
    }

    fn body(&self, html: Vec<&str>, now: Timestamp) -> String {
        let body = Body { now: now.millis(), module: &self.module, html };
        serde_json::to_string(&body).expect("text is JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::default()
    }

    fn section(rows: &[(&str, &str)]) -> Section {
        let rows: Vec<(String, String)> =
            rows.iter().map(|(id, html)| ((*id).to_owned(), (*html).to_owned())).collect();
        Section { html: rows.iter().map(|(_, html)| html.as_str()).collect(), rows }
    }

    fn html(change: &Change) -> Vec<String> {
        let body: serde_json::Value = serde_json::from_str(&change.data).expect("JSON");
        serde_json::from_value(body["html"].clone()).expect("a list of elements")
    }

    fn hub() -> Hub {
        Hub::new("e".to_owned(), "m".to_owned(), vec![section(&[("a", "A1"), ("b", "B1")])])
    }

    #[test]
    fn changed_row_is_sent_alone_and_another_row_with_its_list() {
        let hub = hub();
        let (_, mut changes) = hub.subscribe(None, now());
        assert!(hub.publish(vec![section(&[("a", "A1"), ("b", "B2")])], now()));
        assert!(!hub.publish(vec![section(&[("a", "A1"), ("b", "B2")])], now()));
        assert!(hub.publish(vec![section(&[("c", "C1"), ("a", "A1")])], now()));
        assert_eq!(html(&changes.try_recv().expect("the first change")), ["B2"]);
        assert_eq!(html(&changes.try_recv().expect("the second change")), ["C1A1"]);
    }

    #[test]
    fn stream_that_connects_again_gets_what_it_missed_or_a_snapshot() {
        let hub = hub();
        let publish = |number: usize| hub.publish(vec![section(&[("a", &format!("A{number}"))])], now());
        assert!((2..5).all(publish));
        let first = |last| hub.subscribe(last, now()).0.iter().map(|change| html(change)).collect::<Vec<_>>();
        assert_eq!(first(Some("e-1")), [vec!["A3"], vec!["A4"], vec![]]);
        assert_eq!(first(Some("e-3")), [[""; 0]]);
        for unknown in [None, Some("e-9"), Some("other-1"), Some("e-x"), Some("")] {
            assert_eq!(first(unknown), [["A4"]], "{unknown:?}");
        }
        assert!((5..5 + MAX_KEPT_CHANGES + 2).all(publish));
        assert_eq!(first(Some("e-1")).len(), 1, "it is no longer kept");
        assert_eq!(hub.subscribe(None, now()).0[0].id, format!("e-{}", 5 + MAX_KEPT_CHANGES));
    }
}
