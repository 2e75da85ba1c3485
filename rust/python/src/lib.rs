//! `ebm_encode._core`: thin Python faces of the core crate. Conversions only, no logic.
// The stub file `_core.pyi` documents these for Python users; rustdoc is not built for this crate.
#![allow(missing_docs, reason = "documented in _core.pyi")]
// PyO3 hands arguments over by value.
#![allow(clippy::needless_pass_by_value, reason = "PyO3 argument conversion")]

mod attention;
mod cache;
mod cached_encoder;
mod checks;
mod embedding_cache;
mod errors;
mod head;
mod identity;
mod json;
mod mapped_cache;
mod packing;
mod schema;
mod state_formats;
mod storage;
mod texts;
mod views;
mod waiting;
mod writer;

use pyo3::prelude::*;

#[pymodule]
mod _core {
    #[pymodule_export]
    use super::attention::PyPathAttention;
    #[pymodule_export]
    use super::cache::PyCache;
    #[pymodule_export]
    use super::cached_encoder::{PyCachedEncoder, PyNoEmbedding};
    #[pymodule_export]
    use super::checks::{PyBadRow, audit, check_rows, describe};
    #[pymodule_export]
    use super::embedding_cache::PyEmbeddingCache;
    #[pymodule_export]
    use super::head::PyEnergyHead;
    #[pymodule_export]
    use super::identity::PyIdentity;
    #[pymodule_export]
    use super::mapped_cache::{PyMappedCache, prefers_mapped};
    #[pymodule_export]
    use super::packing::{PyTrie, count_nodes, plan_padded, plan_windows};
    #[pymodule_export]
    use super::schema::PyCacheSchema;
    #[pymodule_export]
    use super::state_formats::{
        convert_states, detect_state_formats, source_format_of, state_format_name, state_overlap,
    };
    #[pymodule_export]
    use super::storage::{is_remote, list_files, path_kind, read_file, remove_file, write_file};
    #[pymodule_export]
    use super::writer::{PyCacheWriter, compact};

    #[pymodule_export]
    const METADATA_KEY: &str = ebm_cache::METADATA_KEY;
    #[pymodule_export]
    const FORMAT_VERSION: u32 = ebm_cache::FORMAT_VERSION;
    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "a Python dunder")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
    /// Whether this build is optimised; a debug build is many times slower.
    #[pymodule_export]
    const OPTIMISED: bool = !cfg!(debug_assertions);

    #[pymodule_init]
    fn init(module: &pyo3::Bound<'_, pyo3::types::PyModule>) -> pyo3::PyResult<()> {
        ebm_threads::note_process();
        super::cached_encoder::close_at_exit(module)
    }
}
