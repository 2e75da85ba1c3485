//! Which open state is expanded next: options.

use anyhow::bail;
use clap::{Args, ValueEnum};
use ebm_search::EnergyHead;
use ebm_search::search::Ranking;

/// How open states are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Order {
    /// In the order in which they were found.
    BreadthFirst,
    /// By the policy alone.
    Policy,
    /// By the head alone.
    Head,
    /// By policy and head, mixed.
    Mixture,
    /// The shortest text first.
    Shortest,
    /// At random.
    Random,
    /// By the recorded distance to the proof: the bound that no ranking can beat. In a replay only.
    Oracle,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Ranking")]
pub(super) struct RankingArguments {
    /// Which open state is expanded next; by default the mixture with a head, else the policy.
    #[arg(long, value_name = "ORDER")]
    ranking: Option<Order>,
    /// Weight of the head in the mixture, 0 to 1; by default the head file's.
    #[arg(long, value_name = "W", allow_negative_numbers = true)]
    weight: Option<f64>,
    /// The policy's value is the cumulative log-probability divided by depth to this power; by default the
    /// head file's, else 0.5.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    depth_exponent: Option<f64>,
    /// Bonus for states whose siblings were not expanded: divided by sqrt(1 + expanded siblings).
    #[arg(long, value_name = "C", default_value_t = 0.0, allow_negative_numbers = true)]
    exploration: f64,
}

impl RankingArguments {
    pub(super) fn order(&self, has_head: bool) -> Order {
        self.ranking.unwrap_or(if has_head { Order::Mixture } else { Order::Policy })
    }

    pub(super) fn ranking(
        &self,
        head: Option<&EnergyHead>,
        by_rule: bool,
    ) -> anyhow::Result<Ranking> {
        if let Some(weight) = self.weight.filter(|weight| !(0.0..=1.0).contains(weight)) {
            bail!("--weight: is {weight}, expected 0 to 1");
        }
        for (option, value) in
            [("--depth-exponent", self.depth_exponent), ("--exploration", Some(self.exploration))]
        {
            if let Some(value) = value.filter(|value| !value.is_finite() || *value < 0.0) {
                bail!("{option}: is {value}, expected 0 or more");
            }
        }
        let order = self.order(head.is_some());
        if head.is_none() && matches!(order, Order::Head | Order::Mixture) {
            bail!("--ranking: needs a head\nhint: give --head HEAD.safetensors");
        }
        if order != Order::Mixture && self.weight.is_some() {
            bail!("--weight: is of the mixture\nhint: give --ranking mixture, and --head");
        }
        let exponent = self.depth_exponent.unwrap_or(0.5);
        let ranking = match (order, head) {
            (Order::BreadthFirst, _) => Ranking::breadth_first(),
            (Order::Mixture, Some(head)) => self.mixture(head)?,
            (Order::Head, Some(head)) => Ranking::value().with_value_scale(head.score_scale()),
            _ if by_rule => Ranking::value(),
            _ => Ranking::policy(exponent),
        };
        Ok(ranking.with_exploration(self.exploration))
    }

    fn mixture(&self, head: &EnergyHead) -> anyhow::Result<Ranking> {
        let Some(mixing) = head.mixing() else {
            bail!(
                "{}: has no mixture with a policy\nhint: train the head with recorded \
                 log-probabilities, or give --ranking head",
                head.path().display()
            );
        };
        let mut ranking = Ranking::mixture(mixing, head.score_scale());
        if let Some(weight) = self.weight {
            ranking = ranking.with_weight(weight);
        }
        if let Some(exponent) = self.depth_exponent {
            if (exponent - mixing.depth_exponent).abs() > f64::EPSILON {
                bail!(
                    "--depth-exponent: the head's scale of the policy was measured with {}\nhint: leave \
                     the option away",
                    mixing.depth_exponent
                );
            }
            ranking = ranking.with_depth_exponent(exponent);
        }
        Ok(ranking)
    }
}
