//! What one reader of a stream must get before live frames, and how far it has read: first its
//! backlog, then the ring, and whenever the ring no longer reaches back, the source is asked again.
//! No socket, no task, no clock; WebSockets and event streams share it.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::executor::StreamPermit;
use crate::meters::Meters;
use crate::position::MOST_CURSOR_BYTES;
use crate::resume::{Answer, Resume};
use crate::ring::Frame;
use crate::stream::ResponseStream;

/// Bytes of frames that a source may give a reader at once. More of them wait for the turn of their
/// client first, which counts them.
const MOST_BYTES_AT_ONCE: usize = 64 << 10;

/// How far a reader has read. Kept outside of the cursor, where the fan-out needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Index in the ring of the next frame to send.
    pub(crate) next: u64,
    /// The last sequence that was sent.
    pub(crate) seen: u64,
}

/// See the module's text. A `Task` waits for an answer of the source that takes time. It is dropped
/// with the cursor or when the answer comes.
pub(crate) struct StreamCursor<Task> {
    /// What comes before the ring; `None` for nearly all readers nearly always.
    backlog: Option<Box<Backlog<Task>>>,
}

enum Backlog<Task> {
    /// The source was not asked yet. With the cursor that the client sent.
    Join(Option<Box<str>>),
    /// The source was asked, and its answer takes time.
    Waiting { _task: Task },
    /// The answer came and was not used yet.
    Answered(Answer),
    /// Frames to send: a snapshot, a merged delta, a page of the log.
    Frames { frames: VecDeque<Frame>, then: Then },
    /// A page was sent, or the reader waited for its turn: ask the source what follows.
    Ask,
}

/// Where a reader goes on after the frames of its backlog.
#[derive(Clone, Copy)]
enum Then {
    Ring,
    Ask,
}

/// What a reader does next.
pub(crate) enum Step {
    /// Send the frames, then call [`StreamCursor::sent`].
    Send,
    /// Nothing: it has got all there is.
    UpToDate,
    /// Await the answer, after the throttle of the client if `throttled`. Call
    /// [`StreamCursor::wait`] before, and [`StreamCursor::answer`] with the result.
    Await { answer: BoxFuture<'static, Answer>, throttled: bool },
    /// Nothing: an answer is awaited already.
    Waiting,
    /// End with these errors (a JSON array of GraphQL errors).
    Refused(Bytes),
    /// End: the source can't make the frames that it missed.
    CannotContinue,
}

/// The answer of a source, at the cost of the client whose permit it is.
fn measured(permit: Option<&dyn StreamPermit>, ask: impl FnOnce() -> Resume) -> Resume {
    let Some(permit) = permit else { return ask() };
    let (mut ask, mut answer) = (Some(ask), None);
    permit.measure(&mut || answer = ask.take().map(|ask| ask()));
    answer.unwrap_or(Resume::CannotContinue)
}

impl<Task> StreamCursor<Task> {
    /// A reader that goes on after the cursor `after` of its client, or begins now.
    pub(crate) fn new(after: Option<String>) -> Self {
        // It may wait for long. One that is too long is no cursor, as the empty one.
        let kept = |text: String| match text.len() <= MOST_CURSOR_BYTES {
            true => text.into_boxed_str(),
            false => Box::default(),
        };
        let after = after.map(kept);
        Self { backlog: Some(Box::new(Backlog::Join(after))) }
    }

