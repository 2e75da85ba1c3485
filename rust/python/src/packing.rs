//! Plans of forward passes.

use ebm_kernels::packing::{self, Limits, PlanError, Sequences, Sharing, Trie};
use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::errors::argument_error;

#[pyfunction]
pub(crate) fn plan_padded(
    lengths: PyReadonlyArray1<'_, u32>,
    max_tokens: usize,
    max_rows: usize,
) -> PyResult<Vec<Vec<usize>>> {
    let lengths =
        lengths.as_slice().map_err(|error| argument_error(format!("lengths: {error}")))?;
    packing::plan_padded(lengths, max_tokens, max_rows).map_err(plan_error)
}

#[pyfunction]
#[pyo3(signature = (ids, offsets, max_nodes, max_rows, *, max_path_tokens = None, share = true))]
pub(crate) fn plan_windows(
    py: Python<'_>,
    ids: PyReadonlyArray1<'_, u32>,
    offsets: PyReadonlyArray1<'_, i64>,
    max_nodes: usize,
    max_rows: usize,
    max_path_tokens: Option<usize>,
    share: bool,
) -> PyResult<Vec<Vec<usize>>> {
    let sequences = sequences(&ids, &offsets)?;
    let path_tokens = max_path_tokens.unwrap_or(usize::MAX);
    let limits = Limits { nodes: max_nodes, rows: max_rows, path_tokens };
    py.detach(|| packing::plan_windows(sequences, sharing(share), limits)).map_err(plan_error)
}

#[pyfunction]
pub(crate) fn count_nodes(
    py: Python<'_>,
    ids: PyReadonlyArray1<'_, u32>,
    offsets: PyReadonlyArray1<'_, i64>,
) -> PyResult<usize> {
    let sequences = sequences(&ids, &offsets)?;
    Ok(py.detach(|| packing::count_nodes(sequences)))
}

#[pyclass(frozen, get_all, name = "Trie", module = "ebm_encode._core")]
pub(crate) struct PyTrie {
    ids: Py<PyArray1<i64>>,
    depths: Py<PyArray1<i64>>,
    ends: Py<PyArray1<i64>>,
    parents: Py<PyArray1<i64>>,
    starts: Py<PyArray1<i64>>,
    kept: Py<PyArray1<i64>>,
    leaves: Py<PyArray1<i64>>,
}

#[pymethods]
impl PyTrie {
    #[new]
    #[pyo3(signature = (ids, offsets, *, share = true))]
    fn new(
        py: Python<'_>,
        ids: PyReadonlyArray1<'_, u32>,
        offsets: PyReadonlyArray1<'_, i64>,
        share: bool,
    ) -> PyResult<Self> {
        let sequences = sequences(&ids, &offsets)?;
        let trie = py.detach(|| Trie::new(sequences, sharing(share))).map_err(plan_error)?;
        // The vectors become the arrays; nothing is copied.
        let array = |values: Vec<i64>| PyArray1::from_vec(py, values).unbind();
        Ok(Self {
            ids: array(trie.ids),
            depths: array(trie.depths),
            ends: array(trie.ends),
            parents: array(trie.parents),
            starts: array(trie.starts),
            kept: array(trie.kept),
            leaves: array(trie.leaves),
        })
    }
}

fn sequences<'a>(
    ids: &'a PyReadonlyArray1<'_, u32>,
    offsets: &'a PyReadonlyArray1<'_, i64>,
) -> PyResult<Sequences<'a>> {
    let flat = |error| argument_error(format!("ids and offsets: {error}"));
    let (ids, offsets) = (ids.as_slice().map_err(flat)?, offsets.as_slice().map_err(flat)?);
    Sequences::new(ids, offsets).map_err(plan_error)
}

const fn sharing(share: bool) -> Sharing {
    if share { Sharing::Prefixes } else { Sharing::Nothing }
}

fn plan_error(error: PlanError) -> PyErr {
    argument_error(error.to_string())
}
