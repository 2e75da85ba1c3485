//! Answers with embeddings: an Arrow stream, checked, to rows and reports.

use std::borrow::Cow;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::{
    Array, BooleanArray, FixedSizeListArray, Float32Array, RecordBatch, StringArray, UInt32Array,
    UInt64Array,
};
use arrow_buffer::Buffer;
use arrow_ipc::reader::StreamDecoder;
use arrow_schema::{ArrowError, Schema};
use ebm_cache::check_rows;

use crate::{NoEmbedding, PromptInfo, Report, TokenDigest};

const IDENTITY_KEY: &str = "ebm-encode.identity";
const DIM_KEY: &str = "ebm-encode.dim";
/// What ends a stream. Without it the answer may have been cut.
const END: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// Why an answer is not used.
#[derive(Debug)]
pub(super) enum Wrong {
    /// It is not what was asked for.
    Answer(String),
    /// It says to be of the encoder with this digest.
    OtherEncoder(String),
}

impl From<ArrowError> for Wrong {
    fn from(error: ArrowError) -> Self {
        Self::Answer(format!("no Arrow stream: {error}"))
    }
}

/// Writes the embeddings of an answer into `rows`, and NaN where there is none.
///
/// `states` are the texts that were asked for, in any form in which equal ones are equal. The decoder
/// is sound on any bytes but not free of panics; a panic becomes an error.
pub(super) fn read(
    body: Vec<u8>,
    digest: &str,
    dim: usize,
    states: &[String],
    rows: &mut [f32],
) -> Result<Vec<Report>, Wrong> {
    let decoded = catch_unwind(AssertUnwindSafe(|| decode(body, digest, dim, rows)));
    let gave_up = || Err(Wrong::Answer("no Arrow stream: the decoder gave up".into()));
    let reports = decoded.unwrap_or_else(|_| gave_up())?;
    check(states, &reports, rows, dim)?;
    Ok(reports)
}

/// Refuses zero vectors, and equal ones of states whose tokens differ.
///
/// States from the server's cache have no digest: each may have the tokens of any other state.
fn check(states: &[String], reports: &[Report], rows: &[f32], dim: usize) -> Result<(), Wrong> {
    let mut numbers = HashMap::new();
    let mut classes: Vec<Vec<(usize, [u32; 1])>> = vec![Vec::new(), Vec::new()];
    for (index, report) in reports.iter().enumerate() {
        let Ok(prompt) = report else { continue };
        let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        let number = *numbers.entry(prompt.digest).or_insert(next);
        classes[usize::from(prompt.digest.is_some())].push((index, [number]));
    }
    for own in classes {
        let names: Vec<&str> = own.iter().map(|(index, _)| states[*index].as_str()).collect();
        let tokens: Vec<&[u32]> = own.iter().map(|(_, number)| number.as_slice()).collect();
        let values: Cow<'_, [f32]> = if own.len() == reports.len() {
            rows.into()
        } else {
            own.iter().flat_map(|(index, _)| &rows[index * dim..][..dim]).copied().collect()
        };
        for ((index, _), verdict) in own.iter().zip(check_rows(&names, &tokens, &values, dim)) {
            verdict.map_err(|bad| Wrong::Answer(format!("row {index}: {bad}")))?;
        }
    }
    Ok(())
}

fn decode(body: Vec<u8>, digest: &str, dim: usize, rows: &mut [f32]) -> Result<Vec<Report>, Wrong> {
    if !body.ends_with(&END) {
        return Err(Wrong::Answer("an Arrow stream without its end".to_owned()));
    }
    let count = rows.len() / dim;
    let mut buffer = Buffer::from_vec(body);
    let mut decoder = StreamDecoder::new();
    let mut reports = Vec::with_capacity(count);
    let mut known = false;
    while !buffer.is_empty() {
        let batch = decoder.decode(&mut buffer)?;
        if let (false, Some(schema)) = (known, decoder.schema()) {
            check_schema(&schema, digest, dim)?;
            known = true;
        }
        let Some(batch) = batch else { continue };
        let first = reports.len();
        if batch.num_rows() > count - first {
            return Err(miscounted(first + batch.num_rows(), count));
        }
        let rows = &mut rows[first * dim..][..batch.num_rows() * dim];
        Columns::of(&batch, dim)?.copy(rows, &mut reports)?;
    }
    decoder.finish()?;
    if reports.len() == count { Ok(reports) } else { Err(miscounted(reports.len(), count)) }
}

fn miscounted(found: usize, count: usize) -> Wrong {
    Wrong::Answer(format!("{found} rows, and {count} were asked for"))
}