    /// The next step. For [`Step::Send`], at most `most` frames are appended to `into`.
    pub(crate) fn next(
        &mut self,
        stream: &ResponseStream,
        progress: &mut Progress,
        most: usize,
        into: &mut Vec<Frame>,
        meters: &Meters,
        permit: Option<&dyn StreamPermit>,
    ) -> Step {
        loop {
            let mut is_counted = permit.is_none();
            let resume = match self.backlog.as_deref_mut() {
                None if stream.read(progress.next, most, into) => {
                    return if into.is_empty() { Step::UpToDate } else { Step::Send };
                }
                None => {
                    meters.catch_ups.add(1);
                    if permit.is_some_and(StreamPermit::is_in_debt) {
                        let answer = std::future::ready(Resume::Again.into()).boxed();
                        return Step::Await { answer, throttled: true };
                    }
                    measured(permit, || stream.source().catch_up(stream, progress.seen))
                }
                Some(Backlog::Frames { frames, .. }) => {
                    into.extend(frames.iter().take(most).cloned());
                    return Step::Send;
                }
                Some(Backlog::Waiting { .. }) => return Step::Waiting,
                Some(Backlog::Join(after)) => {
                    measured(permit, || stream.source().join(stream, after.as_deref()))
                }
                Some(Backlog::Ask) => {
                    measured(permit, || stream.source().catch_up(stream, progress.seen))
                }
                Some(answered @ Backlog::Answered(_)) => {
                    match std::mem::replace(answered, Backlog::Ask) {
                        Backlog::Answered(Answer { resume, .. }) => {
                            is_counted = true;
                            resume
                        }
                        _ => continue,
                    }
                }
            };
            self.backlog = None;
            if !is_counted && resume.bytes() > MOST_BYTES_AT_ONCE {
                let answer = std::future::ready(resume.into()).boxed();
                return Step::Await { answer, throttled: false };
            }
            match resume {
                Resume::Ring { seen, next } => *progress = Progress { next, seen },
                Resume::Frames { frames, next } => {
                    progress.next = next;
                    self.push_back(frames.into(), Then::Ring);
                }
                Resume::Page(frames) => {
                    meters.replayed_pages.add(1);
                    debug_assert!(!frames.is_empty(), "a page brings its reader forward");
                    self.push_back(frames.into(), Then::Ask);
                }
                Resume::Again => self.backlog = Some(Box::new(Backlog::Ask)),
                Resume::Throttled(answer) => return Step::Await { answer, throttled: true },
                Resume::Pending(answer) => return Step::Await { answer, throttled: false },
                Resume::Refused(errors) => return Step::Refused(errors),
                Resume::CannotContinue => return Step::CannotContinue,
            }
        }
    }

    /// The first of the frames that [`StreamCursor::next`] appended were sent.
    pub(crate) fn sent(&mut self, progress: &mut Progress, sent: &[Frame]) {
        if let Some(last) = sent.last() {
            progress.seen = last.sequence;
        }
        match self.backlog {
            Some(_) => self.drain(sent.len()),
            None => progress.next += sent.len() as u64,
        }
    }

    /// `task` awaits the answer of the source.
    pub(crate) fn wait(&mut self, task: Task) {
        self.backlog = Some(Box::new(Backlog::Waiting { _task: task }));
    }

    /// The answer of the source. False if none is awaited.
    pub(crate) fn answer(&mut self, answer: Answer) -> bool {
        let is_awaited = matches!(self.backlog.as_deref(), Some(Backlog::Waiting { .. }));
        if is_awaited {
            self.backlog = Some(Box::new(Backlog::Answered(answer)));
        }
        is_awaited
    }

    /// Appends frames to the backlog, which is empty.
    fn push_back(&mut self, frames: VecDeque<Frame>, then: Then) {
        self.backlog = match then {
            _ if !frames.is_empty() => Some(Box::new(Backlog::Frames { frames, then })),
            Then::Ring => None,
            Then::Ask => Some(Box::new(Backlog::Ask)),
        };
    }

