//! The few connections that read the log beside its writer, shared by all who ask: replays and list
//! queries. Reading takes a while, so it happens on the runtime's blocking threads, never on one
//! that owns sockets; how many read at once is bounded here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::fault::StoreError;
use super::reader::LogReader;

/// Readers at once. Each is a connection with some 2 MiB of cache and a thread while it reads; more
/// than the cores of a machine only wait for one another.
pub const MOST_READERS: usize = 8;

/// Of these, those that lists and candles may take: the others are for clients that resume, and for
/// mutations.
const MOST_FOR_QUERIES: usize = 6;
const _: () = assert!(MOST_FOR_QUERIES < MOST_READERS, "a resume must find a place");

/// How long a query waits for a place: longer than most reads take.
const QUERY_WAIT: Duration = Duration::from_millis(500);

/// Why nothing was read.
#[derive(Debug, Error)]
pub enum ReadError {
    #[error("{0} others read the log already: try again")]
    Busy(usize),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("reading the log ended early: {0}")]
    Broken(String),
}

/// See the module's text.
#[derive(Debug)]
pub struct LogReaders {
    path: PathBuf,
    most: usize,
    places: Arc<Semaphore>,
    /// Taken by a query before its place.
    for_queries: Arc<Semaphore>,
    /// Not in use now; opened when first needed.
    idle: Mutex<Vec<LogReader>>,
}

impl LogReaders {
    /// Opens nothing yet.
    pub fn new(path: &Path, most: usize) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(most));
        let for_queries = Arc::new(Semaphore::new(most.min(MOST_FOR_QUERIES)));
        Arc::new(Self { path: path.to_owned(), most, places, for_queries, idle: Mutex::default() })
    }

    /// Reads for a query: in turn, or is [`ReadError::Busy`] after a short while, as a client can
    /// ask again. Leaves places for clients that resume.
    pub async fn for_query<T: Send + 'static>(
        self: Arc<Self>,
        read: impl FnOnce(&LogReader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let waiting = self.for_queries.clone().acquire_owned();
        let place = match tokio::time::timeout(QUERY_WAIT, waiting).await {
            Ok(Ok(place)) => place,
            Ok(Err(_)) | Err(_) => return Err(ReadError::Busy(self.for_queries_most())),
        };
        let read = move |log: &LogReader| {
            let _place = place;
            read(log)
        };
        self.soon(QUERY_WAIT, read).await
    }

    fn for_queries_most(&self) -> usize {
        self.most.min(MOST_FOR_QUERIES)
    }

    /// Reads now, or is [`ReadError::Busy`] at once: for work of the hub that is tried again later.
    pub async fn now<T: Send + 'static>(
        self: Arc<Self>,
        read: impl FnOnce(&LogReader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| ReadError::Busy(self.most))?;
        self.run(place, read).await
    }

    /// Reads in turn, or is [`ReadError::Busy`] after `patience`: for replays, as a crowd that
    /// comes back at once is nobody's mistake. Who waits is an operation, so their number is
    /// bounded.
    pub async fn soon<T: Send + 'static>(
        self: Arc<Self>,
        patience: Duration,
        read: impl FnOnce(&LogReader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let place = tokio::time::timeout(patience, self.places.clone().acquire_owned()).await;
        match place {
            Ok(Ok(place)) => self.run(place, read).await,
            Ok(Err(_)) | Err(_) => Err(ReadError::Busy(self.most)),
        }
    }

    /// Reads on this thread, which owns no sockets and may wait for the disk: the sequencer's, of
    /// which there is one. Takes no place, as its work can't be put off.
    pub fn read_here<T>(
        &self,
        read: impl FnOnce(&LogReader) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let idle = self.idle.lock().pop();
        let reader = match idle {
            Some(reader) => reader,
            None => LogReader::open(&self.path)?,
        };
        let read = reader.at_once(read)?;
        // One reader more than there are places for clients.
        let mut idle = self.idle.lock();
        if idle.len() <= self.most {
            idle.push(reader);
        }
        Ok(read)
    }

    async fn run<T: Send + 'static>(
        self: Arc<Self>,
        place: OwnedSemaphorePermit,
        read: impl FnOnce(&LogReader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ReadError> {
        // The place goes along: who asked may be gone long before the thread is done.
        let reading = tokio::task::spawn_blocking(move || {
            let _place = place;
            let idle = self.idle.lock().pop();
            let reader = match idle {
                Some(reader) => reader,
                None => LogReader::open(&self.path)?,
            };
            let read = reader.at_once(read)?;
            // One that failed is not kept: it may hold a stale view of a file that was mended.
            self.idle.lock().push(reader);
            Ok(read)
        });
        reading.await.map_err(|error| ReadError::Broken(error.to_string()))?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::Store;
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn a_reader_too_many_is_refused_at_once_and_one_in_line_has_its_turn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.db");
        let _store = Store::open(&path).unwrap();
        runtime().block_on(async {
            let readers = LogReaders::new(&path, 1);
            let (go, gone) = mpsc::sync_channel::<()>(1);
            let first = tokio::spawn(readers.clone().now(move |_| {
                gone.recv().unwrap();
                Ok(1)
            }));
            tokio::task::yield_now().await;
            let busy = readers.clone().now(|_| Ok(2)).await;
            assert!(matches!(busy, Err(ReadError::Busy(1))), "{busy:?}");
            let busy = readers.clone().soon(Duration::ZERO, |_| Ok(3)).await;
            assert!(matches!(busy, Err(ReadError::Busy(1))), "{busy:?}");
            let third = tokio::spawn(readers.clone().soon(Duration::from_secs(60), |_| Ok(4)));
            tokio::task::yield_now().await;
            go.send(()).unwrap();
            assert_eq!((first.await.unwrap().unwrap(), third.await.unwrap().unwrap()), (1, 4));
            assert_eq!(readers.idle.lock().len(), 1, "one connection served both");
        });
    }

    #[test]
    fn queries_leave_places_for_clients_that_resume() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.db");
        let _store = Store::open(&path).unwrap();
        runtime().block_on(async {
            let readers = LogReaders::new(&path, MOST_READERS);
            let mut queries = Vec::new();
            let mut gates = Vec::new();
            for _ in 0..MOST_FOR_QUERIES {
                let (go, wait) = mpsc::sync_channel::<()>(1);
                queries.push(tokio::spawn(readers.clone().for_query(move |_| {
                    wait.recv().unwrap();
                    Ok(())
                })));
                gates.push(go);
            }
            tokio::task::yield_now().await;
            let busy = readers.clone().for_query(|_| Ok(())).await;
            assert!(matches!(busy, Err(ReadError::Busy(MOST_FOR_QUERIES))), "{busy:?}");
            assert!(readers.clone().soon(Duration::ZERO, |_| Ok(())).await.is_ok());
            for go in gates {
                go.send(()).unwrap();
            }
            for query in queries {
                assert!(query.await.unwrap().is_ok());
            }
        });
    }

    #[test]
    fn a_read_that_panics_gives_its_place_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.db");
        let _store = Store::open(&path).unwrap();
        runtime().block_on(async {
            let readers = LogReaders::new(&path, 1);
            let broken = readers.clone().now(|_| -> Result<(), _> { panic!("on purpose") }).await;
            assert!(matches!(broken, Err(ReadError::Broken(_))), "{broken:?}");
            assert!(readers.now(|_| Ok(())).await.is_ok());
        });
    }
}
