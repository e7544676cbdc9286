//! A graph under construction: values, nodes and initialisers, with the shape of every value known.
//!
//! Each operator checks what it is given and works out what it gives, so that a mistake in a graph is an error here, with
//! the place in the graph, and not one of a foreign tool. Dimensions are numbers or symbols; symbols have no arithmetic:
//! what would need it (concatenation along a symbolic axis, say) is refused.

mod operators;

use std::collections::HashSet;
use std::fmt;

use super::element::{self, ElementType};
use super::error::OnnxError;
use super::proto::{OPSET_VERSION, attribute_type};
use crate::checkpoint::TensorView;

/// One dimension of a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dim {
    Fixed(usize),
    /// Known when the graph runs.
    Symbol(&'static str),
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => size.fmt(f),
            Self::Symbol(name) => f.write_str(name),
        }
    }
}

impl From<usize> for Dim {
    fn from(size: usize) -> Self {
        Self::Fixed(size)
    }
}

/// A value of a graph; meaningful only in the graph that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Value(usize);

/// Name, element type and shape of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueInfo {
    pub name: String,
    pub kind: ElementType,
    pub shape: Vec<Dim>,
}

impl fmt::Display for ValueInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), shape_text(&self.shape))
    }
}

pub(super) fn shape_text(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
    format!("({})", dims.join(", "))
}

/// A constant of an operator.
#[derive(Debug, Clone, PartialEq)]
pub enum Attribute {
    Int(&'static str, i64),
    Ints(&'static str, Vec<i64>),
    Float(&'static str, f32),
}

impl Attribute {
    /// Name and, in the numbering of the file format, type.
    pub fn name_and_type(&self) -> (&'static str, i32) {
        match self {
            Self::Int(name, _) => (name, attribute_type::INT),
            Self::Ints(name, _) => (name, attribute_type::INTS),
            Self::Float(name, _) => (name, attribute_type::FLOAT),
        }
    }
}

/// One operator with its inputs and outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub operator: &'static str,
    pub name: String,
    pub inputs: Vec<Value>,
    pub outputs: Vec<Value>,
    pub attributes: Vec<Attribute>,
}

/// Makes the values of an initialiser when they are written, so that only one is in memory at a time.
pub type Compute<'w> = Box<dyn Fn() -> Result<Vec<f32>, OnnxError> + Send + Sync + 'w>;

/// Where the elements of an initialiser come from.
pub enum Source<'w> {
    /// Floating-point values, already computed.
    Values(Vec<f32>),
    /// Floating-point values, computed when written.
    Compute(Compute<'w>),
    /// A tensor of the checkpoint as it is stored, converted piece by piece.
    Stored(TensorView<'w>),
    Integers(Vec<i64>),
    Booleans(Vec<bool>),
    /// Eight-bit integers, computed when written.
    Bytes(Box<dyn Fn() -> Result<Vec<i8>, OnnxError> + Send + Sync + 'w>),
}

impl fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Values(_) => "values",
            Self::Compute(_) => "computed values",
            Self::Stored(_) => "stored tensor",
            Self::Integers(_) => "integers",
            Self::Booleans(_) => "booleans",
            Self::Bytes(_) => "computed bytes",
        })
    }
}

impl Source<'_> {
    /// The elements of a floating-point source.
    ///
    /// # Errors
    /// The source holds something else, or its values cannot be computed.
    pub fn floats(&self) -> Result<Vec<f32>, OnnxError> {
        match self {
            Self::Values(values) => Ok(values.clone()),
            Self::Compute(compute) => compute(),
            Self::Stored(view) => Ok(element::decode(view)),
            Self::Integers(_) | Self::Booleans(_) | Self::Bytes(_) => Err(OnnxError::request(
                "elements of a constant",
                "floating-point numbers",
                format!("{self:?}"),
            )),
        }
    }
}

/// A constant value of the graph.
#[derive(Debug)]
pub struct Initializer<'w> {
    pub value: Value,
    pub source: Source<'w>,
}

/// A graph under construction, with weights that live as long as `'w`.
#[derive(Debug)]
pub struct Graph<'w> {
    name: String,
    values: Vec<ValueInfo>,
    names: HashSet<String>,
    nodes: Vec<Node>,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    initializers: Vec<Initializer<'w>>,
    /// Where in the network the next node belongs, e.g. `block3/attention`.
    place: String,
    /// What the file says about itself: key and value.
    metadata: Vec<(String, String)>,
    /// Constants that many nodes share.
    shared: Vec<(ElementType, Vec<u64>, Vec<Dim>, Value)>,
    opset: i64,
}

