//! Which open state is expanded next.

use crate::head::{Mixing, Scale};
use crate::scorer::Score;

/// How a search orders its open states; the one with the highest priority is expanded next, and of
/// equals the one that was found first.
///
/// `priority = weight * z(value) + (1 - weight) * z(policy)`, where `z` subtracts a mean and divides by a
/// deviation, and the policy's value is the cumulative log-probability of the steps to the state divided
/// by `depth.powf(depth_exponent)` (0: the plain sum; 0.5 as in REAL-Prover; 1: the mean per step). A
/// state without a value is ordered by the policy alone.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Ranking {
    /// The weight of the value, from 0 (the policy alone) to 1 (the value alone).
    pub weight: f64,
    /// The exponent of the depth.
    pub depth_exponent: f64,
    /// Mean and deviation of the value, which is a score: higher is better.
    pub value: Scale,
    /// Mean and deviation of the policy's value.
    pub policy: Scale,
    /// Weight of a bonus for states whose parent has few expanded children:
    /// `exploration / sqrt(1 + expanded siblings)`. 0 is none.
    pub exploration: f64,
    /// Whether states are expanded in the order in which they were found, whatever their scores.
    pub breadth_first: bool,
}

impl Ranking {
    /// Breadth-first: states in the order in which they were found.
    #[must_use]
    pub const fn breadth_first() -> Self {
        Self { breadth_first: true, ..Self::policy(0.0) }
    }

    /// The policy alone: its cumulative log-probability divided by `depth.powf(depth_exponent)`.
    #[must_use]
    pub const fn policy(depth_exponent: f64) -> Self {
        Self {
            weight: 0.0,
            depth_exponent,
            value: Scale::UNIT,
            policy: Scale::UNIT,
            exploration: 0.0,
            breadth_first: false,
        }
    }

    /// The value alone, as its scores are.
    #[must_use]
    pub const fn value() -> Self {
        Self { weight: 1.0, ..Self::policy(0.5) }
    }

    /// The mixture that a head's file recommends, with its scales.
    #[must_use]
    pub fn mixture(mixing: Mixing, value: Scale) -> Self {
        Self::policy(mixing.depth_exponent)
            .with_value_scale(value)
            .with_policy_scale(mixing.policy)
            .with_weight(mixing.weight)
    }

    /// The same with another weight of the value; it is held within 0 and 1.
    #[must_use]
    pub fn with_weight(mut self, weight: f64) -> Self {
        self.weight = weight.clamp(0.0, 1.0);
        self
    }

    /// The same with another scale of the policy's value.
    #[must_use]
    pub const fn with_policy_scale(mut self, policy: Scale) -> Self {
        self.policy = policy;
        self
    }

    /// The same with another scale of the value.
    #[must_use]
    pub const fn with_value_scale(mut self, value: Scale) -> Self {
        self.value = value;
        self
    }

    /// The same with another exponent of the depth.
    #[must_use]
    pub const fn with_depth_exponent(mut self, exponent: f64) -> Self {
        self.depth_exponent = exponent;
        self
    }

    /// The same with a bonus for exploration.
    #[must_use]
    pub const fn with_exploration(mut self, exploration: f64) -> Self {
        self.exploration = exploration;
        self
    }

    /// Whether states need a score.
    #[must_use]
    pub fn needs_scores(&self) -> bool {
        !self.breadth_first && self.weight > 0.0
    }

    /// The priority of a state at a depth of at least 1, without the bonus.
    pub(super) fn priority(&self, score: Option<&Score>, log_prob: f64, depth: u32) -> f64 {
        if self.breadth_first {
            return 0.0;
        }
        let depth = f64::from(depth.max(1));
        let policy = self.policy.z(log_prob / depth.powf(self.depth_exponent));
        let value = match score {
            Some(Score::Scored(scored)) if self.weight > 0.0 => {
                self.value.z(f64::from(scored.score))
            }
            _ => return policy,
        };
        // Not a product with 0: the policy may be minus infinity.
        if self.weight < 1.0 { self.weight * value + (1.0 - self.weight) * policy } else { value }
    }

    /// The bonus of a state whose parent has this many expanded children.
    pub(super) fn bonus(&self, expanded_siblings: u32) -> f64 {
        self.exploration / (1.0 + f64::from(expanded_siblings)).sqrt()
    }
}
