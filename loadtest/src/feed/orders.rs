//! A venue's single orders into our `order.*` events. It keeps what is open of each order that it
//! saw placed: what a message says was traded must be what its order has less of.

use super::convert::{Counts, Event, Head, json, rfc3339_micros};
use crate::decimal::{DecimalError, scaled};
use crate::venues::{OrderStep, Side, VenueOrder};
use serde::Serialize;
use std::collections::{HashMap, HashSet};

#[derive(Serialize)]
struct Placed<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    order: &'a str,
    side: &'static str,
    #[serde(rename = "type")]
    order_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    price: Option<&'a str>,
    size: &'a str,
}

#[derive(Serialize)]
struct Filled<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    order: &'a str,
    price: &'a str,
    size: &'a str,
}

#[derive(Serialize)]
struct Canceled<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    order: &'a str,
}

/// One market's orders as far as the capture placed them.
#[derive(Debug, Default)]
pub struct Orders {
    /// What is open of each, in units of the market's last decimal.
    open: HashMap<String, u128>,
    /// Orders that were open before the capture began: all that is known of them is how they end.
    before: HashSet<String>,
    last: Option<String>,
}

impl Orders {
    /// The events that one message makes, and a remark about it.
    ///
    /// # Errors
    /// When a number in it isn't of the market's precision.
    pub fn step(
        &mut self,
        market: &str,
        id: Option<&str>,
        size_decimals: usize,
        step: &VenueOrder,
        counts: &mut Counts,
    ) -> Result<(Vec<Event>, Option<String>), DecimalError> {
        let mut remark = self.chain(step, counts);
        let (left, traded) =
            (scaled(&step.open, size_decimals)?, scaled(&step.traded, size_decimals)?);
        let time = step.time.and_then(rfc3339_micros);
        let head = |kind, part: &str| Head {
            kind,
            market,
            id: id.map(|id| format!("{id}{part}")),
            time: time.clone(),
        };
        let order = step.order.as_str();
        let mut lines = Vec::with_capacity(1);
        if step.step == OrderStep::Created {
            counts.created += 1;
            let rests = step.price.bytes().any(|digit| matches!(digit, b'1'..=b'9'));
            lines.push(json(&Placed {
                head: head("order.placed", ""),
                order,
                side: if step.side == Side::Bid { "BUY" } else { "SELL" },
                order_type: if rests { "LIMIT" } else { "MARKET" },
                price: rests.then_some(step.price.as_str()),
                size: &step.open,
            }));
            self.open.insert(order.to_owned(), left);
        } else {
            match step.step {
                OrderStep::Deleted => counts.deleted += 1,
                _ => counts.changed += 1,
            }
            if traded > 0 {
                let (price, size) = (step.price.as_str(), step.traded.as_str());
                let head = head("order.filled", "/filled");
                lines.push(json(&Filled { head, order, price, size }));
            }
            if step.step == OrderStep::Deleted && left > 0 {
                lines.push(json(&Canceled { head: head("order.canceled", ""), order }));
            }
            remark = remark.or(self.compare(step, left, traded, counts));
        }
        Ok((lines.into_iter().map(|json| Event { json, due: step.time }).collect(), remark))
    }

    fn chain(&mut self, step: &VenueOrder, counts: &mut Counts) -> Option<String> {
        let seen = self.last.replace(step.event.clone());
        let broken = seen.filter(|seen| *seen != step.previous)?;
        counts.gaps += 1;
        Some(format!("gap: {} says it follows {}, not {broken}", step.event, step.previous))
    }

    /// What the capture said of the order before, against what it says now.
    fn compare(
        &mut self,
        step: &VenueOrder,
        left: u128,
        traded: u128,
        counts: &mut Counts,
    ) -> Option<String> {
        let Some(open) = self.open.get_mut(&step.order) else {
            counts.of_earlier_orders += 1;
            if self.before.insert(step.order.clone()) {
                counts.earlier_orders += 1;
            }
            return None;
        };
        let expected = open.checked_sub(traded);
        *open = left;
        if step.step == OrderStep::Deleted {
            self.open.remove(&step.order);
        }
        if expected == Some(left) {
            return None;
        }
        counts.order_faults += 1;
        Some(format!(
            "order {}: {} traded and {} left don't add up to what was open",
            step.order, step.traded, step.open
        ))
    }
}
