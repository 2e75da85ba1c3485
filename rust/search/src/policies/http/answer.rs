//! What servers answer, and the candidates in it.

use std::cmp::Ordering;
use std::collections::HashMap;

use serde::Deserialize;

use super::options::{HttpApi, HttpPolicyOptions};
use crate::search::{Candidate, NoCandidates, Proposal};

/// A log-probability above 0 by more than rounding is none.
const ROUNDING: f64 = 1e-4;

pub(super) const OTHER_ENDPOINT: &str =
    "is that a server with OpenAI's endpoints, such as vLLM or SGLang?";
const NO_LOG_PROBS: &str = "start a server that returns log-probabilities";

const NO_NUMBER: &str = "look into the server's log: its model computes no probabilities there";

/// What is wrong with an answer, and the way out.
pub(super) type Wrong = (String, &'static str);

#[derive(Deserialize)]
pub(super) struct Models {
    pub(super) data: Vec<ServedModel>,
}

#[derive(Deserialize)]
pub(super) struct ServedModel {
    pub(super) id: String,
}

#[derive(Deserialize)]
struct Answer {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    message: Option<Message>,
    logprobs: Option<LogProbs>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
}

/// `tokens` and `token_logprobs` of completions, `content` of chats.
#[derive(Deserialize)]
struct LogProbs {
    tokens: Option<Vec<String>>,
    token_logprobs: Option<Vec<Option<f64>>>,
    content: Option<Vec<ChatToken>>,
}

#[derive(Deserialize)]
struct ChatToken {
    token: String,
    logprob: Option<f64>,
}

/// A token's text and its log-probability.
type Token = (String, f64);

/// Reads JSON.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Wrong> {
    serde_json::from_slice(body).map_err(|error| {
        let start = String::from_utf8_lossy(&body[..body.len().min(200)]);
        if let Some(number) = no_number(body, &error) {
            let place = format!("line {}, column {}", error.line(), error.column());
            return (format!("{number} is no finite number ({place})"), NO_NUMBER);
        }
        let kind = if error.is_data() { "an unexpected answer" } else { "not JSON" };
        (format!("{kind} ({error}): {start:?}"), OTHER_ENDPOINT)
    })
}

/// What stands for a number at the place of an error: `NaN`, as Python writes it, or one without end.
fn no_number(body: &[u8], error: &serde_json::Error) -> Option<String> {
    let line = body.split(|byte| *byte == b'\n').nth(error.line().checked_sub(1)?)?;
    let of_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    let at = error.column().checked_sub(1)?.min(line.len());
    let start = line[..at].iter().rposition(|byte| !of_word(byte)).map_or(0, |place| place + 1);
    let word: Vec<u8> = line[start..].iter().copied().take_while(of_word).take(40).collect();
    let word = String::from_utf8(word).ok()?;
    let value: f64 = word.parse().ok()?; // Rust reads NaN and infinities, and JSON has none
    (!value.is_finite()).then_some(word)
}

/// The candidates of an answer.
pub(super) fn proposal(body: &[u8], options: &HttpPolicyOptions) -> Result<Proposal, Wrong> {
    let answer: Answer = parse(body)?;
    let (found, asked) = (answer.choices.len(), options.samples as usize);
    if found != asked {
        let reason = format!("{found} choices, and {asked} were asked for");
        return Err((reason, "does the server support `n` in a request?"));
    }
    let mut merged = Merged::default();
    let mut unfinished = 0;
    for (index, choice) in answer.choices.into_iter().enumerate() {
        let named = |(reason, hint): Wrong| (format!("choice {index}: {reason}"), hint);
        match sample(choice, options).map_err(named)? {
            Some((tactic, log_prob)) => merged.add(tactic, log_prob),
            None => unfinished += 1,
        }
    }
    let candidates = merged.candidates(options.uniform);
    if candidates.is_empty() {
        let reason = match unfinished {
            0 => "all samples are empty".to_owned(),
            _ => format!(
                "{unfinished} of {asked} samples had not ended after {} tokens, and the others are empty",
                options.max_tokens
            ),
        };
        return Ok(Err(NoCandidates(reason)));
    }
    Ok(Ok(candidates))
}

