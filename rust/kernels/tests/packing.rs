//! Plans hold every sequence once and keep their budgets.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

use std::collections::{BTreeMap, HashSet};

use ebm_kernels::packing::{
    Limits, PlanError, Sequences, Sharing, Trie, count_nodes, plan_padded, plan_windows,
};
use proptest::prelude::*;

#[test]
fn a_budget_of_nothing_is_refused() {
    assert_eq!(plan_padded(&[1], 0, 1), Err(PlanError::EmptyBudget("max_tokens")));
    assert_eq!(plan_padded(&[1], 1, 0), Err(PlanError::EmptyBudget("max_rows")));
}

#[test]
fn no_sequences_make_no_batches() {
    assert_eq!(plan_padded(&[], 10, 10), Ok(vec![]));
}

proptest! {
    #[test]
    fn plans_are_complete_within_budget_and_ordered(
        lengths in prop::collection::vec(0_u32..500, 0..300),
        max_tokens in 1_usize..2000,
        max_rows in 1_usize..40,
    ) {
        let plan = plan_padded(&lengths, max_tokens, max_rows).unwrap();
        let mut all: Vec<usize> = plan.iter().flatten().copied().collect();
        let in_order: Vec<u32> = all.iter().map(|&i| lengths[i]).collect();
        prop_assert!(in_order.is_sorted_by(|a, b| a >= b), "longest first");
        all.sort_unstable();
        prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
        for batch in &plan {
            let longest = batch.iter().map(|&i| lengths[i] as usize).max().unwrap();
            prop_assert!(batch.len() <= max_rows);
            prop_assert!(batch.len() * longest <= max_tokens || batch.len() == 1);
        }
        prop_assert_eq!(&plan, &plan_padded(&lengths, max_tokens, max_rows).unwrap());
    }
}

/// Sequences end to end.
fn flat(sequences: &[Vec<u32>]) -> (Vec<u32>, Vec<i64>) {
    let mut offsets = vec![0];
    for sequence in sequences {
        offsets.push(offsets[offsets.len() - 1] + i64::try_from(sequence.len()).unwrap());
    }
    (sequences.concat(), offsets)
}

/// The distinct non-empty prefixes, counted without any trie.
fn prefixes(sequences: &[Vec<u32>]) -> usize {
    let all = sequences.iter().flat_map(|s| (1..=s.len()).map(move |length| &s[..length]));
    all.collect::<HashSet<_>>().len()
}

/// Few distinct tokens, so that prefixes, equal sequences and empty ones abound.
fn alike() -> impl Strategy<Value = Vec<Vec<u32>>> {
    prop::collection::vec(prop::collection::vec(0_u32..3, 0..12), 0..60)
}

fn trie_of(ids: &[u32], offsets: &[i64], sharing: Sharing) -> Trie {
    Trie::new(Sequences::new(ids, offsets).unwrap(), sharing).unwrap()
}

const ANY: Limits = Limits { nodes: usize::MAX, rows: usize::MAX, path_tokens: usize::MAX };

fn index(value: i64) -> usize {
    usize::try_from(value).unwrap()
}

#[test]
fn windows_without_a_budget_are_refused() {
    let (ids, offsets) = flat(&[vec![1]]);
    let sequences = Sequences::new(&ids, &offsets).unwrap();
    for (nodes, rows, path_tokens, name) in
        [(0, 1, 1, "max_nodes"), (1, 0, 1, "max_rows"), (1, 1, 0, "max_path_tokens")]
    {
        let plan = plan_windows(sequences, Sharing::Prefixes, Limits { nodes, rows, path_tokens });
        assert_eq!(plan, Err(PlanError::EmptyBudget(name)));
    }
}

#[test]
fn offsets_that_do_not_cut_the_ids_are_refused() {
    for offsets in [&[][..], &[0], &[1, 2], &[0, 2, 1, 2], &[0, 3], &[-1, 2]] {
        assert_eq!(
            Sequences::new(&[5, 6], offsets).err(),
            Some(PlanError::BadOffsets { ids: 2 }),
            "{offsets:?}"
        );
    }
    assert!(Sequences::new(&[], &[0]).unwrap().is_empty());
}

#[test]
fn a_sequence_that_is_a_prefix_of_another_has_no_node_of_its_own() {
    let (ids, offsets) = flat(&[vec![7, 8], vec![7, 8], vec![7, 8, 9], vec![7, 5]]);
    let trie = trie_of(&ids, &offsets, Sharing::Prefixes);
    assert_eq!(trie.ids, [7, 8, 9, 5]);
    assert_eq!(trie.depths, [0, 1, 2, 1]);
    assert_eq!(trie.parents, [-1, 0, 1, 0]);
    assert_eq!(trie.ends, [4, 3, 3, 4]);
    assert_eq!(trie.starts, [0, 2, 2, 3, 4]);
    assert_eq!(trie.kept, [0, 2, 2, 1]);
    assert_eq!(trie.leaves, [1, 1, 2, 3]);
}

