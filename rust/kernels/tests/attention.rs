//! Attention over paths is the attention of each unbatched sequence.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

use std::num::NonZero;

use ebm_kernels::attention::{AttentionError, Before, Layer, PathAttention, Runs};
use ebm_kernels::packing::{Sequences, Sharing, Trie};
use ndarray::{Array3, ArrayView3, Axis, Slice};
use proptest::prelude::*;

/// Attention of one query by the textbook, in float64.
fn textbook(layer: &Layer<'_>, head: usize, path: &[usize], depth: usize) -> Vec<f64> {
    let group = head / (layer.query.dim().0 / layer.key.dim().0);
    let first = layer.reach.map_or(0, |reach| (depth + 1).saturating_sub(reach.get()));
    let seen = &path[first..=depth];
    let of = |array: ArrayView3<'_, f32>, head, node, i| f64::from(array[[head, node, i]]);
    let scores: Vec<f64> = seen
        .iter()
        .map(|&node| {
            (0..layer.query.dim().2)
                .map(|i| of(layer.query, head, path[depth], i) * of(layer.key, group, node, i))
                .sum::<f64>()
                * f64::from(layer.scale)
        })
        .collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..layer.value.dim().2)
        .map(|i| {
            seen.iter()
                .zip(&weights)
                .map(|(&node, w)| w * of(layer.value, group, node, i))
                .sum::<f64>()
                / total
        })
        .collect()
}

/// Numbers without pattern, the same for the same seed.
fn noise(shape: (usize, usize, usize), seed: u32) -> Array3<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    Array3::from_shape_simple_fn(shape, || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        f32::from_bits(0x3f80_0000 | (state >> 9)).mul_add(4.0, -6.0)
    })
}

/// Runs of the nodes in a range, numbered from its first, and the path on which the first stands.
fn slice_of(trie: &Trie, nodes: std::ops::Range<usize>) -> (Vec<i64>, Vec<i64>, Vec<usize>) {
    let first = i64::try_from(nodes.start).unwrap();
    let last = i64::try_from(nodes.end).unwrap();
    let (mut starts, mut kept) = (Vec::new(), Vec::new());
    for (ends, depth) in trie.starts.windows(2).zip(&trie.kept) {
        let (start, stop) = (ends[0].max(first), ends[1].min(last));
        if start < stop {
            starts.push(start - first);
            kept.push(depth + start - ends[0]);
        }
    }
    starts.push(last - first);
    let mut path = path_of(trie, nodes.start);
    path.pop();
    (starts, kept, path)
}

/// A node's ancestors from the first token, and itself.
fn path_of(trie: &Trie, node: usize) -> Vec<usize> {
    let mut path = vec![node];
    while let Ok(parent) = usize::try_from(trie.parents[path[path.len() - 1]]) {
        path.push(parent);
    }
    path.reverse();
    path
}

fn sequences() -> impl Strategy<Value = Vec<Vec<u32>>> {
    prop::collection::vec(prop::collection::vec(0_u32..3, 1..40), 1..12)
}

