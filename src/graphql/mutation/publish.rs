//! The mutations. Each writes an event into the log, like any feed, and answers with its position.

use async_graphql::{Context, ID, MergedObject, Object, Result, SimpleObject};
use serde_json::json;

use super::orders::OrderMutations;
use super::port::{MutationPort, WriteError};
use crate::budgets::Work;
use crate::graphql::connections::paging::List;
use crate::graphql::context::admit;
use crate::graphql::errors::{ErrorCode, checked_topic, fault, internal, state};
use crate::graphql::query::{live, read_in_turn};
use crate::graphql::types::scalars::{Cursor, Json, UInt64};
use crate::live::{ItemBody, item};
use crate::market::event::{MOST_ID_BYTES, MOST_LINE_BYTES};
use crate::market::time::time_text;
use crate::market::topic::Topic;
use crate::store::{EventId, LogReader};

/// The published event's position in the log.
#[derive(SimpleObject)]
pub struct PublishPayload {
    /// Where it was published.
    topic: String,
    /// The epoch of `sequence`. Sequences of different epochs can't be compared.
    epoch: ID,
    /// Sequence of the event. `events` uses the same one.
    sequence: UInt64,
    /// Pass this as `after` of `events` of this topic to receive what follows.
    cursor: Cursor,
    /// An event with this id was published before, and this call changed nothing.
    duplicate: bool,
}

/// Operations that change data.
#[derive(Default, MergedObject)]
#[graphql(name = "Mutation")]
pub struct Mutations(Publishing, OrderMutations);

/// What can be published.
#[derive(Default)]
pub struct Publishing;

/// What can be published.
#[Object]
impl Publishing {
    /// Publishes an event to a generic topic: to all of its subscribers, and to the log.
    async fn publish(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "1 to 128 characters, no control characters.")] topic: String,
        #[graphql(desc = "What to publish.")] data: Json,
        #[graphql(
            desc = "Makes retries safe: an event with a known id is not published again. 1 to 128 \
                    bytes, unique within the topic."
        )]
        id: Option<ID>,
    ) -> Result<PublishPayload> {
        let log_topic = checked_topic(&topic)?;
        let id = id.map(|id| id.0);
        if id.as_ref().is_some_and(|id| id.is_empty() || id.len() > MOST_ID_BYTES) {
            let message = format!("id must have 1 to {MOST_ID_BYTES} bytes");
            return Err(fault(ErrorCode::ValidationFailed, &message));
        }
        let data = data.0.into_json().map_err(|error| internal(&error.to_string()))?;
        let mut event = json!({
            "kind": "message", "topic": topic, "data": data, "time": time_text(live(ctx)?.now()),
        });
        if let Some(id) = &id {
            event["id"] = json!(id);
        }
        let line = event.to_string();
        debug_assert!(line.len() <= MOST_LINE_BYTES, "a message has at most a quarter of it");
        admit(ctx, Work::Write, 1)?;
        if !live(ctx)?.knows_topic(&log_topic) {
            admit(ctx, Work::Topic, 1)?;
        }
        let written =
            state::<MutationPort>(ctx)?.write(vec![line]).await.map_err(WriteError::into_error)?;
        let (sequence, duplicate) = match (written.sequence, written.refusal, id) {
            (Some(sequence), ..) => (sequence, false),
            (None, Some(refusal), _) => {
                return Err(fault(ErrorCode::ValidationFailed, &refusal.to_string()));
            }
            (None, None, Some(id)) => {
                (published_before(ctx, id, &topic, &event["data"]).await?, true)
            }
            (None, None, None) => return Err(internal("an event without an id was known")),
        };
        let list = List::new(&log_topic, live(ctx)?.epochs(&log_topic));
        Ok(PublishPayload {
            topic,
            epoch: ID(list.epoch().to_string()),
            sequence: UInt64(sequence),
            cursor: list.cursor(sequence),
            duplicate,
        })
    }
}

/// The position of the same event, if it is in the log. Another event with that id is a conflict.
async fn published_before(
    ctx: &Context<'_>,
    id: String,
    topic: &str,
    data: &serde_json::Value,
) -> Result<u64> {
    let log_topic = Topic::Message(topic).name();
    let find =
        move |log: &LogReader| log.find(EventId { topic: &log_topic, kind: "message", id: &id });
    let stored = read_in_turn(ctx, find).await?;
    let conflict = || fault(ErrorCode::Conflict, "another event has this id: choose a new one");
    let stored = stored.ok_or_else(|| internal("an id that is known is not in the log"))?;
    match item(&stored, |_| None).map(|one| one.body) {
        Ok(ItemBody::Message(known))
            if serde_json::from_str::<serde_json::Value>(&known.data).ok().as_ref()
                == Some(data) =>
        {
            Ok(stored.sequence)
        }
        _ => Err(conflict()),
    }
}
