//! Softmax of a row of scores, with the vector instructions that the CPU has.

#![expect(clippy::inline_always, reason = "so that it is compiled for the CPU's own instructions")]

use std::sync::LazyLock;

use pulp::{Arch, Simd, WithSimd};

static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);

/// A row's length must be a multiple of this many floats, the widest vector there is.
pub(super) const LANES: usize = 16;

/// Replaces scores by their softmax; -inf becomes 0. A row with a NaN or +inf becomes all NaN.
pub(super) fn softmax(scores: &mut [f32]) {
    assert!(scores.len().is_multiple_of(LANES), "rows are padded with -inf");
    ARCH.dispatch(Softmax(scores));
}

struct Softmax<'a>(&'a mut [f32]);

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (vectors, _) = S::as_mut_simd_f32s(self.0);
        let mut top = simd.splat_f32s(f32::NEG_INFINITY);
        for vector in &*vectors {
            top = simd.max_f32s(top, *vector);
        }
        let top = simd.splat_f32s(simd.reduce_max_f32s(top));
        let mut sum = simd.splat_f32s(0.0);
        for vector in vectors.iter_mut() {
            *vector = exp(simd, simd.sub_f32s(*vector, top));
            sum = simd.add_f32s(sum, *vector);
        }
        let weight = simd.splat_f32s(simd.reduce_sum_f32s(sum).recip());
        for vector in vectors {
            *vector = simd.mul_f32s(*vector, weight);
        }
    }
}

/// e^x for x <= 0, within 2 units in the last place; 0 below -87, where floats run out; NaN for NaN.
///
/// x is split into n ln 2 + r with |r| <= ln 2 / 2, and e^r is the polynomial of Cephes' `expf`
/// (Moshier, <https://www.netlib.org/cephes/>).
#[inline(always)]
fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    /// Adding it rounds a float of modest size to an integer, which is then in its low bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    const LN_2_HIGH: f32 = 0.693_359_4; // has few bits, so that its product with n is exact
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let splat = |value| simd.splat_f32s(value);
    let shifted = simd.mul_add_f32s(x, splat(std::f32::consts::LOG2_E), splat(ROUND));
    let n = simd.sub_f32s(shifted, splat(ROUND));
    let r = simd.mul_add_f32s(n, splat(-LN_2_HIGH), x);
    let r = simd.mul_add_f32s(n, splat(-LN_2_LOW), r);
    let mut power = splat(1.987_569_1e-4);
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        power = simd.mul_add_f32s(power, r, splat(coefficient));
    }
    let mantissa = simd.add_f32s(simd.mul_add_f32s(simd.mul_f32s(power, r), r, r), splat(1.0));
    // The low bits of `shifted` hold n: as an exponent they are 2^n.
    let exponent =
        simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    let power_of_2 =
        simd.transmute_f32s_u32s(simd.add_u32s(exponent, simd.splat_u32s(0x3f80_0000)));
    let too_small = simd.less_than_f32s(x, splat(-87.0));
    simd.select_f32s(too_small, splat(0.0), simd.mul_f32s(mantissa, power_of_2))
}

#[cfg(test)]
mod tests {
    use super::{LANES, softmax};

    #[test]
    fn exponentials_are_within_two_units_in_the_last_place() {
        for i in 0..=870_000 {
            let x = -(i as f32) / 10_000.0;
            let mut scores = [f32::NEG_INFINITY; LANES];
            (scores[0], scores[1]) = (0.0, x);
            softmax(&mut scores);
            let truth = f64::from(x).exp();
            let truth = truth / (1.0 + truth);
            let error = (f64::from(scores[1]) - truth).abs() / truth;
            // Two more roundings: of the sum, and of the quotient.
            assert!(error < 4.0 * f64::from(f32::EPSILON), "exp({x}): relative error {error:e}");
            assert!(scores[2..].iter().all(|value| *value == 0.0));
        }
    }

    #[test]
    fn what_is_no_number_shows() {
        for wrong in [f32::NAN, f32::INFINITY] {
            for place in 0..2 * LANES {
                let mut scores = [0.5; 2 * LANES];
                scores[place] = wrong;
                softmax(&mut scores);
                assert!(scores.iter().all(|value| value.is_nan()), "{wrong} at {place}");
            }
        }
    }
}
