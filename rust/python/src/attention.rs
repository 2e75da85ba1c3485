//! Attention over paths, on arrays that are torch's.

use std::num::NonZero;

use ebm_kernels::attention::{AttentionError, Before, Layer, PathAttention, Runs};
use numpy::{PyReadonlyArray1, PyReadonlyArray3, PyReadwriteArray3};
use pyo3::prelude::*;

use crate::errors::argument_error;

#[pyclass(frozen, name = "PathAttention", module = "ebm_encode._core")]
pub(crate) struct PyPathAttention {
    attention: PathAttention,
}

#[pymethods]
impl PyPathAttention {
    #[new]
    fn new(threads: usize) -> PyResult<Self> {
        let threads =
            NonZero::new(threads).ok_or_else(|| argument_error("threads must be at least 1"))?;
        Ok(Self { attention: PathAttention::new(threads).map_err(attention_error)? })
    }

    #[pyo3(signature = (query, key, value, key_before, value_before, starts, kept, output, *, scale, reach = None))]
    #[expect(clippy::too_many_arguments, reason = "the arrays of a layer")]
    fn attend(
        &self,
        py: Python<'_>,
        query: PyReadonlyArray3<'_, f32>,
        key: PyReadonlyArray3<'_, f32>,
        value: PyReadonlyArray3<'_, f32>,
        key_before: PyReadonlyArray3<'_, f32>,
        value_before: PyReadonlyArray3<'_, f32>,
        starts: PyReadonlyArray1<'_, i64>,
        kept: PyReadonlyArray1<'_, i64>,
        mut output: PyReadwriteArray3<'_, f32>,
        scale: f32,
        reach: Option<usize>,
    ) -> PyResult<()> {
        let flat = |error| argument_error(format!("starts and kept: {error}"));
        let runs =
            Runs { starts: starts.as_slice().map_err(flat)?, kept: kept.as_slice().map_err(flat)? };
        let reach = reach
            .map(|reach| {
                NonZero::new(reach).ok_or_else(|| argument_error("reach must be at least 1"))
            })
            .transpose()?;
        let layer = Layer {
            query: query.as_array(),
            key: key.as_array(),
            value: value.as_array(),
            before: Before { key: key_before.as_array(), value: value_before.as_array() },
            scale,
            reach,
        };
        let output = output.as_array_mut();
        py.detach(|| self.attention.attend(&layer, runs, output)).map_err(attention_error)
    }
}

fn attention_error(error: AttentionError) -> PyErr {
    argument_error(error.to_string())
}
