//! Nearest rows by cosine, by looking at all of them.

use rayon::prelude::*;

use crate::format::error::{CacheError, CacheResult};
use crate::read::in_memory::EmbeddingCache;
use ebm_threads::spread;

/// A row near another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// Row number in the cache.
    pub row: usize,
    /// Cosine similarity, in `[-1, 1]`.
    pub cosine: f32,
}

impl EmbeddingCache {
    /// The `count` rows most similar to `query` by cosine, best first.
    ///
    /// Rows without a direction (zero or not finite) are skipped.
    ///
    /// # Errors
    /// [`CacheError::Argument`] if the query has another length than the rows.
    pub fn nearest(&self, query: &[f32], count: usize) -> CacheResult<Vec<Neighbour>> {
        if query.len() != self.dim() {
            let (found, dim) = (query.len(), self.dim());
            let message = format!("the query has {found} values, the cache's rows have {dim}");
            return Err(CacheError::Argument(message));
        }
        let mut found: Vec<Neighbour> = spread(|| {
            (0..self.len())
                .into_par_iter()
                .map(|row| Neighbour { row, cosine: cosine(query, self.row(row)) })
                .filter(|neighbour| neighbour.cosine.is_finite())
                .collect()
        });
        found.sort_by(|a, b| b.cosine.total_cmp(&a.cosine).then(a.row.cmp(&b.row)));
        found.truncate(count);
        Ok(found)
    }
}

fn cosine(left: &[f32], right: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    #[expect(clippy::cast_possible_truncation, reason = "a cosine fits float32")]
    let cosine = (dot(left, right) / (dot(left, left) * dot(right, right)).sqrt()) as f32;
    cosine
}
