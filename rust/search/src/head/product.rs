//! One matrix product. The only unsafe code of this crate.

use gemm::{Parallelism, gemm};

/// `out = rows panel`: rows `[n, inputs]`, panel `[inputs, width]`, out `[n, width]`, all row-major.
pub(super) fn product(rows: &[f32], panel: &[f32], inputs: usize, out: &mut [f32]) {
    let (count, width) = (rows.len() / inputs, panel.len() / inputs);
    assert!(rows.len() == count * inputs && panel.len() == inputs * width, "whole rows");
    assert!(out.len() == count * width, "shapes of a product");
    let stride = |length: usize| isize::try_from(length).unwrap_or(isize::MAX);
    // SAFETY: the sizes are those of the slices, as was just asserted, and each is dense; a slice is never
    // longer than `isize::MAX`, so neither is a stride. `out` is borrowed for writing alone. All its values
    // are written and none is read.
    #[expect(unsafe_code, reason = "the library takes pointers")]
    unsafe {
        gemm(
            width,
            count,
            inputs,
            out.as_mut_ptr(),
            stride(width),
            1,
            false,
            panel.as_ptr(),
            stride(width),
            1,
            rows.as_ptr(),
            stride(inputs),
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
