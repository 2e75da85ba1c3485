//! A cache that stays in its files: rows are copied out of the system's page cache when asked for.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow_array::Array;
use rayon::prelude::*;

use crate::check::row_check::RowChecker;
use crate::file::reader::RowFile;
use crate::folder::parts::{self, common_kind, require_values, same_tokens};
use crate::format::error::{CacheError, CacheResult};
use crate::format::footer::StateKey;
use crate::format::options::{Checks, Checksums, OpenOptions};
use crate::format::same_tokens::SameTokens;
use crate::page::direct;
use crate::page::plain::PlainPage;
use crate::read::batch::{AT_ONCE, refuse_bad_rows, require_room};
use crate::read::contents::{Contents, contents_methods};
use crate::storage::stamp::Stamp;
use crate::storage::store_at;
use ebm_threads::spread;

/// Bytes of values that are read at a time when all are.
const CHUNK: usize = 16 << 20;

/// A cache whose rows are read by address from mapped files.
///
/// Many processes share one copy of the embeddings, and opening reads only the states. A page is
/// checked when a row of it is first asked for: its checksum, and the row checks among the page's
/// own rows. What only shows among all rows, equal rows far apart and norms, is left to
/// [`EmbeddingCache`](super::EmbeddingCache), [`MappedCache::check_all`] and the audit.
///
/// The files must not be written in place while they are mapped, as `cp` onto them does; the writers of
/// this crate replace files by renaming, which is safe. Before rows are read, size and time of their
/// files are compared with what they were, and a file that changed is refused. A file that is cut short
/// between that and the reading ends the process (`SIGBUS`): no reader of mapped memory can prevent it.
pub struct MappedCache {
    contents: Contents,
    pages: Vec<Page>,
    files: Vec<MappedFile>,
    same_tokens: Arc<SameTokens>,
    options: OpenOptions,
}

/// A file that is mapped, and how it was then.
struct MappedFile {
    path: PathBuf,
    /// `None` where it had another name by then; a file without one is changed by nobody.
    stamp: Option<Stamp>,
}

/// Some rows as they stand in a file.
struct Page {
    /// Number of the file.
    file: usize,
    group: usize,
    /// Number of the first row in the cache.
    first: usize,
    bytes: PlainPage,
    checked: AtomicBool,
}

impl fmt::Debug for MappedCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, rows, dim) = (self.path().display(), self.len(), self.dim());
        write!(f, "MappedCache({path}, {rows} rows of {dim})")
    }
}

impl MappedCache {
    /// Opens a cache file, or a folder of them.
    ///
    /// # Errors
    /// Any [`CacheError`] that says why the path is not a cache, and [`CacheError::Format`] where its
    /// pages do not hold rows as they are in memory, as those of our writer do; such a cache can be
    /// opened in memory.
    pub fn open(path: impl AsRef<Path>) -> CacheResult<Self> {
        Self::open_with(path, OpenOptions::default())
    }

    /// Opens a cache, with the checks of pages and their checksums on or off.
    ///
    /// # Errors
    /// As for [`MappedCache::open`].
    pub fn open_with(path: impl AsRef<Path>, options: OpenOptions) -> CacheResult<Self> {
        let path = path.as_ref();
        parts::read_files(path, RowFile::open_mapped, |files| {
            Self::from_files(path, &files, options)
        })
    }

