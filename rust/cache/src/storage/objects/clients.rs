//! The clients of object stores, one for each bucket, process and set of settings.

use std::collections::HashMap;
use std::process;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{ClientConfigKey, ObjectStore, StaticCredentialProvider};

/// Where Google's own libraries look for a server other than Google's, which asks for no name.
const GOOGLE_EMULATOR: &str = "STORAGE_EMULATOR_HOST";
/// The longest that one request may take: a row group over a slow line.
const TIMEOUT: &str = "120 s";

type Settings = Vec<(String, String)>;

/// A client, and what it was made for. Its connections are served by threads of one process, so a
/// forked process needs another.
#[derive(PartialEq, Eq, Hash)]
struct For {
    process: u32,
    bucket: String,
    settings: Settings,
}

static STORES: LazyLock<Mutex<HashMap<For, Arc<dyn ObjectStore>>>> = LazyLock::new(Mutex::default);
static GIVEN: LazyLock<Mutex<HashMap<String, Arc<dyn ObjectStore>>>> =
    LazyLock::new(Mutex::default);

/// Uses `store` for all objects of a bucket (`s3://bucket` or `gs://bucket`) from now on, instead of a
/// client that is made from the environment: a store with other credentials or other retries, or one
/// in memory.
pub fn use_store(bucket: &str, store: Arc<dyn ObjectStore>) {
    let bucket = bucket.trim_end_matches('/').to_owned();
    GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(bucket, store);
}

/// The store of a bucket, with the settings that the environment has for it.
pub(super) fn store_of(scheme: &str, bucket: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
    let bucket = format!("{scheme}://{bucket}");
    if let Some(given) = GIVEN.lock().unwrap_or_else(PoisonError::into_inner).get(&bucket) {
        return Ok(Arc::clone(given));
    }
    let settings = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| {
            name.starts_with("AWS_") || name.starts_with("GOOGLE_") || name == GOOGLE_EMULATOR
        })
        .collect();
    let key = For { process: process::id(), bucket, settings };
    let stores = || STORES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(store) = stores().get(&key) {
        return Ok(Arc::clone(store));
    }
    // Not under the lock, which a fork at that moment would leave locked.
    let store = if scheme == "gs" {
        google(&key.bucket, &key.settings)?
    } else {
        amazon(&key.bucket, &key.settings)?
    };
    Ok(Arc::clone(stores().entry(key).or_insert(store)))
}

fn google(url: &str, settings: &Settings) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_url(url)
        .with_config(GoogleConfigKey::Client(ClientConfigKey::Timeout), TIMEOUT);
    if let Some((_, host)) = settings.iter().find(|(name, _)| name == GOOGLE_EMULATOR) {
        let url = if host.contains("://") { host.clone() } else { format!("http://{host}") };
        let nobody = GcpCredential { bearer: String::new() };
        builder = builder
            .with_base_url(&url)
            .with_credentials(Arc::new(StaticCredentialProvider::new(nobody)))
            .with_config(GoogleConfigKey::Client(ClientConfigKey::AllowHttp), "true");
    }
    Ok(Arc::new(builder.build()?))
}

fn amazon(url: &str, settings: &Settings) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = AmazonS3Builder::from_env()
        .with_url(url)
        .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), TIMEOUT);
    // Who names such an endpoint wants it.
    let plain = |(name, value): &(String, String)| {
        name.starts_with("AWS_ENDPOINT") && value.starts_with("http://")
    };
    if settings.iter().any(plain) {
        builder = builder.with_allow_http(true);
    }
    Ok(Arc::new(builder.build()?))
}
