//! ublk: an export as a block device of the kernel. One thread takes requests and tells them done, as the kernel wants
//! it; others do them, for a flush must not keep reads waiting. But to hand a request to another thread and back costs
//! more than most reads and writes. So small reads of bytes that lie in a file the kernel does itself, from the file to
//! whoever reads, and here they are only told done. Small reads of what is in memory, small writes that wait for nobody
//! and what comes alone are done at once.

use super::export::Export;
use crate::error::{Error, Kind, Result};
use crate::format::ublk::{Operation, Request};
use crate::ublk::queue::{Bell, Data, Event, Queue, Rest};
use crate::units::index;
use crossbeam_channel::{Receiver, Sender};
use rustix::io::Errno;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Threads of one device, at most: as many requests are done at a time.
const THREADS_MAX: usize = 64;
/// Bytes of a read or write that is done at once if it is in memory: copying more costs more than another thread does.
const SMALL: u32 = 64 << 10;
/// A thread waits with a stack that holds no more than calls.
const STACK_BYTES: usize = 256 << 10;

/// Ends a device's serving, from any thread.
pub struct End {
    bell: Arc<Bell>,
    ended: AtomicBool,
}

impl End {
    /// Of a device that is not served yet.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn new() -> Result<Self> {
        Ok(Self { bell: Arc::new(Bell::new()?), ended: AtomicBool::new(false) })
    }

    /// What is under way is done, what comes afterwards waits for the next server.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.bell.ring();
    }
}

/// A device that is about to be served.
pub struct Device {
    /// Its number.
    pub number: u32,
    /// Requests that it takes at a time.
    pub depth: u16,
    /// What is behind it.
    pub export: Arc<dyn Export>,
    /// Ends it.
    pub end: Arc<End>,
}

/// A request for the threads.
struct Job {
    tag: u16,
    request: Request,
}

/// Starts a thread.
type More<'a> = dyn Fn() -> std::io::Result<()> + 'a;

/// What threads have done: tags and results.
type Done = Mutex<Vec<(u16, i32)>>;

impl Device {
    /// Serves until the device is taken away, or [`End::end`]. `begun` is called when the device can be started, or
    /// with what [`Queue::open`] says.
    ///
    /// # Errors
    /// `Kind::Io`; what `begun` says.
    pub fn serve(&self, begun: impl FnOnce(Result<()>) -> Result<()> + Send) -> Result<()> {
        let (_rest, served) = std::thread::scope(|scope| {
            let taker = thread().spawn_scoped(scope, || self.take(begun));
            let taker = taker.map_err(|error| Error::io("cannot start a thread", error))?;
            taker.join().map_err(|_| Error::new(Kind::Io, "the thread that takes requests has failed"))
        })?;
        served
    }

    /// Serves in this thread, which ends then: see [`Queue::end`].
    fn take(&self, begun: impl FnOnce(Result<()>) -> Result<()>) -> (Option<Rest>, Result<()>) {
        match Queue::open(self.number, self.depth, &self.end.bell) {
            Err(error) => (None, begun(Err(error))),
            Ok(mut queue) => {
                let served = begun(Ok(())).and_then(|()| self.take_from(&mut queue));
                (Some(queue.end()), served)
            }
        }
    }

    fn take_from(&self, queue: &mut Queue) -> Result<()> {
        let (jobs, todo) = crossbeam_channel::unbounded();
        let done = Done::default();
        let own = Worker {
            export: Arc::clone(&self.export),
            data: queue.data(),
            todo,
            done: &done,
            bell: Arc::clone(&self.end.bell),
        };
        std::thread::scope(|scope| {
            let more = || {
                let worker = own.clone();
                thread().spawn_scoped(scope, move || worker.work()).map(|_| ())
            };
            let own = own.clone();
            Taker { queue, end: &self.end, own, jobs, done: &done, threads: 0, running: 0 }.take(&more)
        })
    }
}

fn thread() -> std::thread::Builder {
    std::thread::Builder::new().name("ublk".into()).stack_size(STACK_BYTES)
}

/// The thread that takes requests.
struct Taker<'a> {
    queue: &'a mut Queue,
    end: &'a End,
    /// For what it does itself.
    own: Worker<'a>,
    /// Threads end when it is dropped.
    jobs: Sender<Job>,
    done: &'a Done,
    threads: usize,
    /// Requests that are with the threads.
    running: usize,
}