proptest! {
    #[test]
    fn windows_hold_every_sequence_once_within_budget(
        sequences in alike(), nodes in 1_usize..60, rows in 1_usize..20,
        path_tokens in 1_usize..150, share: bool,
    ) {
        let limits = Limits { nodes, rows, path_tokens };
        let (ids, offsets) = flat(&sequences);
        let view = Sequences::new(&ids, &offsets).unwrap();
        let sharing = if share { Sharing::Prefixes } else { Sharing::Nothing };
        let plan = plan_windows(view, sharing, limits).unwrap();
        let all: Vec<usize> = plan.iter().flatten().copied().collect();
        let by_tokens: Vec<&Vec<u32>> = all.iter().map(|&i| &sequences[i]).collect();
        prop_assert!(by_tokens.is_sorted());
        prop_assert_eq!(all.iter().copied().collect::<HashSet<_>>().len(), sequences.len());
        prop_assert_eq!(all.len(), sequences.len());
        for window in &plan {
            let own: Vec<Vec<u32>> = window.iter().map(|&i| sequences[i].clone()).collect();
            let whole: usize = own.iter().map(Vec::len).sum();
            let nodes = if share { prefixes(&own) } else { whole };
            prop_assert!(nodes <= limits.nodes || window.len() == 1);
            prop_assert!(window.len() <= limits.rows);
            let distinct: usize = own.iter().collect::<HashSet<_>>().iter().map(|s| s.len()).sum();
            let paths = if share { distinct } else { whole };
            prop_assert!(paths <= limits.path_tokens || window.len() == 1);
        }
        prop_assert_eq!(&plan, &plan_windows(view, sharing, limits).unwrap());
    }

    #[test]
    fn one_window_has_the_nodes_of_the_true_trie(sequences in alike()) {
        let (ids, offsets) = flat(&sequences);
        let view = Sequences::new(&ids, &offsets).unwrap();
        prop_assert_eq!(count_nodes(view), prefixes(&sequences));
        let order = plan_windows(view, Sharing::Prefixes, ANY).unwrap().concat();
        let sorted: Vec<Vec<u32>> = order.iter().map(|&i| sequences[i].clone()).collect();
        let (ids, offsets) = flat(&sorted);
        let trie = trie_of(&ids, &offsets, Sharing::Prefixes);
        prop_assert_eq!(trie.ids.len(), prefixes(&sequences));
    }

    #[test]
    fn every_sequence_is_recovered_from_its_path(sequences in alike(), share: bool) {
        let (ids, offsets) = flat(&sequences); // in no order at all
        let sharing = if share { Sharing::Prefixes } else { Sharing::Nothing };
        let trie = trie_of(&ids, &offsets, sharing);
        if !share {
            prop_assert_eq!(trie.ids.len(), ids.len());
        }
        for (s, sequence) in sequences.iter().enumerate() {
            let mut climbed = Vec::new();
            let mut node = trie.leaves[s];
            while node >= 0 {
                climbed.push(u32::try_from(trie.ids[index(node)]).unwrap());
                node = trie.parents[index(node)];
            }
            climbed.reverse();
            prop_assert_eq!(&climbed, sequence);
            let own = index(trie.starts[s])..index(trie.starts[s + 1]);
            prop_assert_eq!(own.len() + index(trie.kept[s]), sequence.len());
        }
    }

    #[test]
    fn intervals_hold_exactly_the_ancestors(sequences in alike()) {
        let (ids, offsets) = flat(&sequences);
        let trie = trie_of(&ids, &offsets, Sharing::Prefixes);
        let nodes = trie.ids.len();
        let mut ancestors: BTreeMap<usize, HashSet<usize>> = BTreeMap::new();
        for node in 0..nodes {
            let mut own = match trie.parents[node] {
                -1 => HashSet::new(),
                parent => ancestors[&index(parent)].clone(),
            };
            prop_assert_eq!(own.len(), index(trie.depths[node]));
            own.insert(node);
            ancestors.insert(node, own);
        }
        for (i, own) in &ancestors {
            let inside = (0..nodes).filter(|&j| j <= *i && *i < index(trie.ends[j]));
            prop_assert_eq!(&inside.collect::<HashSet<_>>(), own);
        }
    }
}
