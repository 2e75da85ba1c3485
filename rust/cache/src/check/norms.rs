//! The range of norms that is usual in a cache, and which norms fall outside it.

/// Fewer rows than this say nothing about what is usual.
const FEWEST: usize = 64;
/// A norm within this factor of the median is never an outlier.
const FACTOR: f64 = 10.0;
/// Beyond that factor, as many median absolute deviations of the log norm make an outlier.
const DEVIATIONS: f64 = 20.0;

/// The usual range of norms, by median and median absolute deviation of their logarithms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct NormRange {
    pub(crate) median: f32,
    low: f32,
    high: f32,
}

impl NormRange {
    /// The range of these norms (all positive); `None` for fewer than 64 of them.
    pub(crate) fn of(norms: &[f32]) -> Option<Self> {
        if norms.len() < FEWEST {
            return None;
        }
        let mut logs: Vec<f64> = norms.iter().map(|norm| f64::from(*norm).ln()).collect();
        let centre = median(&mut logs);
        for log in &mut logs {
            *log = (*log - centre).abs();
        }
        let spread = FACTOR.ln().max(DEVIATIONS * median(&mut logs));
        #[expect(clippy::cast_possible_truncation, reason = "norms are float32")]
        let exp = |log: f64| log.exp() as f32;
        Some(Self { median: exp(centre), low: exp(centre - spread), high: exp(centre + spread) })
    }

    pub(crate) fn contains(&self, norm: f32) -> bool {
        (self.low..=self.high).contains(&norm)
    }
}

fn median(values: &mut [f64]) -> f64 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}
