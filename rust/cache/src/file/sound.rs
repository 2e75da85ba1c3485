//! What is sound among the rows of files that others made, and what is malformed.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float16Type, Float32Type, Float64Type};
use arrow_array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow_schema::DataType;
use parquet::column::reader::ColumnReader;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::file::rows::Rows;
use crate::storage::input::Input;

/// Some consecutive rows of a file, sorted out.
pub(crate) struct Sound {
    /// Those with a state and as many values as the others.
    pub(crate) rows: Rows,
    /// The number in the file of each of them.
    pub(crate) numbers: Vec<u64>,
    /// The others: number in the file, state and what is wrong.
    pub(crate) malformed: Vec<(u64, String, String)>,
}

impl Sound {
    /// Rows that are all sound, the first of which has the number `first`.
    pub(crate) fn all(rows: Rows, first: u64) -> Self {
        let numbers = (first..).take(rows.states.len()).collect();
        Self { rows, numbers, malformed: Vec::new() }
    }
}

/// Sorts the rows of a batch out, the first of which has the number `first`.
pub(crate) fn sort_out(batch: &RecordBatch, first: u64, dim: usize) -> Sound {
    let (states, lists) = (batch.column(0).as_string::<i32>(), batch.column(1).as_list::<i32>());
    let (mut texts, mut values, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
    let mut malformed = Vec::new();
    for (row, number) in (0..batch.num_rows()).zip(first..) {
        let text = if states.is_valid(row) { states.value(row) } else { "" };
        let list = lists.is_valid(row).then(|| lists.value(row));
        if let Some(reason) = what_is_wrong(states.is_valid(row), list.as_ref(), dim) {
            malformed.push((number, text.to_owned(), reason));
            continue;
        }
        texts.push(text.to_owned());
        values.extend(list.iter().flat_map(as_float32));
        numbers.push(number);
    }
    let rows = Rows { states: StringArray::from(texts), values };
    Sound { rows, numbers, malformed }
}

fn what_is_wrong(has_state: bool, list: Option<&ArrayRef>, dim: usize) -> Option<String> {
    if !has_state {
        return Some("state is null".to_owned());
    }
    let Some(list) = list else { return Some("embedding is null".to_owned()) };
    if list.is_empty() {
        return Some("embedding has no values".to_owned());
    }
    if list.len() != dim {
        return Some(format!("embedding has {} values, expected {dim}", list.len()));
    }
    (list.null_count() > 0).then(|| "embedding has a null value".to_owned())
}

/// Floating-point numbers of any width as float32.
pub(crate) fn as_float32(numbers: &ArrayRef) -> Vec<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "float64 caches are read as float32")]
    match numbers.data_type() {
        DataType::Float16 => {
            numbers.as_primitive::<Float16Type>().values().iter().map(|v| v.to_f32()).collect()
        }
        DataType::Float64 => {
            numbers.as_primitive::<Float64Type>().values().iter().map(|v| *v as f32).collect()
        }
        _ => numbers.as_primitive::<Float32Type>().values().to_vec(),
    }
}

/// The first row of a row group whose state is not UTF-8, which Arrow refuses without saying where.
pub(crate) fn first_not_text(input: &Input, group: usize) -> Result<Option<u64>, ParquetError> {
    const AT_ONCE: usize = 1024;
    let reader = Arc::new(SerializedFileReader::new(input.clone())?);
    let group = reader.get_row_group(group)?;
    let ColumnReader::ByteArrayColumnReader(mut states) = group.get_column_reader(0)? else {
        return Ok(None);
    };
    let (mut texts, mut definitions, mut row) = (Vec::new(), Vec::new(), 0);
    loop {
        texts.clear();
        definitions.clear();
        let (rows, _, levels) =
            states.read_records(AT_ONCE, Some(&mut definitions), None, &mut texts)?;
        if rows == 0 {
            return Ok(None);
        }
        // Without levels every row has a state; with them those that are null have none.
        let mut there = texts.iter();
        for place in 0..rows {
            let is_null = levels > 0 && definitions.get(place) == Some(&0);
            let text = if is_null { None } else { there.next() };
            if text.is_some_and(|text| str::from_utf8(text.data()).is_err()) {
                return Ok(Some(row + place as u64));
            }
        }
        row += rows as u64;
    }
}
