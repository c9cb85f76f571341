//! Many workers, results in order, bounded memory.

use crate::error::{Error, Kind, Result};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::thread;

/// Workers for `threads` (0: as many as the machine has processors).
///
/// Workers both wait for the medium and compute, so there are two for each processor: while some read, others
/// compress.
pub(crate) fn workers(threads: usize) -> usize {
    let threads = if threads == 0 {
        thread::available_parallelism().map_or(1, std::num::NonZero::get)
    } else {
        threads
    };
    if threads == 1 { 1 } else { threads.saturating_mul(2) }
}

type Answer<O> = Receiver<Result<O>>;

/// Runs `work` on everything `produce` yields and hands the results to `consume` in the order of production.
///
/// Each item carries the channel for its own answer, and the consumer waits for the answers in order; so no
/// more than `2 * workers` items exist at any time however uneven the work is. The first error in that order
/// stops all stages and is returned.
pub(crate) fn ordered<S, I: Send, O: Send>(
    workers: usize,
    produce: impl FnMut() -> Result<Option<I>> + Send,
    state: impl Fn() -> Result<S> + Sync,
    work: impl Fn(&mut S, I) -> Result<O> + Sync,
    mut consume: impl FnMut(O) -> Result<()>,
) -> Result<()> {
    let depth = workers.max(1).saturating_mul(2);
    let (work_in, work_out) = bounded::<(I, Sender<Result<O>>)>(depth);
    let (order_in, order_out) = bounded::<Result<Answer<O>>>(depth);
    thread::scope(|scope| {
        scope.spawn(move || feed(produce, &work_in, &order_in));
        for _ in 0..workers.max(1) {
            let items = work_out.clone();
            let (state, work) = (&state, &work);
            scope.spawn(move || serve(&items, state, work));
        }
        drop(work_out);
        // Owned here, so that leaving early closes the channel and stops the stages before.
        let order = order_out;
        for answer in &order {
            consume(
                answer?
                    .recv()
                    .unwrap_or_else(|_| Err(Error::new(Kind::Io, "a worker thread ended early")))?,
            )?;
        }
        Ok(())
    })
}

fn feed<I, O>(
    mut produce: impl FnMut() -> Result<Option<I>>,
    work: &Sender<(I, Sender<Result<O>>)>,
    order: &Sender<Result<Answer<O>>>,
) {
    loop {
        match produce() {
            Ok(None) => return,
            Ok(Some(item)) => {
                let (answer_in, answer_out) = bounded(1);
                if order.send(Ok(answer_out)).is_err() || work.send((item, answer_in)).is_err() {
                    return;
                }
            }
            Err(error) => {
                // A consumer that is gone has its own error to report.
                let _ = order.send(Err(error));
                return;
            }
        }
    }
}

fn serve<S, I, O>(
    items: &Receiver<(I, Sender<Result<O>>)>,
    state: &impl Fn() -> Result<S>,
    work: &impl Fn(&mut S, I) -> Result<O>,
) {
    let mut own = None;
    for (item, answer) in items {
        let result = match own.take().map_or_else(state, Ok) {
            Ok(ready) => work(own.insert(ready), item),
            Err(error) => Err(error),
        };
        // A consumer that is gone does not want the answer.
        let _ = answer.send(result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(
        workers: usize,
        produce_fails_at: u64,
        work_fails_at: u64,
        stop_at: u64,
    ) -> (Vec<u64>, Result<()>) {
        let (mut next, mut seen) = (0, Vec::new());
        let result = ordered(
            workers,
            || {
                next += 1;
                if next == produce_fails_at {
                    return Err(Error::damaged("produce"));
                }
                Ok((next <= 200).then_some(next))
            },
            || Ok(()),
            |(), item| {
                if item % 7 == 0 {
                    thread::yield_now();
                }
                if item == work_fails_at { Err(Error::damaged("work")) } else { Ok(item * 2) }
            },
            |item| {
                seen.push(item);
                if item == stop_at { Err(Error::damaged("consume")) } else { Ok(()) }
            },
        );
        (seen, result)
    }

    #[test]
    fn results_come_in_order() {
        for workers in [1, 2, 5] {
            let (seen, result) = run(workers, 0, 0, 0);
            result.unwrap();
            assert_eq!(seen, (1..=200).map(|n| n * 2).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_first_error_in_order_stops_everything() {
        for workers in [1, 4] {
            assert_eq!(run(workers, 50, 0, 0).1.unwrap_err().to_string(), "produce");
            let (seen, result) = run(workers, 50, 20, 0);
            assert_eq!((seen.len(), result.unwrap_err().to_string()), (19, "work".to_owned()));
            assert_eq!(run(workers, 0, 0, 10).1.unwrap_err().to_string(), "consume");
        }
    }
}
