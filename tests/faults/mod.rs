//! Clients, caches and hubs that fail, are slow or are killed.

mod follow;
mod redis;
mod restart;
mod slow;
