//! What Redis stores: names of keys, fields of hashes, and the fingerprint. It detects a value that
//! was torn or altered.

use std::fmt::Write as _;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use spreadly_subscriptions::Epoch;

/// The fields of a state beside `log` and `sequence`, which the script writes, in the order of
/// [`Found::read`].
pub(crate) const STATE_FIELDS: [&str; 6] =
    ["log", "sequence", "epoch", "topic", "state", "fingerprint"];

/// The braces are the part by which a cluster places it: keys of a market lie together.
pub(super) fn state_key(market: &str) -> String {
    format!("spreadly:{{{market}}}:state")
}

pub(super) fn recent_key(market: &str) -> String {
    format!("spreadly:{{{market}}}:recent")
}

/// A market's state as it was after an event of its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedState {
    /// The log's own epoch: positions of one log are ordered by their sequence alone.
    pub log: Epoch,
    /// Of the market's positions.
    pub epoch: Epoch,
    pub sequence: u64,
    /// Of the events that follow it.
    pub topic: String,
    pub state: Bytes,
}

/// What other programs may want of a market, as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recent {
    pub log: Epoch,
    pub epoch: Epoch,
    /// Of the last event that counts in it.
    pub sequence: u64,
    pub ticker: String,
    /// Oldest first.
    pub trades: String,
}

/// What is stored for a market.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    State(CachedState),
    /// Not what we wrote.
    Unreadable,
}

impl CachedState {
    fn fingerprint(&self) -> String {
        let Self { log, epoch, sequence, topic, state } = self;
        let mut hash = Sha256::new();
        hash.update(format!("{log} {epoch} {sequence} {topic} "));
        hash.update(state);
        hash.finalize().iter().fold(String::new(), |mut text, byte| {
            // Into a string it can't fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// What the script is given.
    pub(crate) fn fields(&self) -> Vec<Bytes> {
        let Self { log, epoch, sequence, topic, state } = self;
        let mut fields = vec![log.to_string(), sequence.to_string()];
        fields.extend(["epoch".to_owned(), epoch.to_string(), "topic".to_owned(), topic.clone()]);
        fields.extend(["fingerprint".to_owned(), self.fingerprint(), "state".to_owned()]);
        fields.into_iter().map(Bytes::from).chain([state.clone()]).collect()
    }
}

impl Recent {
    pub(super) fn fields(&self) -> Vec<Bytes> {
        let Self { log, epoch, sequence, ticker, trades } = self;
        let mut fields = vec![log.to_string(), sequence.to_string()];
        fields.extend(["epoch".to_owned(), epoch.to_string(), "ticker".to_owned(), ticker.clone()]);
        fields.extend(["trades".to_owned(), trades.clone()]);
        fields.into_iter().map(Bytes::from).collect()
    }
}

impl Found {
    /// By the values of [`STATE_FIELDS`].
    pub(crate) fn read(fields: &[Option<Bytes>]) -> Self {
        if fields.iter().all(Option::is_none) {
            return Self::Nothing;
        }
        Self::kept(fields).map_or(Self::Unreadable, Self::State)
    }

    fn kept(fields: &[Option<Bytes>]) -> Option<CachedState> {
        let [log, sequence, epoch, topic, state, fingerprint] = fields else { return None };
        let text = |field: &Option<Bytes>| Some(str::from_utf8(field.as_ref()?).ok()?.to_owned());
        let epoch_of = |field| Some(Epoch(u64::from_str_radix(&text(field)?, 16).ok()?));
        let kept = CachedState {
            log: epoch_of(log)?,
            epoch: epoch_of(epoch)?,
            sequence: text(sequence)?.parse().ok()?,
            topic: text(topic)?,
            state: state.clone()?,
        };
        (kept.fingerprint() == text(fingerprint)?).then_some(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> CachedState {
        let (log, epoch) = (Epoch(7), Epoch(9));
        CachedState {
            log,
            epoch,
            sequence: 12,
            topic: "book:A-B".into(),
            state: Bytes::from_static(b"{}"),
        }
    }

    /// As Redis gives it back.
    fn stored(kept: &CachedState) -> Vec<Option<Bytes>> {
        let fields = kept.fields();
        let mut stored = vec![Some(fields[0].clone()), Some(fields[1].clone())];
        for name in &STATE_FIELDS[2..] {
            let place = fields[2..].iter().step_by(2).position(|one| one == name.as_bytes());
            stored.push(place.map(|place| fields[2 + 2 * place + 1].clone()));
        }
        stored
    }

    #[test]
    fn a_value_reads_back_and_one_that_was_altered_in_any_field_does_not() {
        let stored = stored(&kept());
        assert_eq!(Found::read(&stored), Found::State(kept()));
        for place in 0..stored.len() {
            let mut torn = stored.clone();
            torn[place] = None;
            assert_eq!(Found::read(&torn), Found::Unreadable, "{}", STATE_FIELDS[place]);
            torn[place] = Some(Bytes::from_static(b"11"));
            assert_eq!(Found::read(&torn), Found::Unreadable, "{}", STATE_FIELDS[place]);
        }
        assert_eq!(Found::read(&[const { None }; 6]), Found::Nothing);
    }
}
