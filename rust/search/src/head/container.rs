//! The file: a safetensors container, its metadata, and the weights in it.

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::metadata::Metadata;
use super::network::{Layer, Network};
use crate::finite::is_finite;

const FORMAT: &str = "ebm-encode-head";
/// The latest version that this build reads.
const VERSION: u64 = 1;

/// Reads a file; an error says what is wrong with it.
pub(super) fn read(bytes: &[u8]) -> Result<(Metadata, Network), String> {
    let broken = |error| format!("not a safetensors file, cut off or damaged: {error}");
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(broken)?;
    let texts = header.metadata().as_ref();
    let texts = texts.ok_or_else(|| not_a_head("it has no metadata"))?;
    let text = |key: &str| texts.get(key).map(String::as_str);
    require_version(text("format"), text("version"))?;
    let head = text("head").ok_or("metadata \"head\": is missing")?;
    let metadata = Metadata::from_json(head)?;
    let tensors = SafeTensors::deserialize(bytes).map_err(broken)?;
    let network = read_network(&tensors, &metadata)?;
    Ok((metadata, network))
}

fn not_a_head(why: &str) -> String {
    format!("not a head file: {why}\nhint: `ebm-encode train-head` writes one")
}

fn require_version(format: Option<&str>, version: Option<&str>) -> Result<(), String> {
    match format {
        Some(FORMAT) => {}
        Some(other) => {
            return Err(not_a_head(&format!(
                "metadata \"format\" is {other:?}, expected {FORMAT:?}"
            )));
        }
        None => return Err(not_a_head("metadata \"format\" is missing")),
    }
    let version = version.ok_or("metadata \"version\": is missing")?;
    match version.parse::<u64>() {
        Ok(VERSION) => Ok(()),
        Ok(later) if later > VERSION => Err(format!(
            "written in version {later}, this build reads up to {VERSION}\nhint: update ebm-encode"
        )),
        _ => Err(format!("metadata \"version\": is {version:?}, expected \"{VERSION}\"")),
    }
}

fn read_network(tensors: &SafeTensors<'_>, metadata: &Metadata) -> Result<Network, String> {
    let Metadata { dims, members, .. } = metadata;
    let layers = dims.len() - 1;
    // Compared before anything is read: the number of members is only a number in a text.
    let expected = layers.checked_mul(2).and_then(|count| count.checked_mul(*members));
    let complete = expected == Some(tensors.len());
    if !complete && let Some(name) = unexpected(tensors, layers, *members) {
        return Err(format!("tensor {name:?}: has no place in a head of dims {dims:?}"));
    }
    let mut all = Vec::new();
    for member in 0..*members {
        let mut network = Vec::with_capacity(layers);
        for (number, pair) in dims.windows(2).enumerate() {
            let name = format!("member.{member}.layer.{number}");
            let weight = values(tensors, &format!("{name}.weight"), &[pair[1], pair[0]])?;
            let bias = values(tensors, &format!("{name}.bias"), &[pair[1]])?;
            network.push(Layer::new(&weight, bias, pair[0]));
        }
        all.push(network);
    }
    Ok(Network::new(all, dims))
}

/// A tensor that is not one of the head's, the first by name.
fn unexpected(tensors: &SafeTensors<'_>, layers: usize, members: usize) -> Option<String> {
    let is_ours = |name: &str| {
        let parts: Vec<&str> = name.split('.').collect();
        let ["member", member, "layer", layer, "weight" | "bias"] = parts[..] else {
            return false;
        };
        let below = |text: &str, end: usize| {
            text.parse::<usize>().is_ok_and(|number| number < end && number.to_string() == text)
        };
        below(member, members) && below(layer, layers)
    };
    tensors.names().into_iter().filter(|name| !is_ours(name)).min().map(str::to_owned)
}

/// The values of a tensor, which must have this shape.
fn values(tensors: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
    let tensor: TensorView<'_> =
        tensors.tensor(name).map_err(|_| format!("tensor {name:?}: is missing"))?;
    if tensor.dtype() != Dtype::F32 {
        return Err(format!("tensor {name:?}: is {:?}, expected F32", tensor.dtype()));
    }
    if tensor.shape() != shape {
        return Err(format!(
            "tensor {name:?}: has the shape {:?}, expected {shape:?}",
            tensor.shape()
        ));
    }
    // Nothing says that the values are aligned in the file, so they are copied.
    let (parts, _) = tensor.data().as_chunks::<4>();
    let values: Vec<f32> = parts.iter().map(|part| f32::from_le_bytes(*part)).collect();
    if is_finite(&values) {
        return Ok(values);
    }
    Err(format!("tensor {name:?}: holds NaN or infinite values"))
}
