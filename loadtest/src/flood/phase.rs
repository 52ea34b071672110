//! The phases of a flood, one after the other.

use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Until all steady subscribers have a frame; not in the report.
    Warm,
    Before,
    During,
    /// At once after the attackers left.
    Leaving,
    After,
    /// Only memory is looked at.
    Recovery,
}

pub const PHASES: [Phase; 6] =
    [Phase::Warm, Phase::Before, Phase::During, Phase::Leaving, Phase::After, Phase::Recovery];

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Before => "before",
            Self::During => "during",
            Self::Leaving => "leaving",
            Self::After => "after",
            Self::Recovery => "recovery",
        }
    }

    pub fn index(self) -> usize {
        self as usize
    }
}

/// The phase of this moment, shared by the threads.
#[derive(Debug, Clone, Default)]
pub struct PhaseNow(Arc<AtomicU8>);

impl PhaseNow {
    pub fn get(&self) -> Phase {
        PHASES[usize::from(self.0.load(Ordering::Relaxed)).min(PHASES.len() - 1)]
    }

    pub fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Relaxed);
    }
}
