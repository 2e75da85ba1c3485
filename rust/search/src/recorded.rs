//! Trajectory files as the searches that made them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::columns::Columns;
use ebm_cache::CacheError;

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
    /// The output of a search is there already.
    #[error(
        "{}: exists\nhint: resume it, overwrite it, or write to another output",
        path.display()
    )]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// The output holds searches that were done in another way.
    #[error(
        "{}: holds searches with other settings: {}\nhint: search with the same settings, overwrite \
         it, or write to another output",
        path.display(), differences.join("; ")
    )]
    OtherSettings {
        /// The output.
        path: PathBuf,
        /// What differs.
        differences: Vec<String>,
    },
}

/// What a search for one theorem asked its encoder, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedSearch {
    /// The theorem.
    pub theorem: String,
    /// One request for each expanded node: its children, as far as they are states to be encoded
    /// (the end of a proof is none). The root comes first, by itself.
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
/// [`TrajectoryError`], with the file and column, and the row of a text that is not UTF-8.
pub fn read_searches(path: &Path) -> Result<Vec<RecordedSearch>, TrajectoryError> {
    let file = Columns::open(path)?;
    let (theorems, states) = (file.texts(THEOREM)?, file.texts(STATE)?);
    let parents = file.numbers(PARENT)?;
    if theorems.len() != states.len() || states.len() != parents.len() {
        let reason = "damaged: its columns are not of one length".to_owned();
        return Err(TrajectoryError::Format { path: path.to_owned(), reason });
    }
    let mut searches = Theorems::default();
    for ((theorem, state), parent) in theorems.into_iter().zip(states).zip(parents) {
        let theorem = searches.theorem(&theorem.unwrap_or_default());
        if let Some(state) = state.filter(|state| !state.is_empty()) {
            theorem.children_of(parent).push(state);
        }
    }
    Ok(searches.searches())
}

/// The texts of a column of a Parquet file, in the order of its rows; `None` where there is none.
///
/// Any text of Parquet is taken: plain, dictionary-encoded, annotated as JSON, and whatever Arrow's
/// types in the file are.
///
/// # Errors
/// [`TrajectoryError`], with the file and column: no such column, more than one of that name,
/// another type, or a damaged file; and the row of a text that is not UTF-8.
pub fn read_texts(path: &Path, column: &str) -> Result<Vec<Option<String>>, TrajectoryError> {
    Ok(Columns::open(path)?.texts(column)?)
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
