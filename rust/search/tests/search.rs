//! Best-first search: order, limits, merging, false proofs, faults, many theorems at once.

#[path = "support/tree.rs"]
mod tree;

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use ebm_search::search::{
    Cancel, Candidate, Control, Ended, Environment, Limits, Policy, PolicyError, Proposal, Query,
    Ranking, RuleScorer, Scorer, ScorerError, Scores, Search, SearchError, SearchOptions,
    SearchResult, Status, Target, Theorem, Timings,
};
use ebm_search::{NoScore, Node, Score, Scored};
use proptest::prelude::*;

use tree::{Tree, TreePolicy};

/// A proof of three steps behind a decoy that the policy prefers.
const TREE: [(&str, &str, &str); 8] = [
    ("root", "a:-0.1", "decoy"),
    ("root", "b:-2", "right"),
    ("decoy", "a:-0.1", "decoy 2"),
    ("decoy", "b:-0.1", "decoy 3"),
    ("decoy 2", "a:-0.1", "root"), // back to a known state
    ("right", "a:-1", "nearly"),
    ("right", "b:-1", "decoy"),
    ("nearly", "a:-1", "finish"),
];

fn theorem() -> Theorem {
    Theorem::named("t")
}

fn run(tree: &Tree, options: &SearchOptions) -> SearchResult {
    let policy = TreePolicy(tree.steps.clone());
    Search::new(tree, &policy, options).run(&theorem(), &Cancel::default(), &mut Timings::default())
}

fn run_scored(tree: &Tree, options: &SearchOptions, scorer: &dyn Scorer) -> SearchResult {
    let policy = TreePolicy(tree.steps.clone());
    let search = Search::new(tree, &policy, options).with_scorer(scorer);
    search.run(&theorem(), &Cancel::default(), &mut Timings::default())
}

fn order(result: &SearchResult) -> Vec<&str> {
    result.expanded.iter().map(|state| &*result.graph.states()[*state].text).collect()
}

fn tactics(result: &SearchResult) -> Vec<String> {
    let proof = result.proof.as_ref().expect("a proof");
    proof.tactics.iter().map(ToString::to_string).collect()
}

/// Scores by the state's text.
fn rule(score: impl Fn(&str) -> f32 + Send + Sync) -> impl Scorer {
    RuleScorer(move |_: &str, state: &str| Score::Scored(Scored::by_rule(score(state))))
}

fn ranked(ranking: Ranking) -> SearchOptions {
    SearchOptions::default().with_ranking(ranking)
}

/// Counts the states of each request.
struct Counting(TreePolicy, std::sync::Mutex<Vec<usize>>);
impl Policy for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }
    fn propose(&self, q: &[Query<'_>], c: &Control) -> Result<Vec<Proposal>, PolicyError> {
        self.1.lock().expect("unpoisoned").push(q.len());
        self.0.propose(q, c)
    }
}

