//! The files that a cache consists of.

use std::path::Path;

use serde_json::Value;

use super::error::{CacheError, CacheResult};
use super::footer::Footer;
use super::identity::{Identity, differences};
use super::manifest::Manifest;
use super::row_file::RowFile;
use super::runs::Run;
use super::same_tokens::SameTokens;
use super::storage::{self, Kind};

/// How the names of Parquet files end.
pub(super) const PARQUET: &str = "parquet";
/// Times that a folder is read anew because a writer put other parts in the place of its own.
const ATTEMPTS: usize = 100;

/// Opens the files of a cache: the file itself, the parts that a folder's manifest names, or the
/// Parquet files of a folder by name.
pub(super) fn open_files(path: &Path) -> CacheResult<Vec<RowFile>> {
    open_files_by(path, |path| RowFile::open(path))
}

/// The same, the row groups of which may be copied as they are.
pub(super) fn open_source_files(path: &Path) -> CacheResult<Vec<RowFile>> {
    open_files_by(path, RowFile::open_source)
}

/// The same, each file as memory.
pub(super) fn open_mapped_files(path: &Path) -> CacheResult<Vec<RowFile>> {
    open_files_by(path, RowFile::open_mapped)
}

/// A way to open one file.
pub(super) type OpenFile = fn(&Path) -> CacheResult<RowFile>;

fn open_files_by(path: &Path, open: OpenFile) -> CacheResult<Vec<RowFile>> {
    match storage::kind(path)? {
        Kind::File => return Ok(vec![open(path)?]),
        Kind::Folder => {}
        Kind::Missing => {
            let detail = "no such file or folder".to_owned();
            return Err(CacheError::NotFound { path: path.to_owned(), detail });
        }
    }
    for attempt in 1.. {
        let Some((manifest, version)) = Manifest::read(path)? else { break };
        match manifest.open(path, open) {
            // A writer may have replaced manifest and parts between our two looks.
            Err(CacheError::NotFound { .. })
                if attempt < ATTEMPTS
                    && Manifest::read(path)?.as_ref() != Some(&(manifest, version)) => {}
            opened => return opened,
        }
    }
    let files = storage::list(path, PARQUET)?;
    if files.is_empty() {
        let unfinished = path.extension().is_some_and(|ending| ending == "partial");
        let hint = "\nhint: it is the work folder of an unfinished run; run the same command again to \
                    finish the cache, then name the finished cache";
        let hint = if unfinished { hint } else { "" };
        let detail = format!("the folder holds no *.parquet file{hint}");
        return Err(CacheError::NotFound { path: path.to_owned(), detail });
    }
    files.iter().map(|file| open(file)).collect()
}

/// Refuses two things made by different encoders.
pub(super) fn require_same(
    path: &Path,
    here: Option<&Identity>,
    there: Option<&Identity>,
    other: &str,
) -> CacheResult<()> {
    let differences = differences(here, there);
    if differences.is_empty() {
        return Ok(());
    }
    Err(CacheError::IdentityMismatch {
        path: path.to_owned(),
        other: other.to_owned(),
        differences,
    })
}

/// Refuses files of rows without values, which a server that answers with empty lists makes.
pub(super) fn require_values(files: &[RowFile]) -> CacheResult<()> {
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
pub(super) fn same_tokens(files: &[RowFile]) -> CacheResult<SameTokens> {
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
pub(super) fn runs(files: &[RowFile]) -> Vec<Run> {
    files.iter().filter_map(RowFile::footer).flat_map(Footer::runs).collect()
}

/// The provenance of each run.
pub(super) fn provenances(files: &[RowFile]) -> Vec<Value> {
    runs(files).into_iter().map(|run| run.provenance).collect()
}

/// The dimension and identity that all files share.
pub(super) fn common_kind(files: &[RowFile]) -> CacheResult<(usize, Option<Identity>)> {
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
