//! Energy heads: small networks that say how promising a proof state is, by its embedding.

mod container;
mod error;
mod metadata;
mod network;
mod panels;
mod product;

use std::fmt;
use std::path::{Path, PathBuf};

use ebm_cache::{Cache, Identity, differences, storage};
use serde_json::Value;

pub use error::{HeadError, HeadResult};
pub use metadata::{Mixing, Scale};

use metadata::Metadata;
use network::Network;

/// A head that was read from its file.
///
/// The energy of an embedding is the mean over the head's members, each a multilayer perceptron with
/// `SiLU` between its layers; **lower is better**. The score is minus the energy; **higher is better**.
///
/// A row's energy does not depend on the rows beside it: it is the same, bit for bit, in a batch of any
/// size and with any number of threads, on one kind of CPU. It agrees with torch within 1e-5 of the
/// largest energy.
pub struct EnergyHead {
    path: PathBuf,
    metadata: Metadata,
    network: Network,
}

impl EnergyHead {
    /// Reads a head file. The path may be a URL.
    ///
    /// # Errors
    /// [`HeadError::NotFound`], [`HeadError::Unreadable`]; [`HeadError::Format`] where the file is not a
    /// head, damaged, or of a later version.
    pub fn open(path: impl AsRef<Path>) -> HeadResult<Self> {
        let path = path.as_ref();
        let bytes = storage::read_file(path)?;
        let bytes = bytes.ok_or_else(|| HeadError::NotFound { path: path.to_owned() })?;
        Self::from_bytes(path, &bytes)
    }

    /// Reads the bytes of a head file; `name` stands for it in errors.
    ///
    /// # Errors
    /// [`HeadError::Format`], as for [`EnergyHead::open`].
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: &[u8]) -> HeadResult<Self> {
        let path = name.into();
        match container::read(bytes) {
            Ok((metadata, network)) => Ok(Self { path, metadata, network }),
            Err(detail) => Err(HeadError::Format { path, detail }),
        }
    }

    /// Length of the embeddings that it takes.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.network.dim()
    }

    /// Lengths of the input, of the hidden layers, and of the output, which is 1.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        &self.metadata.dims
    }

    /// Number of networks whose energies are averaged.
    #[must_use]
    pub fn members(&self) -> usize {
        self.metadata.members
    }

    /// The encoder of the embeddings that it was trained on.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.metadata.identity
    }

    /// Mean and deviation of the score over open states of theorems that it was not trained on.
    #[must_use]
    pub fn score_scale(&self) -> Scale {
        self.metadata.score_scale
    }

    /// How a search mixes the value with its policy, if that was tuned.
    #[must_use]
    pub fn mixing(&self) -> Option<Mixing> {
        self.metadata.mixing
    }

    /// The whole `head` object of the file: training, data and versions too.
    #[must_use]
    pub fn metadata(&self) -> &Value {
        &self.metadata.whole
    }

    /// The file that was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The energy of each embedding; lower is better.
    ///
    /// `rows` are embeddings of `dim` values, one after the other. The result has one value for each.
    ///
    /// # Errors
    /// [`HeadError::Length`] if `rows` holds no whole number of embeddings; [`HeadError::NonFinite`] for
    /// a NaN or infinite value; [`HeadError::Overflow`] where an energy is beyond float32.
    pub fn energies(&self, rows: &[f32]) -> HeadResult<Vec<f32>> {
        let dim = self.dim();
        if !rows.len().is_multiple_of(dim) {
            return Err(HeadError::Length { values: rows.len(), dim });
        }
        let energies = self.forward(rows);
        let Some(row) = energies.iter().position(|energy| !energy.is_finite()) else {
            return Ok(energies);
        };
        // Weights are finite, so a value that is not makes its row's energy NaN or infinite, and no other:
        // rows need no pass of their own to be checked.
        let values = &rows[row * dim..][..dim];
        match values.iter().position(|value| !value.is_finite()) {
            Some(column) => Err(HeadError::NonFinite { row, column, value: values[column] }),
            None => Err(HeadError::Overflow { row }),
        }
    }

    /// The score of each embedding, minus its energy; higher is better.
    ///
    /// # Errors
    /// As for [`EnergyHead::energies`].
    pub fn scores(&self, rows: &[f32]) -> HeadResult<Vec<f32>> {
        let mut scores = self.energies(rows)?;
        for score in &mut scores {
            *score = -*score;
        }
        Ok(scores)
    }

    /// The score of each embedding in deviations from the mean of the validation states; higher is
    /// better.
    ///
    /// # Errors
    /// As for [`EnergyHead::energies`]; [`HeadError::Overflow`] also where the result is beyond float32.
    pub fn z_scores(&self, rows: &[f32]) -> HeadResult<Vec<f32>> {
        let mut scores = self.scores(rows)?;
        for (row, score) in scores.iter_mut().enumerate() {
            *score = self.z(*score);
            if !score.is_finite() {
                return Err(HeadError::Overflow { row });
            }
        }
        Ok(scores)
    }

    /// A score in deviations from the mean of the validation states.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "scores are float32")]
    pub fn z(&self, score: f32) -> f32 {
        self.score_scale().z(f64::from(score)) as f32
    }

    /// Refuses embeddings of a different encoder; `other` names them in the error. An unknown encoder
    /// (`None`) is a different one.
    ///
    /// # Errors
    /// [`HeadError::IdentityMismatch`], with the fields that differ.
    pub fn require_identity(&self, identity: Option<&Identity>, other: &str) -> HeadResult<()> {
        let differences = differences(Some(self.identity()), identity);
        if differences.is_empty() {
            return Ok(());
        }
        let (path, other) = (self.path.clone(), other.to_owned());
        Err(HeadError::IdentityMismatch { path, other, differences })
    }

    /// Refuses embeddings of another length; `other` names them in the error.
    ///
    /// # Errors
    /// [`HeadError::Dim`].
    pub fn require_dim(&self, dim: usize, other: &str) -> HeadResult<()> {
        if dim == self.dim() {
            return Ok(());
        }
        let (path, other) = (self.path.clone(), other.to_owned());
        Err(HeadError::Dim { path, other, dim, expected: self.dim() })
    }

    /// Refuses a cache of a different encoder, or with embeddings of another length.
    ///
    /// # Errors
    /// [`HeadError::IdentityMismatch`], [`HeadError::Dim`].
    pub fn require_cache(&self, cache: &Cache) -> HeadResult<()> {
        let name = cache.path().display().to_string();
        self.require_identity(cache.identity(), &name)?;
        if cache.is_empty() { Ok(()) } else { self.require_dim(cache.dim(), &name) }
    }

    /// The energies of embeddings of the right length; not finite where an embedding is not, or where an
    /// energy is beyond float32.
    pub(crate) fn forward(&self, rows: &[f32]) -> Vec<f32> {
        self.network.energies(rows)
    }
}

impl fmt::Debug for EnergyHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, dims, members) = (self.path.display(), self.dims(), self.members());
        write!(f, "EnergyHead({path}, dims {dims:?}, members {members})")
    }
}
