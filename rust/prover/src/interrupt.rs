//! Ctrl-C ends the process at once, also in the middle of a batch, and saves what is done. A search is
//! told to stop first, and given some seconds to write what it finished.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use ebm_encoder::CachedEncoder;
use ebm_search::search::Cancel;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::end;

/// The code of a process that a signal ends is this and the signal's number.
const SIGNALLED: u8 = 128;

/// How long a search may take to stop and write what it finished.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is to be saved when the process is interrupted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Saved(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    encoder: Mutex<Weak<CachedEncoder>>,
    search: Mutex<Option<Cancel>>,
    /// The signal that came, or 0.
    signal: AtomicI32,
}

impl Saved {
    /// Saves this encoder's embeddings.
    pub(crate) fn watch(&self, encoder: &Arc<CachedEncoder>) {
        *self.0.encoder.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(encoder);
    }

    /// Stops these searches; whoever runs them then ends the process.
    pub(crate) fn stop(&self, searches: &Cancel) {
        let known = &mut *self.0.search.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(searches.clone());
    }

    /// The exit code of the signal that came, if one did.
    pub(crate) fn interrupted(&self) -> Option<u8> {
        match self.0.signal.load(Ordering::Acquire) {
            0 => None,
            signal => Some(code(signal)),
        }
    }

    fn save(&self, signal: i32) {
        self.0.signal.store(signal, Ordering::Release);
        let search = self.0.search.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(search) = search {
            search.cancel();
            thread::sleep(PATIENCE); // the process ends before, unless something hangs
        }
        let encoder = self.0.encoder.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        let Some(encoder) = encoder else { return };
        if let Err(error) = encoder.checkpoint() {
            report(&format!("rows encoded since the last checkpoint are lost: {error}"));
        }
    }
}

/// Handles Ctrl-C and polite requests to end from here on, on its own thread: Python's is busy for
/// as long as a batch takes. A second signal ends the process though embeddings are still being
/// saved.
pub(crate) fn handle(saved: Saved) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot handle Ctrl-C")?;
    thread::Builder::new().name("interrupts".to_owned()).spawn(move || {
        let mut signals = signals.forever();
        let Some(first) = signals.next() else { return };
        let saving = thread::Builder::new().name("saving".to_owned()).spawn(move || {
            saved.save(first);
            report("interrupted");
            end::at_once(code(first));
        });
        if let Ok(_saving) = saving
            && let Some(second) = signals.next()
        {
            report("interrupted again; rows encoded since the last checkpoint may be lost");
            end::at_once(code(second));
        }
        end::at_once(code(first));
    })?;
    Ok(())
}

fn code(signal: i32) -> u8 {
    SIGNALLED.saturating_add(u8::try_from(signal).unwrap_or_default())
}

fn report(message: &str) {
    #[expect(clippy::print_stderr, reason = "the process is about to end")]
    {
        eprintln!("ebm-prover: {message}");
    }
}
