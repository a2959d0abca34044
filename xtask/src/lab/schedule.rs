//! Which boots run at the same time.
//!
//! In: a list of boots. Out: the result of each, in the order of completion.
//! Twice as many run at once as a small host has cores: the emulator runs all CPUs
//! of a guest in one thread, and a guest that detaches programs waits for most of
//! that time. With the tests there is one more, of the dashboards.

use std::sync::{Mutex, mpsc};

const AT_ONCE: usize = 4;

/// Runs `work` on each item and hands every result to `each` on the calling
/// thread.
pub(crate) fn run<T: Send, R: Send>(
    items: Vec<T>,
    work: impl Fn(T) -> R + Sync,
    each: impl FnMut(R),
) {
    let waiting = Mutex::new(items.into_iter());
    let next = || {
        waiting
            .lock()
            .expect("taking an item does not panic")
            .next()
    };
    std::thread::scope(|scope| {
        let (sender, results) = mpsc::channel();
        for _ in 0..AT_ONCE {
            let (sender, next, work) = (sender.clone(), &next, &work);
            scope.spawn(move || {
                while let Some(item) = next() {
                    if sender.send(work(item)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        results.into_iter().for_each(each);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_runs_once() {
        let mut done = Vec::new();
        run((0..100).collect(), |item: u32| item, |item| done.push(item));
        done.sort_unstable();
        assert_eq!(done, (0..100).collect::<Vec<_>>());
    }
}
