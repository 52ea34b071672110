//! Events that begin new epochs: blocks that are removed, and events of a source that are lost.

use std::sync::Arc;

use super::Sequencer;
use crate::ingest::feed_status::FeedId;
use crate::ingest::handle::{Ack, Answer, Batch, Incoming, body, now};
use crate::ingest::losses::{Lost, Refused};
use crate::ingest::place::Place;
use crate::ingest::rollback;
use crate::market::event::{self, Body, Event};
use crate::market::refusal::Refusal;
use crate::store::{EventId, NewEvent, Numbered, RollbackTransaction};

impl Sequencer {
    /// Takes what begins new epochs: one transaction by itself.
    pub(super) fn begin_epochs(&mut self, batch: Batch, done: Answer<Ack>) -> Option<()> {
        let Batch { feed, lines, progress } = batch;
        let mut ack = Ack::default();
        for Incoming { place, line, numbered } in lines {
            let read = line.as_deref().map_err(Refusal::clone).and_then(event::parse);
            let admitted = read.and_then(|event| Ok((self.admission.admit(&event)?.topic, event)));
            let (topic, event) = match admitted {
                Ok(admitted) => admitted,
                // Admission takes all of these.
                Err(reason) => {
                    ack.refuse(place, reason);
                    continue;
                }
            };
            let kind = event.kind();
            let Event { id, body: what, .. } = event;
            let (height, source) = match what {
                Body::Reverted { height } => (Some(height), None),
                Body::Gap { source } => (None, Some(source)),
                // Not what [`begins_epochs`] found.
                _ => continue,
            };
            if let Some(source) = &source {
                let id = id.as_deref().map(|id| EventId { topic: &topic, kind, id });
                self.lose_of_source(feed, source, id, (&place, numbered))?;
            }
            // It has no height itself, so no later rollback removes it.
            let body = line.map(body).unwrap_or_default();
            let new = NewEvent { topic, id, kind, body, numbered, ..NewEvent::default() };
            let now = now();
            // Not asked by anyone else meanwhile.
            let admission = std::mem::take(&mut self.admission);
            let aside = self.live.aside();
            let written = self.persist(|store| {
                let work = |log: &RollbackTransaction<'_>| match height {
                    Some(height) => rollback::remove_blocks(log, height, now, &admission, &aside),
                    None => rollback::begin_epochs(log, now, &admission),
                };
                store.roll_back(&new, &progress, now, work)
            });
            self.admission = admission;
            match written? {
                None => ack.known += 1,
                Some((sequence, left)) => {
                    left.settle(&mut self.admission);
                    let rolled_back = Arc::new(left.rollback);
                    self.live.roll_back(&rolled_back);
                    for touched in &rolled_back.markets {
                        self.live.keep(&self.admission, &touched.market);
                    }
                    let (undone, fallen) = (rolled_back.undone, left.fallen);
                    match source {
                        Some(source) => tracing::warn!(
                            source,
                            sequence,
                            "events of a source are lost: every topic begins a new epoch"
                        ),
                        None => {
                            tracing::info!(height, sequence, undone, fallen, "blocks were undone");
                        }
                    }
                    ack.accepted += 1;
                    ack.last_sequence = Some(sequence);
                }
            }
        }
        if let Some(feed) = feed {
            self.statuses.count(feed, ack.counts(), now());
        }
        drop(done.send(Ok(ack)));
        Some(())
    }

    /// Logs the gaps of the books that a `source.gap` event concerns, unless it is known. Before
    /// the event itself: after a crash in between, its feed sends it again.
    fn lose_of_source(
        &mut self,
        feed: Option<FeedId>,
        source: &str,
        id: Option<EventId<'_>>,
        (place, numbered): (&Place, Option<Numbered>),
    ) -> Option<()> {
        if let Some(id) = id
            && self.persist(|store| store.find(id))?.is_some()
        {
            return Some(());
        }
        let reason = Refusal::events_lost_of(source);
        let refused = Refused { place: place.clone(), reason, height: None, numbered };
        let mut gaps = self.group();
        self.lose(feed, Lost::Unknown, &refused, &mut gaps)?;
        self.commit(gaps)
    }
}

/// Whether a batch is an event that begins new epochs.
pub(super) fn begins_epochs(batch: &Batch) -> bool {
    matches!(&batch.lines[..], [Incoming { line: Ok(line), .. }] if event::begins_epochs(line))
}
