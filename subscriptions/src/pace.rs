//! How often a stream is brought up to date.

use std::time::Duration;

/// See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pace {
    /// At each event.
    Raw,
    Ms100,
    Ms250,
    S1,
}

impl Pace {
    /// The paces that merge changes, the fastest first.
    pub const MERGING: [Self; 3] = [Self::Ms100, Self::Ms250, Self::S1];
    /// The paces that have a slower one.
    pub(crate) const SLOWABLE: [Self; 3] = [Self::Raw, Self::Ms100, Self::Ms250];

    /// Time between two encodings.
    pub fn period(self) -> Duration {
        Duration::from_millis(match self {
            Self::Raw => 0,
            Self::Ms100 => 100,
            Self::Ms250 => 250,
            Self::S1 => 1_000,
        })
    }

    /// Time that may be spent on other streams while one of this pace waits. A stream that waits
    /// longer gets the next slower pace.
    pub(crate) fn patience(self) -> Duration {
        match self {
            Self::Raw => RAW_PATIENCE,
            merging => merging.period() / 2,
        }
    }

    pub(crate) fn slower(self) -> Self {
        match self {
            Self::Raw => Self::Ms100,
            Self::Ms100 => Self::Ms250,
            Self::Ms250 | Self::S1 => Self::S1,
        }
    }

    pub(crate) fn faster(self) -> Self {
        match self {
            Self::S1 => Self::Ms250,
            Self::Ms250 => Self::Ms100,
            Self::Ms100 | Self::Raw => Self::Raw,
        }
    }

    /// Its index in [`Pace::MERGING`]; `None` for [`Pace::Raw`].
    pub(crate) fn merging_index(self) -> Option<usize> {
        Self::MERGING.iter().position(|one| *one == self)
    }

    /// Its index in [`Pace::SLOWABLE`]; `None` for [`Pace::S1`].
    pub(crate) fn slowable_index(self) -> Option<usize> {
        Self::SLOWABLE.iter().position(|one| *one == self)
    }
}

/// What may be spent on other streams while a RAW stream waits: some 800 encodings.
const RAW_PATIENCE: Duration = Duration::from_millis(10);
