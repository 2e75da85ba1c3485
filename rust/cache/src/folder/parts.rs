//! The files that a cache consists of.

use std::path::Path;

use serde_json::Value;

use crate::file::reader::RowFile;
use crate::folder::manifest::{MANIFEST, Manifest, Part, digest, length, name_of};
use crate::format::error::{CacheError, CacheResult};
use crate::format::footer::Footer;
use crate::format::identity::Identity;
use crate::format::runs::Run;
use crate::format::same_identity::require_same;
use crate::format::same_tokens::SameTokens;
use crate::format::schema::PARQUET;
use crate::storage::at_once::at_once;
use crate::storage::{self, Kind, Version, store_at};

/// Times that a folder is read again because a writer put other parts in the place of those listed.
const ATTEMPTS: usize = 100;

const UNFINISHED: &str = "\nhint: it is the work folder of an unfinished run; run the same command again to \
                          finish the cache, then name the finished cache";

/// A way to open one file.
pub(crate) type OpenFile = fn(&Path) -> CacheResult<RowFile>;

/// Opens the files of a cache: the file itself, the parts that a folder's manifest lists, or the
/// Parquet files of a folder by name.
pub(crate) fn open_files(path: &Path) -> CacheResult<Vec<RowFile>> {
    read_files(path, |path| RowFile::open(path), Ok)
}

/// The same, the row groups of which may be copied as they are.
pub(crate) fn open_source_files(path: &Path) -> CacheResult<Vec<RowFile>> {
    read_files(path, RowFile::open_source, Ok)
}

