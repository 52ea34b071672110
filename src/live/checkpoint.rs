//! The checkpoints of books: their names and their contents. The topic of a checkpoint
//! is that of the events which follow it.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::market::admission::{Admission, BookMode};
use crate::market::topic::Topic;
use crate::store::Checkpoint;

/// The market of a topic whose events make a book.
pub fn book_market(topic: &str) -> Option<&str> {
    Topic::parse(topic)?.book_market()
}

/// A checkpoint of a market whose book is summed from orders: the book and the open orders of one
/// moment, so that neither can be ahead of the other.
#[derive(Serialize, Deserialize)]
struct WithOrders<T> {
    orders: T,
    market: T,
}

/// A market's checkpoint as the store keeps it, and the topic of the events after it.
pub fn checkpoint(admission: &Admission, market: &str, state: Vec<u8>) -> (String, Vec<u8>) {
    if admission.mode(market) != Some(BookMode::Orders) {
        return (Topic::Book(market).to_string(), state);
    }
    with_orders(market, &admission.orders().to_checkpoint(market), &state)
}

/// The checkpoint of a market whose book is summed from orders, and the topic of these.
pub fn with_orders(market: &str, orders: &[u8], state: &[u8]) -> (String, Vec<u8>) {
    let raw = |bytes: &[u8]| serde_json::from_slice::<Box<RawValue>>(bytes).unwrap_or_default();
    let both = WithOrders { orders: raw(orders), market: raw(state) };
    (Topic::orders_of(market).to_string(), serde_json::to_vec(&both).unwrap_or_default())
}

/// Puts a checkpoint back; true if it could be read. Otherwise nothing of it stays, and the
/// market's events must be replayed from the first.
pub fn put_back(
    admission: &mut Admission,
    restore: &mut dyn FnMut(&str, u64, &[u8]) -> bool,
    market: &str,
    checkpoint: &Checkpoint,
) -> bool {
    if let Some(Topic::Book(_)) = Topic::parse(&checkpoint.topic) {
        admission.settle_book(market);
        return restore(market, checkpoint.sequence, &checkpoint.state);
    }
    let Ok(both) = serde_json::from_slice::<WithOrders<&RawValue>>(&checkpoint.state) else {
        return false;
    };
    let orders = admission.orders_mut();
    if orders.restore(market, both.orders.get().as_bytes()).is_ok()
        && restore(market, checkpoint.sequence, both.market.get().as_bytes())
    {
        return true;
    }
    admission.orders_mut().forget(market);
    false
}
