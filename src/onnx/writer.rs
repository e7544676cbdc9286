//! Graphs to files: `{stem}.onnx` with the structure, `{stem}.onnx.data` beside it with the weights.
//!
//! Both are written under temporary names and renamed when whole, so that under their own names there is never half a
//! file, nor a structure with another graph's weights. Weights go through memory one at a time.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use prost::Message;

use super::error::OnnxError;
use super::graph::{Attribute, Dim, Graph, Value};
use super::proto::{
    AttributeProto, DATA_LOCATION_EXTERNAL, DimensionProto, DimensionValue, GraphProto, ModelProto,
    NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto,
    TypeProto, ValueInfoProto, ir_version,
};

/// Tensors smaller than this stand in the structure itself: sizes, axes and other small constants, which shape inference
/// needs to see.
const INLINE_BELOW: usize = 1024;

/// Where a tensor begins in the data file: at a page, so that it can be mapped, if it is larger than a few pages.
const PAGE: u64 = 4096;
/// Where smaller ones begin: at a cache line.
const LINE: u64 = 64;

/// What to do about the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Data {
    /// Write them.
    #[default]
    Full,
    /// Make a data file of the right length whose weights are all zero, on most file systems without taking space: for
    /// looking at a large graph's structure.
    Sparse,
}

/// The files of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The structure.
    pub model: PathBuf,
    /// The weights; absent where all are small.
    pub data: Option<PathBuf>,
    /// Length of the data file.
    pub data_bytes: u64,
}

/// Writes `{stem}.onnx` and `{stem}.onnx.data` into a directory, which is made if it is not there. Earlier files of
/// these names are replaced.
///
/// # Errors
/// The directory cannot be made or written to, the disk is full, something else has one of the names, a weight does not
/// fit its type.
pub fn write(graph: &Graph, dir: &Path, stem: &str, data: Data) -> Result<Written, OnnxError> {
    if stem.is_empty() || stem.contains(['/', '\\', '\0']) || stem.starts_with('.') {
        return Err(OnnxError::request("file name of the graph", "a plain name", format!("{stem:?}")));
    }
    fs::create_dir_all(dir).map_err(|source| OnnxError::output(dir, "making the directory", source))?;
    let (model_name, data_name) = (format!("{stem}.onnx"), format!("{stem}.onnx.data"));
    let (model_path, data_path) = (dir.join(&model_name), dir.join(&data_name));
    for path in [&model_path, &data_path] {
        if path.is_dir() {
            return Err(OnnxError::Occupied {
                path: path.clone(),
                expected: "a file or nothing",
                found: "a directory",
                advice: "remove it or choose another name",
            });
        }
    }

    let mut weights = DataFile::new(Temporary::create(dir, &data_name)?, data);
    let initializer = graph
        .initializers()
        .iter()
        .map(|initializer| {
            let size = initializer.size(graph);
            let mut tensor = described(graph, initializer.value);
            if size < INLINE_BELOW {
                let mut bytes = Vec::with_capacity(size);
                initializer.stream(graph, |piece| {
                    bytes.extend_from_slice(piece);
                    Ok(())
                })?;
                tensor.raw_data = Some(bytes);
            } else {
                let offset = weights.begin(size)?;
                if data == Data::Full {
                    initializer.stream(graph, |piece| weights.write(piece))?;
                }
                weights.end(graph, initializer.value, size)?;
                tensor.data_location = Some(DATA_LOCATION_EXTERNAL);
                tensor.external_data = vec![
                    StringStringEntryProto::new("location", &data_name),
                    StringStringEntryProto::new("offset", offset.to_string()),
                    StringStringEntryProto::new("length", size.to_string()),
                ];
            }
            Ok(tensor)
        })
        .collect::<Result<_, OnnxError>>()?;
    let (temporary_data, data_bytes) = weights.finish()?;
    let mut temporary_model = Temporary::create(dir, &model_name)?;
    temporary_model.write_all(&model(graph, initializer).encode_to_vec())?;
    temporary_model.sync()?;

    // First the old structure goes: old weights with a new structure, or the opposite, would look like a graph.
    for path in [&model_path, &data_path] {
        match fs::remove_file(path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(OnnxError::output(path, "replacing the file", source));
            }
            _ => {}
        }
    }
    let data = if data_bytes > 0 {
        temporary_data.rename(&data_path)?;
        Some(data_path)
    } else {
        None
    };
    temporary_model.rename(&model_path)?;
    Ok(Written { model: model_path, data, data_bytes })
}

/// The data file while it grows.
struct DataFile {
    file: Temporary,
    kind: Data,
    /// Where the next byte goes.
    position: u64,
    /// Where the present tensor began.
    begun: u64,
}

impl DataFile {
    fn new(file: Temporary, kind: Data) -> Self {
        Self { file, kind, position: 0, begun: 0 }
    }

