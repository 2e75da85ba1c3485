//! Embeddings before they are scored.

use super::error::{HeadError, HeadResult};

/// The bits of a float32 without its sign; from those of infinity on it is not finite.
const WITHOUT_SIGN: u32 = 0x7fff_ffff;

/// Refuses what is no whole number of embeddings of finite values.
pub(super) fn require(rows: &[f32], dim: usize) -> HeadResult<()> {
    if !rows.len().is_multiple_of(dim) {
        return Err(HeadError::Length { values: rows.len(), dim });
    }
    if is_finite(rows) {
        return Ok(());
    }
    let found = rows.iter().enumerate().find(|(_, value)| !value.is_finite());
    found.map_or(Ok(()), |(place, value)| {
        Err(HeadError::NonFinite { row: place / dim, column: place % dim, value: *value })
    })
}

/// Whether no value is NaN or infinite. Without an early end, so that the loop is vectorised.
pub(super) fn is_finite(values: &[f32]) -> bool {
    let magnitude = |value: &f32| value.to_bits() & WITHOUT_SIGN;
    let largest = values.iter().map(magnitude).fold(0, u32::max);
    largest < f32::INFINITY.to_bits()
}
