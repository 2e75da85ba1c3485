//! Columns of Parquet files that other software wrote, read by what Parquet itself says of them.
//!
//! What an Arrow schema in the file calls them (dictionaries, views, large strings) makes no
//! difference, and a text that is not UTF-8 is reported with its row.

use std::path::{Path, PathBuf};

use arrow_schema::DataType;
use parquet::arrow::{ProjectionMask, parquet_to_arrow_schema_by_columns};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{
    BoolType, ByteArrayType, DataType as ParquetType, DoubleType, FloatType, Int32Type, Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};

use ebm_cache::{CacheError, CacheResult, guard, storage};

/// Values that are decoded at a time.
const AT_ONCE: usize = 8192;

/// A Parquet file whose columns are read one by one.
pub(crate) struct Columns {
    path: PathBuf,
    file: Box<dyn FileReader>,
}

/// One column of a file.
struct Column {
    name: String,
    /// Its place among the leaves of the schema.
    leaf: usize,
    kind: DataType,
    optional: bool,
}

impl Columns {
    pub(crate) fn open(path: &Path) -> CacheResult<Self> {
        let input = storage::open(path)?;
        let path = path.to_owned();
        guard(&path, || {
            let file = SerializedFileReader::new(input)
                .map_err(|error| format(&path, format!("not a readable Parquet file: {error}")))?;
            Ok(Self { path: path.clone(), file: Box::new(file) })
        })
    }

    /// Names of the columns.
    fn names(&self) -> impl Iterator<Item = &str> {
        let schema = self.file.metadata().file_metadata().schema_descr();
        schema.root_schema().get_fields().iter().map(|field| field.name())
    }

    /// The texts of a column; `None` where it is null.
    pub(crate) fn texts(&self, name: &str) -> CacheResult<Vec<Option<String>>> {
        let column = self.column(name)?;
        if column.kind != DataType::Utf8 {
            return Err(self.other_type(&column, "text"));
        }
        let open = |reader| match reader {
            ColumnReader::ByteArrayColumnReader(reader) => Some(reader),
            _ => None,
        };
        let values = self.values::<ByteArrayType>(&column, open)?;
        let text = |(row, value): (usize, Option<parquet::data_type::ByteArray>)| {
            let Some(value) = value else { return Ok(None) };
            let text = simdutf8::basic::from_utf8(value.data());
            text.map(|text| Some(text.to_owned())).map_err(|_| self.not_utf8(name, row))
        };
        values.into_iter().enumerate().map(text).collect()
    }

    /// The numbers of a column; `None` where it is null, or negative.
    pub(crate) fn numbers(&self, name: &str) -> CacheResult<Vec<Option<u64>>> {
        let column = self.column(name)?;
        let number: fn(i64) -> Option<u64> = match column.kind {
            DataType::UInt64 => |id| Some(id.cast_unsigned()),
            // Other writers have only signed numbers; -1 then says that there is none.
            DataType::Int64 => |id| u64::try_from(id).ok(),
            _ => return Err(self.other_type(&column, "uint64")),
        };
        let open = |reader| match reader {
            ColumnReader::Int64ColumnReader(reader) => Some(reader),
            _ => None,
        };
        let values = self.values::<Int64Type>(&column, open)?;
        Ok(values.into_iter().map(|value| value.and_then(number)).collect())
    }

