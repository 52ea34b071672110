//! Which sources each topic had events of. Safe to lose: it is learned again.

use std::sync::Arc;

use rusqlite::{Connection, params};

use super::fault::{At, StoreError};
use super::{Store, transact};

/// A source of a topic: a file of a feed, a partition, a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSource {
    pub topic: Arc<str>,
    /// The feed's name.
    pub feed: Arc<str>,
    pub source: Arc<str>,
    /// It replaces those that the topic had.
    pub replaces: bool,
}

impl Store {
    /// Keeps further sources, in one transaction.
    pub fn save_topic_sources(&self, new: &[TopicSource]) -> Result<(), StoreError> {
        let save = |connection: &Connection| {
            for TopicSource { topic, feed, source, replaces } in new {
                if *replaces {
                    connection
                        .prepare_cached("DELETE FROM topic_sources WHERE topic = ?1")?
                        .execute([topic])?;
                }
                connection
                    .prepare_cached(
                        "INSERT OR IGNORE INTO topic_sources (topic, feed, source)
                         VALUES (?1, ?2, ?3)",
                    )?
                    .execute(params![topic, feed, source])?;
            }
            Ok::<_, rusqlite::Error>(())
        };
        transact(&self.connection, save).at(&self.path)
    }

    /// All sources of all topics.
    pub fn topic_sources(&self) -> Result<Vec<TopicSource>, StoreError> {
        let read = || -> rusqlite::Result<Vec<_>> {
            self.connection
                .prepare("SELECT topic, feed, source FROM topic_sources ORDER BY topic")?
                .query_map([], |row| {
                    let text = |column| row.get::<_, Arc<str>>(column);
                    Ok(TopicSource {
                        topic: text(0)?,
                        feed: text(1)?,
                        source: text(2)?,
                        replaces: false,
                    })
                })?
                .collect()
        };
        read().at(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_kept_until_one_replaces_them() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("log.db")).unwrap();
        let source = |topic: &str, source: &str, replaces| TopicSource {
            topic: topic.into(),
            feed: "files".into(),
            source: source.into(),
            replaces,
        };
        let kept = || {
            let all = store.topic_sources().unwrap();
            all.iter().map(|one| format!("{} {}", one.topic, one.source)).collect::<Vec<_>>()
        };
        store.save_topic_sources(&[source("a", "1", false), source("b", "1", false)]).unwrap();
        store.save_topic_sources(&[source("a", "2", false), source("a", "2", false)]).unwrap();
        assert_eq!(kept(), ["a 1", "a 2", "b 1"]);
        store.save_topic_sources(&[source("a", "3", true)]).unwrap();
        assert_eq!(kept(), ["a 3", "b 1"]);
    }
}