    /// Removes the first `count` frames of the backlog.
    fn drain(&mut self, count: usize) {
        if let Some(Backlog::Frames { frames, then }) = self.backlog.as_deref_mut() {
            frames.drain(..count);
            if frames.is_empty() {
                let then = *then;
                self.push_back(VecDeque::new(), then);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::ready;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::time::Duration;

    use parking_lot::Mutex;

    use super::*;
    use crate::memory::Memory;
    use crate::stream::{Source, StreamContext};

    /// A source with prepared answers. It notes what it is asked.
    #[derive(Clone, Default)]
    struct Script {
        answers: Arc<Mutex<VecDeque<Resume>>>,
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl Script {
        fn answer(&self, question: String) -> Resume {
            self.asked.lock().push(question);
            self.answers.lock().pop_front().expect("a question without an answer")
        }
    }

    impl Source for Script {
        fn attach(&self, _: &Arc<ResponseStream>) {}

        fn join(&self, _: &ResponseStream, after: Option<&str>) -> Resume {
            self.answer(format!("join {after:?}"))
        }

        fn catch_up(&self, _: &ResponseStream, seen: u64) -> Resume {
            self.answer(format!("catch up {seen}"))
        }

        fn advance(&self, _: &ResponseStream) {}

        fn detach(&self, _: &ResponseStream) {}
    }

    struct Bench {
        stream: ResponseStream,
        script: Script,
        meters: Arc<Meters>,
        cursor: StreamCursor<Rc<()>>,
        progress: Progress,
        frames: Vec<Frame>,
        permit: Permit,
    }

    #[derive(Default)]
    struct Permit {
        in_debt: Cell<bool>,
    }

    impl StreamPermit for Permit {
        fn throttle(&self) -> Option<Duration> {
            None
        }

        fn is_in_debt(&self) -> bool {
            self.in_debt.get()
        }
    }

    const MOST: usize = 3;

    impl Bench {
        fn new(after: Option<&str>, answers: impl IntoIterator<Item = Resume>) -> Self {
            let (script, meters) = (Script::default(), Arc::<Meters>::default());
            script.answers.lock().extend(answers);
            let memory = Arc::new(Memory::new(1 << 20));
            let source = Box::new(script.clone());
            let idle = Arc::default();
            let context = StreamContext { memory, idle, meters: meters.clone() };
            let key = Arc::default();
            let stream = ResponseStream::new(1, key, source, 1 << 10, 1, context);
            let cursor = StreamCursor::new(after.map(str::to_owned));
            let progress = Progress::default();
            let (frames, permit) = Default::default();
            Self { stream, script, meters, cursor, progress, frames, permit }
        }

        /// A reader that saw frames 1 and 2. What follows is more than the ring holds, and its
        /// source merges it.
        fn overtaken() -> Self {
            let begin = Resume::Ring { seen: 0, next: 0 };
            let merged = Resume::Frames { frames: frames(20..=20), next: 20 };
            let mut bench = Self::new(None, [begin, merged]);
            bench.push(1..=2);
            assert_eq!(bench.send_all(), [1, 2]);
            bench.push(3..=20);
            bench
        }

        fn step(&mut self) -> Step {
            self.frames.clear();
            let Self { stream, meters, cursor, progress, frames, permit, .. } = self;
            cursor.next(stream, progress, MOST, frames, meters, Some(permit))
        }

        /// Sends at most so many of the next frames, and returns their sequences.
        fn send(&mut self, most: usize) -> Vec<u64> {
            assert!(matches!(self.step(), Step::Send), "nothing to send");
            assert!((1..=MOST).contains(&self.frames.len()));
            let sent = &self.frames[..most.min(self.frames.len())];
            self.cursor.sent(&mut self.progress, sent);
            sent.iter().map(|frame| frame.sequence).collect()
        }

        fn send_all(&mut self) -> Vec<u64> {
            let mut sent = Vec::new();
            loop {
                match self.step() {
                    Step::Send => {
                        self.cursor.sent(&mut self.progress, &self.frames);
                        sent.extend(self.frames.iter().map(|frame| frame.sequence));
                    }
                    Step::UpToDate => return sent,
                    _ => panic!("neither frames nor up to date"),
                }
            }
        }

        fn push(&self, sequences: std::ops::RangeInclusive<u64>) {
            frames(sequences).into_iter().for_each(|frame| self.stream.push(frame));
        }

        fn asked(&self) -> Vec<String> {
            std::mem::take(&mut *self.script.asked.lock())
        }
    }

    fn frames(sequences: std::ops::RangeInclusive<u64>) -> Vec<Frame> {
        sequences.map(|sequence| Frame::new(sequence - 1, sequence, vec![b'x'; 99])).collect()
    }

    #[test]
    fn the_frames_of_a_join_come_before_the_ring_and_the_ring_goes_on_where_the_source_says() {
        let snapshot = Resume::Frames { frames: frames(2..=2), next: 2 };
        let mut bench = Bench::new(Some("after"), [snapshot]);
        bench.push(1..=4);
        assert_eq!(bench.send(MOST), [2]);
        assert_eq!(bench.progress, Progress { next: 2, seen: 2 });
        assert_eq!(bench.send_all(), [3, 4]);
        assert_eq!(bench.progress, Progress { next: 4, seen: 4 });
        bench.push(5..=5);
        assert_eq!(bench.send_all(), [5]);
        assert_eq!(bench.asked(), [r#"join Some("after")"#]);
        assert_eq!(bench.meters.catch_ups.get(), 0);
    }

    #[test]
    fn frames_that_could_not_be_sent_are_offered_again() {
        let snapshot = Resume::Frames { frames: frames(1..=5), next: 0 };
        let mut bench = Bench::new(None, [snapshot]);
        assert!(bench.send(0).is_empty());
        assert_eq!(bench.send(2), [1, 2]);
        assert_eq!(bench.send(MOST), [3, 4, 5]);
        assert!(matches!(bench.step(), Step::UpToDate));
        bench.push(6..=9);
        assert_eq!(bench.send(1), [6]);
        assert!(bench.send(0).is_empty());
        assert_eq!(bench.send_all(), [7, 8, 9]);
        assert_eq!(bench.progress, Progress { next: 4, seen: 9 });
    }

    #[test]
    fn after_each_page_the_source_is_asked_again_and_the_ring_is_not_read() {
        let pages = [Resume::Page(frames(1..=4)), Resume::Page(frames(5..=6))];
        let ring = Resume::Ring { seen: 6, next: 1 };
        let mut bench = Bench::new(Some("0"), pages.into_iter().chain([ring]));
        bench.push(6..=7);
        assert_eq!(bench.send_all(), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(bench.asked(), [r#"join Some("0")"#, "catch up 4", "catch up 6"]);
        assert_eq!(bench.meters.replayed_pages.get(), 2);
        assert_eq!(bench.meters.catch_ups.get(), 0, "the ring reached back");
    }

    #[test]
    fn a_reader_that_the_ring_has_overtaken_asks_the_source_with_what_it_has_seen() {
        let mut bench = Bench::overtaken();
        assert_eq!(bench.send_all(), [20]);
        assert_eq!(bench.asked(), ["join None", "catch up 2"]);
        assert_eq!(bench.meters.catch_ups.get(), 1);
    }

    #[test]
    fn an_answer_that_takes_time_is_awaited_once_and_ends_its_task() {
        let later = |resume: Resume| ready(Answer::from(resume)).boxed();
        let page = later(Resume::Page(frames(1..=1)));
        let snapshot = later(Resume::Frames { frames: frames(2..=2), next: 0 });
        let answers = [Resume::Throttled(page), Resume::Pending(snapshot)];
        let mut bench = Bench::new(Some("0"), answers);
        for (expected, sequence) in [(true, 1), (false, 2)] {
            let Step::Await { answer, throttled } = bench.step() else { panic!("no wait") };
            assert_eq!(throttled, expected);
            let task = Rc::new(());
            bench.cursor.wait(task.clone());
            assert!(matches!(bench.step(), Step::Waiting));
            assert!(bench.cursor.answer(answer.now_or_never().unwrap()));
            assert_eq!(Rc::strong_count(&task), 1, "the task ends");
            let second = Resume::CannotContinue.into();
            assert!(!bench.cursor.answer(second), "no second answer is awaited");
            assert_eq!(bench.send(MOST), [sequence]);
        }
        assert!(matches!(bench.step(), Step::UpToDate));
        assert_eq!(bench.asked(), [r#"join Some("0")"#, "catch up 1"]);
    }

    #[test]
    fn a_reader_whose_client_is_in_debt_is_throttled_before_its_source_makes_what_it_missed() {
        let mut bench = Bench::overtaken();
        bench.permit.in_debt.set(true);
        let Step::Await { answer, throttled: true } = bench.step() else { panic!("no wait") };
        bench.cursor.wait(Rc::new(()));
        assert_eq!(bench.asked(), ["join None"], "it is not asked yet");
        assert!(bench.cursor.answer(answer.now_or_never().unwrap()));
        // It has waited: what it owes by now does not matter.
        assert_eq!(bench.send_all(), [20]);
        assert_eq!(bench.asked(), ["catch up 2"]);
    }

    #[test]
    fn large_frames_wait_for_the_turn_of_their_client_and_small_ones_do_not() {
        let snapshot = |bytes| {
            let frames = vec![Frame::new(1, 2, vec![b'x'; bytes])];
            Resume::Frames { frames, next: 0 }
        };
        let mut small = Bench::new(None, [snapshot(MOST_BYTES_AT_ONCE / 2)]);
        assert_eq!(small.send(MOST), [2]);
        let mut large = Bench::new(None, [snapshot(MOST_BYTES_AT_ONCE + 1)]);
        let Step::Await { answer, throttled: false } = large.step() else { panic!("no wait") };
        large.cursor.wait(Rc::new(()));
        assert!(large.cursor.answer(answer.now_or_never().unwrap()));
        assert_eq!(large.send(MOST), [2]);
    }

    #[test]
    fn a_cursor_that_is_too_long_is_not_kept() {
        for (length, kept) in [(MOST_CURSOR_BYTES, MOST_CURSOR_BYTES), (MOST_CURSOR_BYTES + 1, 0)] {
            let refused = Resume::Refused(Bytes::from_static(b"[]"));
            let mut bench = Bench::new(Some(&"A".repeat(length)), [refused]);
            assert!(matches!(bench.step(), Step::Refused(_)));
            assert_eq!(bench.asked(), [format!("join {:?}", Some("A".repeat(kept)))]);
        }
    }

    #[test]
    fn a_source_can_refuse_a_reader_or_give_it_up() {
        let mut refused = Bench::new(None, [Resume::Refused(Bytes::from_static(b"[]"))]);
        assert!(matches!(refused.step(), Step::Refused(errors) if *errors == *b"[]"));
        let begin = Resume::Ring { seen: 0, next: 0 };
        let mut slow = Bench::new(None, [begin, Resume::CannotContinue]);
        slow.push(1..=20);
        assert!(matches!(slow.step(), Step::CannotContinue));
    }
}
