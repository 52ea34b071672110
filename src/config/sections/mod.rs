//! The sections of the configuration, one a file: the types that the parts of the hub get, and the
//! row of each key in the place of the field that it fills.

pub(super) mod admin;
pub(super) mod cache;
pub(super) mod feeds;
pub(super) mod identity;
pub(super) mod limits;
pub(super) mod log;
pub(super) mod server;
pub(super) mod store;
