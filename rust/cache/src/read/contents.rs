//! What a reader knows of a cache beside its embeddings.

use std::path::{Path, PathBuf};

use arrow_array::StringArray;
use serde_json::Value;

use crate::file::reader::RowFile;
use crate::folder::parts::{provenances, runs};
use crate::format::identity::Identity;
use crate::format::runs::Run;
use crate::read::state_index::StateIndex;

/// States, dimension and origin of a cache's rows.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) path: PathBuf,
    pub(crate) dim: usize,
    pub(crate) index: StateIndex,
    pub(crate) identity: Option<Identity>,
    pub(crate) provenance: Vec<Value>,
    pub(crate) runs: Vec<Run>,
}

impl Contents {
    /// Of files of one kind, whose states are these, in the order of the rows.
    pub(crate) fn of(
        path: &Path,
        files: &[RowFile],
        (dim, identity): (usize, Option<Identity>),
        states: Vec<StringArray>,
    ) -> Self {
        let index = StateIndex::of(states);
        let (provenance, runs) = (provenances(files), runs(files));
        Self { path: path.to_owned(), dim, index, identity, provenance, runs }
    }
}

/// Writes the methods of a reader that has `fn contents(&self) -> &Contents`.
macro_rules! contents_methods {
    () => {
        /// The row numbers of several states, in their order.
        ///
        /// # Errors
        /// [`CacheError::Unknown`](crate::CacheError::Unknown), listing states that the cache does
        /// not have.
        pub fn positions<S: AsRef<str> + Sync>(
            &self,
            states: &[S],
        ) -> crate::format::error::CacheResult<Vec<usize>> {
            self.contents().index.positions(states, &self.contents().path)
        }

        /// The row number of a state.
        #[must_use]
        pub fn position(&self, state: &str) -> Option<usize> {
            self.contents().index.get(state)
        }

        /// The state of the row with this number.
        ///
        /// # Panics
        /// If `row >= len`, like indexing a slice.
        #[must_use]
        pub fn state(&self, row: usize) -> &str {
            self.contents().index.text(row)
        }

        /// Number of rows.
        #[must_use]
        pub fn len(&self) -> usize {
            self.contents().index.len()
        }

        /// Whether the cache has no rows.
        #[must_use]
        pub fn is_empty(&self) -> bool {
            self.len() == 0
        }

        /// Length of every embedding.
        #[must_use]
        pub fn dim(&self) -> usize {
            self.contents().dim
        }

        /// The encoder that made the rows; `None` (unknown) where other software wrote the file.
        #[must_use]
        pub fn identity(&self) -> Option<&crate::format::identity::Identity> {
            self.contents().identity.as_ref()
        }

        /// What each run that made rows said of itself, in the order of the rows.
        #[must_use]
        pub fn provenance(&self) -> &[serde_json::Value] {
            &self.contents().provenance
        }

        /// The runs that made the rows, each with the number of its rows, in the order of the rows.
        /// Files of other software have none.
        #[must_use]
        pub fn runs(&self) -> &[crate::format::runs::Run] {
            &self.contents().runs
        }

        /// The file or folder that was opened.
        #[must_use]
        pub fn path(&self) -> &std::path::Path {
            &self.contents().path
        }

        /// Refuses unless this cache was made by an encoder of the given identity.
        ///
        /// # Errors
        /// [`CacheError::IdentityMismatch`](crate::CacheError::IdentityMismatch), listing the fields
        /// that differ; an unknown identity differs.
        pub fn require_identity(
            &self,
            other: &crate::format::identity::Identity,
            name: &str,
        ) -> crate::format::error::CacheResult<()> {
            let (path, own) = (&self.contents().path, self.identity());
            crate::format::same_identity::require_same(path, own, Some(other), name)
        }
    };
}
pub(crate) use contents_methods;