    fn begin(&mut self, size: usize) -> Result<u64, OnnxError> {
        let alignment = if size as u64 >= 4 * PAGE { PAGE } else { LINE };
        self.begun = self.position.next_multiple_of(alignment);
        if self.begun != self.position && self.kind == Data::Full {
            // The gap reads as zeros.
            self.file.seek(self.begun)?;
        }
        self.position = self.begun;
        Ok(self.begun)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), OnnxError> {
        self.file.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// A tensor is done: it must have come whole.
    fn end(&mut self, graph: &Graph, value: Value, size: usize) -> Result<(), OnnxError> {
        let expected = self.begun + size as u64;
        if self.kind == Data::Sparse {
            self.position = expected;
        }
        if self.position == expected {
            return Ok(());
        }
        let found = format!("{} bytes", self.position - self.begun);
        let name = &graph.info(value).name;
        Err(graph.error("initializer", format!("{size} bytes of {name}"), found))
    }

    fn finish(mut self) -> Result<(Temporary, u64), OnnxError> {
        if self.kind == Data::Sparse {
            self.file.set_len(self.position)?;
        }
        self.file.sync()?;
        Ok((self.file, self.position))
    }
}

/// A file that is gone unless it is renamed to its own name.
struct Temporary {
    path: PathBuf,
    file: Option<BufWriter<File>>,
}

impl Temporary {
    fn create(dir: &Path, name: &str) -> Result<Self, OnnxError> {
        let path = dir.join(format!(".{name}.{}.partial", std::process::id()));
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(|source| OnnxError::output(&path, "creating the file", source))?;
        Ok(Self { path, file: Some(BufWriter::with_capacity(1 << 20, file)) })
    }

    fn with(
        &mut self,
        action: &'static str,
        what: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
    ) -> Result<(), OnnxError> {
        match &mut self.file {
            Some(file) => what(file).map_err(|source| OnnxError::output(&self.path, action, source)),
            None => Ok(()),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), OnnxError> {
        self.with("writing", |file| file.write_all(bytes))
    }

    fn seek(&mut self, position: u64) -> Result<(), OnnxError> {
        self.with("writing", |file| file.seek(SeekFrom::Start(position)).map(|_| ()))
    }

    fn set_len(&mut self, length: u64) -> Result<(), OnnxError> {
        self.with("setting the length", |file| file.get_ref().set_len(length))
    }

    /// Everything written is on the disk afterwards.
    fn sync(&mut self) -> Result<(), OnnxError> {
        self.with("writing", |file| {
            file.flush()?;
            file.get_ref().sync_all()
        })
    }

    fn rename(mut self, to: &Path) -> Result<(), OnnxError> {
        let renamed = fs::rename(&self.path, to);
        renamed.map_err(|source| OnnxError::output(to, "renaming the finished file", source))?;
        self.file = None;
        self.path = PathBuf::new();
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // An error on the way is what the caller hears of; a left-over file only takes space.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn model(graph: &Graph, initializer: Vec<TensorProto>) -> ModelProto {
    let named: HashSet<Value> = graph.input_values().iter().chain(graph.output_values()).copied().collect();
    let name = |value: &Value| graph.info(*value).name.clone();
    ModelProto {
        ir_version: Some(ir_version(graph.opset())),
        producer_name: Some(env!("CARGO_PKG_NAME").to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(graph.opset()) }],
        metadata_props: graph
            .metadata()
            .iter()
            .map(|(key, value)| StringStringEntryProto::new(key, value))
            .collect(),
        graph: Some(GraphProto {
            name: Some(graph.name().to_owned()),
            node: graph
                .nodes()
                .iter()
                .map(|node| NodeProto {
                    input: node.inputs.iter().map(name).collect(),
                    output: node.outputs.iter().map(name).collect(),
                    name: Some(node.name.clone()),
                    op_type: Some(node.operator.to_owned()),
                    attribute: node.attributes.iter().map(attribute).collect(),
                })
                .collect(),
            initializer,
            input: graph.input_values().iter().map(|value| value_info(graph, *value)).collect(),
            output: graph.output_values().iter().map(|value| value_info(graph, *value)).collect(),
            value_info: graph
                .nodes()
                .iter()
                .flat_map(|node| &node.outputs)
                .filter(|value| !named.contains(value))
                .map(|value| value_info(graph, *value))
                .collect(),
        }),
    }
}

fn described(graph: &Graph, value: Value) -> TensorProto {
    let info = graph.info(value);
    let dims = info.shape.iter().map(|dim| match dim {
        Dim::Fixed(size) => *size as i64,
        Dim::Symbol(_) => 0,
    });
    TensorProto {
        dims: dims.collect(),
        data_type: Some(info.kind.number()),
        name: Some(info.name.clone()),
        ..TensorProto::default()
    }
}

fn value_info(graph: &Graph, value: Value) -> ValueInfoProto {
    let info = graph.info(value);
    let dim = info.shape.iter().map(|dim| DimensionProto {
        value: Some(match dim {
            Dim::Fixed(size) => DimensionValue::Fixed(*size as i64),
            Dim::Symbol(name) => DimensionValue::Symbol((*name).to_owned()),
        }),
    });
    ValueInfoProto {
        name: Some(info.name.clone()),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: Some(info.kind.number()),
                shape: Some(TensorShapeProto { dim: dim.collect() }),
            }),
        }),
    }
}

fn attribute(attribute: &Attribute) -> AttributeProto {
    let (name, kind) = attribute.name_and_type();
    let mut proto =
        AttributeProto { name: Some(name.to_owned()), r#type: Some(kind), ..AttributeProto::default() };
    match attribute {
        Attribute::Int(_, value) => proto.i = Some(*value),
        Attribute::Ints(_, values) => proto.ints.clone_from(values),
        Attribute::Float(_, value) => proto.f = Some(*value),
    }
    proto
}
