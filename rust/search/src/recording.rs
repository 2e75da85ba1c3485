//! Recorded searches as graphs, in which a search can be replayed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hashbrown::HashMap;

use crate::columns::Columns;
use crate::recorded::TrajectoryError;
use crate::search::Target;

/// A log-probability above 0 by more than rounding is none.
const ROUNDING: f64 = 1e-4;

/// Least number of steps to the end of a proof, by the state's text.
pub type DistanceByText = std::collections::HashMap<Arc<str>, u32>;

/// A recorded tactic.
#[derive(Debug, Clone)]
pub(crate) struct RecordedStep {
    pub(crate) tactic: Arc<str>,
    /// The largest log-probability that a row gives for a step to this target.
    pub(crate) log_prob: f64,
    pub(crate) target: Target,
}

/// A recorded state.
#[derive(Debug, Default)]
pub(crate) struct RecordedState {
    pub(crate) text: Arc<str>,
    /// One step for each distinct target, in the order of the record: the one with the largest
    /// log-probability.
    pub(crate) steps: Vec<RecordedStep>,
    /// Every recorded tactic with its target.
    pub(crate) accepted: HashMap<Arc<str>, Target>,
    /// Whether the record says that it was expanded.
    pub(crate) expanded: bool,
}

/// The recorded graph of a theorem.
#[derive(Debug, Default)]
pub(crate) struct RecordedTheorem {
    pub(crate) states: Vec<RecordedState>,
    pub(crate) places: HashMap<Arc<str>, usize>,
    /// The first state that was recorded without a parent.
    pub(crate) root: Option<usize>,
}

/// What became of the rows of a record.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordingCounts {
    /// All rows.
    pub rows: u64,
    /// Rows without text that are no finished proof; skipped.
    pub empty: u64,
    /// Rows whose parent is not in the file, finished proofs without one, and rows whose parent's number
    /// stands for several texts and none before the row: there is no step to them.
    pub without_parent: u64,
    /// Steps from a state to itself; skipped.
    pub loops: u64,
    /// Steps whose tactic already led from the same state elsewhere; the first is used.
    pub ambiguous_tactics: u64,
}

/// Recorded searches, merged per theorem by the states' texts, as `ebm_encode.heads.graph` merges them.
///
/// A `state_id` counts within one file and theorem. Where several searches of a theorem stand in one
/// file, a number may have several texts; a parent is then the latest open state with its number that
/// stands before the row.
#[derive(Debug, Default)]
pub struct Recording {
    names: Vec<String>,
    theorems: HashMap<String, RecordedTheorem>,
    counts: RecordingCounts,
    without_policy: usize,
}

/// One row of a trajectory file.
struct Row {
    theorem: String,
    id: u64,
    /// `None` for a finished proof.
    state: Option<Arc<str>>,
    parent: Option<u64>,
    tactic: Arc<str>,
    log_prob: Option<f64>,
    expanded: bool,
}

impl Recording {
    /// Reads trajectory files (Parquet). The paths may be URLs.
    ///
    /// # Errors
    /// [`TrajectoryError`], with file and column, or file and row: a missing file or column, another type,
    /// a log-probability that is no finite number, is above 0, or that some steps have and others do not, or
    /// no step at all.
    pub fn read<P: AsRef<Path>>(files: &[P]) -> Result<Self, TrajectoryError> {
        let mut recording = Self::default();
        for file in files {
            let rows = read_rows(file.as_ref(), &mut recording)?;
            recording.without_policy += usize::from(!has_policy(file.as_ref(), &rows)?);
            recording.add(rows);
        }
        let mut states = recording.theorems.values().flat_map(|theorem| &theorem.states);
        if !states.any(|state| !state.steps.is_empty()) {
            let path = files.first().map(|file| file.as_ref().to_owned()).unwrap_or_default();
            let reason = "has no step from one state to another\nhint: a search is replayed from a \
                          record with the parent of each state (parent_state_id)";
            return Err(format(path, reason));
        }
        Ok(recording)
    }

    /// The names of the theorems, in the order of their first rows.
    #[must_use]
    pub fn theorems(&self) -> &[String] {
        &self.names
    }

    /// What became of the rows.
    #[must_use]
    pub fn counts(&self) -> RecordingCounts {
        self.counts
    }

    /// Whether all steps have log-probabilities.
    #[must_use]
    pub fn has_policy(&self) -> bool {
        self.without_policy == 0
    }