impl<'w> Graph<'w> {
    /// An empty graph.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            values: Vec::new(),
            names: HashSet::new(),
            nodes: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            initializers: Vec::new(),
            place: String::new(),
            metadata: Vec::new(),
            shared: Vec::new(),
            opset: OPSET_VERSION,
        }
    }

    /// The operator set that the file needs: [`OPSET_VERSION`], or more where an operator was used in a newer form.
    pub fn opset(&self) -> i64 {
        self.opset
    }

    /// Makes the graph one of a later operator set, at most 20.
    pub(super) fn raise_opset(&mut self, opset: i64) -> Result<(), OnnxError> {
        // From opset 18 on its axes are an input. The other operators that this module writes are the same.
        if let Some(node) = self.nodes.iter().find(|node| node.operator == "ReduceMean") {
            let found = format!("ReduceMean at {}", node.name);
            let expected = format!("operators that opset {opset} writes as 17 does (norms as one operator)");
            return Err(OnnxError::request("graph", expected, found));
        }
        self.opset = self.opset.max(opset);
        Ok(())
    }

    /// The graph's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Nodes in the order in which they run.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All nodes, to be rewritten by a pass that keeps their order sound.
    pub(super) fn take_nodes(&mut self) -> Vec<Node> {
        std::mem::take(&mut self.nodes)
    }

    /// Puts a node at the end as it is.
    pub(super) fn push_node(&mut self, node: Node) {
        self.nodes.push(node);
    }

    /// The graph's inputs.
    pub fn inputs(&self) -> impl Iterator<Item = &ValueInfo> {
        self.inputs.iter().map(|value| self.info(*value))
    }

    /// The graph's outputs.
    pub fn outputs(&self) -> impl Iterator<Item = &ValueInfo> {
        self.outputs.iter().map(|value| self.info(*value))
    }

    pub fn input_values(&self) -> &[Value] {
        &self.inputs
    }

    pub fn output_values(&self) -> &[Value] {
        &self.outputs
    }

    /// The constants.
    pub fn initializers(&self) -> &[Initializer<'w>] {
        &self.initializers
    }

    /// Whether a value is a constant.
    pub(super) fn is_constant(&self, value: Value) -> bool {
        self.initializers.iter().any(|initializer| initializer.value == value)
    }

    /// The elements of a floating-point constant.
    pub(super) fn constant_floats(&self, value: Value) -> Result<Vec<f32>, OnnxError> {
        match self.initializers.iter().find(|initializer| initializer.value == value) {
            Some(initializer) => initializer.source.floats(),
            None => Err(self.error("initializer", "a constant", self.info(value).name.clone())),
        }
    }

    /// Puts another source in the place of a constant's own, of the same type and length. Leaves other values alone.
    pub(super) fn replace_source(&mut self, value: Value, replace: impl FnOnce(Source<'w>) -> Source<'w>) {
        if let Some(initializer) = self.initializers.iter_mut().find(|initializer| initializer.value == value)
        {
            let old = std::mem::replace(&mut initializer.source, Source::Values(Vec::new()));
            initializer.source = replace(old);
        }
    }

    /// Name, type and shape of a value.
    pub fn info(&self, value: Value) -> &ValueInfo {
        // A `Value` is made only by the graph that holds it, and values are never removed.
        &self.values[value.0]
    }

    /// The shape of a value.
    pub fn shape(&self, value: Value) -> &[Dim] {
        &self.info(value).shape
    }

    /// The element type of a value.
    pub fn kind(&self, value: Value) -> ElementType {
        self.info(value).kind
    }

    /// What the file says about itself.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }

    /// Adds a line to what the file says about itself.
    pub fn describe(&mut self, key: impl Into<String>, value: impl fmt::Display) {
        self.metadata.push((key.into(), value.to_string()));
    }

    /// Nodes added from here on carry this name in theirs, until [`leave`](Self::leave) gets what this gives.
    pub(super) fn enter(&mut self, place: &str) -> usize {
        let length = self.place.len();
        if length > 0 {
            self.place.push('/');
        }
        self.place.push_str(place);
        length
    }

    /// Goes back to where `enter` was called.
    pub(super) fn leave(&mut self, length: usize) {
        self.place.truncate(length);
    }

    /// An input of the graph.
    pub fn input(
        &mut self,
        name: &str,
        kind: ElementType,
        shape: impl Into<Vec<Dim>>,
    ) -> Result<Value, OnnxError> {
        let value = self.named_value("input", name, kind, shape.into())?;
        self.inputs.push(value);
        Ok(value)
    }

    /// Makes a value an output of the graph, under this name.
    pub fn output(&mut self, name: &str, value: Value) -> Result<(), OnnxError> {
        // A value that already has a name of its own keeps it; the output is then a copy.
        let named = self.inputs.contains(&value)
            || self.outputs.contains(&value)
            || self.initializers.iter().any(|initializer| initializer.value == value);
        let value = if named { self.identity(value)? } else { value };
        if !self.names.insert(name.to_owned()) {
            return Err(self.error("output", "a name of its own", name));
        }
        let old = std::mem::replace(&mut self.values[value.0].name, name.to_owned());
        self.names.remove(&old);
        self.outputs.push(value);
        Ok(())
    }

    /// A constant.
    pub fn initializer(
        &mut self,
        name: &str,
        kind: ElementType,
        shape: impl Into<Vec<usize>>,
        source: Source<'w>,
    ) -> Result<Value, OnnxError> {
        let shape: Vec<usize> = shape.into();
        let fits = match &source {
            Source::Values(_) | Source::Compute(_) | Source::Stored(_) => kind.is_float(),
            Source::Integers(_) => kind == ElementType::I64,
            Source::Booleans(_) => kind == ElementType::Bool,
            Source::Bytes(_) => kind == ElementType::I8,
        };
        if !fits {
            return Err(self.error(
                "initializer",
                "a source of its own type",
                format!("{source:?} as {}", kind.name()),
            ));
        }
        let elements: usize = shape.iter().product();
        let given = match &source {
            Source::Values(values) => Some(values.len()),
            Source::Integers(values) => Some(values.len()),
            Source::Booleans(values) => Some(values.len()),
            Source::Stored(view) => Some(view.shape.iter().product()),
            Source::Compute(_) | Source::Bytes(_) => None,
        };
        if given.is_some_and(|given| given != elements) {
            let found = format!("{given:?} elements for {shape:?}");
            return Err(self.error("initializer", format!("{elements} elements"), found));
        }
        let dims = shape.into_iter().map(Dim::Fixed).collect();
        let value = self.named_value("initializer", name, kind, dims)?;
        self.initializers.push(Initializer { value, source });
        Ok(value)
    }

    /// A number, shape (), shared by all that ask for the same one.
    pub fn scalar(&mut self, value: f64, kind: ElementType) -> Result<Value, OnnxError> {
        self.shared_floats(vec![value as f32], kind, &[])
    }

    /// A vector of ones, shared likewise.
    pub(super) fn ones(&mut self, width: usize, kind: ElementType) -> Result<Value, OnnxError> {
        self.shared_floats(vec![1.0; width], kind, &[width])
    }

    fn shared_floats(
        &mut self,
        values: Vec<f32>,
        kind: ElementType,
        shape: &[usize],
    ) -> Result<Value, OnnxError> {
        let key: Vec<u64> = values.iter().map(|value| u64::from(value.to_bits())).collect();
        self.share(key, kind, shape, Source::Values(values))
    }

    /// Integers of shape (n), shared likewise.
    pub(super) fn integers(&mut self, values: &[i64]) -> Result<Value, OnnxError> {
        let key = values.iter().map(|value| value.cast_unsigned()).collect();
        self.share(key, ElementType::I64, &[values.len()], Source::Integers(values.to_vec()))
    }

    /// Zeros of i8, shared likewise.
    pub(super) fn int8_zeros(&mut self, shape: &[usize]) -> Result<Value, OnnxError> {
        let count: usize = shape.iter().product();
        self.share(Vec::new(), ElementType::I8, shape, Source::Bytes(Box::new(move || Ok(vec![0; count]))))
    }

    fn share(
        &mut self,
        key: Vec<u64>,
        kind: ElementType,
        shape: &[usize],
        source: Source<'w>,
    ) -> Result<Value, OnnxError> {
        let dims: Vec<Dim> = shape.iter().copied().map(Dim::Fixed).collect();
        let known = self.shared.iter().find(|(k, v, d, _)| *k == kind && *v == key && *d == dims);
        if let Some((.., value)) = known {
            return Ok(*value);
        }
        let name = format!("constant_{}", self.shared.len());
        let value = self.initializer(&name, kind, shape, source)?;
        self.shared.push((kind, key, dims, value));
        Ok(value)
    }

    fn named_value(
        &mut self,
        what: &'static str,
        name: &str,
        kind: ElementType,
        shape: Vec<Dim>,
    ) -> Result<Value, OnnxError> {
        if name.is_empty() || !self.names.insert(name.to_owned()) {
            return Err(self.error(what, "a name of its own", format!("{name:?}")));
        }
        self.values.push(ValueInfo { name: name.to_owned(), kind, shape });
        Ok(Value(self.values.len() - 1))
    }

    /// A value that no node, input or initialiser gives yet.
    pub(super) fn fresh(&mut self, operator: &str, kind: ElementType, shape: Vec<Dim>) -> Value {
        let mut number = self.values.len();
        let name = loop {
            let name = format!("{}/{operator}_{number}", self.place);
            if self.names.insert(name.clone()) {
                break name;
            }
            number += 1;
        };
        self.values.push(ValueInfo { name, kind, shape });
        Value(self.values.len() - 1)
    }

    /// Adds a node; one output for each type and shape.
    pub(super) fn node(
        &mut self,
        operator: &'static str,
        inputs: &[Value],
        attributes: Vec<Attribute>,
        outputs: Vec<(ElementType, Vec<Dim>)>,
    ) -> Vec<Value> {
        let outputs: Vec<Value> =
            outputs.into_iter().map(|(kind, shape)| self.fresh(operator, kind, shape)).collect();
        let name = format!("{}/{operator}_node{}", self.place, self.nodes.len());
        self.nodes.push(Node {
            operator,
            name,
            inputs: inputs.to_vec(),
            outputs: outputs.clone(),
            attributes,
        });
        outputs
    }

    /// An error at the present place in the graph.
    pub(super) fn error(
        &self,
        operator: &'static str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> OnnxError {
        OnnxError::Operator {
            graph: self.name.clone(),
            operator,
            place: if self.place.is_empty() { "the top".to_owned() } else { self.place.clone() },
            expected: expected.into(),
            found: found.into(),
        }
    }
}

