//! What a head says of itself: the JSON object under the key `head`.

use ebm_cache::Identity;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The only sign convention there is, word for word as it stands in every head.
const SIGN: &str = "energy: lower is better; score = -energy";

/// Mean and deviation of something over validation states.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Scale {
    /// The mean.
    pub mean: f64,
    /// The deviation, above zero.
    pub deviation: f64,
}

impl Scale {
    /// Leaves values as they are.
    pub const UNIT: Self = Self { mean: 0.0, deviation: 1.0 };

    /// A scale; `None` unless both are finite and the deviation is above zero.
    #[must_use]
    pub fn new(mean: f64, deviation: f64) -> Option<Self> {
        let usable = mean.is_finite() && deviation.is_finite() && deviation > 0.0;
        usable.then_some(Self { mean, deviation })
    }

    /// A value in deviations from the mean.
    #[must_use]
    pub fn z(self, value: f64) -> f64 {
        (value - self.mean) / self.deviation
    }
}

/// How a search mixes the value with its policy: the priority of a node is
/// `weight * z(value) + (1 - weight) * z(policy)`, where the policy's value is the cumulative
/// log-probability divided by `depth.powf(depth_exponent)`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Mixing {
    /// The weight of the value, from 0 to 1.
    pub weight: f64,
    /// Mean and deviation of the policy's value.
    pub policy: Scale,
    /// The exponent of the depth, not negative.
    pub depth_exponent: f64,
}

#[derive(Deserialize)]
struct MixingFields {
    weight: f64,
    policy: PolicyFields,
}

#[derive(Deserialize)]
struct PolicyFields {
    mean: f64,
    deviation: f64,
    depth_exponent: f64,
}

#[derive(Deserialize)]
struct Architecture {
    dims: Vec<usize>,
    activation: String,
    members: usize,
}

/// The object, read and checked.
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) identity: Identity,
    pub(super) dims: Vec<usize>,
    pub(super) members: usize,
    pub(super) score_scale: Scale,
    pub(super) mixing: Option<Mixing>,
    pub(super) whole: Value,
}

impl Metadata {
    /// Reads the object; an error says which key is wrong.
    pub(super) fn from_json(json: &str) -> Result<Self, String> {
        let whole: Value =
            serde_json::from_str(json).map_err(|error| format!("metadata \"head\": {error}"))?;
        let Value::Object(head) = &whole else {
            return Err("metadata \"head\": expected a JSON object".to_owned());
        };
        let identity: Value = required(head, "identity")?;
        let identity = Identity::from_json(&identity.to_string())
            .map_err(|error| format!("head key \"identity\": {error}"))?;
        let architecture: Architecture = required(head, "architecture")?;
        check_architecture(&architecture)?;
        let sign: String = required(head, "sign")?;
        if sign != SIGN {
            return Err(format!("head key \"sign\": is {sign:?}, expected {SIGN:?}"));
        }
        let score_scale: Scale = required(head, "score_scale")?;
        check_scale("score_scale", score_scale)?;
        let mixing = match head.get("mixing") {
            None | Some(Value::Null) => None,
            Some(_) => Some(mixing(&required(head, "mixing")?)?),
        };
        let Architecture { dims, members, .. } = architecture;
        Ok(Self { identity, dims, members, score_scale, mixing, whole })
    }
}

fn required<T: DeserializeOwned>(head: &Map<String, Value>, name: &str) -> Result<T, String> {
    let value = head.get(name).ok_or_else(|| format!("head key {name:?}: is missing"))?;
    serde_json::from_value(value.clone()).map_err(|error| format!("head key {name:?}: {error}"))
}

fn check_architecture(architecture: &Architecture) -> Result<(), String> {
    let Architecture { dims, activation, members } = architecture;
    let wrong = |detail: String| Err(format!("head key \"architecture\": {detail}"));
    if dims.len() < 2 || dims.contains(&0) || dims.last() != Some(&1) {
        let shown: Vec<&usize> = dims.iter().take(8).collect();
        return wrong(format!(
            "dims are {shown:?}, expected at least two, none of them 0 and the last of them 1"
        ));
    }
    if activation != "silu" {
        return wrong(format!("activation is {activation:?}, expected \"silu\""));
    }
    if *members == 0 {
        return wrong("members is 0, expected at least 1".to_owned());
    }
    Ok(())
}

fn check_scale(name: &str, scale: Scale) -> Result<(), String> {
    let Scale { mean, deviation } = scale;
    if Scale::new(mean, deviation).is_some() {
        return Ok(());
    }
    Err(format!(
        "head key {name:?}: mean is {mean} and deviation {deviation}, expected finite numbers and a \
         deviation above 0"
    ))
}

fn mixing(fields: &MixingFields) -> Result<Mixing, String> {
    let MixingFields { weight, policy } = fields;
    let (weight, depth_exponent) = (*weight, policy.depth_exponent);
    let wrong = |detail: String| Err(format!("head key \"mixing\": {detail}"));
    if !(0.0..=1.0).contains(&weight) {
        return wrong(format!("weight is {weight}, expected 0 to 1"));
    }
    if !depth_exponent.is_finite() || depth_exponent < 0.0 {
        return wrong(format!("depth_exponent is {depth_exponent}, expected 0 or more"));
    }
    let policy = Scale { mean: policy.mean, deviation: policy.deviation };
    check_scale("mixing.policy", policy)?;
    Ok(Mixing { weight, policy, depth_exponent })
}
