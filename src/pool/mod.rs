//! Threads for work that takes long: encoding a deep book, validating a long document. They have
//! a lower priority than shards and sequencer, so that what one client asks for does not delay the
//! frames of the others. Knows no client and no GraphQL: the caller brings the [`Line`] of the
//! client's address.
//!
//! The queue is first in, first out. It is fair because each line has few places in it: new work
//! waits for a few jobs of each other address, however much these ask for.

mod line;

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

pub use self::line::{Line, LineFull, Waiting};

/// Jobs that are queued or run. Each may hold the levels of a deep book, about 250 KB.
pub const MOST_JOBS: usize = 1_024;

/// Estimated processor time in nanoseconds of work that stays on its caller's thread. Handing over
/// costs two wake-ups, some 50 µs.
pub const MOST_INLINE_NANOS: u64 = 250_000;

/// What is added to the nice value of a thread of the pool. On a busy core such a thread gets about
/// a tenth of the time of one without, so its work goes on, but late.
const NICENESS: i32 = 10;

/// Processor time that this thread took so far.
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Does work, and says how much processor time this thread took for it.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = thread_time();
    let done = work();
    (done, thread_time() - began)
}

thread_local! {
    static IS_IN_POOL: Cell<bool> = const { Cell::new(false) };
}

/// To be called every few tens of microseconds by work that takes long. On a thread of the pool it
/// lets others have the core: a lower priority by itself does not, as the system takes the core
/// away with its tick alone, up to 4 ms later.
pub fn give_way() {
    if IS_IN_POOL.get() {
        std::thread::yield_now();
    }
}

/// The work did not end: it panicked, or the pool was stopped first.
#[derive(Debug, thiserror::Error)]
#[error("work of the pool did not end")]
pub struct Broken;

/// See the module's text.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Of streams that several addresses read: none of them causes their work alone.
    common: Arc<Line>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Notified of each job, and of the end.
    filled: Condvar,
    places: Arc<Semaphore>,
    meters: PoolMeters,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    is_closed: bool,
}

struct Job {
    queued: Instant,
    run: Box<dyn FnOnce() + Send>,
}

/// What the pool did since the start.
#[derive(Debug, Default)]
pub struct PoolMeters {
    /// Jobs that ran, or run.
    pub jobs: AtomicU64,
    /// Jobs that run now.
    pub running: AtomicU64,
    /// Nanoseconds that jobs waited in the queue.
    pub waited_nanos: AtomicU64,
    /// Nanoseconds that jobs ran, on the clock: a thread that has to yield takes longer.
    pub run_nanos: AtomicU64,
}

/// The right to one job at a time; given back when it is dropped.
pub struct PoolPlace {
    shared: Arc<Shared>,
    _of_line: OwnedSemaphorePermit,
    _of_pool: OwnedSemaphorePermit,
}

impl Pool {
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(threads: usize) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            filled: Condvar::new(),
            places: Arc::new(Semaphore::new(MOST_JOBS)),
            meters: PoolMeters::default(),
        });
        let pool = Self { shared, threads: Mutex::default(), common: Line::limited() };
        for number in 0..threads.max(1) {
            let shared = pool.shared.clone();
            let thread = std::thread::Builder::new().name(format!("pool-{number}"));
            pool.threads.lock().push(thread.spawn(move || shared.work())?);
        }
        Ok(Arc::new(pool))
    }

    /// The line of work that no single address causes.
    pub fn common(&self) -> &Arc<Line> {
        &self.common
    }

    pub fn meters(&self) -> &PoolMeters {
        &self.shared.meters
    }

    /// Jobs that wait for a thread.
    pub fn queued(&self) -> usize {
        self.shared.queue.lock().jobs.len()
    }

    /// A place for work of this line, in turn. How many wait is for the caller to bound.
    ///
    /// # Errors
    /// When the pool was stopped.
    pub async fn enter(&self, line: &Line) -> Result<PoolPlace, Broken> {
        let of_line = line.places.clone().acquire_owned().await.map_err(|_| Broken)?;
        let of_pool = self.shared.places.clone().acquire_owned().await.map_err(|_| Broken)?;
        Ok(PoolPlace { shared: self.shared.clone(), _of_line: of_line, _of_pool: of_pool })
    }

    /// Ends the threads after the jobs that run now; queued ones are dropped, and so is all that
    /// comes later.
    pub fn stop(&self) {
        self.shared.places.close();
        {
            let mut queue = self.shared.queue.lock();
            queue.is_closed = true;
            queue.jobs.clear();
        }
        self.shared.filled.notify_all();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the pool panicked");
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop();
    }
}

impl PoolPlace {
    /// Runs work on a thread of the pool; the place comes back with its result. Work whose caller
    /// is gone by its turn is not run.
    ///
    /// # Errors
    /// When the work panicked or the pool was stopped.
    pub async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(Self, T), Broken> {
        let shared = self.shared.clone();
        let (answer, answered) = oneshot::channel();
        let place = self;
        shared.queue_job(Box::new(move || {
            if !answer.is_closed() {
                let done = work();
                // The caller may have left meanwhile.
                drop(answer.send((place, done)));
            }
        }));
        answered.await.map_err(|_| Broken)
    }
}

impl Shared {
    fn queue_job(&self, run: Box<dyn FnOnce() + Send>) {
        let mut queue = self.queue.lock();
        if !queue.is_closed {
            queue.jobs.push_back(Job { queued: Instant::now(), run });
            drop(queue);
            self.filled.notify_one();
        }
    }

    /// A thread of the pool.
    fn work(&self) {
        IS_IN_POOL.set(true);
        // Of this thread alone, on Linux.
        if let Err(error) = rustix::process::nice(NICENESS) {
            tracing::warn!(%error, "the pool has the priority of the shards");
        }
        let meters = &self.meters;
        let nanos = |since: Instant| u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        while let Some(job) = self.next() {
            meters.waited_nanos.fetch_add(nanos(job.queued), Ordering::Relaxed);
            meters.jobs.fetch_add(1, Ordering::Relaxed);
            meters.running.fetch_add(1, Ordering::Relaxed);
            let begin = Instant::now();
            if catch_unwind(AssertUnwindSafe(job.run)).is_err() {
                tracing::error!("work of the pool panicked");
            }
            meters.run_nanos.fetch_add(nanos(begin), Ordering::Relaxed);
            meters.running.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Waits for a job; `None` once the pool is stopped.
    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        loop {
            if queue.is_closed {
                return None;
            }
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            self.filled.wait(&mut queue);
        }
    }
}

#[cfg(test)]
mod tests;
