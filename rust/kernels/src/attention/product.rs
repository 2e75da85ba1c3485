//! Matrix products. The only unsafe code of this crate's attention.

use gemm::{Parallelism, gemm};
use ndarray::{ArrayView2, ArrayViewMut2};

/// `out = scale * left right`; left `[m, k]`, right `[k, n]`, out `[m, n]`.
pub(super) fn product(
    left: &ArrayView2<'_, f32>,
    right: &ArrayView2<'_, f32>,
    scale: f32,
    mut out: ArrayViewMut2<'_, f32>,
) {
    let ((rows, inner), (right_inner, columns)) = (left.dim(), right.dim());
    assert!(inner == right_inner && out.dim() == (rows, columns), "shapes of a product");
    let (row_stride, column_stride) = (out.strides()[0], out.strides()[1]);
    // SAFETY: dimensions and strides are those of the views, which borrow what they see; `out` is
    // borrowed only for writing. All its values are written and none is read.
    #[expect(unsafe_code, reason = "the library takes pointers")]
    unsafe {
        gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            column_stride,
            row_stride,
            false,
            left.as_ptr(),
            left.strides()[1],
            left.strides()[0],
            right.as_ptr(),
            right.strides()[1],
            right.strides()[0],
            0.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
