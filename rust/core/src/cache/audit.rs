//! The row checks over a whole cache, in one pass and little memory, whoever wrote it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::bad_row::BadRow;
use super::embedding_cache::preview;
use super::error::CacheResult;
use super::footer::StateKey;
use super::manifest::Manifest;
use super::parts::{common_kind, open_files, same_tokens};
use super::row_check::{Outlier, RowChecker};
use super::row_file::RowFile;
use super::storage::{self, Kind};

/// What an audit found.
#[derive(Debug, Clone, Serialize)]
pub struct AuditReport {
    /// The file or folder.
    #[serde(serialize_with = "super::describe::as_shown")]
    pub path: PathBuf,
    /// Number of rows.
    pub rows: u64,
    /// Length of every row.
    pub dim: usize,
    /// Number of bad rows by kind ([`BadRow::kind`]).
    pub bad: BTreeMap<&'static str, u64>,
    /// The first bad rows of each kind.
    pub examples: Vec<BadRowExample>,
    /// The norms of the good rows; `None` where there are none.
    pub norms: Option<NormSummary>,
}

/// One bad row.
#[derive(Debug, Clone, Serialize)]
pub struct BadRowExample {
    /// Row number over all files, from 0.
    pub row: u64,
    /// [`BadRow::kind`].
    pub kind: &'static str,
    /// The reason in words.
    pub reason: String,
    /// The start of the state.
    pub state: String,
}

/// Smallest, median and largest norm.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct NormSummary {
    /// The smallest.
    pub min: f32,
    /// The median.
    pub median: f32,
    /// The largest.
    pub max: f32,
}

impl AuditReport {
    /// Number of bad rows of any kind.
    #[must_use]
    pub fn bad_rows(&self) -> u64 {
        self.bad.values().sum()
    }
}

/// Checks every row of a cache file, or of a folder of them.
///
/// Lists up to `examples` bad rows of each kind. Memory grows by about 200 bytes a row, not by the
/// rows themselves.
///
/// # Errors
/// Any [`super::CacheError`] that keeps the cache from being read at all; bad rows are no error here.
pub fn audit(path: impl AsRef<Path>, examples: usize) -> CacheResult<AuditReport> {
    let path = path.as_ref();
    let files = open_files(path)?;
    if storage::kind(path)? == Kind::Folder
        && let Some((manifest, _)) = Manifest::read(path)?
    {
        manifest.verify(path)?;
    }
    let (dim, _) = common_kind(&files)?;
    let mut checker = RowChecker::with_same_tokens(dim, same_tokens(&files)?);
    let mut found = Findings { limit: examples, ..Findings::default() };
    let mut row = 0_u64;
    for file in &files {
        file.for_each(|rows| {
            let states: Vec<&str> = rows.states.iter().flatten().collect();
            let keys: Vec<StateKey> = states.iter().map(|state| StateKey::of(state)).collect();
            for (verdict, state) in checker.check(&keys, &rows.values).into_iter().zip(states) {
                if let Err(reason) = verdict {
                    found.add(row, &reason, preview(state));
                }
                row += 1;
            }
            Ok(())
        })?;
    }
    add_outliers(&checker, &files, &mut found)?;
    found.examples.sort_by_key(|example| (example.kind, example.row));
    let norms = summary(checker.norms());
    let path = path.to_owned();
    Ok(AuditReport { path, rows: row, dim, bad: found.bad, examples: found.examples, norms })
}

#[derive(Default)]
struct Findings {
    limit: usize,
    bad: BTreeMap<&'static str, u64>,
    examples: Vec<BadRowExample>,
}

impl Findings {
    fn add(&mut self, row: u64, reason: &BadRow, state: String) {
        let kind = reason.kind();
        *self.bad.entry(kind).or_default() += 1;
        if self.examples.iter().filter(|example| example.kind == kind).count() < self.limit {
            self.examples.push(BadRowExample { row, kind, reason: reason.to_string(), state });
        }
    }
}

/// Norms that only the sight of all rows shows to be outliers: their states are read again.
fn add_outliers(checker: &RowChecker, files: &[RowFile], found: &mut Findings) -> CacheResult<()> {
    for Outlier { row, reason, .. } in checker.norm_outliers() {
        let listed = found.bad.get(reason.kind()).copied().unwrap_or_default();
        let state = if listed < found.limit as u64 { state_at(files, row)? } else { String::new() };
        found.add(row, &reason, state);
    }
    Ok(())
}

fn state_at(files: &[RowFile], row: u64) -> CacheResult<String> {
    let mut row = usize::try_from(row).unwrap_or(usize::MAX);
    for file in files {
        if row < file.num_rows() {
            let rows = file.read_rows(&[row])?;
            return Ok(rows.states.iter().flatten().map(preview).collect());
        }
        row -= file.num_rows();
    }
    Ok(String::new())
}

fn summary(norms: &[f32]) -> Option<NormSummary> {
    let mut norms = norms.to_vec();
    norms.sort_unstable_by(f32::total_cmp);
    let (min, max) = (*norms.first()?, *norms.last()?);
    Some(NormSummary { min, median: norms[norms.len() / 2], max })
}
