//! What a request becomes: a query runs once, and a subscription becomes a response stream that
//! identical subscriptions share.

use std::hash::{BuildHasher as _, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use async_graphql::{Response, Schema, SchemaBuilder};
use async_graphql_parser::types::{ExecutableDocument, OperationType};
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, ready};
use serde_json::{Map, Value};
use spreadly_subscriptions::{
    Budget, Credentials, Execution, Executor, Grant, InitRefused, OpenError, OperationKey,
    OperationKind, PERSISTED, Priority, Request, SingleResult, Source, Streams,
};

use super::cost;
use super::document::{self, After, Document, Documents};
use super::encoder::{StreamRequest, prepared, said};
use super::offload::{Offload, Outcome, Running, Stage};
use super::persisted::Persisted;
use super::weight::Weight;
use super::{stated, suggestions};
use crate::budgets::{ClientAccount, Work};
use crate::graphql::context::{Caller, ReadPlace};
use crate::graphql::errors::{self, ErrorCode, Refused};
use crate::graphql::identity::{Identity, Principal};
use crate::graphql::limits::QueryLimits;
use crate::graphql::mutation::port::MutationPort;
use crate::graphql::mutation::publish::Mutations;
use crate::graphql::query::{HubView, Query};
use crate::graphql::subscription::{self, SourceSpec, Subscription};
use crate::live::{Encode, Encoders, LongFrames};
use crate::pool::{MOST_INLINE_NANOS, Pool};

pub type HubSchema = Schema<Query, Mutations, Subscription>;

/// The schema before it has what its resolvers need. It can be parsed against and described.
pub(crate) fn schema() -> SchemaBuilder<Query, Mutations, Subscription> {
    Schema::build(Query, Mutations::default(), Subscription).disable_suggestions()
}

/// The engine's executor for the hub's schema.
pub struct GraphqlExecutor {
    schema: HubSchema,
    encoders: Arc<Encoders>,
    streams: Arc<Streams>,
    pool: Arc<Pool>,
    limits: QueryLimits,
    documents: Documents,
    persisted: Persisted,
    /// The account of all clients.
    everyone: Principal,
    /// Of the keys of streams. Seeded, so that a client can't construct two with one hash.
    hashes: RandomState,
}

impl GraphqlExecutor {
    pub fn new(
        encoders: Arc<Encoders>,
        streams: Arc<Streams>,
        pool: Arc<Pool>,
        hub: HubView,
        limits: QueryLimits,
        writer: MutationPort,
        everyone: Principal,
    ) -> Self {
        let mut builder =
            schema().data(encoders.live().clone()).data(hub).data(writer).data(limits.clone());
        if !limits.introspection {
            builder = builder.disable_introspection();
        }
        Self {
            schema: builder.finish(),
            encoders,
            streams,
            pool,
            limits,
            documents: Documents::default(),
            persisted: Persisted::default(),
            everyone,
            hashes: RandomState::new(),
        }
    }

    fn plan(&self, mut request: Request, caller: &Caller) -> Result<Execution, Refused> {
        caller.account.admit(Work::Request, 1).map_err(Refused::rate)?;
        let brought = self.persisted.complete(&mut request)?;
        let name = request.operation_name.as_deref().filter(|name| !name.is_empty());
        let document = self.parse(&request.query, caller)?;
        if let Some(hash) = brought {
            self.persisted.keep(hash, &request.query);
        }
        let Document { tree, steps } = &*document;
        let operation = &document::operation(tree, name)?.node;
        // Others are of no effect: they take no memory while a query waits, and keep no two clients
        // of a subscription apart.
        if let Some(variables) = &mut request.variables {
            let declared = &operation.variable_definitions;
            variables.retain(|name, _| declared.iter().any(|one| one.node.name.node == *name));
        }
        let (variables, markets) =
            (request.variables.as_ref(), self.encoders.live().market_count());
        let mut weight = cost::weigh(tree, operation, variables, &self.limits, markets)?;
        // All of it is validated, whatever runs.
        weight.steps = *steps;
        match operation.ty {
            OperationType::Subscription => self.plan_stream(tree, request, caller, weight),
            OperationType::Query | OperationType::Mutation => {
                spend(&caller.account, weight);
                self.plan_single(tree, request, caller, weight)
            }
        }
    }