impl Initializer<'_> {
    /// Bytes of its elements in the file.
    pub fn size(&self, graph: &Graph) -> usize {
        let info = graph.info(self.value);
        let elements: usize = info
            .shape
            .iter()
            .map(|dim| match dim {
                Dim::Fixed(size) => *size,
                // Made from numbers only.
                Dim::Symbol(_) => 0,
            })
            .product();
        elements * info.kind.size()
    }

    /// Hands the elements over as bytes, a piece at a time.
    pub(super) fn stream(
        &self,
        graph: &Graph,
        mut sink: impl FnMut(&[u8]) -> Result<(), OnnxError>,
    ) -> Result<(), OnnxError> {
        /// Elements converted at once.
        const PIECE: usize = 1 << 20;
        let ValueInfo { name, kind, .. } = graph.info(self.value);
        let mut floats = |values: &[f32], first: usize| {
            let mut bytes = Vec::with_capacity(PIECE.min(values.len()) * kind.size());
            for (i, piece) in values.chunks(PIECE).enumerate() {
                bytes.clear();
                element::encode(piece, *kind, name, first + i * PIECE, &mut bytes)?;
                sink(&bytes)?;
            }
            Ok(())
        };
        match &self.source {
            Source::Values(values) => floats(values, 0),
            Source::Compute(compute) => floats(&compute()?, 0),
            Source::Stored(view) => {
                for (i, piece) in view.bytes.chunks(PIECE * view.kind.size()).enumerate() {
                    floats(&element::decode_bytes(piece, view.kind), i * PIECE)?;
                }
                Ok(())
            }
            Source::Integers(values) => {
                sink(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
            }
            Source::Booleans(values) => {
                sink(&values.iter().map(|value| u8::from(*value)).collect::<Vec<u8>>())
            }
            Source::Bytes(compute) => {
                sink(&compute()?.into_iter().map(i8::cast_unsigned).collect::<Vec<u8>>())
            }
        }
    }
}
