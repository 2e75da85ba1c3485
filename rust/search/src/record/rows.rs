//! The rows of a trajectory file, from the graph of a search.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::builder::{
    BooleanBuilder, Float64Builder, Int32Builder, StringBuilder, UInt32Builder, UInt64Builder,
};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};

use crate::scorer::Score;
use crate::search::{GraphState, SearchResult, Status, Target};

/// What the column `ebm_score` holds, as files say it.
pub(super) const SCORE: &str = "score = -energy: higher is better; NaN: not scored";

/// The 14 columns of a trajectory file, with the types that the prover of the origin reads by name.
#[must_use]
pub fn trajectory_schema() -> SchemaRef {
    let field = |name: &str, kind: DataType| Field::new(name, kind, name == "parent_state_id");
    let score = field("ebm_score", DataType::Float64);
    Arc::new(Schema::new(vec![
        field("theorem_name", DataType::Utf8),
        field("state_id", DataType::UInt64),
        field("state_pp", DataType::Utf8),
        field("tactic_applied", DataType::Utf8),
        field("parent_state_id", DataType::UInt64),
        field("label", DataType::Utf8),
        field("depth_from_root", DataType::UInt32),
        field("remaining_depth", DataType::Int32),
        field("llm_log_prob", DataType::Float64),
        score.with_metadata(HashMap::from([("meaning".to_owned(), SCORE.to_owned())])),
        field("is_proof_complete", DataType::Boolean),
        field("timestamp_ms", DataType::UInt64),
        field("q_value", DataType::Float64),
        field("visits", DataType::UInt32),
    ]))
}

#[derive(Default)]
struct Columns {
    theorem: StringBuilder,
    id: UInt64Builder,
    text: StringBuilder,
    tactic: StringBuilder,
    parent: UInt64Builder,
    label: StringBuilder,
    depth: UInt32Builder,
    remaining: Int32Builder,
    log_prob: Float64Builder,
    score: Float64Builder,
    finished: BooleanBuilder,
    timestamp: UInt64Builder,
    q_value: Float64Builder,
    visits: UInt32Builder,
}

/// How a state was reached.
struct Reached<'a> {
    parent: Option<usize>,
    tactic: &'a str,
    log_prob: f64,
    depth: u32,
    found_ms: u64,
}

/// One row for the root and one for each accepted tactic, in the order of the expansions. The number of a
/// state is its number in the graph, and finished proofs are numbered after all states.
///
/// - `label`: `positive` for states from which a proof is known over the graph, and finished proofs;
///   `negative` where everything that can be reached was expanded; else `unknown`.
/// - `remaining_depth`: least number of steps to the end of a proof; -1 where none is known.
/// - `llm_log_prob`: of this step. `visits`: 1 for expanded states. `q_value`: 1 for expanded states from
///   which a proof is known, else 0.
pub(super) fn rows_of(search: &SearchResult) -> Result<RecordBatch, ArrowError> {
    let graph = &search.graph;
    let (states, statuses) = (graph.states(), graph.statuses());
    let mut columns = Columns::default();
    if let Some(root) = states.first() {
        let reached =
            Reached { parent: None, tactic: "", log_prob: 0.0, depth: 0, found_ms: root.found_ms };
        columns.open_state(&search.theorem, 0, root, statuses[0], &reached);
    }
    let mut finished = states.len();
    for &parent in &search.expanded {
        for step in &states[parent].steps {
            let reached = Reached {
                parent: Some(parent),
                tactic: &step.tactic,
                log_prob: step.log_prob,
                depth: states[parent].depth + 1,
                found_ms: step.found_ms,
            };
            match step.target {
                Target::State(child) => {
                    let state = &states[child];
                    columns.open_state(&search.theorem, child, state, statuses[child], &reached);
                }
                Target::Finished => {
                    columns.finished_proof(&search.theorem, finished, &reached);
                    finished += 1;
                }
            }
        }
    }
    columns.into_batch()
}

impl Columns {
    fn open_state(
        &mut self,
        theorem: &str,
        number: usize,
        state: &GraphState,
        status: Status,
        reached: &Reached<'_>,
    ) {
        let (label, remaining) = match status {
            Status::Proved(distance) => ("positive", i32::try_from(distance).unwrap_or(i32::MAX)),
            Status::Exhausted => ("negative", -1),
            Status::Unknown => ("unknown", -1),
        };
        let score = match &state.score {
            Some(Score::Scored(scored)) => f64::from(scored.score),
            _ => f64::NAN,
        };
        self.text.append_value(&state.text);
        self.label.append_value(label);
        self.remaining.append_value(remaining);
        self.score.append_value(score);
        self.finished.append_value(false);
        self.visits.append_value(u32::from(state.expanded));
        let proved = state.expanded && matches!(status, Status::Proved(_));
        self.q_value.append_value(f64::from(u8::from(proved)));
        self.common(theorem, number, reached);
    }

    fn finished_proof(&mut self, theorem: &str, number: usize, reached: &Reached<'_>) {
        self.text.append_value("");
        self.label.append_value("positive");
        self.remaining.append_value(0);
        self.score.append_value(f64::NAN);
        self.finished.append_value(true);
        self.visits.append_value(0);
        self.q_value.append_value(0.0);
        self.common(theorem, number, reached);
    }

    fn common(&mut self, theorem: &str, number: usize, reached: &Reached<'_>) {
        self.theorem.append_value(theorem);
        self.id.append_value(number as u64);
        self.tactic.append_value(reached.tactic);
        self.parent.append_option(reached.parent.map(|parent| parent as u64));
        self.depth.append_value(reached.depth);
        self.log_prob.append_value(reached.log_prob);
        self.timestamp.append_value(reached.found_ms);
    }

    fn into_batch(mut self) -> Result<RecordBatch, ArrowError> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.theorem.finish()),
            Arc::new(self.id.finish()),
            Arc::new(self.text.finish()),
            Arc::new(self.tactic.finish()),
            Arc::new(self.parent.finish()),
            Arc::new(self.label.finish()),
            Arc::new(self.depth.finish()),
            Arc::new(self.remaining.finish()),
            Arc::new(self.log_prob.finish()),
            Arc::new(self.score.finish()),
            Arc::new(self.finished.finish()),
            Arc::new(self.timestamp.finish()),
            Arc::new(self.q_value.finish()),
            Arc::new(self.visits.finish()),
        ];
        RecordBatch::try_new(trajectory_schema(), columns)
    }
}
