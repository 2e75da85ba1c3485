//! The row checks over a whole cache, in one pass and little memory, whoever wrote it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::check::row_check::{Outlier, RowChecker};
use crate::file::reader::RowFile;
use crate::folder::manifest::Manifest;
use crate::folder::parts::{common_kind, open_files, same_tokens};
use crate::format::bad_row::BadRow;
use crate::format::error::CacheResult;
use crate::format::footer::StateKey;
use crate::read::batch::preview;
use crate::storage::{self, Kind};

/// What an audit found.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct AuditReport {
    /// The file or folder.
    #[serde(serialize_with = "crate::folder::describe::as_shown")]
    pub path: PathBuf,
    /// Number of rows.
    pub rows: u64,
    /// Length of every embedding.
    pub dim: usize,
    /// Number of bad rows by kind: [`BadRow::kind`], or `malformed` for a null, no values, or another number
    /// of them than other rows.
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
    /// [`BadRow::kind`], or `malformed`.
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
    let (mut first, mut numbers) = (0_u64, Vec::new());
    for file in &files {
        file.for_each_sound(|sound| {
            for (row, state, reason) in sound.malformed {
                found.add(first + row, MALFORMED, reason, preview(&state));
            }
            let states: Vec<&str> = sound.rows.states.iter().flatten().collect();
            let keys: Vec<StateKey> = states.iter().map(|state| StateKey::of(state)).collect();
            numbers.extend(sound.numbers.iter().map(|row| first + row));
            let verdicts = checker.check_without_norms(&keys, &sound.rows.values);
            for ((verdict, state), row) in verdicts.into_iter().zip(states).zip(&sound.numbers) {
                if let Err(reason) = verdict {
                    let words = in_rows(&reason, &numbers);
                    found.add(first + row, reason.kind(), words, preview(state));
                }
            }
            Ok(())
        })?;
        first = first.saturating_add(file.num_rows() as u64);
    }
    let row = first;
    add_outliers(&checker, &numbers, &files, &mut found)?;
    found.examples.sort_by_key(|example| (example.kind, example.row));
    let norms = summary(checker.norms());
    let path = path.to_owned();
    Ok(AuditReport { path, rows: row, dim, bad: found.bad, examples: found.examples, norms })
}

/// The kind of rows that cannot be checked at all.
const MALFORMED: &str = "malformed";

/// The reason in words, with the other row's number in the files.
fn in_rows(reason: &BadRow, numbers: &[u64]) -> String {
    let mut reason = reason.clone();
    if let BadRow::Duplicate { row, .. } | BadRow::Conflict { row } = &mut reason {
        *row = number_of(*row, numbers);
    }
    reason.to_string()
}

fn number_of(checked: u64, numbers: &[u64]) -> u64 {
    let number = usize::try_from(checked).ok().and_then(|checked| numbers.get(checked));
    number.copied().unwrap_or(checked)
}

#[derive(Default)]
struct Findings {
    limit: usize,
    bad: BTreeMap<&'static str, u64>,
    examples: Vec<BadRowExample>,
}

impl Findings {
    fn add(&mut self, row: u64, kind: &'static str, reason: String, state: String) {
        *self.bad.entry(kind).or_default() += 1;
        if self.examples.iter().filter(|example| example.kind == kind).count() < self.limit {
            self.examples.push(BadRowExample { row, kind, reason, state });
        }
    }
}

/// Norms that only the sight of all rows shows to be outliers: their states are read again.
/// `numbers` are those that the rows have in the files, in the order in which they were checked.
fn add_outliers(
    checker: &RowChecker,
    numbers: &[u64],
    files: &[RowFile],
    found: &mut Findings,
) -> CacheResult<()> {
    for Outlier { row, reason, .. } in checker.norm_outliers() {
        let row = number_of(row, numbers);
        let listed = found.bad.get(reason.kind()).copied().unwrap_or_default();
        let state = if listed < found.limit as u64 { state_at(files, row)? } else { String::new() };
        found.add(row, reason.kind(), reason.to_string(), state);
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
