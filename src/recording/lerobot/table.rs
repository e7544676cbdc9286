//! Reading parquet tables row by row: only the columns that are asked for, a few rows in memory at a time.

use std::{
    collections::VecDeque,
    fs::File,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use parquet::{
    basic::Type as PhysicalType,
    column::{
        page::{Page, PageMetadata, PageReader},
        reader::{ColumnReader, ColumnReaderImpl, get_column_reader},
    },
    data_type::{ByteArray, DataType},
    errors::{ParquetError, Result as ParquetResult},
    file::{
        reader::{FileReader, SerializedFileReader},
        serialized_reader::SerializedFileReader as Reader,
    },
    schema::types::ColumnDescPtr,
};

use super::{error::LeRobotError, files};

/// Rows of numbers decoded at once.
const NUMBERS_AT_ONCE: usize = 64;
/// Rows of pictures decoded at once.
const BYTES_AT_ONCE: usize = 2;
/// Values that a page may claim. Constant columns are the longest: a row group of a million rows of 64 numbers.
const MAX_PAGE_VALUES: u32 = 1 << 26;

/// One cell of a row.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    /// A number or a list of numbers; what is missing is not a number.
    Numbers(Vec<f64>),
    /// Text or a picture's file; `None` where there is none.
    Bytes(Option<Vec<u8>>),
}

impl Cell {
    /// The numbers of a column that was asked for as such.
    pub(super) fn numbers(&self) -> &[f64] {
        match self {
            Self::Numbers(numbers) => numbers,
            Self::Bytes(_) => &[],
        }
    }

    /// The one number of a column of numbers, if it is a whole one of at least 0.
    pub(super) fn index(&self) -> Option<u64> {
        match self.numbers() {
            // 2⁵³, up to which f64 holds every whole number.
            [number] if number.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(number) => {
                Some(*number as u64)
            }
            _ => None,
        }
    }
}

/// A column to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted<'a> {
    /// Numbers or lists of them.
    Numbers(&'a str),
    /// Text, or the `bytes` of a picture.
    Bytes(&'a str),
}

impl Wanted<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Numbers(name) | Self::Bytes(name) => name,
        }
    }
}

/// A parquet file.
pub(super) struct Table {
    path: PathBuf,
    reader: Arc<Reader<File>>,
}

