//! The processes that serve searches.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flume::{Receiver, RecvTimeoutError, Sender};

use super::fault::{CallError, StartError, failed, unavailable};
use super::options::PantographOptions;
use super::worker::Worker;
use crate::search::{Control, EnvironmentError, EnvironmentResult};

/// Leases workers. Whoever asks first is served first.
pub(super) struct Pool {
    options: PantographOptions,
    searches: Permits,
    checks: Permits,
    idle: Mutex<Vec<Worker>>,
    /// Whether one ever was ready. If so, the command is right, and a later failure is an accident.
    proven: AtomicBool,
}

struct Permits(Sender<()>, Receiver<()>);

impl Permits {
    fn new(count: usize) -> Self {
        let (sender, receiver) = flume::bounded(count);
        for _ in 0..count {
            let _ = sender.try_send(());
        }
        Self(sender, receiver)
    }

    fn take(&self, control: &Control) -> EnvironmentResult<Permit<'_>> {
        loop {
            control.check()?;
            match self.1.recv_timeout(control.wait(Control::TICK)) {
                Ok(()) => return Ok(Permit(&self.0)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
    }
}

struct Permit<'a>(&'a Sender<()>);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}

impl Pool {
    pub(super) fn new(options: PantographOptions) -> Self {
        let count = options.workers.get();
        let (searches, checks) = (Permits::new(count), Permits::new(count));
        Self { options, searches, checks, idle: Mutex::default(), proven: AtomicBool::new(false) }
    }

    /// A worker without states.
    pub(super) fn lease(&self, control: &Control) -> EnvironmentResult<Lease<'_>> {
        let permit = self.searches.take(control)?;
        let mut lease = Lease { pool: self, worker: None, fresh: false, _permit: permit };
        lease.renew(control)?;
        Ok(lease)
    }

    /// A process in which no search was. It has a permit of another kind: a search that waits for the
    /// check of its proof keeps its worker meanwhile.
    pub(super) fn fresh(&self, control: &Control) -> EnvironmentResult<Lease<'_>> {
        let permit = self.checks.take(control)?;
        let mut lease = Lease { pool: self, worker: None, fresh: true, _permit: permit };
        lease.renew(control)?;
        Ok(lease)
    }

    fn start(&self, time: Duration, control: &Control) -> EnvironmentResult<Worker> {
        match Worker::start(&self.options, time, control) {
            Ok(worker) => {
                self.proven.store(true, Ordering::Relaxed);
                Ok(worker)
            }
            Err(StartError::Stopped(stop)) => Err(stop.into()),
            Err(StartError::Failed(reason)) if self.proven.load(Ordering::Relaxed) => {
                Err(failed(reason))
            }
            Err(StartError::Failed(reason)) => Err(unavailable(reason)),
        }
    }

    fn idle_worker(&self, control: &Control) -> EnvironmentResult<Option<Worker>> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut worker) = idle else { return Ok(None) };
            match worker.reset(control) {
                Ok(()) => return Ok(Some(worker)),
                Err(CallError::Stopped(stop)) => {
                    self.put_back(worker);
                    return Err(EnvironmentError::Stopped(stop));
                }
                // It ended while nobody asked it. The next one may be well.
                Err(CallError::Fault(_)) => {}
            }
        }
    }

    fn put_back(&self, worker: Worker) {
        if worker.is_sound() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
        }
    }
}

/// A worker for one theorem. It goes back to the pool at the end, unless something was wrong with it.
pub(super) struct Lease<'a> {
    pool: &'a Pool,
    worker: Option<Worker>,
    fresh: bool,
    _permit: Permit<'a>,
}

impl Lease<'_> {
    /// The worker, which is another one than before where that was unsound: then `true`.
    pub(super) fn worker(&mut self, control: &Control) -> EnvironmentResult<(&mut Worker, bool)> {
        let renewed = !self.worker.as_ref().is_some_and(Worker::is_sound);
        if renewed {
            self.renew(control)?;
        }
        match &mut self.worker {
            Some(worker) => Ok((worker, renewed)),
            None => Err(failed("no process was started")),
        }
    }

    fn renew(&mut self, control: &Control) -> EnvironmentResult<()> {
        // The former one is ended before another needs its memory.
        self.worker = None;
        let idle = if self.fresh { None } else { self.pool.idle_worker(control)? };
        let options = &self.pool.options;
        let time = if self.fresh { options.check_time } else { options.tactic_time };
        self.worker = Some(match idle {
            Some(worker) => worker,
            None => self.pool.start(time, control)?,
        });
        Ok(())
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take()
            && !self.fresh
        {
            self.pool.put_back(worker);
        }
    }
}
