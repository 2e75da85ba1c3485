//! A whole cache in memory: rows end to end in one buffer, looked up by state.

use std::path::Path;

use arrow_array::StringArray;
use bytes::Bytes;
use rayon::prelude::*;

use crate::check::row_check::RowChecker;
use crate::check::sketch::{RowStats, Sketcher};
use crate::file::reader::RowFile;
use crate::folder::parts::{self, common_kind, require_values, same_tokens};
use crate::format::bad_row::BadRow;
use crate::format::error::{CacheError, CacheResult};
use crate::format::footer::StateKey;
use crate::format::options::{Checks, Checksums, OpenOptions};
use crate::format::same_tokens::SameTokens;
use crate::read::batch::{AT_ONCE, refuse_bad_rows, require_room};
use crate::read::buffer::{Buffer, Sealed};
use crate::read::contents::{Contents, contents_methods};
use crate::storage::at_once::at_once;
use ebm_threads::spread;

/// A cache of embeddings, held in memory.
///
/// Rows stand in file order; the files of a folder follow one another by name.
#[derive(Debug)]
pub struct EmbeddingCache {
    contents: Contents,
    values: Sealed,
}

impl EmbeddingCache {
    /// Opens a cache file, or a folder of them, and checks every row.
    ///
    /// # Errors
    /// Any [`CacheError`] that says why the path is not a good cache: missing, damaged, of another
    /// schema, shards of different identities, or with bad rows.
    pub fn open(path: impl AsRef<Path>) -> CacheResult<Self> {
        Self::open_with(path, Checks::Strict)
    }

    /// Opens a cache, with row checks and checksums on or off.
    ///
    /// # Errors
    /// As for [`EmbeddingCache::open`], less the bad rows if `checks` is [`Checks::Lenient`].
    pub fn open_with(path: impl AsRef<Path>, options: impl Into<OpenOptions>) -> CacheResult<Self> {
        let (path, options) = (path.as_ref(), options.into());
        let open = |path: &Path| RowFile::open(path);
        parts::read_files(path, open, |files| Self::from_files(path, &files, options))
    }

    /// Opens a cache file held in memory; `name` stands for its path in errors.
    ///
    /// # Errors
    /// As for [`EmbeddingCache::open_with`].
    pub fn from_bytes(
        name: impl AsRef<Path>,
        bytes: Bytes,
        options: impl Into<OpenOptions>,
    ) -> CacheResult<Self> {
        let file = RowFile::from_bytes(&name, bytes)?;
        Self::from_files(name.as_ref(), &[file], options.into())
    }

    fn from_files(path: &Path, files: &[RowFile], options: OpenOptions) -> CacheResult<Self> {
        require_values(files)?;
        let kind = common_kind(files)?;
        let (values, groups) = read_files(path, files, kind.0, options)?;
        let (mut texts, mut keys, mut stats) = (Vec::new(), Vec::new(), Vec::new());
        for group in groups {
            texts.extend(group.texts);
            keys.extend(group.keys);
            stats.extend(group.stats);
        }
        let cache = Self { contents: Contents::of(path, files, kind, texts), values };
        if options.checks == Checks::Strict {
            cache.check_rows(&keys, &stats, same_tokens(files)?)?;
        }
        Ok(cache)
    }

    /// The embedding of a state, or `None` where the cache has none.
    #[must_use]
    pub fn get(&self, state: &str) -> Option<&[f32]> {
        self.position(state).map(|row| self.row(row))
    }

    /// The embeddings of several states, in their order.
    #[must_use]
    pub fn get_many<S: AsRef<str>>(&self, states: &[S]) -> Vec<Option<&[f32]>> {
        states.iter().map(|state| self.get(state.as_ref())).collect()
    }

    /// Copies the embeddings of several states, in their order, into memory of the caller
    /// (`states.len() x dim`, row-major): a training batch.
    ///
    /// # Errors
    /// [`CacheError::Unknown`], listing states that the cache does not have; then nothing is
    /// written. [`CacheError::Argument`] if `rows` has another length.
    pub fn gather<S: AsRef<str> + Sync>(&self, states: &[S], rows: &mut [f32]) -> CacheResult<()> {
        require_room(states.len(), self.contents.dim, rows)?;
        self.gather_rows(&self.positions(states)?, rows)
    }

