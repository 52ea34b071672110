//! How often streams push, and which of them have something to push.

use std::sync::Arc;

use spreadly_subscriptions::{Pace, ResponseStream};

use super::frame::{Encode, Speed};

/// Beats of one second after which a quiet stream pushes a heartbeat. The protocol allows at most
/// 5 s between frames. A push may come just after a beat, so 4 leaves a second for a late timer.
pub(super) const QUIET_BEATS: u8 = 4;

/// Ids of streams that have something to push.
pub type Touched = Vec<u64>;

impl From<Speed> for Pace {
    fn from(speed: Speed) -> Self {
        match speed {
            Speed::Raw => Self::Raw,
            Speed::Ms100 => Self::Ms100,
            Speed::Ms250 => Self::Ms250,
            Speed::S1 => Self::S1,
        }
    }
}

impl From<Pace> for Speed {
    fn from(pace: Pace) -> Self {
        match pace {
            Pace::Raw => Self::Raw,
            Pace::Ms100 => Self::Ms100,
            Pace::Ms250 => Self::Ms250,
            Pace::S1 => Self::S1,
        }
    }
}

/// Lets each frame say at which pace its stream pushes.
pub(super) fn with_pace(stream: &Arc<ResponseStream>, mut encode: Encode) -> Encode {
    let stream = stream.clone();
    Box::new(move |mut frame| {
        frame.slow_to(stream.slowed_to().map(Speed::from));
        encode(frame)
    })
}
