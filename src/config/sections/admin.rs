//! `[admin]`: the port for operators.

use std::net::{Ipv4Addr, SocketAddr};

use crate::config::kind::address;
use crate::config::table::{Key, Table};

/// The port for operators: health and metrics, never for the public.
#[derive(Clone, Debug, PartialEq)]
pub struct AdminConfig {
    pub listen: SocketAddr,
}

pub(in crate::config) fn read(table: &mut Table<'_>) -> AdminConfig {
    AdminConfig {
        listen: table.key(Key {
            name: "admin.listen",
            unit: "",
            takes: address(),
            default: SocketAddr::from((Ipv4Addr::LOCALHOST, 4001)),
            does: "The address and port of health and metrics: `/livez`, `/readyz`, `/metrics`.",
            notes: "They are for operators: keep this port off the public network. It must differ \
                    from `server.listen`.",
        }),
    }
}
