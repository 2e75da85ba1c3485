//! Any bytes give a head or an error, and a head gives finite energies or an error.
#![no_main]

use ebm_search::{EnergyHead, HeadError};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(head) = EnergyHead::from_bytes("fuzz", data) else { return };
    let rows: Vec<f32> = (0..3 * head.dim()).map(|place| (place as f32).sin()).collect();
    match head.energies(&rows) {
        Ok(energies) => assert!(energies.len() == 3 && energies.iter().all(|e| e.is_finite())),
        Err(error) => assert!(matches!(error, HeadError::Overflow { .. }), "{error}"),
    }
});