    /// Number of files whose steps have no log-probabilities.
    #[must_use]
    pub fn files_without_policy(&self) -> usize {
        self.without_policy
    }

    /// The root of a theorem.
    #[must_use]
    pub fn root(&self, theorem: &str) -> Option<&str> {
        let theorem = self.theorem(theorem)?;
        Some(&theorem.states[theorem.root?].text)
    }

    /// Least number of recorded steps from each state of a theorem to the end of a proof; states from which
    /// none is recorded are not in it.
    #[must_use]
    pub fn distances(&self, theorem: &str) -> DistanceByText {
        let Some(theorem) = self.theorem(theorem) else { return DistanceByText::new() };
        let mut parents: Vec<Vec<usize>> = vec![Vec::new(); theorem.states.len()];
        let mut found: Vec<Option<u32>> = vec![None; theorem.states.len()];
        let mut queue = std::collections::VecDeque::new();
        for (number, state) in theorem.states.iter().enumerate() {
            for step in &state.steps {
                match step.target {
                    Target::State(child) => parents[child].push(number),
                    Target::Finished if found[number].is_none() => {
                        found[number] = Some(1);
                        queue.push_back((number, 1));
                    }
                    Target::Finished => {}
                }
            }
        }
        while let Some((number, distance)) = queue.pop_front() {
            for &parent in &parents[number] {
                if found[parent].is_none() {
                    found[parent] = Some(distance + 1);
                    queue.push_back((parent, distance + 1));
                }
            }
        }
        let states = theorem.states.iter().zip(found);
        states.filter_map(|(state, distance)| Some((Arc::clone(&state.text), distance?))).collect()
    }

    pub(crate) fn theorem(&self, name: &str) -> Option<&RecordedTheorem> {
        self.theorems.get(name)
    }

    fn add(&mut self, rows: Vec<Row>) {
        let mut by_theorem: HashMap<String, Vec<Row>> = HashMap::new();
        let mut order = Vec::new();
        for row in rows {
            if !by_theorem.contains_key(&row.theorem) {
                order.push(row.theorem.clone());
            }
            by_theorem.entry(row.theorem.clone()).or_default().push(row);
        }
        for name in order {
            if !self.theorems.contains_key(&name) {
                self.names.push(name.clone());
            }
            let rows = by_theorem.remove(&name).unwrap_or_default();
            self.theorems.entry(name).or_default().add(&rows, &mut self.counts);
        }
    }
}

impl RecordedTheorem {
    fn add(&mut self, rows: &[Row], counts: &mut RecordingCounts) {
        let mut places: HashMap<u64, Vec<(usize, usize)>> = HashMap::new();
        for (number, row) in rows.iter().enumerate() {
            if let Some(text) = &row.state {
                let state = self.number(text);
                self.states[state].expanded |= row.expanded;
                places.entry(row.id).or_default().push((number, state));
            }
        }
        for (number, row) in rows.iter().enumerate() {
            let child = row.state.as_ref().map(|text| self.places[text]);
            let Some(parent) = row.parent else {
                match child {
                    Some(child) => self.root = self.root.or(Some(child)),
                    None => counts.without_parent += 1,
                }
                continue;
            };
            let known = places.get(&parent);
            match known.and_then(|known| parent_of(known, number)) {
                None => counts.without_parent += 1,
                Some(parent) if Some(parent) == child => counts.loops += 1,
                Some(parent) => {
                    let target = child.map_or(Target::Finished, Target::State);
                    self.connect(parent, target, row, counts);
                }
            }
        }
    }

    fn number(&mut self, text: &Arc<str>) -> usize {
        if let Some(place) = self.places.get(text) {
            return *place;
        }
        self.places.insert(Arc::clone(text), self.states.len());
        self.states.push(RecordedState { text: Arc::clone(text), ..RecordedState::default() });
        self.states.len() - 1
    }

    fn connect(&mut self, parent: usize, target: Target, row: &Row, counts: &mut RecordingCounts) {
        let state = &mut self.states[parent];
        state.expanded = true;
        let accepted = state.accepted.entry(Arc::clone(&row.tactic)).or_insert(target);
        counts.ambiguous_tactics += u64::from(*accepted != target);
        let log_prob = row.log_prob.unwrap_or(0.0);
        let tactic = Arc::clone(&row.tactic);
        match state.steps.iter_mut().find(|step| step.target == target) {
            Some(step) if log_prob > step.log_prob => {
                (step.tactic, step.log_prob) = (tactic, log_prob);
            }
            Some(_) => {}
            None => state.steps.push(RecordedStep { tactic, log_prob, target }),
        }
    }
}

