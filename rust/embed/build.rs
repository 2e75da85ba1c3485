//! Tells the crate which Python it is built for, and its tests where that Python's library is.

fn main() {
    if std::env::var_os("CARGO_FEATURE_INTERPRETER").is_none() {
        return;
    }
    pyo3_build_config::add_libpython_rpath_link_args();
    let version = pyo3_build_config::get().version();
    println!("cargo:rustc-env=EBM_ENCODE_PYTHON={}.{}", version.major, version.minor);
}