impl Table {
    /// Opens the file and reads its directory.
    pub(super) fn open(path: &Path) -> Result<Self, LeRobotError> {
        let file = files::open(path)?;
        let reader = guarded(path, || SerializedFileReader::new(file))?;
        Ok(Self { path: path.to_owned(), reader: Arc::new(reader) })
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Number of rows by the file's directory.
    pub(super) fn len(&self) -> u64 {
        let groups = self.reader.metadata().row_groups();
        groups.iter().map(|group| u64::try_from(group.num_rows()).unwrap_or(0)).fold(0, u64::saturating_add)
    }

    /// Names of the columns at the top level.
    pub(super) fn columns(&self) -> impl Iterator<Item = &str> {
        self.reader.metadata().file_metadata().schema().get_fields().iter().map(|field| field.name())
    }

    /// Reads some columns of some rows.
    pub(super) fn rows(&self, wanted: &[Wanted], range: Range<u64>) -> Result<Rows, LeRobotError> {
        if range.end > self.len() {
            return Err(self.invalid(
                "its directory",
                format!("at least {} rows", range.end),
                format!("{}", self.len()),
            ));
        }
        let columns = wanted.iter().map(|wanted| self.column(*wanted)).collect::<Result<Vec<_>, _>>()?;
        let bytes = columns.iter().any(|column| column.bytes);
        let mut rows = Rows {
            path: self.path.clone(),
            reader: Arc::clone(&self.reader),
            at_once: if bytes { BYTES_AT_ONCE } else { NUMBERS_AT_ONCE },
            columns,
            readers: Vec::new(),
            group: 0,
            left_in_group: 0,
            left: range.end.saturating_sub(range.start),
            next: range.start,
            buffer: VecDeque::new(),
        };
        rows.skip_to(range.start)?;
        Ok(rows)
    }

    fn column(&self, wanted: Wanted) -> Result<Column, LeRobotError> {
        let schema = self.reader.metadata().file_metadata().schema_descr();
        let leaves: Vec<_> = (0..schema.num_columns())
            .filter(|&index| schema.column(index).path().parts().first().is_some_and(|n| n == wanted.name()))
            .collect();
        if leaves.is_empty() {
            let there: Vec<_> = self.columns().take(100).collect();
            return Err(self.invalid(
                "its columns",
                format!("the column {:?}", wanted.name()),
                if there.is_empty() { "none".to_owned() } else { there.join(", ") },
            ));
        }
        let fits = |index: &usize| {
            let leaf = schema.column(*index);
            let path = leaf.path().parts();
            let text = leaf.physical_type() == PhysicalType::BYTE_ARRAY;
            match wanted {
                Wanted::Bytes(_) => {
                    let picture = path.len() == 2 && path.last().is_some_and(|name| name == "bytes");
                    text && leaf.max_rep_level() == 0 && (path.len() == 1 || picture)
                }
                Wanted::Numbers(_) => leaf.max_rep_level() <= 1 && is_number(leaf.physical_type()),
            }
        };
        let (expected, leaf) = match wanted {
            Wanted::Bytes(_) => ("text or a picture's bytes", leaves.iter().copied().find(fits)),
            Wanted::Numbers(_) => (
                "a number or a list of numbers",
                leaves.first().copied().filter(|i| leaves.len() == 1 && fits(i)),
            ),
        };
        let Some(leaf) = leaf else {
            let found = leaves.iter().take(20).map(|&index| {
                let leaf = schema.column(index);
                format!("{} ({}, nesting {})", leaf.path(), leaf.physical_type(), leaf.max_rep_level())
            });
            let found = found.collect::<Vec<_>>().join(", ");
            return Err(self.invalid(&format!("column {}", wanted.name()), expected.to_owned(), found));
        };
        let bytes = matches!(wanted, Wanted::Bytes(_));
        Ok(Column { leaf, descriptor: schema.column(leaf), bytes })
    }

    fn invalid(&self, at: &str, expected: String, found: String) -> LeRobotError {
        LeRobotError::Invalid {
            path: self.path.clone(),
            at: at.to_owned(),
            expected,
            found,
            advice: "the file does not belong to this dataset, or is no table of LeRobot's".to_owned(),
        }
    }
}

fn is_number(kind: PhysicalType) -> bool {
    use PhysicalType as T;
    matches!(kind, T::FLOAT | T::DOUBLE | T::INT32 | T::INT64 | T::BOOLEAN)
}

struct Column {
    /// Index among the leaves of the schema.
    leaf: usize,
    descriptor: ColumnDescPtr,
    bytes: bool,
}

/// Rows of a table, in order.
pub(super) struct Rows {
    path: PathBuf,
    reader: Arc<Reader<File>>,
    columns: Vec<Column>,
    at_once: usize,
    /// Of the row group that is being read, one per column.
    readers: Vec<ColumnReader>,
    /// The row group to open next.
    group: usize,
    left_in_group: u64,
    /// Rows still to be given.
    left: u64,
    /// Number of the next row in the file.
    next: u64,
    buffer: VecDeque<Vec<Cell>>,
}

impl Rows {
    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The next row, with one cell per column that was asked for.
    pub(super) fn next(&mut self) -> Result<Option<Vec<Cell>>, LeRobotError> {
        if self.left == 0 {
            return Ok(None);
        }
        if self.buffer.is_empty() {
            self.fill()?;
        }
        let Some(row) = self.buffer.pop_front() else {
            return Err(self.damaged(format!("expected a row {}, found the end of its data", self.next)));
        };
        self.left -= 1;
        self.next += 1;
        Ok(Some(row))
    }

