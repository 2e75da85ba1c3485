//! `Identity`.

use ebm_cache::{Identity, differences};
use pyo3::prelude::*;

use crate::errors::argument_error;

#[pyclass(frozen, eq, name = "Identity", module = "ebm_encode._core")]
#[derive(Clone, PartialEq)]
pub(crate) struct PyIdentity {
    pub(crate) identity: Identity,
}

impl From<Identity> for PyIdentity {
    fn from(identity: Identity) -> Self {
        Self { identity }
    }
}

#[pymethods]
impl PyIdentity {
    #[staticmethod]
    fn from_json(json: &str) -> PyResult<Self> {
        Ok(Identity::from_json(json).map_err(argument_error)?.into())
    }

    fn to_json(&self) -> String {
        self.identity.to_json()
    }

    #[getter]
    fn digest(&self) -> String {
        self.identity.digest()
    }

    #[pyo3(signature = (other))]
    fn differences(&self, other: Option<&Self>) -> Vec<(String, String, String)> {
        differences(Some(&self.identity), other.map(|other| &other.identity))
            .into_iter()
            .map(|difference| (difference.field, difference.left, difference.right))
            .collect()
    }

    fn __hash__(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        self.identity.to_json().hash(&mut hasher);
        hasher.finish()
    }

    fn __repr__(&self) -> String {
        format!("Identity({})", self.identity.to_json())
    }
}
