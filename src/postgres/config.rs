//! Where the database is.

use std::time::Duration;

#[derive(Clone)]
pub struct PostgresConfig {
    /// May hold a password.
    pub url: String,
    /// Between two looks where nothing rang.
    pub poll_interval: Duration,
    /// For any answer.
    pub deadline: Duration,
}
