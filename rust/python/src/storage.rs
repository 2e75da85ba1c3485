//! Small files by path or URL.

use std::ffi::OsString;
use std::path::PathBuf;

use ebm_cache::storage::{self, Kind};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::errors::cache_error;
use crate::waiting::interruptible;

#[pyfunction]
pub(crate) fn is_remote(path: PathBuf) -> PyResult<bool> {
    storage::is_remote(&path).map_err(cache_error)
}

#[pyfunction]
pub(crate) fn path_kind(py: Python<'_>, path: PathBuf) -> PyResult<&'static str> {
    Ok(match interruptible(py, move || storage::kind(&path))?.map_err(cache_error)? {
        Kind::Missing => "missing",
        Kind::File => "file",
        Kind::Folder => "folder",
    })
}

#[pyfunction]
pub(crate) fn list_files(
    py: Python<'_>,
    folder: PathBuf,
    extension: &str,
) -> PyResult<Vec<OsString>> {
    let extension = extension.to_owned();
    let list = move || storage::list(&folder, &extension);
    let files = interruptible(py, list)?.map_err(cache_error)?;
    Ok(files.into_iter().map(PathBuf::into_os_string).collect())
}

#[pyfunction]
pub(crate) fn read_file(py: Python<'_>, path: PathBuf) -> PyResult<Option<Vec<u8>>> {
    interruptible(py, move || storage::read_file(&path))?.map_err(cache_error)
}

#[pyfunction]
pub(crate) fn write_file(py: Python<'_>, path: PathBuf, content: PyBackedBytes) -> PyResult<()> {
    py.detach(|| storage::write_file(&path, &content)).map_err(cache_error)
}

#[pyfunction]
pub(crate) fn remove_file(py: Python<'_>, path: PathBuf) -> PyResult<()> {
    py.detach(|| storage::remove_file(&path)).map_err(cache_error)
}