/// Fails as a whole.
struct Dead;
impl Scorer for Dead {
    fn score(&self, _: &str, _: &[Node<'_>], _: &Control) -> Result<Scores, ScorerError> {
        Err(ScorerError::Failed("the encoder is gone".into()))
    }
}

/// Forgets its answers.
struct Short;
impl Scorer for Short {
    fn score(&self, _: &str, _: &[Node<'_>], _: &Control) -> Result<Scores, ScorerError> {
        Ok(Scores::new(vec![]))
    }
}

/// Gives log-probabilities that are none.
struct Nan;
impl Policy for Nan {
    fn name(&self) -> &'static str {
        "nan"
    }
    fn propose(&self, q: &[Query<'_>], _: &Control) -> Result<Vec<Proposal>, PolicyError> {
        Ok(q.iter().map(|_| Ok(vec![Candidate::new("a", f64::NAN)])).collect())
    }
}

#[test]
fn the_policy_leads_to_the_proof_and_states_are_merged() {
    let tree = Tree::new(&TREE);
    let result = run(&tree, &ranked(Ranking::policy(0.0)));
    assert_eq!(order(&result), ["root", "decoy", "decoy 2", "decoy 3", "right", "nearly"]);
    assert_eq!(tactics(&result), ["b:-2", "a:-1", "a:-1"]);
    assert!(matches!(result.ended, Ended::Proved));
    assert_eq!(result.proof.as_ref().map(|proof| proof.expansions), Some(6));
    assert_eq!(result.graph.states().len(), 6);
    let distance = |text: &str| result.graph.distance(result.graph.find(text).expect("known"));
    assert_eq!(distance("nearly"), Some(1));
    assert_eq!(distance("root"), Some(3));
    assert_eq!(distance("decoy 2"), Some(4), "through the root");
    assert_eq!(distance("decoy 3"), None);
}

#[test]
fn breadth_first_takes_states_as_they_are_found() {
    let tree = Tree::new(&TREE);
    let result = run(&tree, &ranked(Ranking::breadth_first()));
    assert_eq!(order(&result), ["root", "decoy", "right", "decoy 2", "decoy 3", "nearly"]);
}

#[test]
fn a_value_leads_past_the_decoys_and_its_sign_matters() {
    let tree = Tree::new(&TREE);
    let good = rule(|state| if state.contains("decoy") { -1.0 } else { 1.0 });
    let result = run_scored(&tree, &ranked(Ranking::value()), &good);
    assert_eq!(order(&result), ["root", "right", "nearly"]);
    let turned = rule(|state| if state.contains("decoy") { 1.0 } else { -1.0 });
    let result = run_scored(&tree, &ranked(Ranking::value()), &turned);
    assert_eq!(result.expansions(), 6, "a turned sign is the worst there is");
}

#[test]
fn the_mixture_is_the_weighted_sum_of_both_z_scores() {
    let tree = Tree::new(&[
        ("root", "a:-1", "one"),
        ("root", "b:-3", "two"),
        ("one", "a", "finish"),
        ("two", "a", "finish"),
    ]);
    let value = rule(|state| if state == "two" { 4.0 } else { 0.0 });
    // z(policy): -1 and -3 (depth 1); z(value): 0 and 4, of weight w: w * 4 - 3 (1 - w) against -(1 - w).
    for (weight, first) in [(0.3, "one"), (0.34, "two")] {
        let options = ranked(Ranking::policy(0.5).with_weight(weight));
        let result = run_scored(&tree, &options, &value);
        assert_eq!(order(&result)[1], first, "weight {weight}");
    }
}

#[test]
fn a_state_without_a_score_is_ranked_by_the_policy_alone_and_counted() {
    let tree = Tree::new(&TREE);
    let scorer = RuleScorer(|_: &str, state: &str| match state {
        "decoy" => Score::Unscored(NoScore::EmptyText),
        _ => Score::Scored(Scored::by_rule(if state == "right" { -5.0 } else { 1.0 })),
    });
    let result = run_scored(&tree, &ranked(Ranking::policy(0.0).with_weight(0.5)), &scorer);
    // decoy: -0.1; right: 0.5 * -5 + 0.5 * -2.
    assert_eq!(order(&result)[1], "decoy");
    assert_eq!(result.unscored, 1);
    assert_eq!(result.complaints, ["unscored: the text of an open state is empty"]);
}

#[test]
fn limits_end_a_search_and_say_which() {
    let limited =
        |limits: Limits| run(&Tree::new(&TREE), &SearchOptions::default().with_limits(limits));
    let result = limited(Limits::default().with_expansions(2));
    assert!(matches!(result.ended, Ended::Expansions) && result.expansions() == 2);
    assert!(matches!(limited(Limits::default().with_states(3)).ended, Ended::States));
    let result = limited(Limits::default().with_tactics(3));
    assert!(matches!(result.ended, Ended::Tactics) && result.tactics == 3);
    let half_tried = result.graph.statuses();
    assert!(!half_tried.contains(&Status::Exhausted), "what the limit cut is not exhausted");
    let result = limited(Limits::default().with_depth(2));
    assert!(matches!(result.ended, Ended::Depth) && result.proof.is_none());
    assert!(matches!(limited(Limits::default().with_depth(0)).ended, Ended::Depth));
    let result = limited(Limits::default().with_time(Some(Duration::from_nanos(1))));
    assert!(matches!(result.ended, Ended::Time) && result.ended.is_complete());
    let exhausted = Tree::new(&TREE[..5]);
    let result = run(&exhausted, &SearchOptions::default());
    assert!(matches!(result.ended, Ended::Exhausted));
    assert!(result.graph.statuses().iter().all(|status| *status == Status::Exhausted));
}

#[test]
fn a_false_proof_is_refused_and_the_search_goes_on() {
    let mut steps = TREE.to_vec();
    steps.push(("root", "0", "lie"));
    steps.push(("decoy", "0", "lie"));
    let result = run(&Tree::new(&steps), &ranked(Ranking::policy(0.0)));
    assert_eq!(tactics(&result), ["b:-2", "a:-1", "a:-1"]);
    assert_eq!(result.false_proofs.len(), 2);
    assert_eq!(result.false_proofs[0].reason, "uses sorry");
    let finished = |step: &ebm_search::search::Step| step.target == Target::Finished;
    let ends = result.graph.states().iter().flat_map(|state| &state.steps).filter(|s| finished(s));
    assert_eq!(ends.count(), 1, "a false proof is no end of a proof in the graph");
}

#[test]
fn recording_goes_on_after_the_proof() {
    let mut steps = TREE.to_vec();
    steps.push(("root", "0", "near"));
    steps.push(("near", "0", "finish"));
    let options = ranked(Ranking::policy(0.0)).with_record_after_proof(3);
    let result = run(&Tree::new(&steps), &options);
    assert_eq!(result.proof.as_ref().map(|proof| proof.expansions), Some(2));
    assert_eq!(result.expansions(), 5);
    assert_eq!(tactics(&result), ["0", "0"], "the first proof is the proof");
}

#[test]
fn exploration_turns_to_states_whose_siblings_wait() {
    let mut steps = vec![("root", "a:-0.1", "x"), ("root", "b:-0.4", "y")];
    steps.extend([("x", "a:-0.1", "x1"), ("x", "b:-0.1", "x2"), ("x", "c:-0.1", "x3")]);
    steps.push(("y", "a", "finish"));
    let plain = run(&Tree::new(&steps), &ranked(Ranking::policy(0.0)));
    assert_eq!(order(&plain), ["root", "x", "x1", "x2", "x3", "y"]);
    let explored = run(&Tree::new(&steps), &ranked(Ranking::policy(0.0).with_exploration(2.0)));
    // After x1, its siblings' bonus is 2 / sqrt(2), and y's too: x2 is ahead by its log-probability, and
    // after it the bonus of x3 is less than y's.
    assert_eq!(order(&explored), ["root", "x", "x1", "x2", "y"]);
}

#[test]
fn states_are_expanded_in_batches_with_one_request_each() {
    let tree = Tree::new(&TREE);
    let policy = Counting(TreePolicy(tree.steps.clone()), std::sync::Mutex::default());
    let options = SearchOptions::default().with_batch(4);
    let search = Search::new(&tree, &policy, &options);
    let result = search.run(&theorem(), &Cancel::default(), &mut Timings::default());
    assert!(result.proof.is_some());
    assert_eq!(*policy.1.lock().expect("unpoisoned"), [1, 2, 3]);
}

#[test]
fn faults_are_in_the_result_and_nothing_panics() {
    let mut tree = Tree::new(&TREE);
    tree.fails_at = Some("b:-0.1");
    let result = run(&tree, &SearchOptions::default());
    let Ended::Failed(error) = &result.ended else { panic!("ended {:?}", result.ended) };
    assert_eq!(error.to_string(), "tree: died twice");
    assert!(!result.ended.is_complete() && result.graph.states().len() > 1);

    let tree = Tree::new(&TREE);
    let policy = TreePolicy(tree.steps.clone());
    let options = SearchOptions::default();
    let unknown = Theorem::named("unknown");
    let result = Search::new(&tree, &policy, &options).run(
        &unknown,
        &Cancel::default(),
        &mut Timings::default(),
    );
    assert!(matches!(result.ended, Ended::Failed(SearchError::Environment(_))));
    assert!(result.graph.states().is_empty());

    let result = run_scored(&tree, &ranked(Ranking::value()), &Dead);
    let Ended::Failed(error) = &result.ended else { panic!("ended {:?}", result.ended) };
    assert_eq!(error.to_string(), "scorer: the encoder is gone");

    let result = run_scored(&tree, &ranked(Ranking::value()), &Short);
    assert!(matches!(result.ended, Ended::Failed(SearchError::Contract(_))));

    let result = Search::new(&tree, &Nan, &options).run(
        &theorem(),
        &Cancel::default(),
        &mut Timings::default(),
    );
    assert!(matches!(result.ended, Ended::Failed(SearchError::Contract(_))));
}

#[test]
fn a_proof_is_kept_whatever_fails_after_it() {
    let steps = [("root", "a", "finish"), ("root", "b", "way"), ("way", "c", "end")];
    let mut tree = Tree::new(&steps);
    tree.fails_at = Some("c");
    let result = run(&tree, &SearchOptions::default().with_record_after_proof(5));
    assert!(matches!(result.ended, Ended::Proved) && result.ended.is_complete());
    assert_eq!(tactics(&result), ["a"]);
    assert!(result.graph.find("way").is_some(), "what was found is kept");
    let failed = result.failed_after_proof.map(|error| error.to_string());
    assert_eq!(failed.as_deref(), Some("tree: died twice"));
}

#[test]
fn whoever_takes_results_is_told_when_none_comes() {
    let tree = Tree::new(&TREE);
    let policy = TreePolicy(tree.steps.clone());
    let options = ranked(Ranking::value());
    // The search goes on once nothing was said to have come.
    let quiet = Barrier::new(2);
    let scorer = RuleScorer(|theorem: &str, state: &str| {
        if theorem == "slow" && state == "decoy" {
            quiet.wait();
        }
        Score::Scored(Scored::by_rule(0.0))
    });
    let search = Search::new(&tree, &policy, &options).with_scorer(&scorer);
    let theorems = [Theorem::named("quick"), Theorem::named("slow")];
    let mut came = Vec::new();
    let taken = search.run_all_with_ticks(&theorems, 1, &Cancel::default(), |result| {
        if result.is_none() && came.last() == Some(&Some("quick".to_owned())) {
            quiet.wait();
        }
        came.push(result.map(|result| result.theorem));
        Ok::<(), ()>(())
    });
    assert!(taken.is_ok());
    came.dedup();
    let quick_quiet_slow = [Some("quick".to_owned()), None, Some("slow".to_owned())];
    assert_eq!(came[came.len() - 3..], quick_quiet_slow);
}

#[test]
fn a_state_without_candidates_is_counted_and_not_exhausted() {
    let steps = [("root", "a", "mute"), ("root", "b", "dead end")];
    let result = run(&Tree::new(&steps), &SearchOptions::default());
    assert_eq!(result.without_candidates, 1);
    assert_eq!(result.expansions(), 3);
    let status = |text: &str| result.graph.statuses()[result.graph.find(text).expect("known")];
    assert_eq!(status("mute"), Status::Unknown);
    assert_eq!(status("dead end"), Status::Exhausted);
    assert_eq!(status("root"), Status::Unknown);
}

#[test]
fn a_slow_encoder_holds_up_only_the_theorem_that_waits_for_it() {
    let tree = Tree::new(&TREE);
    let policy = TreePolicy(tree.steps.clone());
    let options = ranked(Ranking::value());
    // The first theorem's encoder answers only when all others have ended.
    let others_ended = Barrier::new(2);
    let scorer = |theorem: &str, state: &str| {
        if theorem == "slow" && state == "decoy" {
            others_ended.wait();
        }
        Score::Scored(Scored::by_rule(0.0))
    };
    let scorer = RuleScorer(scorer);
    let search = Search::new(&tree, &policy, &options).with_scorer(&scorer);
    let mut theorems = vec![Theorem::named("slow")];
    theorems.extend((0..50).map(|number| Theorem::named(format!("t{number}"))));
    let mut ended = Vec::new();
    search
        .run_all(&theorems, 2, &Cancel::default(), |result| {
            assert!(result.proof.is_some());
            ended.push(result.theorem);
            if ended.len() == 50 {
                others_ended.wait();
            }
            Ok::<(), ()>(())
        })
        .expect("nothing fails");
    assert_eq!(ended.len(), 51);
    assert_eq!(ended.last().map(String::as_str), Some("slow"));
}

#[test]
fn a_cancelled_run_ends_and_says_what_is_incomplete() {
    let tree = Tree::new(&TREE);
    let policy = TreePolicy(tree.steps.clone());
    let options = ranked(Ranking::value());
    let cancel = Cancel::default();
    let inner = cancel.clone();
    let scorer = RuleScorer(move |theorem: &str, _: &str| {
        if theorem == "t5" {
            inner.cancel();
        }
        Score::Scored(Scored::by_rule(0.0))
    });
    let search = Search::new(&tree, &policy, &options).with_scorer(&scorer);
    let theorems: Vec<_> = (0..100).map(|number| Theorem::named(format!("t{number}"))).collect();
    let mut results = Vec::new();
    let took: Result<_, ()> = search.run_all(&theorems, 1, &cancel, |result| {
        results.push((result.theorem, result.ended.is_complete()));
        Ok(())
    });
    assert!(took.is_ok());
    assert_eq!(results.len(), 6);
    assert_eq!(results.last(), Some(&("t5".to_owned(), false)));
    assert!(results[..5].iter().all(|(_, complete)| *complete));
}

#[test]
fn an_error_of_the_taker_stops_all_searches() {
    let tree = Tree::new(&TREE);
    let policy = TreePolicy(tree.steps.clone());
    let options = SearchOptions::default();
    let theorems: Vec<_> = (0..10_000).map(|number| Theorem::named(format!("t{number}"))).collect();
    let cancel = Cancel::default();
    let search = Search::new(&tree, &policy, &options);
    let ended = search.run_all(&theorems, 4, &cancel, |_| Err("disk full"));
    assert_eq!(ended.err(), Some("disk full"));
    assert!(cancel.is_cancelled());
    assert!(tree.applied.load(Ordering::Relaxed) < 10_000);
}

#[test]
fn environments_and_policies_are_shared_by_threads() {
    fn shared<T: Send + Sync + ?Sized>() {}
    shared::<dyn Environment>();
    shared::<dyn Policy>();
    shared::<dyn Scorer>();
    let tree = Arc::new(Tree::new(&TREE));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let tree = Arc::clone(&tree);
            thread::spawn(move || run(&tree, &SearchOptions::default()).expansions())
        })
        .collect();
    for handle in threads {
        assert_eq!(handle.join().expect("no panic"), 6);
    }
}

