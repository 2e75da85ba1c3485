//! `ebm-prover inspect`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use ebm_cache::{Checks, EmbeddingCache};

use crate::outcome::Outcome;
use crate::text::one_line;

/// States whose neighbours are shown when none is asked for.
const SHOWN: usize = 2;

/// Open a cache and print its dimension, count, encoder and some nearest neighbours.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The cache: a Parquet file, or a folder of them.
    cache: PathBuf,
    /// Print the nearest neighbours of this state (its exact text; may be given more than once).
    #[arg(long, value_name = "STATE")]
    near: Vec<String>,
    /// How many neighbours to print.
    #[arg(long, value_name = "N", default_value_t = 3)]
    neighbours: usize,
    /// Open the cache even if rows fail the checks.
    #[arg(long)]
    lenient: bool,
}

impl Inspect {
    pub(crate) fn run(&self, out: &mut impl Write) -> anyhow::Result<Outcome> {
        let checks = if self.lenient { Checks::Lenient } else { Checks::Strict };
        let cache = EmbeddingCache::open_with(&self.cache, checks)?;
        writeln!(out, "cache      {}", cache.path().display())?;
        writeln!(out, "rows       {}", cache.len())?;
        writeln!(out, "dimension  {}", cache.dim())?;
        print_identity(&cache, out)?;
        if self.near.is_empty() {
            for row in spread(cache.len()) {
                self.print_neighbours(&cache, cache.state(row), cache.row(row), out)?;
            }
        }
        for state in &self.near {
            let row = cache.get(state).ok_or_else(|| missing(&cache, state))?;
            self.print_neighbours(&cache, state, row, out)?;
        }
        Ok(Outcome::Good)
    }

    fn print_neighbours(
        &self,
        cache: &EmbeddingCache,
        state: &str,
        row: &[f32],
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        writeln!(out, "\nnearest to {}", one_line(state))?;
        // The state itself comes first, and is no neighbour.
        let near = cache.nearest(row, self.neighbours.saturating_add(1))?.into_iter();
        let others = near.filter(|neighbour| cache.state(neighbour.row) != state);
        for neighbour in others.take(self.neighbours) {
            writeln!(out, "  {:.4}  {}", neighbour.cosine, one_line(cache.state(neighbour.row)))?;
        }
        Ok(())
    }
}

fn print_identity(cache: &EmbeddingCache, out: &mut impl Write) -> anyhow::Result<()> {
    let Some(identity) = cache.identity() else {
        writeln!(out, "encoder    unknown: the file does not say which encoder made it")?;
        return Ok(());
    };
    writeln!(out, "encoder    {}", identity.digest())?;
    let fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&identity.to_json())?;
    for (name, value) in fields {
        writeln!(out, "  {name:<15}{value}")?;
    }
    Ok(())
}

/// A few rows from all over the cache.
fn spread(rows: usize) -> impl Iterator<Item = usize> {
    let shown = rows.min(SHOWN);
    (0..shown).map(move |i| i * rows / shown)
}

fn missing(cache: &EmbeddingCache, state: &str) -> anyhow::Error {
    let rows = cache.len();
    anyhow!("{}: none of its {rows} rows is of the state {state:?}", cache.path().display())
}