    fn damaged(&self, message: String) -> LeRobotError {
        LeRobotError::Table { path: self.path.clone(), message }
    }

    fn skip_to(&mut self, mut rows: u64) -> Result<(), LeRobotError> {
        let path = self.path.clone();
        guarded(&path, || {
            while let Some(group) = self.reader.metadata().row_groups().get(self.group) {
                let size = u64::try_from(group.num_rows()).unwrap_or(0);
                if rows < size {
                    break;
                }
                rows -= size;
                self.group += 1;
            }
            if rows > 0 && self.open_group()? {
                let count = usize::try_from(rows).unwrap_or(usize::MAX);
                for reader in &mut self.readers {
                    if skip(reader, count)? != count {
                        return Err(ParquetError::EOF("a column is shorter than the table".to_owned()));
                    }
                }
                self.left_in_group -= rows;
            }
            Ok(())
        })
    }

    /// Opens the next row group that holds rows.
    fn open_group(&mut self) -> ParquetResult<bool> {
        while let Some(metadata) = self.reader.metadata().row_groups().get(self.group) {
            let rows = u64::try_from(metadata.num_rows()).unwrap_or(0);
            let group = self.reader.get_row_group(self.group)?;
            self.group += 1;
            if rows > 0 {
                self.left_in_group = rows;
                self.readers = self
                    .columns
                    .iter()
                    .map(|column| {
                        let pages = Guard(group.get_column_page_reader(column.leaf)?);
                        Ok(get_column_reader(Arc::clone(&column.descriptor), Box::new(pages)))
                    })
                    .collect::<ParquetResult<_>>()?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn fill(&mut self) -> Result<(), LeRobotError> {
        let path = self.path.clone();
        guarded(&path, || {
            if self.left_in_group == 0 && !self.open_group()? {
                return Ok(());
            }
            let count = (self.at_once as u64).min(self.left_in_group).min(self.left) as usize;
            let mut rows = vec![Vec::with_capacity(self.columns.len()); count];
            for (column, reader) in self.columns.iter().zip(&mut self.readers) {
                let cells = if column.bytes {
                    read_bytes(reader, &column.descriptor, count)?
                } else {
                    read_numbers(reader, &column.descriptor, count)?
                };
                if cells.len() != count {
                    return Err(ParquetError::EOF(format!(
                        "column {} ends before the table's last row",
                        column.descriptor.path()
                    )));
                }
                rows.iter_mut().zip(cells).for_each(|(row, cell)| row.push(cell));
            }
            self.left_in_group -= count as u64;
            self.buffer.extend(rows);
            Ok(())
        })
    }
}

/// Runs the decoder, whose own checks against damaged files do not cover all of its indexing.
fn guarded<T>(path: &Path, decode: impl FnOnce() -> ParquetResult<T>) -> Result<T, LeRobotError> {
    let failed = |message| LeRobotError::Table { path: path.to_owned(), message };
    // After a panic the rows are dropped with the error: nobody sees a half-read state.
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("the decoder cannot make sense of its contents".to_owned())),
    }
}

/// Refuses pages whose claims would fill the memory.
struct Guard(Box<dyn PageReader>);

impl PageReader for Guard {
    fn get_next_page(&mut self) -> ParquetResult<Option<Page>> {
        let page = self.0.get_next_page()?;
        match &page {
            Some(page) if page.num_values() > MAX_PAGE_VALUES => Err(ParquetError::General(format!(
                "expected pages of at most {MAX_PAGE_VALUES} values, found {}",
                page.num_values()
            ))),
            _ => Ok(page),
        }
    }

    fn peek_next_page(&mut self) -> ParquetResult<Option<PageMetadata>> {
        self.0.peek_next_page()
    }

