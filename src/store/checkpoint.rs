//! States of topics, from which a start replays only what came later.

use rusqlite::{Connection, params};

use super::fault::{At, StoreError};
use super::{Store, reader, transact};

/// Checkpoints that the store keeps of a topic. A start needs two. A rollback replays from the
/// newest one before the removed blocks. With 2,000 events between two, a rollback of the last
/// 30,000 events of a book does not read the whole log.
pub(super) const MOST_CHECKPOINTS: usize = 16;

/// A topic's state as it was after an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub topic: Box<str>,
    pub sequence: u64,
    pub state: Vec<u8>,
}

impl Store {
    /// Keeps a topic's state, and of the earlier ones the newest.
    pub fn save_checkpoint(
        &mut self,
        topic: &str,
        sequence: u64,
        state: &[u8],
    ) -> Result<(), StoreError> {
        let save = |connection: &Connection| {
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO checkpoints (topic, sequence, state)
                     VALUES (?1, ?2, ?3)",
                )?
                .execute(params![topic, sequence.cast_signed(), state])?;
            connection
                .prepare_cached(
                    "DELETE FROM checkpoints WHERE topic = ?1 AND sequence NOT IN (
                         SELECT sequence FROM checkpoints WHERE topic = ?1
                         ORDER BY sequence DESC LIMIT ?2)",
                )?
                .execute(params![topic, reader::count(MOST_CHECKPOINTS)])?;
            Ok::<_, rusqlite::Error>(())
        };
        transact(&self.connection, save).at(&self.path)
    }

    /// Of each topic that has two checkpoints or more the newest but one: a restart from it replays
    /// at least the stretch between the two, and so can serve clients that resume from within it. A
    /// topic with one is replayed whole.
    pub fn older_checkpoints(&self) -> Result<Vec<Checkpoint>, StoreError> {
        self.connection
            .prepare_cached(
                "SELECT topic, sequence, state FROM checkpoints JOIN (
                     SELECT topic, sequence, row_number() OVER newest AS place FROM checkpoints
                     WINDOW newest AS (PARTITION BY topic ORDER BY sequence DESC)
                 ) USING (topic, sequence) WHERE place = 2 ORDER BY topic",
            )
            .and_then(|mut statement| {
                statement
                    .query_map([], |row| {
                        Ok(Checkpoint {
                            topic: row.get(0)?,
                            sequence: row.get::<_, i64>(1)?.cast_unsigned(),
                            state: row.get(2)?,
                        })
                    })?
                    .collect()
            })
            .at(&self.path)
    }

    /// The sequence of a topic's newest checkpoint.
    pub fn newest_checkpoint(&self, topic: &str) -> Result<Option<u64>, StoreError> {
        self.connection
            .prepare_cached("SELECT max(sequence) FROM checkpoints WHERE topic = ?1")
            .and_then(|mut statement| {
                statement.query_row([topic], |row| row.get::<_, Option<i64>>(0))
            })
            .map(|sequence| sequence.map(i64::cast_unsigned))
            .at(&self.path)
    }
}