/// The state that a row means by a number: the one with it, or the latest before the row.
fn parent_of(known: &[(usize, usize)], row: usize) -> Option<usize> {
    let (_, first) = known.first()?;
    if known.iter().all(|(_, state)| state == first) {
        return Some(*first);
    }
    known.iter().rev().find(|(place, _)| *place < row).map(|(_, state)| *state)
}

fn read_rows(path: &Path, recording: &mut Recording) -> Result<Vec<Row>, TrajectoryError> {
    let file = Columns::open(path)?;
    let theorems = file.texts("theorem_name")?;
    let count = theorems.len();
    let (ids, states) = (file.numbers("state_id")?, file.texts("state_pp")?);
    let parents = file.numbers("parent_state_id")?;
    let tactics = optional(&file, "tactic_applied", count, Columns::texts)?;
    let log_probs = optional(&file, "llm_log_prob", count, Columns::reals)?;
    let finished = optional(&file, "is_proof_complete", count, Columns::flags)?;
    let visits = optional(&file, "visits", count, Columns::counts)?;
    let lengths = [
        ids.len(),
        states.len(),
        parents.len(),
        tactics.len(),
        log_probs.len(),
        finished.len(),
        visits.len(),
    ];
    if lengths.iter().any(|length| *length != count) {
        return Err(format(path.to_owned(), "damaged: its columns are not of one length"));
    }
    let mut texts: HashMap<String, Arc<str>> = HashMap::new();
    let mut share = |text: String| -> Arc<str> {
        Arc::clone(texts.entry(text).or_insert_with_key(|text| Arc::from(text.as_str())))
    };
    recording.counts.rows += count as u64;
    let mut rows = Vec::with_capacity(count);
    let values = theorems.into_iter().zip(states).zip(tactics);
    for (row, ((theorem, state), tactic)) in values.enumerate() {
        let wrong = |what: &str| format(path.to_owned(), &format!("row {row}: {what}"));
        let theorem = theorem.ok_or_else(|| wrong("theorem_name is null"))?;
        let id = ids[row].ok_or_else(|| wrong("state_id is null"))?;
        if let Some(value) = log_probs[row].filter(|value| !value.is_finite()) {
            return Err(wrong(&format!("llm_log_prob is {value}, expected a finite number")));
        }
        if let Some(value) = log_probs[row].filter(|value| *value > ROUNDING) {
            return Err(wrong(&format!(
                "llm_log_prob is {value}, expected at most 0\nhint: it is the natural logarithm of a \
                 probability, not a probability or a score"
            )));
        }
        let finished = finished[row].unwrap_or(false);
        let state = state.filter(|text| !text.is_empty() && !finished);
        if state.is_none() && !finished {
            recording.counts.empty += 1;
            continue;
        }
        rows.push(Row {
            theorem,
            id,
            state: state.map(&mut share),
            parent: parents[row],
            tactic: share(tactic.unwrap_or_default()),
            log_prob: log_probs[row].map(|value| value.min(0.0)),
            expanded: visits[row].is_some_and(|visits| visits > 0),
        });
    }
    Ok(rows)
}

/// The values of a column that a file may lack.
fn optional<T: Clone>(
    file: &Columns,
    name: &str,
    count: usize,
    read: impl Fn(&Columns, &str) -> ebm_cache::CacheResult<Vec<Option<T>>>,
) -> ebm_cache::CacheResult<Vec<Option<T>>> {
    if file.has(name) { read(file, name) } else { Ok(vec![None; count]) }
}

/// Whether the steps of a file have log-probabilities.
fn has_policy(path: &Path, rows: &[Row]) -> Result<bool, TrajectoryError> {
    let steps = rows.iter().filter(|row| row.parent.is_some());
    let (all, without) = steps.fold((0, 0), |(all, without), row| {
        (all + 1, without + usize::from(row.log_prob.is_none()))
    });
    if 0 < without && without < all {
        let reason = format!(
            "llm_log_prob is null in {without} of {all} steps\nhint: give all steps one, or drop the \
             column; a missing one is not probability 1"
        );
        return Err(format(path.to_owned(), &reason));
    }
    Ok(without == 0)
}

fn format(path: PathBuf, reason: &str) -> TrajectoryError {
    TrajectoryError::Format { path, reason: reason.to_owned() }
}
