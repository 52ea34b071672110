//! Positions in a topic's ordered events, and the opaque cursor of them that a client keeps.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Which numbering a sequence belongs to. A new epoch means that the numbering was restarted.
/// Shown to clients as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Epoch {
    /// The epoch that an event of this sequence began in a log of this epoch; 0 is the log's own.
    /// Computed from the two alone, so it is the same for every reader of the log.
    pub fn renewed_at(self, sequence: u64) -> Self {
        if sequence == 0 {
            return self;
        }
        // SplitMix64's finisher: one to one, so that two events of a log never give the same.
        let mixed = self.0.wrapping_add(sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self(mixed ^ (mixed >> 31))
    }
}

/// A position in one topic: sequences rise within an epoch but need not be dense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    pub epoch: Epoch,
    pub sequence: u64,
}

/// A position on each topic of a subscription, as the client gets it: opaque, base64url.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The form of the client's copy (a book's depth): a resume with another shape can't continue
    /// with deltas.
    pub shape: u32,
    /// A stable 64 bit hash of the topic's name, with the position on it.
    pub positions: Vec<(u64, Position)>,
}

/// Why a text is not a valid cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    #[error("the cursor is not one of this server's: pass one from a frame, unchanged")]
    Malformed,
    #[error("the cursor belongs to another topic: pass one from this subscription")]
    OtherTopic,
}

/// First byte of every cursor, so that a later format can be recognised.
const VERSION: u8 = 1;
/// More topics than a subscription may have (100 markets).
const MOST_POSITIONS: usize = 128;
const HEADER_BYTES: usize = 5;
const POSITION_BYTES: usize = 24;
/// Longest cursor, as text.
pub(crate) const MOST_CURSOR_BYTES: usize = 4_106;
const _: () =
    assert!(MOST_CURSOR_BYTES >= (HEADER_BYTES + MOST_POSITIONS * POSITION_BYTES).div_ceil(3) * 4);

impl Cursor {
    pub fn single(shape: u32, topic: u64, position: Position) -> Self {
        Self { shape, positions: vec![(topic, position)] }
    }

    pub fn encode(&self) -> String {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.positions.len() * POSITION_BYTES);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.shape.to_be_bytes());
        for (topic, position) in &self.positions {
            bytes.extend_from_slice(&topic.to_be_bytes());
            bytes.extend_from_slice(&position.epoch.0.to_be_bytes());
            bytes.extend_from_slice(&position.sequence.to_be_bytes());
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    pub fn decode(text: &str) -> Result<Self, CursorError> {
        if text.len() > MOST_CURSOR_BYTES {
            return Err(CursorError::Malformed);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError::Malformed)?;
        let (header, rest) = bytes.split_at_checked(HEADER_BYTES).ok_or(CursorError::Malformed)?;
        if header[0] != VERSION || rest.len() % POSITION_BYTES != 0 || rest.is_empty() {
            return Err(CursorError::Malformed);
        }
        let word = |slice: &[u8]| {
            slice.try_into().map(u64::from_be_bytes).map_err(|_| CursorError::Malformed)
        };
        let shape = u32::from_be_bytes(header[1..].try_into().map_err(|_| CursorError::Malformed)?);
        let mut positions = Vec::with_capacity(rest.len() / POSITION_BYTES);
        for one in rest.chunks_exact(POSITION_BYTES) {
            let position =
                Position { epoch: Epoch(word(&one[8..16])?), sequence: word(&one[16..])? };
            positions.push((word(&one[..8])?, position));
        }
        Ok(Self { shape, positions })
    }

    /// The position on the only topic of a subscription.
    pub fn only(&self, topic: u64) -> Result<Position, CursorError> {
        match self.positions[..] {
            [(own, position)] if own == topic => Ok(position),
            _ => Err(CursorError::OtherTopic),
        }
    }
}

/// FNV-1a: the same in all builds and on all machines, as clients keep cursors across both.
pub fn topic_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cursor_of_another_topic_is_refused_as_such() {
        let position = Position { epoch: Epoch(7), sequence: 9 };
        let cursor = Cursor::single(25, topic_hash("book:A"), position);
        assert_eq!(cursor.only(topic_hash("book:A")), Ok(position));
        assert_eq!(cursor.only(topic_hash("book:B")), Err(CursorError::OtherTopic));
    }

    #[test]
    fn a_cursor_with_a_position_too_many_is_malformed() {
        let position = Position { epoch: Epoch(7), sequence: 9 };
        let cursor = |count| Cursor { shape: 1, positions: vec![(1, position); count] };
        let decoded = |count| Cursor::decode(&cursor(count).encode());
        assert_eq!(decoded(MOST_POSITIONS), Ok(cursor(MOST_POSITIONS)));
        assert_eq!(decoded(MOST_POSITIONS + 1), Err(CursorError::Malformed));
    }

    proptest! {
        #[test]
        fn an_encoded_cursor_decodes_to_itself(
            shape: u32,
            all in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 1..100),
        ) {
            let positions = all.into_iter()
                .map(|(topic, epoch, sequence)| (topic, Position { epoch: Epoch(epoch), sequence }))
                .collect();
            let cursor = Cursor { shape, positions };
            prop_assert_eq!(Cursor::decode(&cursor.encode()), Ok(cursor));
        }

        #[test]
        fn any_text_decodes_or_is_refused_without_a_panic(text in ".{0,200}") {
            if let Ok(cursor) = Cursor::decode(&text) {
                prop_assert!(!cursor.positions.is_empty());
            }
        }
    }
}
