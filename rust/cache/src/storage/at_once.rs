//! Work on many files or row groups at once, some of which wait for a disk or a store while others work.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, available_parallelism};

use crate::format::error::{CacheError, CacheResult};

/// Requests that wait for a store at a time: each keeps a row group in memory.
const REQUESTS: usize = 8;
/// Threads of a core that read from a disk.
const OF_A_CORE: usize = 2;

/// What a step gave, in the place of its item.
type Done<T> = Mutex<Option<CacheResult<T>>>;

/// Runs a step on each item and gives what they gave, in order; the first error of the order.
///
/// The threads belong to this call, so that it works in a process that was just forked, too; where
/// the system gives none, the caller's does it all.
pub(crate) fn at_once<I: Send, T: Send>(
    remote: bool,
    items: Vec<I>,
    step: impl Fn(I) -> CacheResult<T> + Sync,
) -> CacheResult<Vec<T>> {
    let cores = available_parallelism().map_or(1, usize::from);
    let threads = if remote { REQUESTS } else { OF_A_CORE * cores }.min(items.len());
    let done: Vec<Done<T>> = items.iter().map(|_| Mutex::new(None)).collect();
    let items: Vec<Mutex<Option<I>>> =
        items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    let next = AtomicUsize::new(0);
    let failed = AtomicUsize::new(usize::MAX);
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= items.len() || number > failed.load(Ordering::Relaxed) {
                return;
            }
            let item = items[number].lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(item) = item else { continue };
            let result = step(item);
            if result.is_err() {
                failed.fetch_min(number, Ordering::Relaxed);
            }
            *done[number].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        }
    };
    thread::scope(|scope| {
        let start = |_| {
            let name = "ebm-cache-read".to_owned();
            thread::Builder::new().name(name).spawn_scoped(scope, work).ok()
        };
        let helpers: Vec<_> = (1..threads).map_while(start).collect();
        work();
        for helper in helpers {
            if let Err(panic) = helper.join() {
                resume_unwind(panic); // with its own words
            }
        }
    });
    let unfinished = || Err(CacheError::Argument("an earlier step failed".to_owned()));
    let results =
        done.into_iter().map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner));
    results.map(|result| result.unwrap_or_else(unfinished)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_stand_in_the_order_of_the_items() {
        for count in [0, 1, 2, 1000] {
            let doubled = at_once(false, (0..count).collect(), |item| Ok(2 * item)).unwrap();
            assert_eq!(doubled, (0..count).map(|item| 2 * item).collect::<Vec<i32>>());
        }
    }

    #[test]
    fn the_first_error_of_the_order_is_given() {
        let wrong = |item: usize| CacheError::Argument(format!("item {item}"));
        for _ in 0..100 {
            let step = |item| if item % 7 == 3 { Err(wrong(item)) } else { Ok(item) };
            let error = at_once(true, (0..50).collect(), step).unwrap_err();
            assert_eq!(error.to_string(), wrong(3).to_string());
        }
    }

    #[test]
    fn a_panic_keeps_its_words() {
        let step = |item: usize| {
            assert!(item != 7, "item seven");
            Ok(item)
        };
        let panic =
            std::panic::catch_unwind(|| at_once(false, (0..20).collect(), step)).unwrap_err();
        let words = panic.downcast_ref::<&str>().map(ToString::to_string);
        let words = words.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap();
        assert!(words.contains("item seven"), "{words}");
    }
}
