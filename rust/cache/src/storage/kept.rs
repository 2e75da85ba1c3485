//! Things that are kept while there are few of them, and made again when they are needed.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The slots of one kind that are full, the oldest first; so many at most.
#[derive(Debug)]
pub(crate) struct Pool<T> {
    most: usize,
    full: Mutex<VecDeque<Weak<Slot<T>>>>,
}

/// Room for one thing.
#[derive(Debug)]
pub(crate) struct Slot<T> {
    thing: Mutex<Option<T>>,
    /// Whether it was asked for since it was last passed over.
    used: AtomicBool,
}

impl<T> Slot<T> {
    fn thing(&self) -> MutexGuard<'_, Option<T>> {
        self.thing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> Slot<T> {
    pub(crate) fn empty() -> Arc<Self> {
        Arc::new(Self { thing: Mutex::new(None), used: AtomicBool::new(false) })
    }

    /// What is in it, if it is still kept.
    pub(crate) fn get(&self) -> Option<T> {
        let thing = self.thing().clone();
        if thing.is_some() {
            self.used.store(true, Ordering::Relaxed);
        }
        thing
    }
}

impl<T> Pool<T> {
    pub(crate) const fn new(most: usize) -> Self {
        Self { most, full: Mutex::new(VecDeque::new()) }
    }

    /// Fills a slot, and empties the oldest that nobody asked for of late.
    pub(crate) fn keep(&self, slot: &Arc<Slot<T>>, thing: T) {
        *slot.thing() = Some(thing);
        slot.used.store(true, Ordering::Relaxed);
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        full.push_back(Arc::downgrade(slot));
        while full.len() > self.most {
            let Some(oldest) = full.pop_front() else { break };
            let Some(slot) = oldest.upgrade() else { continue };
            if slot.used.swap(false, Ordering::Relaxed) {
                full.push_back(oldest);
            } else {
                *slot.thing() = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Pool, Slot};

    #[test]
    fn so_many_are_kept_and_the_newest_is_one_of_them() {
        let pool = Pool::new(3);
        let slots: Vec<_> = (0..10).map(|_| Slot::empty()).collect();
        for (number, slot) in slots.iter().enumerate() {
            pool.keep(slot, number);
            let full = slots.iter().filter(|slot| slot.get().is_some()).count();
            assert_eq!((full, slot.get()), ((number + 1).min(3), Some(number)));
        }
        pool.keep(&slots[0], 0);
        assert_eq!(slots[0].get(), Some(0), "it comes back");
    }
}
