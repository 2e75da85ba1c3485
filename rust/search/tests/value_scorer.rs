//! States to scores: which have one, which have none, and what is never encoded.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use ebm_cache::{Cache, Checks, EmbeddingCache, Identity, OutputLock, WriterOptions};
use ebm_encoder::{
    CachedEncoder, CachedEncoderOptions, Encoder, EncoderResult, NoEmbedding, PromptInfo, Report,
    TestEncoder,
};
use ebm_search::{HeadError, NoScore, Node, Score, Scored, ValueScorer};
use serde_json::json;
use support::{File, identity, identity_with};

const DIM: usize = 8;

fn file() -> File {
    File::new(&[DIM, 5, 1], 2)
}

fn scorer(encoder: impl Encoder + 'static) -> ValueScorer {
    let options = CachedEncoderOptions::default();
    let encoder = CachedEncoder::new(encoder, None, options).unwrap();
    ValueScorer::new(encoder, file().head()).unwrap()
}

fn fake() -> TestEncoder {
    TestEncoder::new(DIM, identity()).unwrap()
}

fn scored(score: &Score) -> Scored {
    match score {
        Score::Scored(scored) => *scored,
        other => panic!("{other:?}"),
    }
}

#[test]
fn scores_are_those_of_the_embeddings_in_the_order_of_the_nodes() {
    let encoder = Arc::new(fake());
    let scorer = scorer(Arc::clone(&encoder));
    let states = ["⊢ a", "⊢ b", "⊢ a", "⊢ c"];
    let mut nodes: Vec<Node<'_>> = states.iter().map(|state| Node::Open(state)).collect();
    nodes.insert(1, Node::Finished);
    nodes.push(Node::Finished);
    let found = scorer.score(&nodes).unwrap();
    assert_eq!(found.len(), nodes.len());
    for (node, score) in nodes.iter().zip(&found) {
        let Node::Open(state) = node else {
            assert_eq!(*score, Score::Finished);
            continue;
        };
        let right = file().energy(&encoder.row(state));
        let found = scored(score);
        assert!((f64::from(found.energy) - right).abs() < 1e-5);
        assert_eq!(found.score.to_bits(), (-found.energy).to_bits());
        assert!((f64::from(found.z) - (-right - -0.5) / 2.0).abs() < 1e-5);
    }
    assert_eq!(found[0], found[3], "equal states have equal scores");
    assert_eq!((encoder.calls(), encoder.encoded()), (1, 3), "one request, equal states once");
    let again = scorer.score_within(&nodes, Duration::from_secs(60)).unwrap();
    assert_eq!(again, found);
    assert_eq!(encoder.calls(), 1);
}

#[test]
fn a_finished_proof_is_never_encoded_and_is_the_best() {
    let encoder = Arc::new(fake());
    let scorer = scorer(Arc::clone(&encoder));
    assert_eq!(
        scorer.score(&[Node::Finished, Node::Finished]).unwrap(),
        [Score::Finished, Score::Finished]
    );
    assert_eq!(scorer.score(&[]).unwrap(), []);
    assert_eq!(encoder.calls(), 0);
    let found = scorer.score(&[Node::Open("⊢ a"), Node::Open("⊢ b"), Node::Finished]).unwrap();
    assert!(found[2] > found[0] && found[2] > found[1]);
    let (left, right) = (scored(&found[0]), scored(&found[1]));
    assert!(left.energy.to_bits() != right.energy.to_bits());
    assert_eq!(found[0] > found[1], left.energy < right.energy, "lower energy is better");
}

#[test]
fn a_state_without_an_embedding_is_unscored_and_harms_no_other() {
    let scorer = scorer(fake());
    let nodes = [
        Node::Open("⊢ bad"),
        Node::Open("⊢ a"),
        Node::Open(""),
        Node::Open("⊢ long"),
        Node::Finished,
        Node::Open("⊢ b"),
    ];
    let found = scorer.score(&nodes).unwrap();
    let reason = |score: &Score| match score {
        Score::Unscored(reason) => reason.clone(),
        other => panic!("{other:?}"),
    };
    assert!(matches!(reason(&found[0]), NoScore::NoEmbedding(NoEmbedding::Bad { .. })));
    assert_eq!(reason(&found[2]), NoScore::EmptyText);
    let long = NoScore::NoEmbedding(NoEmbedding::TooLong { tokens: 5000 });
    assert_eq!(reason(&found[3]), long);
    assert_eq!(found[4], Score::Finished);
    let encoder = fake();
    for (score, state) in [(&found[1], "⊢ a"), (&found[5], "⊢ b")] {
        let right = file().energy(&encoder.row(state));
        assert!((f64::from(scored(score).energy) - right).abs() < 1e-5);
    }
    for score in &found {
        let same = *score == found[0];
        assert_eq!(score.partial_cmp(&found[0]).is_some(), same, "no better and no worse");
    }
    let failed = scorer.score(&[Node::Open("⊢ poison"), Node::Finished]).unwrap();
    assert!(matches!(reason(&failed[0]), NoScore::NoEmbedding(NoEmbedding::Encoder(_))));
    assert_eq!(failed[1], Score::Finished);
}

