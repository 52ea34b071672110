//! The log: several hubs on one, rollbacks of it, and older copies of it.

mod hubs;
mod put_back;
mod reorganisation;
mod shared_log;
