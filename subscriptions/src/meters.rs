//! What the engine counts. Plain atomics: read by the admin port, written on hot paths.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! meters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters since the start, and gauges where the text says "now".
        #[derive(Debug, Default)]
        pub struct Meters { $($(#[$doc])* pub $name: Meter,)* }

        impl Meters {
            /// Every meter with its name, in the order of the fields.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

/// One number that many threads add to.
#[derive(Debug, Default)]
pub struct Meter(AtomicU64);

impl Meter {
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub fn subtract(&self, amount: u64) {
        self.0.fetch_sub(amount, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

meters! {
    /// Frames pushed into response streams.
    frames_published,
    /// Response streams alive now.
    streams_open,
}
