//! Head files, written by hand: an 8-byte length, a JSON header, and the values.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]
#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

use ebm_cache::Identity;
use ebm_search::EnergyHead;
use serde_json::{Map, Value, json};

pub const SIGN: &str = "energy: lower is better; score = -energy";

pub fn identity_with(dtype: &str) -> Identity {
    let json = r#"{"weights": "w", "config": "c", "tokenizer": "t", "template": "{state}",
        "special_tokens": "tokenizer-default-once", "pooling": "mean", "layer": -1,
        "dtype": "DTYPE", "quantization": "none", "max_length": null, "truncation": "none"}"#;
    Identity::from_json(&json.replace("DTYPE", dtype)).unwrap()
}

pub fn identity() -> Identity {
    identity_with("float32")
}

/// Numbers that look like embeddings or weights, the same on any machine.
pub fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let top = u16::try_from(state >> 48).unwrap();
        f32::from(top) / 32_768.0 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// A head file that can be changed before it is written.
#[derive(Clone)]
pub struct File {
    pub metadata: Map<String, Value>,
    pub head: Value,
    /// Name, dtype, shape and bytes.
    pub tensors: Vec<(String, String, Vec<usize>, Vec<u8>)>,
}

impl File {
    pub fn new(dims: &[usize], members: usize) -> Self {
        let head = json!({
            "identity": serde_json::from_str::<Value>(&identity().to_json()).unwrap(),
            "architecture": {"dims": dims, "activation": "silu", "members": members},
            "sign": SIGN,
            "score_scale": {"mean": -0.5, "deviation": 2.0},
        });
        let mut metadata = Map::new();
        metadata.insert("format".to_owned(), json!("ebm-encode-head"));
        metadata.insert("version".to_owned(), json!("1"));
        let mut file = Self { metadata, head, tensors: Vec::new() };
        for member in 0..members {
            for (layer, pair) in dims.windows(2).enumerate() {
                let seed = (member * 100 + layer * 2 + 1) as u64;
                let scale = (pair[0] as f32).sqrt();
                let weight: Vec<f32> =
                    numbers(pair[0] * pair[1], seed).iter().map(|value| value / scale).collect();
                file.push(member, layer, "weight", &[pair[1], pair[0]], &weight);
                file.push(member, layer, "bias", &[pair[1]], &numbers(pair[1], seed + 1));
            }
        }
        file
    }

    fn push(&mut self, member: usize, layer: usize, kind: &str, shape: &[usize], values: &[f32]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let name = format!("member.{member}.layer.{layer}.{kind}");
        self.tensors.push((name, "F32".to_owned(), shape.to_vec(), bytes));
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut header = Map::new();
        let mut metadata = self.metadata.clone();
        metadata.entry("head").or_insert_with(|| json!(self.head.to_string()));
        header.insert("__metadata__".to_owned(), Value::Object(metadata));
        let (mut at, mut data) = (0, Vec::new());
        for (name, dtype, shape, bytes) in &self.tensors {
            let end = at + bytes.len();
            let info = json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]});
            header.insert(name.clone(), info);
            data.extend_from_slice(bytes);
            at = end;
        }
        container(&Value::Object(header).to_string(), &data)
    }

    pub fn head(&self) -> EnergyHead {
        EnergyHead::from_bytes("test", &self.bytes()).unwrap()
    }

    fn values(&self, member: usize, layer: usize, kind: &str) -> Vec<f64> {
        let name = format!("member.{member}.layer.{layer}.{kind}");
        let tensor = self.tensors.iter().find(|tensor| tensor.0 == name).unwrap();
        let value = |part: &[u8]| f64::from(f32::from_le_bytes(part.try_into().unwrap()));
        tensor.3.chunks(4).map(value).collect()
    }

    /// The energy of a row by the formula, in float64.
    pub fn energy(&self, row: &[f32]) -> f64 {
        let architecture = &self.head["architecture"];
        let members = usize::try_from(architecture["members"].as_u64().unwrap()).unwrap();
        let layers = architecture["dims"].as_array().unwrap().len() - 1;
        let member = |member: usize| {
            let mut values: Vec<f64> = row.iter().copied().map(f64::from).collect();
            for layer in 0..layers {
                let weight = self.values(member, layer, "weight");
                let bias = self.values(member, layer, "bias");
                let sum = |(weights, bias): (&[f64], &f64)| {
                    bias + weights.iter().zip(&values).map(|(w, x)| w * x).sum::<f64>()
                };
                let out: Vec<f64> = weight.chunks(values.len()).zip(&bias).map(sum).collect();
                let silu = |x: f64| x / (1.0 + (-x).exp());
                let last = layer + 1 == layers;
                values = out.into_iter().map(|x| if last { x } else { silu(x) }).collect();
            }
            values[0]
        };
        (0..members).map(member).sum::<f64>() / members as f64
    }
}

/// A safetensors file with any header.
pub fn container(header: &str, data: &[u8]) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length, header.as_bytes(), data].concat()
}
