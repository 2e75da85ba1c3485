//! A weight matrix in panels: what a product reads one after the other also lies so in memory.

use rayon::prelude::*;

use super::product::product;

/// Outputs of a panel; with at most 64 rows, a product of one is small for the library, and takes the
/// same way whatever the number of rows.
pub(super) const PANEL: usize = 64;

/// A matrix `[outputs, inputs]`, as panels of [`PANEL`] outputs, each stored input by input.
#[derive(Debug)]
pub(super) struct Panels {
    /// Panel after panel, `[inputs, width]` each.
    values: Vec<f32>,
    outputs: usize,
    inputs: usize,
}

impl Panels {
    /// Lays out a row-major matrix.
    pub(super) fn new(weight: &[f32], outputs: usize, inputs: usize) -> Self {
        let mut values = Vec::with_capacity(weight.len());
        for panel in weight.chunks(PANEL * inputs) {
            for input in 0..inputs {
                values.extend(panel.iter().skip(input).step_by(inputs));
            }
        }
        Self { values, outputs, inputs }
    }

    /// `rows` times the transposed matrix: rows `[n, inputs]`, result `[n, outputs]`.
    pub(super) fn product(&self, rows: &[f32], parallel: bool) -> Vec<f32> {
        let count = rows.len() / self.inputs;
        if count == 1 {
            // One row takes another way through the library, with sums in another order.
            let mut both = self.product(&[rows, rows].concat(), parallel);
            both.truncate(self.outputs);
            return both;
        }
        // One panel's outputs after the other's, `[n, width]` each.
        let mut parts = vec![0.0; count * self.outputs];
        let step = |(panel, part): (&[f32], &mut [f32])| {
            product(rows, panel, self.inputs, part);
        };
        if parallel {
            let parts = parts.par_chunks_mut(count * PANEL);
            self.values.par_chunks(self.inputs * PANEL).zip(parts).for_each(step);
        } else {
            let parts = parts.chunks_mut(count * PANEL);
            self.values.chunks(self.inputs * PANEL).zip(parts).for_each(step);
        }
        if self.outputs <= PANEL { parts } else { joined(&parts, count) }
    }
}

/// The outputs of all panels, row by row.
fn joined(parts: &[f32], count: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(parts.len());
    for row in 0..count {
        for part in parts.chunks(count * PANEL) {
            let width = part.len() / count;
            out.extend_from_slice(&part[row * width..][..width]);
        }
    }
    out
}