    fn parse(&self, query: &str, caller: &Caller) -> Result<Arc<Document>, Refused> {
        let charge = |tokens| caller.account.spend(Work::DocumentToken, tokens);
        self.documents.parse(query, &self.limits, charge)
    }

    /// What is cheap begins at once: where validation refuses it, or memory answers, that is known
    /// now. What takes long waits for a place in the pool.
    fn plan_single(
        &self,
        document: &ExecutableDocument,
        request: Request,
        caller: &Caller,
        weight: Weight,
    ) -> Result<Execution, Refused> {
        let Caller { principal, account, .. } = caller.clone();
        let variables = request.variables.unwrap_or_default();
        let name = request.operation_name.filter(|name| !name.is_empty());
        let stage = match weight.checking_nanos() > MOST_INLINE_NANOS {
            true => Arc::new(Stage::in_pool()),
            false => Arc::<Stage>::default(),
        };
        let prepared = prepared(request.query, name, variables, document.clone());
        let identity = Arc::new(Identity::new(principal));
        let prepared = prepared.data(identity).data(account.clone()).data(stage.clone());
        let (schema, payer) = (self.schema.clone(), account.clone());
        let suggests = self.limits.introspection;
        let mut running = unwinding(async move {
            let mut response = schema.execute(prepared).await;
            if suggests {
                suggestions::add(&mut response.errors);
            }
            outcome(response, &payer)
        });
        let offload = Offload { pool: self.pool.clone(), account, stage };
        if weight.checking_nanos().saturating_add(weight.level_nanos()) > MOST_INLINE_NANOS {
            return Ok(Execution::Single(offload.run_long(running).boxed()));
        }
        Ok(match (&mut running).now_or_never() {
            Some(Ok(result)) => Execution::Single(ready(Ok(result)).boxed()),
            Some(Err(errors)) => Execution::Refused(errors),
            None => Execution::Single(offload.finish(running).boxed()),
        })
    }

