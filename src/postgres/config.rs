//! Where the database is.

use std::time::Duration;

use secrecy::SecretString;

#[derive(Clone)]
pub struct PostgresConfig {
    pub url: SecretString,
    /// Between two looks where nothing rang.
    pub poll_interval: Duration,
    pub doorbell: Doorbell,
    /// Of the tables; none: the first one of the role's search path.
    pub schema: Option<String>,
    /// For any answer.
    pub deadline: Duration,
}

/// Whether a hub that is idle lets writers notify it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doorbell {
    /// Only where no transaction can be prepared: Postgres prepares none that did.
    Auto,
    On,
    Off,
}