    /// Whether there is a column of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names().any(|other| other == name)
    }

    /// The floating-point numbers of a column; `None` where it is null.
    pub(crate) fn reals(&self, name: &str) -> CacheResult<Vec<Option<f64>>> {
        let column = self.column(name)?;
        match column.kind {
            DataType::Float64 => self.values::<DoubleType>(&column, |reader| match reader {
                ColumnReader::DoubleColumnReader(reader) => Some(reader),
                _ => None,
            }),
            DataType::Float32 => {
                let values = self.values::<FloatType>(&column, |reader| match reader {
                    ColumnReader::FloatColumnReader(reader) => Some(reader),
                    _ => None,
                })?;
                Ok(values.into_iter().map(|value| value.map(f64::from)).collect())
            }
            _ => Err(self.other_type(&column, "float64")),
        }
    }

    /// The truth values of a column; `None` where it is null.
    pub(crate) fn flags(&self, name: &str) -> CacheResult<Vec<Option<bool>>> {
        let column = self.column(name)?;
        if column.kind != DataType::Boolean {
            return Err(self.other_type(&column, "boolean"));
        }
        self.values::<BoolType>(&column, |reader| match reader {
            ColumnReader::BoolColumnReader(reader) => Some(reader),
            _ => None,
        })
    }

    /// The small whole numbers of a column; `None` where it is null.
    pub(crate) fn counts(&self, name: &str) -> CacheResult<Vec<Option<i64>>> {
        let column = self.column(name)?;
        match column.kind {
            DataType::Int64 | DataType::UInt64 => {
                self.values::<Int64Type>(&column, |reader| match reader {
                    ColumnReader::Int64ColumnReader(reader) => Some(reader),
                    _ => None,
                })
            }
            DataType::Int32 | DataType::UInt32 => {
                let values = self.values::<Int32Type>(&column, |reader| match reader {
                    ColumnReader::Int32ColumnReader(reader) => Some(reader),
                    _ => None,
                })?;
                Ok(values.into_iter().map(|value| value.map(i64::from)).collect())
            }
            _ => Err(self.other_type(&column, "a whole number")),
        }
    }

    fn column(&self, name: &str) -> CacheResult<Column> {
        match self.names().filter(|other| *other == name).count() {
            1 => {}
            0 => {
                let names: Vec<&str> = self.names().collect();
                let detail = format!("has no column {name:?}; it has {}", names.join(", "));
                return Err(format(&self.path, detail));
            }
            count => {
                let detail = format!(
                    "has {count} columns {name:?}\nhint: write the file again with one of them"
                );
                return Err(format(&self.path, detail));
            }
        }
        let schema = self.file.metadata().file_metadata().schema_descr();
        let leaves = schema.columns().iter();
        let leaf = leaves
            .enumerate()
            .find(|(_, leaf)| leaf.path().parts().first().is_some_and(|p| p == name));
        let (leaf, descriptor) =
            leaf.ok_or_else(|| format(&self.path, format!("column {name:?} holds nothing")))?;
        let mask = ProjectionMask::leaves(schema, [leaf]);
        let arrow = parquet_to_arrow_schema_by_columns(schema, mask, None)
            .map_err(|error| self.unreadable(name, &error))?;
        let kind = arrow.field(0).data_type().clone();
        let optional = descriptor.max_def_level() > 0;
        Ok(Column { name: name.to_owned(), leaf, kind, optional })
    }

    fn values<T: ParquetType>(
        &self,
        column: &Column,
        open: impl Fn(ColumnReader) -> Option<ColumnReaderImpl<T>>,
    ) -> CacheResult<Vec<Option<T::T>>> {
        let wrong = |error: ParquetError| self.unreadable(&column.name, &error);
        guard(&self.path, || {
            let mut all = Vec::new();
            for group in 0..self.file.num_row_groups() {
                let group = self.file.get_row_group(group).map_err(wrong)?;
                let reader = group.get_column_reader(column.leaf).map_err(wrong)?;
                let mut reader =
                    open(reader).ok_or_else(|| self.other_type(column, "a flat column"))?;
                while read_some(&mut reader, column.optional, &mut all).map_err(wrong)? {}
            }
            Ok(all)
        })
    }

    fn other_type(&self, column: &Column, expected: &str) -> CacheError {
        let detail = format!("column {:?} is {}, expected {expected}", column.name, column.kind);
        format(&self.path, detail)
    }

    fn unreadable(&self, name: &str, error: &ParquetError) -> CacheError {
        format(&self.path, format!("column {name:?}: damaged, or cut off: {error}"))
    }

    fn not_utf8(&self, name: &str, row: usize) -> CacheError {
        let detail = format!(
            "column {name:?} is not UTF-8 text\nhint: write the file again with its texts as UTF-8"
        );
        CacheError::Row { path: self.path.clone(), row: row as u64, detail }
    }
}

/// Adds the next values, with `None` for nulls; returns whether there were any.
fn read_some<T: ParquetType>(
    reader: &mut ColumnReaderImpl<T>,
    optional: bool,
    all: &mut Vec<Option<T::T>>,
) -> Result<bool, ParquetError> {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    let (rows, ..) =
        reader.read_records(AT_ONCE, optional.then_some(&mut levels), None, &mut values)?;
    if !optional {
        all.extend(values.into_iter().map(Some));
        return Ok(rows > 0);
    }
    let mut values = values.into_iter();
    all.extend(levels.iter().map(|level| if *level > 0 { values.next() } else { None }));
    Ok(rows > 0)
}

fn format(path: &Path, detail: String) -> CacheError {
    CacheError::Format { path: path.to_owned(), detail }
}