    fn plan_stream(
        &self,
        document: &ExecutableDocument,
        request: Request,
        caller: &Caller,
        weight: Weight,
    ) -> Result<Execution, Refused> {
        let Caller { principal, account, streams, owner } = caller;
        let extensions = request.extensions.unwrap_or_default();
        let name = request.operation_name.filter(|name| !name.is_empty());
        let operation = document::operation(document, name.as_deref())?;
        let field = document::root_field(document, operation)?;
        let mut variables = request.variables.unwrap_or_default();
        let all = self.encoders.live().market_count().min(self.limits.markets_per_subscription);
        stated::check(field, operation, &variables, weight, all)?;

        let mut cut = None;
        let mut neutral = None;
        let mut cursor = None;
        match document::after(&operation.node, &field.node) {
            After::Absent => {}
            After::Literal { cursor: literal, at } => {
                cursor = Some(literal.to_owned());
                cut = Some(at);
            }
            After::Variable { name, default, nullable } => {
                cursor = match variables.remove(name) {
                    Some(value) => {
                        // Where the document insists on a value, any one does.
                        neutral = (!nullable).then(|| name.to_owned());
                        text_or_null(value)?
                    }
                    None => default.map(str::to_owned),
                };
            }
        }
        let resumed = extensions.get("after").cloned().map(text_or_null).transpose()?.flatten();
        let audience = subscription::audience(&field.node);
        let key = OperationKey {
            document: document::normalised(&request.query, cut),
            operation_name: name,
            variables: canonical(&variables),
            audience: audience.key(principal, *owner),
            cursor_extension: extensions.get("cursor") == Some(&Value::Bool(true)),
        };
        let with_cursor = key.cursor_extension;
        let (text, name) = (request.query, key.operation_name.clone());
        account.spend(Work::Kib, key.variables.len() >> 10);
        let place = streams.enter(self.hashes.hash_one(&key)).map_err(|full| {
            account.meters().refuse(full.limit);
            Refused::limit(full.limit.name(), full.most, full.current)
        })?;
        let mut built = false;
        let opened = self.streams.open(key, *owner, || {
            let plain = document::with_plain_root(document, operation, field);
            let document = plain.unwrap_or_else(|| document.clone());
            built = true;
            account.spend(Work::Stream, 1);
            spend(account, weight);
            variables.extend(neutral.map(|name| (name, Value::String(String::new()))));
            let (schema, principal) = (self.schema.clone(), principal.clone());
            let suggests = self.limits.introspection;
            let request = StreamRequest {
                schema,
                text,
                name,
                variables,
                principal,
                audience,
                with_cursor,
                suggests,
            };
            self.build(request, document, weight, account).map_err(Refused::into_bytes)
        });
        let after = resumed.or(cursor);
        let mut prepaid = if built { weight.level_nanos() } else { 0 };
        if !built && after.is_none() {
            account.spend(Work::SharedLevelField, weight.level_fields);
            prepaid = Work::SharedLevelField.nanos().saturating_mul(weight.level_fields as u64);
        }
        match opened {
            Ok(stream) => {
                let (account, prepaid) = (account.clone(), Arc::new(AtomicU64::new(prepaid)));
                let place = ReadPlace { account, prepaid, _counted: place };
                Ok(Execution::Stream { stream, after, permit: Some(Box::new(place)) })
            }
            Err(OpenError::Refused(errors)) => Ok(Execution::Refused(errors)),
            Err(OpenError::TooMany { limit }) => Err(Refused::limit("streams", limit, limit)),
            Err(OpenError::NoMemory { limit, used }) => {
                Err(Refused::limit("memory_bytes", limit, used))
            }
        }
    }

    /// Lets the resolver check the arguments and name its source.
    fn build(
        &self,
        request: StreamRequest,
        document: ExecutableDocument,
        weight: Weight,
        account: &ClientAccount,
    ) -> Result<Box<dyn Source>, Refused> {
        let (depth_nanos, fields) = (weight.level_nanos(), weight.fields);
        let (spec, mut encoder) = request.encoder(document)?;
        let encode: Encode = Box::new(move |frame| encoder.encode(frame));
        let live = self.encoders.here();
        let source = match spec {
            SourceSpec::OrderBook { market, depth, speed } => {
                // Of either side. It is high where a document selects levels of both kinds of
                // frames.
                let level_nanos = depth_nanos / (2 * depth as u64);
                let long = (depth_nanos > MOST_INLINE_NANOS).then(|| LongFrames {
                    pool: self.pool.clone(),
                    line: account.line().clone(),
                    encoder: Box::new(move || request.encode_elsewhere()),
                    level_nanos,
                });
                live.book_source(&market, depth, speed, encode, long)
            }
            SourceSpec::BestBidOffer { markets } => Some(live.offer_source(markets, encode)),
            SourceSpec::Candles { market, interval } => {
                live.candle_source(&market, interval, fields, encode)
            }
            SourceSpec::Tickers { markets } => Some(live.ticker_source(markets, encode)),
            SourceSpec::Topics(names) => Some(live.topic_source(names, fields, encode)),
            SourceSpec::FeedStatus => Some(live.feed_source(encode)),
        };
        debug_assert!(source.is_some(), "a resolver that runs names a source that exists");
        source.ok_or_else(|| Refused::internal("a subscription named no source"))
    }
}

impl Executor for GraphqlExecutor {
    type Principal = Caller;
    type Client = Arc<ClientAccount>;

    fn charge_message(&self, client: &Arc<ClientAccount>, bytes: usize) -> Budget {
        client.charge_message(bytes)
    }