/// A random graph: for each state some steps to states or to the end.
fn graphs() -> impl Strategy<Value = Vec<Vec<Option<usize>>>> {
    (2..12_usize).prop_flat_map(|count| {
        let target = prop_oneof![8 => (0..count).prop_map(Some), 1 => Just(None)];
        prop::collection::vec(prop::collection::vec(target, 0..4), count)
    })
}

fn tree_of(graph: &[Vec<Option<usize>>]) -> Tree {
    let name = |state: usize| if state == 0 { "root".to_owned() } else { format!("s{state}") };
    let mut steps = tree::Steps::new();
    for (state, targets) in graph.iter().enumerate() {
        for (number, target) in targets.iter().enumerate() {
            let result = target.map_or_else(|| "finish".to_owned(), name);
            steps.insert((name(state), format!("t{number}")), result);
        }
    }
    let mut tree = Tree::new(&[]);
    tree.steps = steps;
    tree
}

proptest! {
    #[test]
    fn distances_and_statuses_are_those_of_the_graph(graph in graphs()) {
        let tree = tree_of(&graph);
        let options = ranked(Ranking::breadth_first()).with_record_after_proof(u64::MAX);
        let result = run(&tree, &options);
        prop_assert!(matches!(result.ended, Ended::Exhausted));
        // Distances by relaxing all edges until nothing changes.
        let mut distance = vec![u32::MAX; graph.len()];
        for _ in 0..graph.len() {
            for (state, targets) in graph.iter().enumerate() {
                for target in targets {
                    let through = target.map_or(0, |target| distance[target]).saturating_add(1);
                    distance[state] = distance[state].min(through);
                }
            }
        }
        let statuses = result.graph.statuses();
        for (number, state) in result.graph.states().iter().enumerate() {
            let place: usize = state.text.strip_prefix('s').map_or(0, |n| n.parse().expect("a number"));
            let expected = match distance[place] {
                u32::MAX => Status::Exhausted,
                distance => Status::Proved(distance),
            };
            prop_assert_eq!(statuses[number], expected, "{}", state.text);
        }
        // Breadth-first finds a shortest proof.
        let found = result.proof.as_ref().map(|proof| proof.tactics.len());
        prop_assert_eq!(found, (distance[0] != u32::MAX).then_some(distance[0] as usize));
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads(graph in graphs(), seed in 0..1000_u32) {
        let tree = tree_of(&graph);
        let policy = TreePolicy(tree.steps.clone());
        let options = ranked(Ranking::value());
        let scorer = RuleScorer(move |theorem: &str, state: &str| {
            let mixed = theorem.bytes().chain(state.bytes()).fold(seed, |hash, byte| {
                hash.wrapping_mul(31).wrapping_add(u32::from(byte))
            });
            Score::Scored(Scored::by_rule((mixed % 7) as f32))
        });
        let theorems: Vec<_> = (0..8).map(|n| Theorem::named(format!("t{n}"))).collect();
        let search = Search::new(&tree, &policy, &options).with_scorer(&scorer);
        let all = |threads| {
            let mut results: VecDeque<(String, Vec<usize>, Option<u64>)> = VecDeque::new();
            let taken = search.run_all(&theorems, threads, &Cancel::default(), |result| {
                let proof = result.proof.map(|proof| proof.expansions);
                results.push_back((result.theorem, result.expanded, proof));
                Ok::<(), ()>(())
            });
            assert!(taken.is_ok());
            results.make_contiguous().sort();
            results
        };
        prop_assert_eq!(all(1), all(4));
    }
}
