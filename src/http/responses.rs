//! Which statuses the public port answered with. A closed set of labels, whatever is answered.

use std::sync::atomic::{AtomicU64, Ordering};

use hyper::StatusCode;

/// Those that the hub sends; any other counts as the last label.
const STATUSES: [u16; 19] =
    [101, 200, 204, 294, 304, 307, 400, 401, 403, 404, 405, 406, 408, 413, 415, 422, 429, 500, 503];
const OTHER: &str = "other";

/// Counters since the start.
#[derive(Debug, Default)]
pub struct ResponseMeters([AtomicU64; STATUSES.len() + 1]);

impl ResponseMeters {
    pub fn count(&self, status: StatusCode) {
        let place = STATUSES.iter().position(|own| *own == status.as_u16());
        self.0[place.unwrap_or(STATUSES.len())].fetch_add(1, Ordering::Relaxed);
    }

    /// By status, as text.
    pub fn counts(&self) -> impl Iterator<Item = (String, u64)> {
        let labels = STATUSES.iter().map(u16::to_string).chain([OTHER.to_owned()]);
        labels.zip(self.0.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_of_the_hub_has_a_counter_and_all_others_have_one_together() {
        let meters = ResponseMeters::default();
        for status in STATUSES.into_iter().chain([418, 599]) {
            meters.count(StatusCode::from_u16(status).unwrap());
        }
        let counts: Vec<_> = meters.counts().collect();
        assert!(counts[..STATUSES.len()].iter().all(|(_, count)| *count == 1));
        assert_eq!(counts[STATUSES.len()], (OTHER.to_owned(), 2));
    }
}
