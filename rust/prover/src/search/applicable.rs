//! Which option goes with which: one that would change nothing is refused, before anything is loaded.

use anyhow::bail;

use super::Search;
use super::environments::Kind as Place;
use super::policies::Kind as Proposer;
use super::ranking::Order;

/// Options, and whether they mean something in this search.
struct Rule {
    options: &'static [&'static str],
    apply: bool,
    /// What they are for.
    purpose: &'static str,
    hint: &'static str,
}

const fn rule(
    options: &'static [&'static str],
    apply: bool,
    purpose: &'static str,
    hint: &'static str,
) -> Rule {
    Rule { options, apply, purpose, hint }
}

/// Refuses options that mean nothing with the others.
pub(super) fn check(search: &Search) -> anyhow::Result<()> {
    let rules = [environment(search), policy(search), ranking(search), scores(search)];
    for Rule { options, apply, purpose, hint } in rules.into_iter().flatten() {
        let given: Vec<&str> =
            options.iter().copied().filter(|option| search.given.has(option)).collect();
        if !apply && !given.is_empty() {
            bail!("{}: {purpose}\nhint: {hint}", given.join(", "));
        }
    }
    let order = search.ranking.order(search.scorer.head.is_some());
    if order == Order::Oracle && search.is_live() {
        bail!(
            "--ranking oracle: knows the way from a record, and a Lean reaches states that are in \
             none\nhint: leave --theorems and --environment out"
        );
    }
    Ok(())
}

fn environment(search: &Search) -> Vec<Rule> {
    let place = search.environment.kind(search.theorems.is_some());
    let recorded = search.policy.kind(search.is_live()) == Proposer::Recorded;
    let reads_record = place == Place::Replay || recorded || search.theorems.is_none();
    vec![
        rule(
            &["--lean", "--lean-header"],
            place == Place::Lean,
            "is of another environment",
            "give --environment lean",
        ),
        rule(
            &["--pantograph", "--pantograph-folder"],
            place == Place::Pantograph,
            "is of another environment",
            "give --environment pantograph",
        ),
        rule(
            &["--workers", "--tactic-timeout", "--start-timeout"],
            place != Place::Replay,
            "a replay looks tactics up, and starts no process",
            "leave it out, or give --environment lean",
        ),
        rule(
            &["--trajectories"],
            reads_record,
            "nothing reads the record: the theorems are those of --theorems, and Lean applies tactics",
            "give --policy recorded, or leave one of the two out",
        ),
    ]
}

fn policy(search: &Search) -> Vec<Rule> {
    let kind = search.policy.kind(search.is_live());
    let is_model = matches!(kind, Proposer::Hf | Proposer::Http);
    let beam = search.policy.beam;
    vec![
        rule(
            &["--tactics"],
            kind == Proposer::Uniform,
            "is of the uniform policy",
            "give --policy uniform",
        ),
        rule(&["--policy-model"], kind == Proposer::Hf, "is of the hf policy", "give --policy hf"),
        rule(
            &[
                "--policy-url",
                "--policy-server-model",
                "--policy-api",
                "--policy-api-key",
                "--policy-timeout",
            ],
            kind == Proposer::Http,
            "is of the http policy",
            "give --policy http",
        ),
        rule(
            &["--policy-template", "--candidates", "--temperature", "--max-tactic-tokens"],
            is_model,
            "is of a language model",
            "give --policy hf or http",
        ),
        rule(
            &["--beam"],
            kind == Proposer::Hf,
            "is of the hf policy; servers give samples",
            "give --policy hf, or leave it out",
        ),
        rule(
            &["--temperature"],
            !beam,
            "is of samples, and --beam draws none",
            "leave one of the two out",
        ),
    ]
}

fn ranking(search: &Search) -> Vec<Rule> {
    let order = search.ranking.order(search.scorer.head.is_some());
    vec![
        rule(
            &["--weight"],
            order == Order::Mixture,
            "is of the mixture",
            "give --ranking mixture, and --head",
        ),
        rule(
            &["--depth-exponent"],
            matches!(order, Order::Policy | Order::Mixture),
            "is of rankings by the policy",
            "give --ranking policy or mixture",
        ),
        rule(
            &["--exploration"],
            order != Order::BreadthFirst,
            "would change the order, which is then no longer breadth-first",
            "give another --ranking, or leave it out",
        ),
        rule(
            &["--head"],
            matches!(order, Order::Head | Order::Mixture),
            "this --ranking does not use it",
            "give --ranking head or mixture",
        ),
    ]
}

fn scores(search: &Search) -> Vec<Rule> {
    let scorer = &search.scorer;
    let backend = &search.model.backend;
    let head = scorer.head.is_some();
    let encodes = head && (scorer.model_path.is_some() || backend.is_remote());
    let encoder_here = encodes && !backend.is_remote();
    let hf = search.policy.uses_model();
    let replay = !search.is_live();
    vec![
        rule(&["--cache", "--state-format"], head, "serves a head", "give --head HEAD.safetensors"),
        rule(
            &["--model-path"],
            head || (hf && !search.given.has("--policy-model")),
            "serves a head",
            "give --head HEAD.safetensors",
        ),
        rule(
            &["--append-to", "--memory"],
            encodes,
            "there are no new embeddings",
            "give --head, and --model-path or --server",
        ),
        rule(
            &["--states-in"],
            head && replay,
            "is for a head and the states of a record; it is known what Lean prints",
            "leave it out",
        ),
        rule(
            &[
                "--dtype",
                "--device",
                "--torch-threads",
                "--revision",
                "--trust-remote-code",
                "--code-revision",
                "--adapter",
            ],
            hf || encoder_here,
            "is of a model in this process, and none is loaded",
            "give --model-path and --head, or --policy hf",
        ),
        rule(
            &["--adapter"],
            !search.policy.has_another_model(scorer.model_path.as_deref()),
            "belongs to one model, and --policy-model is another than --model-path",
            "merge it into its model, save that, and give its folder",
        ),
        rule(
            &[
                "--template",
                "--pooling",
                "--layer",
                "--max-length",
                "--overlong",
                "--max-batch-tokens",
                "--batch-size",
                "--engine",
            ],
            encoder_here,
            "is of the encoder, and none is loaded",
            "give --model-path and --head, or leave it out",
        ),
    ]
}
