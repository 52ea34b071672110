//! What may not enter the shared log from here: events of what belongs to Kafka that another source
//! of this hub brings. A row does not say where it came from, so it is looked at where it enters.

use std::sync::Arc;
use std::time::Duration;

use crate::market::definition::MarketId;
use crate::market::event::{Body, Event};
use crate::market::orders::Order;
use crate::market::ownership::Ownership;
use crate::market::refusal::Refusal;
use crate::store::LogReaders;

/// How long a line waits for its turn at the replica, where that has to find its market.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module's text.
#[derive(Clone)]
pub struct OwnershipGuard {
    pub ownership: Arc<Ownership>,
    /// Knows of which market an order is, as far as this hub has read the log.
    pub replica: Arc<LogReaders>,
}

impl OwnershipGuard {
    /// Why an event of another source than Kafka may not enter.
    pub(super) async fn refusal(&self, event: &Event<'_>) -> Option<Refusal> {
        let market = self.market_of(event).await;
        Some(self.ownership.of(event, |_| market)?.refusal())
    }

    /// Of an order whose event does not say it.
    async fn market_of(&self, event: &Event<'_>) -> Option<MarketId> {
        let Body::Order(order) = &event.body else { return None };
        if order.market().is_some() {
            return None;
        }
        let id = order.order().to_owned();
        let found = self.replica.clone().soon(PATIENCE, move |log| log.order(&id)).await;
        Some(serde_json::from_str::<Order>(&found.ok()??.state).ok()?.market)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::market::event::parse;

    #[tokio::test(start_paused = true)]
    async fn a_line_whose_market_the_replica_does_not_say_in_time_is_taken() {
        let guard = OwnershipGuard {
            ownership: Arc::new(Ownership::new(&[], &["O-P".to_owned()])),
            // It never has a place for a reader.
            replica: LogReaders::new("nowhere".as_ref(), 0),
        };
        let began = Instant::now();
        let line = br#"{"kind":"order.canceled","order":"1"}"#;
        assert_eq!(guard.refusal(&parse(line).unwrap()).await, None);
        assert_eq!(began.elapsed(), PATIENCE);
    }
}
