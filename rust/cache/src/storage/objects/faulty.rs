//! A store in memory that fails, or changes, at a chosen call: to test what is built on caches.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::clients::use_store;

/// What happens at a call.
#[derive(Clone)]
pub enum Fault {
    /// It fails, and nothing is done.
    Before,
    /// It is done, and fails.
    After,
    /// It is done, and fails; so does the next one, which is not done.
    AfterAndNext,
    /// Something else happens just before.
    Meanwhile(Arc<dyn Fn() + Send + Sync>),
}

/// A store in memory with a fault at one of its calls.
pub struct Faulty {
    inner: Arc<InMemory>,
    calls: AtomicUsize,
    fault: Mutex<Option<(usize, Fault)>>,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store that fails")
    }
}

fn failure() -> Error {
    Error::Generic { store: "faulty", source: "no answer".into() }
}

impl Faulty {
    /// How many calls were made.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// Sets another fault.
    pub fn set_fault(&self, fault: Option<(usize, Fault)>) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// Counts a call; returns whether it fails after it was done.
    fn call(&self) -> Result<bool> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match fault {
            Some((at, fault)) if at == call => match fault {
                Fault::Before => Err(failure()),
                Fault::After | Fault::AfterAndNext => Ok(true),
                Fault::Meanwhile(step) => {
                    // A panic there is the step's, and fails the call.
                    thread::spawn(move || step()).join().map_err(|_| failure())?;
                    Ok(false)
                }
            },
            Some((at, Fault::AfterAndNext)) if at + 1 == call => Err(failure()),
            _ => Ok(false),
        }
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, key: &Key, bytes: PutPayload, how: PutOptions) -> Result<PutResult> {
        let lost = self.call()?;
        let put = self.inner.put_opts(key, bytes, how).await;
        if lost { Err(failure()) } else { put }
    }

    async fn put_multipart_opts(
        &self,
        key: &Key,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let lost = self.call()?;
        let upload = self.inner.put_multipart_opts(key, how).await;
        if lost { Err(failure()) } else { upload }
    }

    async fn get_opts(&self, key: &Key, how: GetOptions) -> Result<GetResult> {
        let lost = self.call()?;
        let got = self.inner.get_opts(key, how).await;
        if lost { Err(failure()) } else { got }
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        match self.call() {
            Ok(false) => self.inner.delete_stream(keys),
            Ok(true) => self.inner.delete_stream(keys).map(|_| Err(failure())).boxed(),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        let lost = self.call()?;
        let found = self.inner.list_with_delimiter(prefix).await;
        if lost { Err(failure()) } else { found }
    }

    async fn copy_opts(&self, from: &Key, to: &Key, how: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, how).await
    }
}

/// A bucket in memory with a fault at the call of a number, from 0; and a second name of the same
/// bucket, without the fault. Returns the store and the two URLs.
#[must_use]
pub fn bucket(fault: Option<(usize, Fault)>) -> (Arc<Faulty>, String, String) {
    static BUCKETS: AtomicUsize = AtomicUsize::new(0);
    let number = BUCKETS.fetch_add(1, Ordering::SeqCst);
    let (faulty, sound) = (format!("s3://faulty-{number}"), format!("s3://sound-{number}"));
    let inner = Arc::new(InMemory::new());
    let calls = AtomicUsize::new(0);
    let store = Arc::new(Faulty { inner: Arc::clone(&inner), calls, fault: Mutex::new(fault) });
    use_store(&faulty, Arc::clone(&store) as Arc<dyn ObjectStore>);
    use_store(&sound, inner);
    (store, faulty, sound)
}
