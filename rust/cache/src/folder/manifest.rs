//! What a cache of many parts consists of: one JSON file in its folder, replaced in one step.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::{Component, Path};

use parquet::file::reader::{ChunkReader, Length};
use serde::{Deserialize, Serialize};

use crate::format::error::{CacheError, CacheResult};
use crate::format::identity::Identity;
use crate::format::schema::FORMAT_VERSION;
use crate::format::schema::PARQUET;
use crate::storage::input::Input;
use crate::storage::{self, Replaces, Version, Written, store_at};

/// The file's name.
pub const MANIFEST: &str = "manifest.json";

/// The parts of a cache in their order; of a state's embeddings the newest wins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// Version of this file and of the parts' layout.
    pub format_version: u32,
    /// Length of every embedding.
    pub dim: usize,
    /// The encoder that made the rows of all parts.
    pub identity: Identity,
    /// The parts.
    pub parts: Vec<Part>,
    /// Files that were parts before these took their place; they are removed after this is written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub superseded: Vec<String>,
}

/// One part of a cache: a file that is a cache by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Part {
    /// Its name in the folder.
    pub file: String,
    /// Number of its rows.
    pub rows: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// BLAKE3 digest of its bytes, in hex.
    pub blake3: String,
}

impl Manifest {
    /// A manifest without parts.
    pub(crate) fn new(identity: Identity, dim: usize) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            dim,
            identity,
            parts: Vec::new(),
            superseded: Vec::new(),
        }
    }

    /// Reads a folder's manifest, and its version; `None` where it has none.
    pub(crate) fn read(folder: &Path) -> CacheResult<Option<(Self, Version)>> {
        let path = folder.join(MANIFEST);
        let Some((text, version)) = store_at(&path)?.read()? else { return Ok(None) };
        let wrong = |detail: String| CacheError::format(&path, detail);
        let manifest: Self =
            serde_json::from_slice(&text).map_err(|error| wrong(format!("damaged: {error}")))?;
        if manifest.format_version > FORMAT_VERSION {
            let found = manifest.format_version;
            return Err(wrong(format!(
                "written in format version {found}, this build reads up to {FORMAT_VERSION}; \
                 update ebm-encode"
            )));
        }
        let mut named = HashSet::new();
        let parts = manifest.parts.iter().map(|part| &part.file);
        for name in parts.chain(&manifest.superseded) {
            // Those that are superseded are removed, so nothing else may be listed.
            if !is_part_name(name) {
                return Err(wrong(format!(
                    "part {name:?} is not a file of the folder, *.{PARQUET}"
                )));
            }
            if !named.insert(name) {
                return Err(wrong(format!("names part {name:?} twice")));
            }
        }
        Ok(Some((manifest, version)))
    }

    /// Writes the manifest in the place of the former one; returns its version.
    ///
    /// # Errors
    /// [`CacheError::Conflict`] if another process has replaced that one. After any other error either
    /// may stand.
    pub(crate) fn write(&self, folder: &Path, former: Option<&Version>) -> CacheResult<Version> {
        let json = serde_json::to_vec_pretty(self)
            .map_err(|error| CacheError::Argument(error.to_string()))?;
        let store = store_at(&folder.join(MANIFEST))?;
        match store.replace(&json, Replaces::former(former)) {
            Err(CacheError::Conflict { .. }) => {
                Err(CacheError::Conflict { path: folder.to_owned() })
            }
            written => written,
        }
    }

    /// A name for a new part, which nothing in the folder has.
    pub(crate) fn next_name(&self, folder: &Path) -> CacheResult<String> {
        let number = |part: &Part| {
            let digits = part.file.strip_prefix("part-")?.strip_suffix(".parquet")?;
            digits.split('-').next()?.parse().ok()
        };
        let last: Option<u64> = self.parts.iter().filter_map(number).max();
        let mut number = last.map_or(0, |last| last.wrapping_add(1));
        if storage::is_remote(folder)? {
            // Two writers may look at once; what only one of them lists cannot be the other's.
            let nonce = RandomState::new().build_hasher().finish();
            return Ok(format!("part-{number:09}-{nonce:016x}.parquet"));
        }
        loop {
            let name = format!("part-{number:09}.parquet");
            if !store_at(&folder.join(&name))?.is_file()? {
                return Ok(name);
            }
            number = number.wrapping_add(1);
        }
    }

    /// Those of the superseded parts that are still in the folder.
    pub(crate) fn still_superseded(&self, folder: &Path) -> CacheResult<Vec<String>> {
        if self.superseded.is_empty() {
            return Ok(Vec::new());
        }
        let there: HashSet<String> =
            storage::list(folder, PARQUET)?.iter().map(|path| name_of(path)).collect();
        Ok(self.superseded.iter().filter(|name| there.contains(*name)).cloned().collect())
    }

    /// Removes the parts in whose place those of this manifest are. Other files are not ours.
    pub(crate) fn remove_superseded(&self, folder: &Path) -> CacheResult<()> {
        let there = self.still_superseded(folder)?;
        there.iter().try_for_each(|name| storage::remove_file(&folder.join(name)))
    }
}

/// Whether a manifest may name this: a Parquet file of its folder.
fn is_part_name(name: &str) -> bool {
    let path = Path::new(name);
    let mut steps = path.components();
    matches!((steps.next(), steps.next()), (Some(Component::Normal(step)), None) if step == name)
        && path.extension().is_some_and(|extension| extension == PARQUET)
}

impl Part {
    /// Describes a file that was written, with its digest.
    pub(crate) fn written(path: &Path, rows: u64, written: &Written) -> CacheResult<Self> {
        let blake3 = match &written.digest {
            Some(digest) => digest.to_hex().to_string(),
            None => digest(&store_at(path)?.open()?, path)?,
        };
        Ok(Self { file: name_of(path), rows, bytes: written.bytes, blake3 })
    }
}

pub(crate) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(crate) fn length(path: &Path) -> CacheResult<u64> {
    Ok(store_at(path)?.open()?.len())
}

pub(crate) fn digest(input: &Input, path: &Path) -> CacheResult<String> {
    let mut hasher = blake3::Hasher::new();
    let wrong = |error| CacheError::io(path, "read", error);
    let mut bytes = input.get_read(0).map_err(|error| wrong(io::Error::other(error)))?;
    hasher.update_reader(&mut bytes).map_err(wrong)?;
    Ok(hasher.finalize().to_hex().to_string())
}
