//! Python: the module `polyvol.engine`, described in `engine/python/engine.pyi`.
//!
//! How it works      Thin: arguments in, a call of [`crate::engine::Engine`], results out. Every call that may wait
//!                   releases the GIL. No thread of the engine ever takes it.

mod check;
mod engine;
mod errors;
mod handle;
mod inspect;
mod log;
mod partitions;
mod raises;
mod report;
mod space;
mod spec;
mod stats;

use pyo3::prelude::*;

/// The data plane of polyvol. See `engine.pyi`.
#[pymodule(name = "engine")]
fn polyvol_engine(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<engine::Engine>()?;
    module.add_class::<handle::Handle>()?;
    module.add_class::<raises::RaisesReturned>()?;
    module.add_function(wrap_pyfunction!(check::check, module)?)?;
    module.add_function(wrap_pyfunction!(log::next_log_lines, module)?)?;
    module.add_function(wrap_pyfunction!(log::wake_log_readers, module)?)?;
    module.add("EngineError", module.py().get_type::<errors::EngineError>())?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("__profile__", env!("POLYVOL_PROFILE"))?;
    module.add("__rustc__", env!("POLYVOL_RUSTC"))
}