impl Taker<'_> {
    fn take(mut self, more: &More<'_>) -> Result<()> {
        let mut present = usize::from(self.queue.depth());
        let mut buf = Vec::new();
        loop {
            let events = self.queue.wait()?;
            let is_alone = events.len() == 1;
            for event in events {
                match event {
                    Event::Gone => present = present.saturating_sub(1),
                    Event::Moved(tag, Ok(request)) => self.finish(Job { tag, request }, more)?,
                    // A thread meets what went wrong again, and it is told.
                    Event::NotMoved(tag, Ok(request)) => self.start(Job { tag, request }, more)?,
                    // The next server gets it.
                    Event::Request(..) if self.end.ended.load(Ordering::Acquire) => {}
                    Event::Request(tag, Ok(request)) => {
                        self.begin(Job { tag, request }, is_alone, &mut buf, more)?;
                    }
                    Event::Request(tag, Err(error))
                    | Event::Moved(tag, Err(error))
                    | Event::NotMoved(tag, Err(error)) => self.queue.commit(tag, number(&error))?,
                }
            }
            let done = std::mem::take(&mut *self.done.lock().unwrap_or_else(PoisonError::into_inner));
            self.running = self.running.saturating_sub(done.len());
            for (tag, result) in done {
                self.queue.commit(tag, result)?;
            }
            let is_over = present == 0 || self.end.ended.load(Ordering::Acquire);
            if is_over && self.running == 0 && self.queue.moving() == 0 {
                return Ok(());
            }
        }
    }

    /// Does a request, or leaves it to whoever does. While no thread does anything it does what comes alone, whatever
    /// it waits for, and small writes that wait for nobody.
    fn begin(&mut self, job: Job, is_alone: bool, buf: &mut Vec<u8>, more: &More<'_>) -> Result<()> {
        let Request { operation, offset, length, .. } = job.request;
        if let Some(file) = file_with(self.own.export.as_ref(), &job.request) {
            return self.queue.relay(job.tag, &file, offset, length);
        }
        let here = self.running == 0 && is_quick(&job.request);
        if here && is_alone {
            let result = self.own.result(&job, buf);
            return self.queue.commit(job.tag, result);
        }
        if here && operation == Operation::Write && length <= SMALL {
            // For what came together the kernel does it with one call.
            return self.queue.fetch(job.tag, length);
        }
        match self.own.read_cached(&job, buf) {
            Some(result) => self.queue.commit(job.tag, result),
            None => self.start(job, more),
        }
    }

    /// Ends a read whose bytes were given, or writes what was fetched, unless a thread had better do it from the
    /// beginning.
    fn finish(&mut self, job: Job, more: &More<'_>) -> Result<()> {
        let Request { operation, offset, length, .. } = job.request;
        let is_done = operation == Operation::Read || {
            let data = self.queue.fetched(job.tag, length);
            // An error is met again, and told, by the thread.
            data.is_some_and(|data| matches!(self.own.export.write_at_once(offset, data), Ok(true)))
        };
        match is_done {
            true => self.queue.commit(job.tag, moved(length).unwrap_or_else(|error| number(&error))),
            false => self.start(job, more),
        }
    }

    /// Gives a request to a thread, a new one if all are busy.
    fn start(&mut self, job: Job, more: &More<'_>) -> Result<()> {
        self.running += 1;
        if self.running > self.threads && self.threads < THREADS_MAX {
            match more() {
                Ok(()) => self.threads += 1,
                // Those there are do all the work.
                Err(_) if self.threads > 0 => {}
                Err(error) => return Err(Error::io("cannot start a thread", error)),
            }
        }
        self.jobs.send(job).map_err(|_| Error::new(Kind::Io, "no thread does requests any more"))
    }
}

/// The file that the kernel can read itself for a small read.
fn file_with(export: &dyn Export, request: &Request) -> Option<Arc<File>> {
    let is_small_read = request.operation == Operation::Read && request.length <= SMALL;
    if is_small_read { export.file_with(request.offset, index(u64::from(request.length))) } else { None }
}

/// True for what takes no longer than a device takes for one request.
fn is_quick(request: &Request) -> bool {
    match request.operation {
        Operation::Read => true,
        Operation::Write => !request.is_durable,
        Operation::Flush | Operation::Discard | Operation::WriteZeroes => false,
    }
}

/// A thread that does requests.
#[derive(Clone)]
struct Worker<'a> {
    export: Arc<dyn Export>,
    data: Data,
    todo: Receiver<Job>,
    done: &'a Done,
    bell: Arc<Bell>,
}

