//! The runs that made a cache's rows: whose provenance stands for which rows.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Runs of one file whose provenance is kept; of more, those of most rows.
const MOST: usize = 100;

/// Consecutive rows of a file that one run made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Number of these rows.
    pub rows: u64,
    /// What the run said of itself; null for several runs whose provenance is not kept, as there were
    /// more than 100 in the file.
    pub provenance: Value,
}

impl Run {
    /// A run that made so many rows.
    #[must_use]
    pub fn new(rows: u64, provenance: Value) -> Self {
        Self { rows, provenance }
    }
}

/// Drops runs without rows, puts neighbours of the same provenance together, and keeps the provenance of
/// the 100 runs of most rows.
pub(crate) fn tidy(runs: impl IntoIterator<Item = Run>) -> Vec<Run> {
    let mut runs = joined(runs);
    if runs.len() > MOST {
        let mut sizes: Vec<u64> = runs.iter().map(|run| run.rows).collect();
        sizes.sort_unstable_by(|left, right| right.cmp(left));
        let smallest = sizes[MOST - 1];
        let mut ties = sizes[..MOST].iter().filter(|rows| **rows == smallest).count();
        for run in &mut runs {
            let tie = run.rows == smallest;
            if run.rows < smallest || (tie && ties == 0) {
                run.provenance = Value::Null;
            } else if tie {
                ties -= 1;
            }
        }
        runs = joined(runs);
    }
    runs
}

fn joined(runs: impl IntoIterator<Item = Run>) -> Vec<Run> {
    let mut joined: Vec<Run> = Vec::new();
    for run in runs.into_iter().filter(|run| run.rows > 0) {
        match joined.last_mut() {
            Some(last) if last.provenance == run.provenance => last.rows += run.rows,
            _ => joined.push(run),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{MOST, Run, tidy};

    #[test]
    fn equal_neighbours_become_one_and_empty_runs_go() {
        let run = |rows, name: &str| Run::new(rows, json!(name));
        let found = tidy([run(3, "a"), run(0, "b"), run(4, "a"), run(1, "c")]);
        assert_eq!(found, [run(7, "a"), run(1, "c")]);
    }

    #[test]
    fn of_many_runs_the_largest_keep_their_provenance_and_no_row_is_uncounted() {
        let sizes = (0..1000_u64).map(|number| if number % 10 == 0 { 500 } else { number % 7 + 1 });
        let runs: Vec<Run> = (0..).zip(sizes).map(|(n, rows)| Run::new(rows, json!(n))).collect();
        let rows: u64 = runs.iter().map(|run| run.rows).sum();
        let found = tidy(runs);
        assert_eq!(found.iter().map(|run| run.rows).sum::<u64>(), rows);
        let kept: Vec<&Run> = found.iter().filter(|run| run.provenance != Value::Null).collect();
        assert_eq!(kept.len(), MOST);
        assert!(kept.iter().all(|run| run.rows == 500) && found.len() <= 2 * MOST + 1);
    }
}
