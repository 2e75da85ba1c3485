//! One pass over a row: is it finite, how long is it, and a small sketch to find its equals.
//!
//! The sketch is the signed sum of each of [`WIDTH`] blocks of the row: the AMS sketch (Alon, Matias
//! and Szegedy, "The space complexity of approximating the frequency moments", 1999). It is linear,
//! and the squared length of the difference of two sketches estimates the squared distance of the
//! rows without bias, so rows that agree up to rounding have sketches that agree up to rounding.

/// Numbers in a sketch.
pub(crate) const WIDTH: usize = 8;

const LANES: usize = 16;

/// What one pass over a row yields.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowStats {
    /// Euclidean norm; meaningless unless `finite`.
    pub(crate) norm: f32,
    /// Whether every value is finite.
    pub(crate) finite: bool,
    /// The row's sketch, divided by its norm.
    pub(crate) sketch: [f32; WIDTH],
}

/// The signs of one dimension, computed once.
#[derive(Debug, Clone)]
pub(crate) struct Sketcher {
    signs: Vec<f32>,
    block: usize,
}

impl Sketcher {
    /// Without any sign: a damaged file may claim any dimension, and no memory is spent on a claim.
    pub(crate) fn new() -> Self {
        Self { signs: Vec::new(), block: 1 }
    }

    /// Makes the signs for rows of `dim` values, once there is such a row.
    pub(crate) fn prepare(&mut self, dim: usize) {
        if self.signs.len() != dim {
            *self = Self::of_dim(dim);
        }
    }

    /// The signs for rows of `dim` values.
    pub(crate) fn of_dim(dim: usize) -> Self {
        // A fixed xorshift sequence: the same signs in every process, without a dependency.
        let mut bits = 0x9E37_79B9_7F4A_7C15_u64;
        let signs = (0..dim).map(|_| {
            bits ^= bits << 13;
            bits ^= bits >> 7;
            bits ^= bits << 17;
            if bits >> 63 == 0 { 1.0 } else { -1.0 }
        });
        Self { signs: signs.collect(), block: dim.div_ceil(WIDTH).max(1) }
    }

    pub(crate) fn stats(&self, row: &[f32]) -> RowStats {
        let mut squares = 0.0_f64;
        let mut sums = [0.0_f64; WIDTH];
        let blocks = row.chunks(self.block).zip(self.signs.chunks(self.block));
        for (sum, (values, signs)) in sums.iter_mut().zip(blocks) {
            let (block_squares, block_sum) = block_sums(values, signs);
            squares += block_squares;
            *sum = block_sum;
        }
        let finite = squares.is_finite() || row.iter().all(|value| value.is_finite());
        if finite && !squares.is_finite() {
            // The squares overflow float32 though the values do not.
            squares = row.iter().map(|value| f64::from(*value).powi(2)).sum();
        }
        let norm = squares.sqrt();
        #[expect(clippy::cast_possible_truncation, reason = "statistics are kept in float32")]
        let sketch = sums.map(|sum| (sum / norm) as f32);
        #[expect(clippy::cast_possible_truncation, reason = "statistics are kept in float32")]
        RowStats { norm: norm.min(f64::from(f32::MAX)) as f32, finite, sketch }
    }
}

/// Sum of squares and signed sum of a block, in independent lanes that the compiler vectorises.
fn block_sums(values: &[f32], signs: &[f32]) -> (f64, f64) {
    let mut squares = [0.0_f32; LANES];
    let mut sums = [0.0_f32; LANES];
    let mut add = |values: &[f32; LANES], signs: &[f32; LANES]| {
        for lane in 0..LANES {
            squares[lane] += values[lane] * values[lane];
            sums[lane] += values[lane] * signs[lane];
        }
    };
    // Of a length that the compiler knows: more than twice as fast.
    let (values, last_values) = values.as_chunks();
    let (signs, last_signs) = signs.as_chunks();
    values.iter().zip(signs).for_each(|(values, signs)| add(values, signs));
    let filled_up = |rest: &[f32]| {
        let mut lanes = [0.0; LANES];
        lanes[..rest.len()].copy_from_slice(rest);
        lanes
    };
    add(&filled_up(last_values), &filled_up(last_signs));
    let total = |lanes: [f32; LANES]| lanes.iter().map(|lane| f64::from(*lane)).sum();
    (total(squares), total(sums))
}
