//! Trajectory files as the searches that made them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, UInt64Type};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::cache::{CacheError, storage};

const THEOREM: &str = "theorem_name";
const STATE: &str = "state_pp";

const PARENT: &str = "parent_state_id";

/// States of a theorem whose parent is not recorded are asked for this many at a time.
const WITHOUT_PARENT: usize = 32;

/// Why trajectories cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrajectoryError {
    /// The file cannot be opened or read.
    #[error(transparent)]
    Unreadable(#[from] CacheError),
    /// The file is no trajectory file.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// What a search for one theorem asked its encoder, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedSearch {
    /// The theorem.
    pub theorem: String,
    /// One request for each expanded node: its children, as far as they are states to be encoded
    /// (the end of a proof is none). The root comes first, alone.
    pub requests: Vec<Vec<String>>,
}

impl RecordedSearch {
    /// Number of states over all requests.
    #[must_use]
    pub fn states(&self) -> usize {
        self.requests.iter().map(Vec::len).sum()
    }
}

/// Reads the searches of a trajectory file, in the order in which their theorems appear in it.
///
/// A node's children are one request, and nodes count as expanded in the order in which their first
/// child was recorded. Of a theorem's states without a recorded parent the first is its root; were
/// there more, they are asked for in requests of at most 32.
///
/// # Errors
/// [`TrajectoryError`], naming the file and column.
pub fn read_searches(path: &Path) -> Result<Vec<RecordedSearch>, TrajectoryError> {
    let format = |reason: String| TrajectoryError::Format { path: path.to_owned(), reason };
    let builder = ParquetRecordBatchReaderBuilder::try_new(storage::open(path)?)
        .map_err(|error| format(format!("not a readable Parquet file: {error}")))?;
    for name in [THEOREM, STATE, PARENT] {
        if builder.schema().column_with_name(name).is_none() {
            return Err(format(format!("has no column {name:?}; it is no trajectory file")));
        }
    }
    let columns = ProjectionMask::columns(builder.parquet_schema(), [THEOREM, STATE, PARENT]);
    let reader = builder
        .with_projection(columns)
        .build()
        .map_err(|error| format(format!("not a readable Parquet file: {error}")))?;
    let mut theorems = Theorems::default();
    for batch in reader {
        let batch = batch.map_err(|error| format(format!("damaged, or cut off: {error}")))?;
        theorems.add(&batch).map_err(format)?;
    }
    Ok(theorems.searches())
}

#[derive(Default)]
struct Theorems {
    places: HashMap<String, usize>,
    all: Vec<Theorem>,
}

struct Theorem {
    name: String,
    without_parent: Vec<String>,
    places: HashMap<u64, usize>,
    expanded: Vec<Vec<String>>,
}

impl Theorems {
    fn add(&mut self, batch: &RecordBatch) -> Result<(), String> {
        let (theorems, states) = (texts(batch, THEOREM)?, texts(batch, STATE)?);
        let parents = numbers(batch, PARENT)?;
        for ((theorem, state), parent) in theorems.into_iter().zip(states).zip(parents) {
            let theorem = self.theorem(theorem.unwrap_or_default());
            let Some(state) = state.filter(|state| !state.is_empty()) else { continue };
            theorem.children_of(parent).push(state.to_owned());
        }
        Ok(())
    }

    fn theorem(&mut self, name: &str) -> &mut Theorem {
        let place = *self.places.entry(name.to_owned()).or_insert_with(|| {
            self.all.push(Theorem {
                name: name.to_owned(),
                without_parent: Vec::new(),
                places: HashMap::new(),
                expanded: Vec::new(),
            });
            self.all.len() - 1
        });
        &mut self.all[place]
    }

    fn searches(self) -> Vec<RecordedSearch> {
        let search = |theorem: Theorem| {
            let (root, others) =
                theorem.without_parent.split_at(1.min(theorem.without_parent.len()));
            let mut requests: Vec<Vec<String>> = vec![root.to_vec()];
            requests.extend(others.chunks(WITHOUT_PARENT).map(<[String]>::to_vec));
            requests.extend(theorem.expanded);
            requests.retain(|request| !request.is_empty());
            RecordedSearch { theorem: theorem.name, requests }
        };
        self.all.into_iter().map(search).filter(|search| !search.requests.is_empty()).collect()
    }
}

impl Theorem {
    fn children_of(&mut self, parent: Option<u64>) -> &mut Vec<String> {
        let Some(parent) = parent else { return &mut self.without_parent };
        let place = *self.places.entry(parent).or_insert_with(|| {
            self.expanded.push(Vec::new());
            self.expanded.len() - 1
        });
        &mut self.expanded[place]
    }
}

fn texts<'a>(batch: &'a RecordBatch, name: &str) -> Result<Vec<Option<&'a str>>, String> {
    let column = batch.column_by_name(name).ok_or_else(|| format!("has no column {name:?}"))?;
    match column.data_type() {
        DataType::Utf8 => Ok(column.as_string::<i32>().iter().collect()),
        DataType::LargeUtf8 => Ok(column.as_string::<i64>().iter().collect()),
        DataType::Utf8View => Ok(column.as_string_view().iter().collect()),
        other => Err(format!("column {name:?} is {other}, expected text")),
    }
}

fn numbers(batch: &RecordBatch, name: &str) -> Result<Vec<Option<u64>>, String> {
    let column = batch.column_by_name(name).ok_or_else(|| format!("has no column {name:?}"))?;
    match column.data_type() {
        DataType::UInt64 => Ok(column.as_primitive::<UInt64Type>().iter().collect()),
        // Other writers have only signed numbers; -1 then says that there is none.
        DataType::Int64 => {
            let ids = column.as_primitive::<Int64Type>().iter();
            Ok(ids.map(|id| u64::try_from(id?).ok()).collect())
        }
        other => Err(format!("column {name:?} is {other}, expected uint64")),
    }
}