fn check_schema(schema: &Schema, digest: &str, dim: usize) -> Result<(), Wrong> {
    let value = |key: &str| {
        let found = schema.metadata().get(key);
        found.ok_or_else(|| Wrong::Answer(format!("a schema without {key:?}")))
    };
    let found = value(IDENTITY_KEY)?;
    if found != digest {
        return Err(Wrong::OtherEncoder(found.clone()));
    }
    let found = value(DIM_KEY)?;
    if found.parse() == Ok(dim) {
        return Ok(());
    }
    Err(Wrong::Answer(format!("embeddings of {found} values, expected {dim}")))
}

/// The columns of a batch, of the types that they must have.
struct Columns<'a> {
    dim: usize,
    status: &'a StringArray,
    tokens: &'a UInt32Array,
    truncated: &'a BooleanArray,
    digest: &'a UInt64Array,
    reason: &'a StringArray,
    embedding: &'a FixedSizeListArray,
    values: &'a Float32Array,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch, dim: usize) -> Result<Self, Wrong> {
        let embedding: &FixedSizeListArray = column(batch, "embedding")?;
        if usize::try_from(embedding.value_length()) != Ok(dim) {
            let found = embedding.value_length();
            return Err(Wrong::Answer(format!("embeddings of {found} values, expected {dim}")));
        }
        let values = embedding.values().as_any().downcast_ref();
        let values = values.ok_or_else(|| {
            let found = embedding.value_type();
            Wrong::Answer(format!("embeddings of {found}, expected Float32"))
        })?;
        Ok(Self {
            dim,
            status: filled(batch, "status")?,
            tokens: filled(batch, "tokens")?,
            truncated: filled(batch, "truncated")?,
            digest: column(batch, "token_digest")?,
            reason: column(batch, "reason")?,
            embedding,
            values,
        })
    }

    fn copy(&self, rows: &mut [f32], reports: &mut Vec<Report>) -> Result<(), Wrong> {
        for (index, row) in rows.chunks_exact_mut(self.dim).enumerate() {
            let place = reports.len();
            let wrong = |reason: String| Wrong::Answer(format!("row {place}: {reason}"));
            let ok = self.status.value(index) == "ok";
            if ok != self.embedding.is_valid(index) {
                let status = self.status.value(index).chars().take(40).collect::<String>();
                let with = if ok { "without" } else { "with" };
                return Err(wrong(format!("status {status:?} {with} an embedding")));
            }
            if ok {
                row.copy_from_slice(self.values_of(index).map_err(wrong)?);
            } else {
                row.fill(f32::NAN);
            }
            reports.push(self.report(index));
        }
        Ok(())
    }

    /// The values of an embedding: all there, and all finite.
    fn values_of(&self, index: usize) -> Result<&[f32], String> {
        let start = self.embedding.value_offset_at(index);
        let nulls = self.values.nulls().map_or(0, |all| all.slice(start, self.dim).null_count());
        let values = self.values.values().get(start..start + self.dim);
        let values = values.filter(|_| nulls == 0).ok_or("an embedding with gaps")?;
        if values.iter().all(|value| value.is_finite()) {
            return Ok(values);
        }
        Err("status \"ok\" with values that are not finite".to_owned())
    }

    fn report(&self, index: usize) -> Report {
        let tokens = self.tokens.value(index) as usize;
        let reason = if self.reason.is_valid(index) { self.reason.value(index) } else { "" };
        let status = self.status.value(index);
        let reason = || if reason.is_empty() { status.to_owned() } else { reason.to_owned() };
        match status {
            "ok" => {
                let digest = self.digest.is_valid(index).then(|| self.digest.value(index));
                let prompt = PromptInfo::new(tokens).with_truncated(self.truncated.value(index));
                Ok(prompt.with_digest(digest.map(TokenDigest::new)))
            }
            "bad" => Err(NoEmbedding::Bad { reason: reason() }),
            "overlong" => Err(NoEmbedding::TooLong { tokens }),
            _ => Err(NoEmbedding::Failed { reason: reason() }),
        }
    }
}

fn column<'a, T: 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a T, Wrong> {
    let column = batch.column_by_name(name);
    let column = column.ok_or_else(|| Wrong::Answer(format!("no column {name:?}")))?;
    column
        .as_any()
        .downcast_ref()
        .ok_or_else(|| Wrong::Answer(format!("column {name:?} has type {}", column.data_type())))
}

/// A column in which every row has a value.
fn filled<'a, T: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a T, Wrong> {
    let column: &T = column(batch, name)?;
    match column.null_count() {
        0 => Ok(column),
        nulls => Err(Wrong::Answer(format!("column {name:?} has {nulls} gaps"))),
    }
}
