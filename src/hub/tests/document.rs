//! Subscriptions of the middle tier: what a client asks for, as text, and how it gives its cursor.

use rand::Rng;
use rand::rngs::SmallRng;
use serde_json::{Value, json};

use super::model::Scope;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Field {
    Book { market: &'static str, depth: usize, speed: &'static str, bids: bool, asks: bool },
    Offers { markets: Vec<&'static str> },
    Trades { markets: Vec<&'static str> },
    Events { topic: &'static str },
}

/// A subscription without its cursor.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub(super) field: Field,
    /// Fields that no check needs: they make documents differ.
    further: String,
    /// How the cursor is given.
    way: usize,
}

const FURTHER: [&str; 5] = ["eventTime", "publishTime", "slowedTo", "checksum", "mergedEvents"];

impl Document {
    /// With all that can be checked.
    pub(super) fn whole(field: Field) -> Self {
        let further = match field {
            Field::Book { .. } => "checksum mergedEvents",
            Field::Offers { .. } => "mergedEvents",
            Field::Trades { .. } | Field::Events { .. } => "",
        };
        Self { field, further: further.to_owned(), way: 0 }
    }

    pub(super) fn random(
        random: &mut SmallRng,
        markets: &[&'static str],
        topics: &[&'static str],
    ) -> Self {
        let market = markets[random.random_range(0..markets.len())];
        let some = |random: &mut SmallRng| match random.random_bool(0.5) {
            true => markets.to_vec(),
            false => vec![market],
        };
        let field = match random.random_range(0..10) {
            0..5 => Field::Book {
                market,
                depth: [1, 3, 10, 25][random.random_range(0..4)],
                speed: ["RAW", "RAW", "MS_100", "S_1"][random.random_range(0..4)],
                bids: random.random_bool(0.8),
                asks: random.random_bool(0.8),
            },
            5 => Field::Offers { markets: some(random) },
            6..8 => Field::Trades { markets: some(random) },
            _ => Field::Events { topic: topics[random.random_range(0..topics.len())] },
        };
        let of_field = match field {
            Field::Book { .. } => &FURTHER[..],
            Field::Offers { .. } => &["eventTime", "publishTime", "mergedEvents"],
            Field::Trades { .. } | Field::Events { .. } => &FURTHER[..3],
        };
        let further: Vec<_> =
            of_field.iter().copied().filter(|_| random.random_bool(0.7)).collect();
        Self { field, further: further.join(" "), way: random.random_range(0..3) }
    }

    /// The name of the field in a result.
    pub(super) fn name(&self) -> &'static str {
        match self.field {
            Field::Book { .. } => "orderBook",
            Field::Offers { .. } => "bestBidOffer",
            Field::Trades { .. } => "trades",
            Field::Events { .. } => "events",
        }
    }

    /// A client can go on after a frame of it.
    pub(super) fn resumes(&self) -> bool {
        !matches!(self.field, Field::Offers { .. })
    }

    /// What it follows.
    pub(super) fn scopes(&self) -> Vec<Scope> {
        match &self.field {
            Field::Book { market, .. } => vec![format!("book {market}")],
            Field::Offers { markets } => markets.iter().map(|one| format!("book {one}")).collect(),
            Field::Trades { markets } => {
                markets.iter().map(|one| format!("trades {one}")).collect()
            }
            Field::Events { topic } => vec![format!("events {topic}")],
        }
    }

    /// The payload of `subscribe`.
    pub(super) fn payload(&self, after: Option<&str>) -> Value {
        let way = if self.resumes() { self.way } else { 2 };
        let (head, argument) = match (way, after) {
            (0, _) => ("($after: Cursor)", ", after: $after".to_owned()),
            (1, Some(cursor)) => ("", format!(r#", after: "{cursor}""#)),
            _ => ("", String::new()),
        };
        let mut payload =
            json!({"query": format!("subscription{head} {{ {} }}", self.root(&argument))});
        match (way, after) {
            (0, Some(cursor)) => payload["variables"] = json!({"after": cursor}),
            (2, Some(cursor)) => payload["extensions"] = json!({"after": cursor}),
            _ => {}
        }
        payload
    }

    fn root(&self, after: &str) -> String {
        let further = &self.further;
        let head = "epoch sequence prevSequence reason cursor";
        match &self.field {
            Field::Book { market, depth, speed, bids, asks } => {
                let side = |name, selected: &bool| match selected {
                    true => format!("{name} {{ price size }}"),
                    false => String::new(),
                };
                let levels = format!("{} {}", side("bids", bids), side("asks", asks));
                let merged = if further.contains("mergedEvents") { "mergedEvents" } else { "" };
                let further = further.replace("mergedEvents", "");
                format!(
                    r#"orderBook(market: "{market}", depth: {depth}, speed: {speed}{after}) {{
                    __typename epoch sequence cursor {further}
                    ... on BookSnapshot {{ reason {levels} }}
                    ... on BookDelta {{ prevSequence {merged} {levels} }}
                    ... on BookHeartbeat {{ state }} }}"#
                )
            }
            Field::Offers { markets } => format!(
                "bestBidOffer(markets: {markets:?}) {{ market {head} {further}
                 bid {{ price size }} ask {{ price size }} }}"
            ),
            Field::Trades { markets } => format!(
                "trades(markets: {markets:?}{after}) {{ market {head} {further}
                 items: trades {{ sequence price size }} }}"
            ),
            Field::Events { topic } => format!(
                r#"events(topic: "{topic}"{after}) {{ {head} {further}
                 items: events {{ sequence data }} }}"#
            ),
        }
    }
}