    fn from_files(path: &Path, files: &[RowFile], options: OpenOptions) -> CacheResult<Self> {
        require_values(files)?;
        let kind = common_kind(files)?;
        let groups: Vec<(&RowFile, usize)> = files
            .iter()
            .flat_map(|file| (0..file.group_rows().len()).map(move |group| (file, group)))
            .collect();
        let read = groups
            .par_iter()
            .map(|(file, group)| Ok((file.group_states(*group)?, file.plain_pages(*group)?)));
        let read = spread(|| read.collect::<CacheResult<Vec<_>>>())?;
        let (texts, group_pages): (Vec<_>, Vec<_>) = read.into_iter().unzip();
        let mapped: Vec<MappedFile> =
            files.iter().map(MappedFile::of).collect::<CacheResult<_>>()?;
        let numbers = (0..)
            .zip(files)
            .flat_map(|(number, file)| file.group_rows().iter().map(move |_| number));
        let (mut pages, mut first) = (Vec::new(), 0);
        for ((((file, group), texts), bytes), number) in
            groups.into_iter().zip(&texts).zip(group_pages).zip(numbers)
        {
            let end = first + texts.iter().map(Array::len).sum::<usize>();
            for bytes in bytes {
                let rows = bytes.count / kind.0.max(1);
                let checked = AtomicBool::new(false);
                pages.push(Page { file: number, group, first, bytes, checked });
                first += rows;
            }
            if first != end {
                let detail = format!("row group {group}: embeddings and states differ in number");
                return Err(CacheError::format(file.path(), detail));
            }
        }
        let states = texts.into_iter().flatten().collect();
        let contents = Contents::of(path, files, kind, states);
        let same_tokens = Arc::new(same_tokens(files)?);
        Ok(Self { contents, pages, files: mapped, same_tokens, options })
    }

    /// Copies the embedding of a state into memory of the caller (`dim` values); returns whether
    /// there is one.
    ///
    /// # Errors
    /// As for [`MappedCache::gather_rows`].
    pub fn read(&self, state: &str, row: &mut [f32]) -> CacheResult<bool> {
        match self.position(state) {
            Some(number) => self.gather_rows(&[number], row).map(|()| true),
            None => Ok(false),
        }
    }

    /// Copies the embeddings of several states, in their order, into memory of the caller
    /// (`states.len() x dim`, row-major).
    ///
    /// # Errors
    /// [`CacheError::Unknown`], listing states that the cache does not have; and as for
    /// [`MappedCache::gather_rows`].
    pub fn gather<S: AsRef<str> + Sync>(&self, states: &[S], rows: &mut [f32]) -> CacheResult<()> {
        require_room(states.len(), self.contents.dim, rows)?;
        self.gather_rows(&self.positions(states)?, rows)
    }

    /// Copies the rows with these numbers, in this order, into memory of the caller
    /// (`numbers.len() x dim`, row-major).
    ///
    /// # Errors
    /// [`CacheError::Argument`] if there is no such row, or `rows` has another length;
    /// [`CacheError::Format`] and [`CacheError::BadRows`] where a page fails its checks;
    /// [`CacheError::Io`] if a file was changed in place. What was written then is of no use.
    pub fn gather_rows(&self, numbers: &[usize], rows: &mut [f32]) -> CacheResult<()> {
        require_room(numbers.len(), self.contents.dim, rows)?;
        self.contents.index.require_rows(numbers)?;
        if self.contents.dim == 0 {
            return Ok(());
        }
        self.require_unchanged(numbers)?;
        spread(|| {
            rows.par_chunks_mut(self.contents.dim)
                .with_min_len(AT_ONCE)
                .zip(numbers)
                .try_for_each(|(row, number)| self.copy(*number, row))
        })
    }

    contents_methods!();

    pub(crate) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Checks all rows as [`EmbeddingCache::open`](super::EmbeddingCache::open) does: every page, and the
    /// rows against one another. Reads the files once. A cache that was opened leniently has only the
    /// checksums of its pages checked.
    ///
    /// # Errors
    /// As for [`MappedCache::gather_rows`].
    pub fn check_all(&self) -> CacheResult<()> {
        let mut checker =
            RowChecker::with_same_tokens(self.contents.dim, Arc::clone(&self.same_tokens));
        let mut bad = Vec::new();
        self.for_each_rows(|first, keys, values| {
            if self.options.checks == Checks::Strict {
                let verdicts = checker.check_without_norms(keys, values).into_iter();
                bad.extend((first..).zip(verdicts).filter_map(|(row, v)| Some((row, v.err()?))));
            }
            Ok(())
        })?;
        let outliers = checker.norm_outliers().into_iter();
        bad.extend(outliers.filter_map(|o| Some((usize::try_from(o.row).ok()?, o.reason))));
        refuse_bad_rows(&self.contents.path, &bad, self.len(), |row| self.state(row))
    }