    /// Copies the rows with these numbers, in this order, into memory of the caller
    /// (`numbers.len() x dim`, row-major).
    ///
    /// # Errors
    /// [`CacheError::Argument`] if there is no such row, or `rows` has another length; then nothing
    /// is written.
    pub fn gather_rows(&self, numbers: &[usize], rows: &mut [f32]) -> CacheResult<()> {
        require_room(numbers.len(), self.contents.dim, rows)?;
        self.contents.index.require_rows(numbers)?;
        if self.contents.dim > 0 {
            spread(|| {
                rows.par_chunks_mut(self.contents.dim)
                    .with_min_len(AT_ONCE)
                    .zip(numbers)
                    .for_each(|(row, number)| row.copy_from_slice(self.row(*number)));
            });
        }
        Ok(())
    }

    /// The row with this number.
    ///
    /// # Panics
    /// If `row >= len`, like indexing a slice.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.contents.dim..(row + 1) * self.contents.dim]
    }

    /// States and rows in file order.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &[f32])> {
        (0..self.len()).map(|row| (self.state(row), self.row(row)))
    }

    /// All rows, row-major, `len x dim`.
    #[must_use]
    pub fn matrix(&self) -> &[f32] {
        &self.values
    }

    contents_methods!();

    pub(crate) fn contents(&self) -> &Contents {
        &self.contents
    }

    fn check_rows(
        &self,
        keys: &[StateKey],
        stats: &[RowStats],
        same_tokens: SameTokens,
    ) -> CacheResult<()> {
        let mut checker = RowChecker::with_same_tokens(self.contents.dim, same_tokens);
        let verdicts = checker.check_measured(keys, stats, &self.values);
        let bad = verdicts.into_iter().enumerate();
        let bad = bad.filter_map(|(row, verdict)| Some((row, verdict.err()?)));
        let outliers = checker.norm_outliers().into_iter();
        let outliers = outliers
            .filter_map(|outlier| Some((usize::try_from(outlier.row).ok()?, outlier.reason)));
        let bad: Vec<(usize, BadRow)> = bad.chain(outliers).collect();
        refuse_bad_rows(&self.contents.path, &bad, self.len(), |row| self.state(row))
    }
}

/// What was read of a row group beside its rows.
struct Group {
    texts: Vec<StringArray>,
    /// Of each row, if rows are checked.
    keys: Vec<StateKey>,
    stats: Vec<RowStats>,
}

/// All rows of the files in one buffer, and what else was read of each row group.
fn read_files(
    path: &Path,
    files: &[RowFile],
    dim: usize,
    options: OpenOptions,
) -> CacheResult<(Sealed, Vec<Group>)> {
    let rows = files.iter().fold(0_usize, |sum, file| sum.saturating_add(file.num_rows()));
    let mut values = Buffer::zeroed(path, rows, dim)?;
    // Not before that: a damaged file may claim any dimension.
    let sketcher = (options.checks == Checks::Strict && rows > 0).then(|| Sketcher::of_dim(dim));
    let mut groups = Vec::new();
    let mut rest = values.as_mut_slice();
    for file in files {
        for (group, rows) in file.group_rows().iter().enumerate() {
            let (head, tail) = rest.split_at_mut(rows * dim);
            groups.push((file, group, head));
            rest = tail;
        }
    }
    let remote = files.iter().any(RowFile::is_object);
    let groups = at_once(remote, groups, |(file, group, target)| {
        let (mut stats, mut keys) = (Vec::new(), Vec::new());
        // Measured while they are near.
        let measure = |first: usize, rows: &[f32]| {
            if let Some(sketcher) = &sketcher {
                stats.truncate(first);
                stats.extend(rows.chunks_exact(dim.max(1)).map(|row| sketcher.stats(row)));
            }
        };
        let texts = read_group(file, group, target, options.checksums, measure)?;
        if sketcher.is_some() {
            keys.extend(texts.iter().flatten().flatten().map(StateKey::of));
        }
        Ok(Group { texts, keys, stats })
    })?;
    Ok((values.seal(path)?, groups))
}

/// Reads a row group; `visit` gets its rows as from [`RowFile::copy_group`].
fn read_group(
    file: &RowFile,
    group: usize,
    target: &mut [f32],
    checksums: Checksums,
    mut visit: impl FnMut(usize, &[f32]),
) -> CacheResult<Vec<StringArray>> {
    if file.copy_group(group, target, checksums, &mut visit)? {
        return file.group_states(group);
    }
    let mut states = Vec::new();
    let mut filled = 0;
    file.for_each_in_group(group, |rows| {
        let end = filled + rows.values.len();
        let Some(target) = target.get_mut(filled..end) else {
            let detail = format!("row group {group} has more rows than its metadata says");
            return Err(CacheError::format(file.path(), detail));
        };
        target.copy_from_slice(&rows.values);
        visit(filled / file.dim().max(1), target);
        filled = end;
        states.push(rows.states);
        Ok(())
    })?;
    Ok(states)
}