impl Worker<'_> {
    fn work(&self) {
        let mut buf = Vec::new();
        for job in &self.todo {
            let result = self.result(&job, &mut buf);
            let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
            done.push((job.tag, result));
            let is_first = done.len() == 1;
            drop(done);
            if is_first {
                self.bell.ring();
            }
        }
    }

    /// Does a small read of what is in memory; `None` if it is something else, and nothing is done then.
    fn read_cached(&self, job: &Job, buf: &mut Vec<u8>) -> Option<i32> {
        let Request { operation, offset, length, .. } = job.request;
        if operation != Operation::Read || length > SMALL {
            return None;
        }
        buf.resize(index(u64::from(length)), 0);
        // An error is met again, and told, in the ordinary way.
        let given =
            matches!(self.export.read_cached(offset, buf), Ok(true)) && self.data.give(job.tag, buf).is_ok();
        given.then(|| i32::try_from(length).ok()).flatten()
    }

    /// Does what a request wants; what the kernel is told of it.
    fn result(&self, job: &Job, buf: &mut Vec<u8>) -> i32 {
        let result = perform(self.export.as_ref(), &job.request, buf, &mut |step| match step {
            Step::Take(buf) => self.data.take(job.tag, buf),
            Step::Give(buf) => self.data.give(job.tag, buf),
        });
        result.unwrap_or_else(|error| number(&error))
    }
}