/// A choice's tactic, which may be empty, and its log-probability; nothing if it has not ended.
fn sample(choice: Choice, options: &HttpPolicyOptions) -> Result<Option<(String, f64)>, Wrong> {
    let missing = |field: &str| (format!("no {field}"), OTHER_ENDPOINT);
    let text = match options.api {
        HttpApi::Completions => choice.text.ok_or_else(|| missing("text"))?,
        HttpApi::Chat => {
            choice.message.ok_or_else(|| missing("message"))?.content.unwrap_or_default()
        }
    };
    // Servers stop there themselves, and take the stop off; one that does not is understood.
    let stop = options.stop.iter().filter_map(|stop| Some((text.find(stop)?, stop.len()))).min();
    match (choice.finish_reason.as_deref(), stop) {
        (Some("length"), None) => return Ok(None),
        (Some("stop"), _) | (Some("length"), Some(_)) => {}
        (Some(other), _) => {
            let reason = format!("finish_reason {other:?}, expected \"stop\" or \"length\"");
            return Err((reason, "look into the server's log"));
        }
        (None, _) => return Err(missing("finish_reason")),
    }
    let log_prob = if options.uniform {
        0.0
    } else {
        let tokens = tokens(choice.logprobs, options.api)?;
        sum(&text, &tokens, stop.map(|(start, length)| start + length))?
    };
    let end = stop.map_or(text.len(), |(start, _)| start);
    Ok(Some((text[..end].trim().to_owned(), log_prob)))
}

fn tokens(log_probs: Option<LogProbs>, api: HttpApi) -> Result<Vec<Token>, Wrong> {
    let missing = |field: &str| (format!("no log-probabilities ({field})"), NO_LOG_PROBS);
    let log_probs = log_probs.ok_or_else(|| missing("logprobs is null"))?;
    let pairs: Vec<(String, Option<f64>)> = match api {
        HttpApi::Completions => {
            let values = log_probs.token_logprobs.ok_or_else(|| missing("no token_logprobs"))?;
            let texts = log_probs.tokens.ok_or_else(|| missing("no tokens"))?;
            if texts.len() != values.len() {
                let reason = format!("{} tokens and {} token_logprobs", texts.len(), values.len());
                return Err((reason, NO_LOG_PROBS));
            }
            texts.into_iter().zip(values).collect()
        }
        HttpApi::Chat => {
            let content = log_probs.content.ok_or_else(|| missing("no content"))?;
            content.into_iter().map(|token| (token.token, token.logprob)).collect()
        }
    };
    if pairs.is_empty() {
        return Err(missing("of no token"));
    }
    let checked = pairs.into_iter().map(|(text, value)| match value {
        None => Err(missing("null for a token")),
        Some(value) if value.is_finite() && value <= ROUNDING => Ok((text, value.min(0.0))),
        Some(value) => {
            let reason = format!("log-probability {value} of token {text:?}, expected at most 0");
            Err((reason, NO_LOG_PROBS))
        }
    });
    checked.collect()
}

/// The sum over the tokens of a sample, or over those up to a byte of its text.
fn sum(text: &str, tokens: &[Token], end: Option<usize>) -> Result<f64, Wrong> {
    let mut left = end.map_or("", |end| &text[..end]);
    let whole = end.is_none();
    let mut total = 0.0;
    for (token, log_prob) in tokens {
        if !whole && left.is_empty() {
            break;
        }
        total += log_prob;
        let shared = token.len().min(left.len());
        let rest = left.strip_prefix(token.get(..shared).unwrap_or("\0"));
        left = match rest {
            Some(rest) => rest,
            None if whole => left,
            None => return Err(no_spelling(text)),
        };
    }
    if left.is_empty() { Ok(total) } else { Err(no_spelling(text)) }
}

fn no_spelling(text: &str) -> Wrong {
    let reason = format!(
        "the server did not stop at a stop text in {text:?}, and its tokens do not spell that text, \
         so the log-probability up to there is unknown"
    );
    (reason, "use a server that supports `stop`")
}

/// Distinct tactics in the order of their first appearance.
#[derive(Default)]
struct Merged {
    places: HashMap<String, usize>,
    tactics: Vec<(String, f64)>,
}

impl Merged {
    /// Of equal tactics the largest log-probability counts.
    fn add(&mut self, tactic: String, log_prob: f64) {
        if tactic.is_empty() {
            return;
        }
        if let Some(place) = self.places.get(&tactic) {
            let known = &mut self.tactics[*place].1;
            *known = known.max(log_prob);
            return;
        }
        self.places.insert(tactic.clone(), self.tactics.len());
        self.tactics.push((tactic, log_prob));
    }

    fn candidates(mut self, uniform: bool) -> Vec<Candidate> {
        let equal = -(self.tactics.len() as f64).ln();
        if !uniform {
            self.tactics.sort_by(|(_, a), (_, b)| b.partial_cmp(a).unwrap_or(Ordering::Equal));
        }
        let log_prob = |own| if uniform { equal } else { own };
        self.tactics
            .into_iter()
            .map(|(tactic, own)| Candidate::new(tactic, log_prob(own)))
            .collect()
    }
}
