//! A table of what was asked for lately, bounded by its number of entries.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// Two generations of half the entries each: when the young one is full it becomes the old one, and
/// what is asked for in the old one moves over. No clock, no list to keep in order.
pub struct DocumentCache<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    /// Entries of one generation.
    half: usize,
}

impl<K: Eq + Hash, V: Clone> DocumentCache<K, V> {
    pub fn new(most: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: most / 2 }
    }

    pub fn get<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.keep(key, value.clone());
        Some(value)
    }

    pub fn keep(&mut self, key: K, value: V) {
        if self.young.len() >= self.half {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stays_and_the_table_is_bounded() {
        let mut table: DocumentCache<String, u64> = DocumentCache::new(100);
        table.keep("always".to_owned(), 7);
        for number in 0..1_000 {
            table.keep(number.to_string(), number);
            assert_eq!(table.get("always"), Some(7));
            assert!(table.len() <= 100, "{}", table.len());
        }
        assert_eq!(table.get("0"), None);
        assert_eq!(table.get("999"), Some(999));
    }
}
