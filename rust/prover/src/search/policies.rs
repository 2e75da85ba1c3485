//! What proposes tactics: options.

use std::sync::Arc;

use anyhow::Context;
use clap::{Args, ValueEnum};
use ebm_search::Recording;
use ebm_search::policies::{RecordedPolicy, TacticList, UniformPolicy};
use ebm_search::search::Policy;
use serde_json::{Value, json};

use super::Search;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// What --trajectories recorded, with its log-probabilities.
    Recorded,
    /// All candidates alike: the recorded ones, or those of a list of tactics.
    Uniform,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Policy")]
pub(super) struct PolicyArguments {
    /// What proposes tactics; by default what --trajectories recorded, else a list of tactics.
    #[arg(long, value_name = "KIND")]
    policy: Option<Kind>,
}

impl PolicyArguments {
    fn kind(&self, recorded: bool) -> Kind {
        self.policy.unwrap_or(if recorded { Kind::Recorded } else { Kind::Uniform })
    }

    /// Whether the policy asks a model or a list, which should have candidates for every state.
    pub(super) fn is_live(&self) -> bool {
        false
    }

    /// Whether --model-path is the policy's, too.
    pub(super) fn uses_model(&self) -> bool {
        false
    }

    pub(super) fn open(
        &self,
        search: &Search,
        recording: Option<&Arc<Recording>>,
    ) -> anyhow::Result<(Box<dyn Policy>, Value)> {
        let _ = search;
        Ok(match (self.kind(recording.is_some()), recording) {
            (Kind::Recorded, recording) => {
                let recording = recording.context("--policy recorded: needs --trajectories")?;
                (Box::new(RecordedPolicy::new(Arc::clone(recording))), json!("recorded"))
            }
            (Kind::Uniform, Some(recording)) => {
                let recorded = RecordedPolicy::new(Arc::clone(recording));
                (Box::new(UniformPolicy::new(recorded)), json!("uniform over the record"))
            }
            (Kind::Uniform, None) => (Box::new(TacticList::default()), json!("uniform")),
        })
    }
}
