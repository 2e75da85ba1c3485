//! Values that are numbers.

/// The bits of a float32 without its sign; from those of infinity on it is not finite.
const WITHOUT_SIGN: u32 = 0x7fff_ffff;

/// Whether no value is NaN or infinite. Without an early end, so that the loop is vectorised.
pub(crate) fn is_finite(values: &[f32]) -> bool {
    let magnitude = |value: &f32| value.to_bits() & WITHOUT_SIGN;
    let largest = values.iter().map(magnitude).fold(0, u32::max);
    largest < f32::INFINITY.to_bits()
}