proptest! {
    #[test]
    fn every_node_gets_what_its_own_sequence_gives_it(
        mut sequences in sequences(),
        (groups, shared) in (1_usize..3, 1_usize..4),
        (width, value_width) in (1_usize..20, 1_usize..20),
        reach in prop::option::of(1_usize..12),
        threads in 1_usize..4,
        cut in 0.0..1.0_f64,
        seed in any::<u32>(),
    ) {
        sequences.sort();
        sequences.dedup();
        let ids: Vec<u32> = sequences.concat();
        let mut offsets = vec![0_i64];
        for sequence in &sequences {
            offsets.push(offsets.last().unwrap() + i64::try_from(sequence.len()).unwrap());
        }
        let trie =
            Trie::new(Sequences::new(&ids, &offsets).unwrap(), Sharing::Prefixes).unwrap();
        let nodes = trie.ids.len();
        let heads = groups * shared;
        // As models make them: heads side by side within a token.
        let by_node = [
            noise((nodes, heads, width), seed),
            noise((nodes, groups, width), seed ^ 1),
            noise((nodes, groups, value_width), seed ^ 2),
        ];
        let [query, key, value] =
            by_node.each_ref().map(|array| array.view().permuted_axes([1, 0, 2]));
        let reach = reach.and_then(NonZero::new);
        let none = Array3::zeros((groups, 0, width));
        let no_value = Array3::zeros((groups, 0, value_width));
        let before = Before { key: none.view(), value: no_value.view() };
        let layer = Layer { query, key, value, before, scale: 0.3, reach };
        let mut output = Array3::from_elem((nodes, heads, value_width), f32::NAN);
        let attention = PathAttention::new(NonZero::new(threads).unwrap()).unwrap();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a small count"
        )]
        let cut = (nodes as f64 * cut) as usize;
        for part in [0..cut, cut..nodes] {
            if part.is_empty() {
                continue;
            }
            let (starts, kept, path) = slice_of(&trie, part.clone());
            let before = [key.select(Axis(1), &path), value.select(Axis(1), &path)];
            let own = |array: ArrayView3<'_, f32>| {
                array.slice_axis(Axis(1), Slice::from(part.clone())).to_owned()
            };
            let owned = [own(query), own(key), own(value)];
            let slice = Layer {
                query: owned[0].view(),
                key: owned[1].view(),
                value: owned[2].view(),
                before: Before { key: before[0].view(), value: before[1].view() },
                ..layer
            };
            let rows = output.slice_axis_mut(Axis(0), Slice::from(part));
            attention.attend(&slice, Runs { starts: &starts, kept: &kept }, rows).unwrap();
        }
        for node in 0..nodes {
            let path = path_of(&trie, node);
            for head in 0..heads {
                let truth = textbook(&layer, head, &path, path.len() - 1);
                for (found, truth) in output.index_axis(Axis(0), node).row(head).iter().zip(truth) {
                    prop_assert!(
                        (f64::from(*found) - truth).abs() < 1e-5,
                        "node {node}, head {head}: {found} for {truth}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let attention = PathAttention::new(NonZero::new(1).unwrap()).unwrap();
    let (query, key) = (Array3::zeros((4, 3, 2)), Array3::zeros((2, 3, 2)));
    let none = Array3::zeros((2, 0, 2));
    let mut output = Array3::zeros((3, 4, 2));
    let mut attend = |key: &Array3<f32>, starts: &[i64], kept: &[i64]| {
        let layer = Layer {
            query: query.view(),
            key: key.view(),
            value: key.view(),
            before: Before { key: none.view(), value: none.view() },
            scale: 1.0,
            reach: None,
        };
        attention.attend(&layer, Runs { starts, kept }, output.view_mut())
    };
    assert!(attend(&key, &[0, 3], &[0]).is_ok());
    let other_heads = Array3::zeros((3, 3, 2));
    assert!(matches!(attend(&other_heads, &[0, 3], &[0]), Err(AttentionError::Shape(_))));
    for (starts, kept) in [
        (&[0, 2][..], &[0][..]), // a node without a run
        (&[0, 4], &[0]),         // a run without nodes
        (&[0, 0, 3], &[0, 0]),   // an empty run
        (&[0, 2, 3], &[0, 3]),   // more kept than there is
        (&[0, 3], &[1]),         // kept of nothing
        (&[0, 3], &[-1]),        // negative
        (&[1, 3], &[0]),         // does not begin at the start
        (&[0, 3], &[0, 0]),      // a depth too many
    ] {
        let refused = attend(&key, starts, kept);
        assert!(matches!(refused, Err(AttentionError::Run { .. })), "{starts:?} {kept:?}");
    }
}

#[test]
fn layers_without_heads_nodes_or_width_do_not_panic() {
    let attention = PathAttention::new(NonZero::new(2).unwrap()).unwrap();
    for (heads, groups, nodes, width, value_width) in [
        (0, 1, 3, 2, 2),
        (0, 0, 3, 2, 2),
        (2, 0, 3, 2, 2),
        (2, 1, 0, 2, 2),
        (2, 1, 3, 0, 2),
        (2, 1, 3, 2, 0),
    ] {
        let array = |heads, nodes, width| Array3::<f32>::ones((heads, nodes, width));
        let query = array(heads, nodes, width);
        let (key, value) = (array(groups, nodes, width), array(groups, nodes, value_width));
        let (no_key, no_value) = (array(groups, 0, width), array(groups, 0, value_width));
        let layer = Layer {
            query: query.view(),
            key: key.view(),
            value: value.view(),
            before: Before { key: no_key.view(), value: no_value.view() },
            scale: 1.0,
            reach: None,
        };
        let (starts, kept) = if nodes == 0 { (vec![0], vec![]) } else { (vec![0, 3], vec![0]) };
        let mut output = Array3::zeros((nodes, heads, value_width));
        let done =
            attention.attend(&layer, Runs { starts: &starts, kept: &kept }, output.view_mut());
        let refused = heads == 0 || groups == 0;
        assert_eq!(
            matches!(done, Err(AttentionError::Shape(_))),
            refused,
            "{heads} {groups} {nodes} {width} {value_width}: {done:?}"
        );
    }
}
