//! Which response streams a socket or an address reads: each counts once, however many operations
//! read it, and gives its place back when the last of them ends.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;

use super::meters::ExceededLimit;

/// The distinct streams of a socket, counted in its address too; or those of an address.
pub struct StreamCounts {
    most: usize,
    refusal: ExceededLimit,
    /// By the hash of the operation's key: how many read it. Two keys of one hash count as one.
    readers: Mutex<HashMap<u64, usize>>,
    /// A stream that is new here takes a place there too.
    outer: Option<Arc<StreamCounts>>,
}

/// One reader's share; given back when dropped.
pub struct StreamPlace {
    counts: Arc<StreamCounts>,
    stream: u64,
}

/// A stream too many: which limit, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyStreams {
    pub limit: ExceededLimit,
    pub most: usize,
    pub current: usize,
}

impl StreamCounts {
    pub(super) fn new(most: usize, refusal: ExceededLimit, outer: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self { most, refusal, readers: Mutex::default(), outer })
    }

    /// Counts a reader of a stream in.
    pub fn enter(self: &Arc<Self>, stream: u64) -> Result<StreamPlace, TooManyStreams> {
        self.add(stream)?;
        Ok(StreamPlace { counts: self.clone(), stream })
    }

    fn add(&self, stream: u64) -> Result<(), TooManyStreams> {
        let mut readers = self.readers.lock();
        let current = readers.len();
        match readers.entry(stream) {
            Entry::Occupied(mut known) => *known.get_mut() += 1,
            Entry::Vacant(_) if current >= self.most => {
                return Err(TooManyStreams { limit: self.refusal, most: self.most, current });
            }
            Entry::Vacant(new) => {
                if let Some(outer) = &self.outer {
                    outer.add(stream)?;
                }
                new.insert(1);
            }
        }
        Ok(())
    }

    fn remove(&self, stream: u64) {
        let mut readers = self.readers.lock();
        let Entry::Occupied(mut known) = readers.entry(stream) else {
            debug_assert!(false, "a stream's place is given back once");
            return;
        };
        *known.get_mut() -= 1;
        if *known.get() == 0 {
            known.remove();
            if readers.is_empty() {
                // A socket that reads nothing keeps no table.
                *readers = HashMap::new();
            }
            if let Some(outer) = &self.outer {
                outer.remove(stream);
            }
        }
    }

    /// Distinct streams read now.
    pub fn len(&self) -> usize {
        self.readers.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.counts.remove(self.stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_counts_once_a_socket_and_once_an_address_and_gives_both_places_back() {
        let address = StreamCounts::new(3, ExceededLimit::StreamsPerAddress, None);
        let socket =
            || StreamCounts::new(2, ExceededLimit::StreamsPerSocket, Some(address.clone()));
        let (one, two) = (socket(), socket());
        let first = one.enter(1).ok().unwrap();
        let again = one.enter(1).ok().unwrap();
        let _second = one.enter(2).ok().unwrap();
        let full = TooManyStreams { limit: ExceededLimit::StreamsPerSocket, most: 2, current: 2 };
        assert_eq!(one.enter(3).err(), Some(full));
        let shared = two.enter(1).ok().unwrap();
        let _third = two.enter(3).ok().unwrap();
        let third = socket();
        let full = TooManyStreams { limit: ExceededLimit::StreamsPerAddress, most: 3, current: 3 };
        assert_eq!(third.enter(4).err(), Some(full));
        assert!(third.enter(1).is_ok(), "the address reads it already");
        drop(first);
        drop(shared);
        assert_eq!((one.len(), two.len(), address.len()), (2, 1, 3));
        drop(again);
        assert_eq!((one.len(), address.len()), (1, 2));
        assert!(third.enter(4).is_ok());
    }
}
