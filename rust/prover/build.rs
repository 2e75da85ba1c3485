//! Lets the program find the library of the Python it is built for.

fn main() {
    pyo3_build_config::add_libpython_rpath_link_args();
}
