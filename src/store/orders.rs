//! What queries read of single orders, written with the events that changed them.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, params};

use super::Store;
use super::fault::{At, StoreError};

/// What queries read of a single order, as an event left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderRecord {
    pub id: Arc<str>,
    pub market: Arc<str>,
    pub account: Option<Arc<str>>,
    pub side: &'static str,
    pub status: &'static str,
    /// Something may still happen to it.
    pub open: bool,
    /// The order as JSON.
    pub state: Box<str>,
    /// The order with what the event did to it, as JSON.
    pub update: Box<str>,
    /// Topics that have it beside the event's own.
    pub topics: Vec<Arc<str>>,
}

impl Store {
    /// Whether an order of this id was ever placed.
    pub fn knows_order(&self, id: &str) -> Result<bool, StoreError> {
        self.connection
            .prepare_cached("SELECT 1 FROM orders WHERE id = ?1")
            .and_then(|mut statement| statement.exists([id]))
            .at(&self.path)
    }

    /// The market of an order that was ever placed.
    pub fn market_of_order(&self, id: &str) -> Result<Option<Box<str>>, StoreError> {
        self.connection
            .prepare_cached("SELECT market FROM orders WHERE id = ?1")
            .and_then(|mut statement| statement.query_row([id], |row| row.get(0)).optional())
            .at(&self.path)
    }

    pub(super) fn write_order(
        connection: &Connection,
        sequence: i64,
        order: &OrderRecord,
    ) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "INSERT INTO orders (id, placed, market, account, side, status, open, state)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (id) DO UPDATE SET status = ?6, open = ?7, state = ?8",
            )?
            .execute(params![
                &*order.id,
                sequence,
                &*order.market,
                order.account.as_deref(),
                order.side,
                order.status,
                order.open,
                &*order.state
            ])?;
        connection
            .prepare_cached("INSERT INTO order_updates (sequence, state) VALUES (?1, ?2)")?
            .execute(params![sequence, &*order.update])?;
        for topic in &order.topics {
            connection
                .prepare_cached("INSERT INTO event_topics (topic, sequence) VALUES (?1, ?2)")?
                .execute(params![&**topic, sequence])?;
        }
        Ok(())
    }
}