/// Writes zeros, as an encoder does that forgot a state, and says that all is well.
struct Zeros(Identity);

impl Encoder for Zeros {
    fn dim(&self) -> usize {
        DIM
    }

    fn identity(&self) -> &Identity {
        &self.0
    }

    fn encode_into(&self, states: &[&str], rows: &mut [f32]) -> EncoderResult<Vec<Report>> {
        rows.fill(0.0);
        Ok(states.iter().map(|_| Ok(PromptInfo::new(1))).collect())
    }
}

#[test]
fn zero_rows_are_never_scored() {
    let zero = |score: &Score| match score {
        Score::Unscored(NoScore::NoEmbedding(NoEmbedding::Bad { reason })) => {
            assert!(reason.contains("zero"), "{reason}");
        }
        other => panic!("{other:?}"),
    };
    let nodes = [Node::Open("⊢ a"), Node::Open("⊢ b")];
    scorer(Zeros(identity())).score(&nodes).unwrap().iter().for_each(zero);

    // A cache of other software with a zero row, opened without checks, behind an encoder of no identity
    // check: rows of it are not scored either.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.parquet");
    let cache = zeroed(&path);
    let options = CachedEncoderOptions::default();
    let encoder = CachedEncoder::new(fake(), Some(cache), options).unwrap();
    let found = ValueScorer::new(encoder, file().head()).unwrap().score(&nodes).unwrap();
    zero(&found[0]);
    scored(&found[1]);
}

/// A cache whose row of `⊢ a` is zero: of our writer, with the row's bytes overwritten.
fn zeroed(path: &std::path::Path) -> Cache {
    let options = WriterOptions::default();
    let mut writer = OutputLock::acquire(path).unwrap().open(identity(), DIM, options).unwrap();
    let row = fake().row("⊢ a");
    writer.append(&["⊢ a"], &row).unwrap();
    writer.finish(json!({})).unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    let pattern: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
    let at = bytes.windows(pattern.len()).position(|window| window == pattern).unwrap();
    bytes[at..at + pattern.len()].fill(0);
    std::fs::write(path, bytes).unwrap();
    let options = ebm_cache::OpenOptions::default()
        .with_checks(Checks::Lenient)
        .with_checksums(ebm_cache::Checksums::Trust);
    EmbeddingCache::open_with(path, options).unwrap().into()
}

#[test]
fn a_head_of_a_different_encoder_is_refused_with_the_fields() {
    let made = |dtype: &str, dim: usize| {
        let encoder = TestEncoder::new(dim, identity_with(dtype)).unwrap();
        let encoder = CachedEncoder::new(encoder, None, CachedEncoderOptions::default()).unwrap();
        ValueScorer::new(encoder, file().head()).map(|_| ())
    };
    made("float32", DIM).unwrap();
    let error = made("bfloat16", DIM).unwrap_err();
    let expected = "than the encoder; different: dtype (float32 here, bfloat16 there)";
    assert!(error.to_string().contains(expected), "{error}");
    let error = made("float32", 9).unwrap_err();
    assert!(matches!(error, HeadError::Dim { dim: 9, expected: DIM, .. }), "{error}");
}

#[test]
fn a_cache_of_a_different_encoder_is_refused_though_the_encoder_serves_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.parquet");
    let options = WriterOptions::default();
    let mut writer =
        OutputLock::acquire(&path).unwrap().open(identity_with("bfloat16"), DIM, options).unwrap();
    writer.append(&["⊢ a"], &fake().row("⊢ a")).unwrap();
    writer.finish(json!({})).unwrap();
    let cache = EmbeddingCache::open(&path).unwrap().into();
    let options = CachedEncoderOptions::default().with_allow_other_identity(true);
    let encoder = CachedEncoder::new(fake(), Some(cache), options).unwrap();
    let error = ValueScorer::new(encoder, file().head()).unwrap_err();
    assert!(error.to_string().contains("c.parquet; different: dtype (float32"), "{error}");
}

#[test]
fn a_value_beyond_float32_is_no_score() {
    let mut file = file();
    file.head["score_scale"]["deviation"] = json!(1e-300);
    let encoder = CachedEncoder::new(fake(), None, CachedEncoderOptions::default()).unwrap();
    let found =
        ValueScorer::new(encoder, file.head()).unwrap().score(&[Node::Open("⊢ a")]).unwrap();
    assert_eq!(found, [Score::Unscored(NoScore::Overflow)]);
}
