//! The configured limits as each part of the hub takes them.

use spreadly_subscriptions::StreamLimits;

use super::memory;
use crate::budgets::AccountLimits;
use crate::config::{Config, Limits};
use crate::graphql::QueryLimits;

pub(super) fn stream_limits(limits: &Limits) -> StreamLimits {
    StreamLimits {
        ring_bytes: limits.ring_bytes_per_stream,
        linger: limits.stream_linger,
        most_streams: limits.streams,
        memory_bytes: match limits.memory_bytes {
            0 => memory::available() / 4,
            bytes => bytes,
        },
    }
}

pub(super) fn socket_limits(config: &Config) -> spreadly_subscriptions::Limits {
    let limits = &config.limits;
    spreadly_subscriptions::Limits {
        message_bytes: limits.message_bytes,
        message_bytes_before_ack: limits.message_bytes_before_ack,
        operations_per_socket: limits.operations_per_socket,
        pending_operations_per_socket: limits.pending_operations_per_socket,
        subscribe_rate: limits.subscribe_rate,
        subscribe_burst: limits.subscribe_burst,
        init_timeout: limits.init_timeout,
        writer_stall: limits.writer_stall,
        ping_interval: config.server.ping_interval,
    }
}

pub(super) fn account_limits(limits: &Limits) -> AccountLimits {
    AccountLimits {
        connections_per_address: limits.connections_per_address,
        sockets_per_address: limits.sockets_per_address,
        streams_per_socket: limits.streams_per_socket,
        streams_per_address: limits.streams_per_address,
        log_readers_per_address: limits.log_readers_per_address,
        reply_bytes_per_address: limits.reply_bytes_per_address,
        reply_bytes: limits.reply_bytes,
        cost_rate: limits.cost_rate,
        cost_burst: limits.cost_burst,
        cost_measured: limits.cost_measured,
        exempt_loopback: limits.exempt_loopback,
    }
}

pub(super) fn query_limits(limits: &Limits) -> QueryLimits {
    QueryLimits {
        query_depth: limits.query_depth,
        query_complexity: limits.query_complexity,
        query_aliases: limits.query_aliases,
        query_tokens: limits.query_tokens,
        query_list_fields: limits.query_list_fields,
        markets_per_subscription: limits.markets_per_subscription,
        book_depth: limits.book_depth,
        ..QueryLimits::default()
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;
    use crate::config::Overrides;

    /// Tests of single parts use the parts' own defaults: they must be those of the hub.
    #[test]
    fn the_defaults_of_each_part_are_those_of_the_configuration() {
        fn assert_same(configured: &impl Debug, own: &impl Debug) {
            assert_eq!(format!("{configured:#?}"), format!("{own:#?}"));
        }
        let config = Config::load(None, std::iter::empty(), Overrides::default()).unwrap();
        let limits = &config.limits;
        assert_same(&socket_limits(&config), &spreadly_subscriptions::Limits::default());
        assert_same(&account_limits(limits), &AccountLimits::default());
        assert_same(&query_limits(limits), &QueryLimits::default());
        let memory_bytes = stream_limits(limits).memory_bytes;
        let streams = StreamLimits { memory_bytes, ..StreamLimits::default() };
        assert_same(&stream_limits(limits), &streams);
    }
}