    fn skip_next_page(&mut self) -> ParquetResult<()> {
        self.0.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> ParquetResult<bool> {
        self.0.at_record_boundary()
    }
}

impl Iterator for Guard {
    type Item = ParquetResult<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

fn skip(reader: &mut ColumnReader, count: usize) -> ParquetResult<usize> {
    match reader {
        ColumnReader::BoolColumnReader(reader) => reader.skip_records(count),
        ColumnReader::Int32ColumnReader(reader) => reader.skip_records(count),
        ColumnReader::Int64ColumnReader(reader) => reader.skip_records(count),
        ColumnReader::Int96ColumnReader(reader) => reader.skip_records(count),
        ColumnReader::FloatColumnReader(reader) => reader.skip_records(count),
        ColumnReader::DoubleColumnReader(reader) => reader.skip_records(count),
        ColumnReader::ByteArrayColumnReader(reader) => reader.skip_records(count),
        ColumnReader::FixedLenByteArrayColumnReader(reader) => reader.skip_records(count),
    }
}

fn read_numbers(
    reader: &mut ColumnReader,
    descriptor: &ColumnDescPtr,
    count: usize,
) -> ParquetResult<Vec<Cell>> {
    let rows = match reader {
        ColumnReader::BoolColumnReader(reader) => {
            records(reader, descriptor, count, |v| f64::from(u8::from(*v)))
        }
        ColumnReader::Int32ColumnReader(reader) => records(reader, descriptor, count, |v| f64::from(*v)),
        ColumnReader::Int64ColumnReader(reader) => records(reader, descriptor, count, |v| *v as f64),
        ColumnReader::FloatColumnReader(reader) => records(reader, descriptor, count, |v| f64::from(*v)),
        ColumnReader::DoubleColumnReader(reader) => records(reader, descriptor, count, |v| *v),
        _ => return Err(ParquetError::General(format!("column {} holds no numbers", descriptor.path()))),
    }?;
    Ok(rows
        .into_iter()
        .map(|row| Cell::Numbers(row.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect()))
        .collect())
}

fn read_bytes(
    reader: &mut ColumnReader,
    descriptor: &ColumnDescPtr,
    count: usize,
) -> ParquetResult<Vec<Cell>> {
    let ColumnReader::ByteArrayColumnReader(reader) = reader else {
        return Err(ParquetError::General(format!("column {} holds no bytes", descriptor.path())));
    };
    let rows = records(reader, descriptor, count, |value: &ByteArray| value.data().to_vec())?;
    Ok(rows.into_iter().map(|row| Cell::Bytes(row.into_iter().next().flatten())).collect())
}

/// Reads whole records: per record its values, `None` where one is null. A list may be empty.
fn records<T: DataType, V>(
    reader: &mut ColumnReaderImpl<T>,
    descriptor: &ColumnDescPtr,
    count: usize,
    convert: impl Fn(&T::T) -> V,
) -> ParquetResult<Vec<Vec<Option<V>>>> {
    let (mut definitions, mut repetitions, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let (records, _, levels) =
        reader.read_records(count, Some(&mut definitions), Some(&mut repetitions), &mut values)?;
    let (defined, repeated) = (descriptor.max_def_level(), descriptor.max_rep_level() > 0);
    // In a list, the level just below a value's own is that of a null element, where elements can be null at all.
    let null_element = defined - i16::from(descriptor.self_type().is_optional());
    let mut values = values.iter();
    let mut rows: Vec<Vec<Option<V>>> = Vec::with_capacity(records);
    for level in 0..levels {
        let starts = !repeated || repetitions.get(level).is_none_or(|&repetition| repetition == 0);
        if starts {
            rows.push(Vec::new());
        }
        let Some(row) = rows.last_mut() else {
            return Err(ParquetError::General("a list goes on before it starts".to_owned()));
        };
        let definition = if defined == 0 { 0 } else { definitions.get(level).copied().unwrap_or(0) };
        if definition == defined {
            let value = values.next().ok_or_else(|| ParquetError::EOF("values are missing".to_owned()))?;
            row.push(Some(convert(value)));
        } else if !repeated || definition >= null_element {
            row.push(None);
        }
    }
    Ok(rows)
}