/// How data comes and goes.
enum Step<'a> {
    /// What is to be written is wanted.
    Take(&'a mut [u8]),
    /// What was read is given.
    Give(&'a [u8]),
}

/// Does what a request wants; returns the bytes that it read or wrote.
fn perform(
    export: &dyn Export,
    request: &Request,
    buf: &mut Vec<u8>,
    data: &mut dyn FnMut(Step<'_>) -> std::io::Result<()>,
) -> Result<i32> {
    let failed = |error: std::io::Error| Error::io(format!("data of a request: {error}"), error);
    let (offset, length) = (request.offset, request.length);
    match request.operation {
        Operation::Read => {
            buf.resize(index(u64::from(length)), 0);
            export.read(offset, buf)?;
            data(Step::Give(buf)).map_err(failed)?;
        }
        Operation::Write => {
            buf.resize(index(u64::from(length)), 0);
            data(Step::Take(buf)).map_err(failed)?;
            export.write(offset, buf)?;
        }
        Operation::Flush => export.flush()?,
        Operation::Discard => export.discard(offset, u64::from(length))?,
        Operation::WriteZeroes => export.write_zeroes(offset, u64::from(length))?,
    }
    if request.is_durable && request.operation != Operation::Read {
        export.flush()?;
    }
    moved(length)
}

/// What the kernel is told of so many bytes that were read or written.
fn moved(length: u32) -> Result<i32> {
    i32::try_from(length).map_err(|_| Error::new(Kind::Usage, format!("a request of {length} bytes")))
}

/// What the kernel is told of an error.
fn number(error: &Error) -> i32 {
    let errno = match error.kind() {
        Kind::Usage => Errno::INVAL,
        Kind::Unsupported => Errno::OPNOTSUPP,
        Kind::NoSpace => Errno::NOSPC,
        Kind::Refused => Errno::ROFS,
        _ => Errno::IO,
    };
    errno.raw_os_error().saturating_neg()
}

#[cfg(test)]
mod tests {
    use super::super::frozen::ReadOnly;
    use super::super::watched::Watch;
    use super::*;

    /// Remembers what was done.
    struct Noted(Mutex<Vec<String>>, Option<Kind>);

    impl Noted {
        fn note(&self, what: String) -> Result<()> {
            self.0.lock().unwrap().push(what);
            self.1.map_or(Ok(()), |kind| Err(Error::new(kind, "as wished")))
        }
    }

    impl Export for Noted {
        fn size(&self) -> u64 {
            1 << 20
        }

        fn is_read_only(&self) -> bool {
            false
        }

        fn preferred_size(&self) -> u32 {
            4096
        }

        fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
            buf.fill(7);
            self.note(format!("read {offset} {}", buf.len()))
        }

        fn file_with(&self, _offset: u64, _length: usize) -> Option<Arc<File>> {
            File::open("/dev/null").ok().map(Arc::new)
        }

        fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
            self.note(format!("write {offset} {} of {}", data.len(), data[0]))
        }

        fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
            self.note(format!("zero {offset} {length}"))
        }

        fn discard(&self, offset: u64, length: u64) -> Result<()> {
            self.note(format!("discard {offset} {length}"))
        }

        fn flush(&self) -> Result<()> {
            self.note("flush".to_owned())
        }
    }

    /// What a request does, what it answers, and what data came and went.
    fn run(operation: Operation, is_durable: bool, fails: Option<Kind>) -> (Vec<String>, i32, Vec<String>) {
        let noted = Noted(Mutex::default(), fails);
        let length = if operation == Operation::Flush { 0 } else { 8192 };
        let request = Request { operation, offset: 4096, length, is_durable };
        let mut moved = Vec::new();
        let result = perform(&noted, &request, &mut vec![1; 3], &mut |step| {
            match step {
                Step::Take(buf) => {
                    buf.fill(9);
                    moved.push(format!("took {}", buf.len()));
                }
                Step::Give(buf) => {
                    assert!(buf.iter().all(|byte| *byte == 7));
                    moved.push(format!("gave {}", buf.len()));
                }
            }
            Ok(())
        });
        (noted.0.into_inner().unwrap(), result.unwrap_or_else(|error| number(&error)), moved)
    }

    #[test]
    fn requests_do_what_they_say() {
        let none: Vec<String> = Vec::new();
        let text = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        assert_eq!(run(Operation::Read, true, None), (text(&["read 4096 8192"]), 8192, text(&["gave 8192"])));
        let wrote = text(&["write 4096 8192 of 9"]);
        assert_eq!(run(Operation::Write, false, None), (wrote, 8192, text(&["took 8192"])));
        let wrote = text(&["write 4096 8192 of 9", "flush"]);
        assert_eq!(run(Operation::Write, true, None), (wrote, 8192, text(&["took 8192"])));
        assert_eq!(run(Operation::Flush, false, None), (text(&["flush"]), 0, none.clone()));
        let discarded = text(&["discard 4096 8192"]);
        assert_eq!(run(Operation::Discard, false, None), (discarded, 8192, none.clone()));
        let zeroed = text(&["zero 4096 8192", "flush"]);
        assert_eq!(run(Operation::WriteZeroes, true, None), (zeroed, 8192, none));
    }

    #[test]
    fn the_kernel_does_small_reads_of_what_lies_in_a_file() {
        let watch = Arc::new(Watch::new(|_| {}));
        let export = watch.over("origin", Arc::new(Noted(Mutex::default(), Some(Kind::Io))));
        let relayed = |operation, length| {
            let request = Request { operation, offset: 4096, length, is_durable: false };
            file_with(export.as_ref(), &request).is_some()
        };
        assert!(relayed(Operation::Read, 512) && relayed(Operation::Read, SMALL));
        assert!(!relayed(Operation::Read, SMALL + 512));
        assert!(!relayed(Operation::Write, 512) && !relayed(Operation::Flush, 0));
        // What has failed is seen to work again.
        export.read(4096, &mut [0; 512]).unwrap_err();
        assert!(!relayed(Operation::Read, 512));
        let other = ReadOnly::new(4096, |_, _| Ok(()));
        assert!(other.file_with(0, 512).is_none(), "what is not known to lie in a file");
    }

    #[test]
    fn errors_have_the_numbers_of_the_kernel() {
        let told = [
            (Kind::NoSpace, -28),
            (Kind::Refused, -30),
            (Kind::Usage, -22),
            (Kind::Io, -5),
            (Kind::Damaged, -5),
            (Kind::NotFound, -5),
        ];
        for (kind, number) in told {
            let (_, result, moved) = run(Operation::Read, false, Some(kind));
            assert_eq!((result, moved.len()), (number, 0), "{kind:?}: nothing of what failed is given");
            let (done, result, _) = run(Operation::Write, true, Some(kind));
            assert_eq!((result, done.len()), (number, 1), "{kind:?}: no flush tells that it is durable");
        }
    }

    #[test]
    fn data_that_does_not_come_is_not_written() {
        let noted = Noted(Mutex::default(), None);
        let request = Request { operation: Operation::Write, offset: 0, length: 512, is_durable: true };
        let failed =
            perform(&noted, &request, &mut Vec::new(), &mut |_| Err(std::io::Error::from(Errno::FAULT)));
        assert_eq!(number(&failed.unwrap_err()), -5);
        assert!(noted.0.into_inner().unwrap().is_empty());
    }
}
