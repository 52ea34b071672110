//! To be written.

use crate::config::Config;
use crate::feeds::simulator::SimulatorConfig;

/// Why the hub could not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the server is not built yet")]
    NotBuilt,
}

pub fn run(_config: Config, _simulator: Option<SimulatorConfig>) -> Result<(), ServeError> {
    Err(ServeError::NotBuilt)
}
