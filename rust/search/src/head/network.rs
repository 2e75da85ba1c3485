//! The forward pass: multilayer perceptrons with `SiLU`, on all cores.
//!
//! Every matrix product is made of tiles of one fixed shape, and each value of a tile is one sum in one
//! order. So neither the number of rows nor that of threads changes a bit of the result.

use rayon::prelude::*;

use super::panels::{PANEL, Panels};

/// Rows of a tile.
const TILE: usize = 64;
/// Multiply-adds that one thread does before others can be of help.
const WORTH_SHARING: usize = 1 << 20;
/// Sums that run side by side over one row, so that the loop is vectorised.
const LANES: usize = 16;

/// One layer of one member.
#[derive(Debug)]
pub(super) struct Layer {
    weight: Weight,
    bias: Vec<f32>,
    inputs: usize,
}

/// A weight matrix, as its products want it.
#[derive(Debug)]
enum Weight {
    /// One output: a vector, `[inputs]`.
    Vector(Vec<f32>),
    /// Several.
    Matrix(Panels),
}

/// All members of a head.
#[derive(Debug)]
pub(super) struct Network {
    members: Vec<Vec<Layer>>,
    dim: usize,
    /// Multiply-adds of one row.
    cost: usize,
}

impl Layer {
    /// A layer with the weight `[bias.len(), inputs]`, row-major.
    pub(super) fn new(weight: &[f32], bias: Vec<f32>, inputs: usize) -> Self {
        let weight = if bias.len() == 1 {
            Weight::Vector(weight.to_vec())
        } else {
            Weight::Matrix(Panels::new(weight, bias.len(), inputs))
        };
        Self { weight, bias, inputs }
    }

    /// The layer's output of at most [`TILE`] rows `[rows, inputs]`, without activation,
    /// `[rows, outputs]`.
    fn apply(&self, rows: &[f32], parallel: bool) -> Vec<f32> {
        match &self.weight {
            Weight::Vector(weight) => {
                rows.chunks_exact(self.inputs).map(|row| dot(row, weight) + self.bias[0]).collect()
            }
            Weight::Matrix(panels) => {
                let mut out = panels.product(rows, parallel);
                for row in out.chunks_exact_mut(self.bias.len()) {
                    for (value, bias) in row.iter_mut().zip(&self.bias) {
                        *value += bias;
                    }
                }
                out
            }
        }
    }
}

impl Network {
    /// A network of `members` whose layers have the lengths `dims`.
    pub(super) fn new(members: Vec<Vec<Layer>>, dims: &[usize]) -> Self {
        let one: usize = dims.windows(2).map(|pair| pair[0].saturating_mul(pair[1])).sum();
        let cost = one.saturating_mul(members.len());
        Self { members, dim: dims[0], cost }
    }

    /// Length of a row.
    pub(super) const fn dim(&self) -> usize {
        self.dim
    }

    /// The mean energy over the members of each row of `rows`, which are whole rows.
    pub(super) fn energies(&self, rows: &[f32]) -> Vec<f32> {
        let count = rows.len() / self.dim;
        let mut energies = vec![0.0; count];
        let parallel = self.cost.saturating_mul(count) > WORTH_SHARING;
        let tiles = rows.chunks(TILE * self.dim);
        if !parallel {
            tiles
                .zip(energies.chunks_mut(TILE))
                .for_each(|(rows, out)| self.tile(rows, out, false));
            return energies;
        }
        ebm_threads::spread(|| {
            let tiles = rows.par_chunks(TILE * self.dim).zip(energies.par_chunks_mut(TILE));
            tiles.for_each(|(rows, out)| self.tile(rows, out, true));
        });
        energies
    }

    /// The energies of at most [`TILE`] rows.
    #[expect(clippy::cast_possible_truncation, reason = "an energy is float32")]
    fn tile(&self, rows: &[f32], energies: &mut [f32], parallel: bool) {
        let mut sums = vec![0.0_f64; energies.len()];
        for member in &self.members {
            let mut values = Vec::new();
            for (number, layer) in member.iter().enumerate() {
                let input = if number == 0 { rows } else { &values };
                let mut out = layer.apply(input, parallel);
                if number + 1 < member.len() {
                    silu(&mut out);
                }
                values = out;
            }
            for (sum, value) in sums.iter_mut().zip(&values) {
                *sum += f64::from(*value);
            }
        }
        for (energy, sum) in energies.iter_mut().zip(&sums) {
            *energy = (sum / self.members.len() as f64) as f32;
        }
    }
}

/// `x * sigmoid(x)`.
fn silu(values: &mut [f32]) {
    for value in values {
        *value /= 1.0 + (-*value).exp();
    }
}

/// The scalar product; always the same sums, whatever else is computed.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (left, left_rest) = left.as_chunks::<LANES>();
    let (right, right_rest) = right.as_chunks::<LANES>();
    for (left, right) in left.iter().zip(right) {
        for lane in 0..LANES {
            sums[lane] += left[lane] * right[lane];
        }
    }
    let rest: f32 = left_rest.iter().zip(right_rest).map(|(left, right)| left * right).sum();
    sums.iter().sum::<f32>() + rest
}

const _: () = assert!(PANEL <= TILE, "the library takes one way through products up to 64 x 64");