/// Opens the files of a cache and reads them; from the start again, if a writer replaced them meanwhile.
pub(crate) fn read_files<T>(
    path: &Path,
    open: OpenFile,
    mut read: impl FnMut(Vec<RowFile>) -> CacheResult<T>,
) -> CacheResult<T> {
    // Names of parts are not those of a URL, where `%20` is a space.
    let store = store_at(path)?;
    let path = store.local().unwrap_or(path);
    for _ in 1..ATTEMPTS {
        let seen = Seen::at(path)?;
        let failed = match seen.open(path, open).and_then(&mut read) {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        if !Seen::at(path)?.differs(&seen) {
            return Err(failed);
        }
    }
    Seen::at(path)?.open(path, open).and_then(read)
}

impl Manifest {
    /// Opens the parts, each of the size and kind that the manifest says, several at a time.
    pub(crate) fn open(&self, folder: &Path, open: OpenFile) -> CacheResult<Vec<RowFile>> {
        let parts = self.parts.iter().collect();
        at_once(storage::is_remote(folder)?, parts, |part| self.open_part(folder, part, open))
    }

    fn open_part(&self, folder: &Path, part: &Part, open: OpenFile) -> CacheResult<RowFile> {
        let path = folder.join(&part.file);
        let disagrees = |what: &str, found: u64, expected: u64| {
            let detail = format!("has {found} {what}, {MANIFEST} says {expected}");
            CacheError::format(&path, detail)
        };
        let file = match open(&path) {
            // What was cut off is told best by its length.
            Err(CacheError::Format { .. }) if length(&path)? != part.bytes => {
                return Err(disagrees("bytes", length(&path)?, part.bytes));
            }
            opened => opened?,
        };
        if file.bytes() != part.bytes {
            return Err(disagrees("bytes", file.bytes(), part.bytes));
        }
        let rows = file.num_rows() as u64;
        if rows != part.rows {
            return Err(disagrees("rows", rows, part.rows));
        }
        if file.dim() != self.dim {
            return Err(disagrees("values a row", file.dim() as u64, self.dim as u64));
        }
        let here = file.footer().map(|footer| &footer.identity);
        require_same(&path, here, Some(&self.identity), MANIFEST)?;
        Ok(file)
    }

    /// Holds the bytes of all parts against their digests.
    pub(crate) fn verify(&self, folder: &Path) -> CacheResult<()> {
        for part in &self.parts {
            let path = folder.join(&part.file);
            if digest(&store_at(&path)?.open()?, &path)? != part.blake3 {
                let detail = format!("damaged: not the bytes of which {MANIFEST} has the digest");
                return Err(CacheError::format(&path, detail));
            }
        }
        Ok(())
    }
}

impl Part {
    /// Describes a file that was there before.
    pub(crate) fn of(file: &RowFile) -> CacheResult<Self> {
        let (path, rows) = (file.path(), file.num_rows() as u64);
        let blake3 = digest(file.input(), path)?;
        Ok(Self { file: name_of(path), rows, bytes: file.bytes(), blake3 })
    }
}

/// What a path leads to, with all that a writer changes when it replaces the files of a cache.
struct Seen {
    kind: Kind,
    manifest: Option<Manifest>,
    version: Option<Version>,
}

impl Seen {
    fn at(path: &Path) -> CacheResult<Self> {
        let kind = storage::kind(path)?;
        let (manifest, version) = match kind {
            Kind::Folder => Manifest::read(path)?.unzip(),
            // An object stays the one that was opened; asking for it would be one more request.
            Kind::File if !storage::is_remote(path)? => (None, store_at(path)?.version()?),
            Kind::File | Kind::Missing => (None, None),
        };
        Ok(Self { kind, manifest, version })
    }

    fn differs(&self, other: &Self) -> bool {
        (self.kind, &self.version) != (other.kind, &other.version)
    }

    fn open(&self, path: &Path, open: OpenFile) -> CacheResult<Vec<RowFile>> {
        match self.kind {
            Kind::File => return Ok(vec![open(path)?]),
            Kind::Folder => {}
            Kind::Missing => {
                let detail = "no such file or folder".to_owned();
                return Err(CacheError::NotFound { path: path.to_owned(), detail });
            }
        }
        if let Some(manifest) = &self.manifest {
            return manifest.open(path, open);
        }
        let files = storage::list(path, PARQUET)?;
        if files.is_empty() {
            let unfinished = path.extension().is_some_and(|ending| ending == "partial")
                || path.file_name().is_some_and(|name| name == ".partial");
            let hint = if unfinished { UNFINISHED } else { "" };
            let detail = format!("the folder holds no *.parquet file{hint}");
            return Err(CacheError::NotFound { path: path.to_owned(), detail });
        }
        at_once(storage::is_remote(path)?, files, |file| open(&file))
    }
}

/// Refuses files of rows without values, which a server that answers with empty lists makes.
pub(crate) fn require_values(files: &[RowFile]) -> CacheResult<()> {
    match files.iter().find(|file| file.num_rows() > 0 && file.dim() == 0) {
        Some(file) => {
            let detail = "embedding has no values, nor has any other of the file\n\
                          hint: encode the states again; `ebm-encode audit` lists all such rows";
            Err(CacheError::row(file.path(), 0, detail))
        }
        None => Ok(()),
    }
}

/// The states with the same tokens that the files' footers tell of.
pub(crate) fn same_tokens(files: &[RowFile]) -> CacheResult<SameTokens> {
    let mut same_tokens = SameTokens::default();
    for file in files {
        if let Some(footer) = file.footer() {
            same_tokens
                .add_footer(footer)
                .map_err(|detail| CacheError::format(file.path(), detail))?;
        }
    }
    Ok(same_tokens)
}

/// The runs that made the rows of the files that say so, in the order of the rows.
pub(crate) fn runs(files: &[RowFile]) -> Vec<Run> {
    files.iter().filter_map(RowFile::footer).flat_map(Footer::runs).collect()
}

/// The provenance of each run.
pub(crate) fn provenances(files: &[RowFile]) -> Vec<Value> {
    runs(files).into_iter().map(|run| run.provenance).collect()
}

/// The dimension and identity that all files share.
pub(crate) fn common_kind(files: &[RowFile]) -> CacheResult<(usize, Option<Identity>)> {
    let identity_of = |file: &RowFile| file.footer().map(|footer| footer.identity.clone());
    // A file without rows and without our footer says nothing of its dimension.
    let dim = files.iter().map(RowFile::dim).find(|dim| *dim > 0).unwrap_or(0);
    let Some(first) = files.first() else { return Ok((dim, None)) };
    let identity = identity_of(first);
    for file in files {
        // Of rows without values each has its own error.
        if file.num_rows() > 0 && file.dim() > 0 && file.dim() != dim {
            let found = file.dim();
            let detail = format!("rows have {found} values, those of other shards {dim}");
            return Err(CacheError::format(file.path(), detail));
        }
        let other = identity_of(file);
        if identity != other {
            require_same(
                file.path(),
                other.as_ref(),
                identity.as_ref(),
                &first.path().display().to_string(),
            )?;
        }
    }
    Ok((dim, identity))
}
