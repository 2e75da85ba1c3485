//! `EnergyHead`.

use std::ffi::OsString;
use std::path::PathBuf;

use ebm_search::{EnergyHead, HeadResult};
use numpy::{PyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::checks::matrix;
use crate::errors::{argument_error, head_error};
use crate::identity::PyIdentity;
use crate::json;
use crate::waiting::interruptible;

#[pyclass(frozen, name = "EnergyHead", module = "ebm_encode._core")]
pub(crate) struct PyEnergyHead {
    head: EnergyHead,
}

impl PyEnergyHead {
    /// Applies a computation of the head to rows of its length.
    fn apply<'py>(
        &self,
        py: Python<'py>,
        rows: &PyReadonlyArray2<'py, f32>,
        compute: impl FnOnce(&EnergyHead, &[f32]) -> HeadResult<Vec<f32>> + Send,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let (found, dim) = (rows.shape()[1], self.head.dim());
        if found != dim {
            let path = self.head.path().display();
            let message = format!("{path}: takes rows of {dim} values, these have {found}");
            return Err(argument_error(message));
        }
        let rows = matrix(rows)?;
        let values = py.detach(|| compute(&self.head, rows)).map_err(head_error)?;
        Ok(PyArray1::from_vec(py, values))
    }
}

#[pymethods]
impl PyEnergyHead {
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let head = interruptible(py, move || EnergyHead::open(path))?.map_err(head_error)?;
        Ok(Self { head })
    }

    fn energies<'py>(
        &self,
        py: Python<'py>,
        rows: PyReadonlyArray2<'py, f32>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        self.apply(py, &rows, EnergyHead::energies)
    }

    fn scores<'py>(
        &self,
        py: Python<'py>,
        rows: PyReadonlyArray2<'py, f32>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        self.apply(py, &rows, EnergyHead::scores)
    }

    fn z_scores<'py>(
        &self,
        py: Python<'py>,
        rows: PyReadonlyArray2<'py, f32>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        self.apply(py, &rows, EnergyHead::z_scores)
    }

    #[pyo3(signature = (identity, name))]
    fn require_identity(&self, identity: Option<&PyIdentity>, name: &str) -> PyResult<()> {
        let identity = identity.map(|identity| &identity.identity);
        self.head.require_identity(identity, name).map_err(head_error)
    }

    #[getter]
    fn dim(&self) -> usize {
        self.head.dim()
    }

    #[getter]
    fn dims(&self) -> Vec<usize> {
        self.head.dims().to_vec()
    }

    #[getter]
    fn members(&self) -> usize {
        self.head.members()
    }

    #[getter]
    fn identity(&self) -> PyIdentity {
        self.head.identity().clone().into()
    }

    #[getter]
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        json::to_python(py, self.head.metadata())
    }

    #[getter]
    fn score_scale(&self) -> (f64, f64) {
        let scale = self.head.score_scale();
        (scale.mean, scale.deviation)
    }

    #[getter]
    fn mixing<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(mixing) = self.head.mixing() else { return Ok(None) };
        let policy = PyDict::new(py);
        policy.set_item("mean", mixing.policy.mean)?;
        policy.set_item("deviation", mixing.policy.deviation)?;
        policy.set_item("depth_exponent", mixing.depth_exponent)?;
        let whole = PyDict::new(py);
        whole.set_item("weight", mixing.weight)?;
        whole.set_item("policy", policy)?;
        Ok(Some(whole))
    }

    #[getter]
    fn path(&self) -> OsString {
        self.head.path().into()
    }

    fn __repr__(&self) -> String {
        format!("{:?}", self.head)
    }
}