    fn measure<T>(&self, client: &Arc<ClientAccount>, work: impl FnOnce() -> T) -> T {
        client.measure(work)
    }

    fn priority(&self, client: &Arc<ClientAccount>) -> Priority {
        client.priority()
    }

    fn authenticate(
        &self,
        _credentials: Credentials,
        client: &Arc<ClientAccount>,
    ) -> BoxFuture<'static, Result<Grant<Caller>, InitRefused>> {
        let principal = Caller::new(self.everyone.clone(), client.clone());
        ready(Ok(Grant { principal, expires_at: None })).boxed()
    }

    fn kind(&self, request: &Request, caller: &Caller) -> Option<OperationKind> {
        let named = request.extensions.as_ref().and_then(|all| all.get_key_value(PERSISTED));
        let mut request = Request {
            query: request.query.clone(),
            operation_name: request.operation_name.clone(),
            extensions: named.map(|(key, hash)| Map::from_iter([(key.clone(), hash.clone())])),
            variables: None,
        };
        self.persisted.complete(&mut request).ok()?;
        let name = request.operation_name.as_deref().filter(|name| !name.is_empty());
        let document = self.parse(&request.query, caller).ok()?;
        Some(match document::operation(&document.tree, name).ok()?.node.ty {
            OperationType::Query => OperationKind::Query,
            OperationType::Mutation => OperationKind::Mutation,
            OperationType::Subscription => OperationKind::Subscription,
        })
    }

    fn execute(&self, request: Request, caller: &Caller) -> Execution {
        let planned = catch_unwind(AssertUnwindSafe(|| self.plan(request, caller)))
            .unwrap_or_else(|panic| Err(Refused::internal(&said(&*panic))));
        planned.unwrap_or_else(|refused| Execution::Refused(refused.into_bytes()))
    }
}

/// Charges what an operation weighs.
fn spend(account: &ClientAccount, weight: Weight) {
    account.spend(Work::Field, weight.checked_fields());
    account.spend(Work::LevelField, weight.level_fields);
    account.spend(Work::IntrospectionField, weight.introspection_fields);
}

/// The result of one client alone, charged by its size: what a list repeats is known only now.
fn outcome(response: Response, account: &ClientAccount) -> Outcome {
    let ran = response.errors.iter().any(|error| !error.path.is_empty());
    if response.is_err() && !ran && response.data == async_graphql::Value::Null {
        return Err(Refused::from_response(response).into_bytes());
    }
    let has_errors = response.is_err();
    let json = errors::encode(response, None);
    account.spend(Work::Kib, json.len() >> 10);
    Ok(SingleResult { json: Bytes::from(json), has_errors })
}

/// A resolver that panics is one client's error: all clients share the thread that it runs on.
fn unwinding(running: impl Future<Output = Outcome> + Send + 'static) -> Running {
    let running = AssertUnwindSafe(running).catch_unwind();
    running
        .map(|ended| match ended {
            Ok(outcome) => outcome,
            Err(panic) => Err(Refused::internal(&said(&*panic)).into_bytes()),
        })
        .boxed()
}

/// A cursor as variables or extensions have it.
fn text_or_null(value: Value) -> Result<Option<String>, Refused> {
    match value {
        Value::String(cursor) => Ok(Some(cursor)),
        Value::Null => Ok(None),
        _ => Err(Refused::new(ErrorCode::BadRequest, "after: a cursor is a string", None)),
    }
}

/// As JSON with sorted keys at every level: two clients rarely agree on an order.
fn canonical(variables: &Map<String, Value>) -> String {
    fn sorted(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_unstable_by_key(|(name, _)| *name);
                entries.into_iter().map(|(name, value)| (name.clone(), sorted(value))).collect()
            }
            Value::Array(values) => values.iter().map(sorted).collect(),
            other => other.clone(),
        }
    }
    sorted(&Value::Object(variables.clone())).to_string()
}

#[cfg(test)]
#[path = "executor_tests.rs"]
mod tests;
