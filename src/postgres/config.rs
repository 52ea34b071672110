//! Where the database is.

use std::time::Duration;

use secrecy::SecretString;

#[derive(Clone)]
pub struct PostgresConfig {
    pub url: SecretString,
    /// Between two looks where nothing rang.
    pub poll_interval: Duration,
    /// For any answer.
    pub deadline: Duration,
}