    /// Calls `visit` with the number of a row, and the keys and values of some rows from there on, until
    /// all were seen. The values take a few megabytes at a time.
    ///
    /// # Errors
    /// As for [`MappedCache::gather_rows`], and those of `visit`.
    pub fn for_each_rows(
        &self,
        mut visit: impl FnMut(usize, &[StateKey], &[f32]) -> CacheResult<()>,
    ) -> CacheResult<()> {
        let rows_at_once = (CHUNK / (size_of::<f32>() * self.contents.dim.max(1))).max(1);
        let numbers: Vec<usize> = (0..self.len()).collect();
        let mut values = vec![0.0; rows_at_once.min(self.len()) * self.contents.dim];
        for chunk in numbers.chunks(rows_at_once) {
            let values = &mut values[..chunk.len() * self.contents.dim];
            self.gather_rows(chunk, values)?;
            let keys: Vec<StateKey> =
                spread(|| chunk.par_iter().map(|row| StateKey::of(self.state(*row))).collect());
            visit(chunk[0], &keys, values)?;
        }
        Ok(())
    }

    fn page_of(&self, number: usize) -> &Page {
        &self.pages[self.pages.partition_point(|page| page.first <= number) - 1]
    }

    /// Looks at the files of some rows, each once.
    fn require_unchanged(&self, numbers: &[usize]) -> CacheResult<()> {
        if let [file] = &self.files[..] {
            return if numbers.is_empty() { Ok(()) } else { file.require_unchanged() };
        }
        let mut seen = vec![false; self.files.len()];
        for number in numbers {
            let file = self.page_of(*number).file;
            if !std::mem::replace(&mut seen[file], true) {
                self.files[file].require_unchanged()?;
            }
        }
        Ok(())
    }

    fn copy(&self, number: usize, row: &mut [f32]) -> CacheResult<()> {
        let page = self.page_of(number);
        // Two threads may check a page both; they find the same.
        if !page.checked.load(Ordering::Acquire) {
            self.check(page)?;
            page.checked.store(true, Ordering::Release);
        }
        let start = (number - page.first) * self.contents.dim * size_of::<f32>();
        let bytes = &page.bytes.values[start..start + size_of_val(row)];
        direct::copy_values(bytes, row);
        Ok(())
    }

    /// The checksum of a page, and the row checks among its rows.
    fn check(&self, page: &Page) -> CacheResult<()> {
        if self.options.checksums == Checksums::Verify && !page.bytes.is_whole() {
            let detail = format!("row group {}: damaged: page checksum mismatch (CRC)", page.group);
            return Err(CacheError::format(&self.files[page.file].path, detail));
        }
        if self.options.checks == Checks::Lenient {
            return Ok(());
        }
        let mut values = vec![0.0; page.bytes.count];
        direct::copy_values(&page.bytes.values, &mut values);
        let rows = page.first..page.first + page.bytes.count / self.contents.dim;
        let keys: Vec<StateKey> = rows.clone().map(|row| StateKey::of(self.state(row))).collect();
        let mut checker =
            RowChecker::with_same_tokens(self.contents.dim, Arc::clone(&self.same_tokens));
        // What is usual among norms shows in a whole cache, not in a page.
        let verdicts = checker.check_without_norms(&keys, &values).into_iter().zip(rows);
        let bad: Vec<_> =
            verdicts.filter_map(|(verdict, row)| Some((row, verdict.err()?))).collect();
        refuse_bad_rows(&self.contents.path, &bad, page.bytes.count / self.contents.dim, |row| {
            self.state(row)
        })
    }
}

impl MappedFile {
    fn of(file: &RowFile) -> CacheResult<Self> {
        let store = store_at(file.path())?;
        let path = store.local().unwrap_or(file.path());
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let stamp = fs::metadata(&path).ok().map(|metadata| Stamp::of(&metadata));
        Ok(Self { path, stamp })
    }

    fn require_unchanged(&self) -> CacheResult<()> {
        let Some(then) = &self.stamp else { return Ok(()) };
        // Replaced or removed, the mapped file itself stands as it was.
        let Ok(metadata) = fs::metadata(&self.path) else { return Ok(()) };
        let now = Stamp::of(&metadata);
        if now == *then || !now.is_same_file(then) {
            return Ok(());
        }
        let why = "it was changed in place after it was mapped\n\
                   hint: open it again; replace a cache's file by renaming, never by writing into it";
        Err(CacheError::io(&self.path, "read", io::Error::other(why)))
    }
}
