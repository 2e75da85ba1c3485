//! The Pantograph environment, against the stand-in of `examples/pantograph_stand_in`. No real Pantograph
//! takes part.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod checks;
mod failures;
mod false_proofs;
mod processes;
mod searches;
mod support;
