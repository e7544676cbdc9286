//! The operators, with their rules of types and shapes. Names and meanings are those of ONNX opset 17.

use super::{Attribute, Dim, Graph, Value, shape_text};
use crate::onnx::element::ElementType;
use crate::onnx::error::OnnxError;

type Result<T> = std::result::Result<T, OnnxError>;

impl Graph<'_> {
    fn one(
        &mut self,
        operator: &'static str,
        inputs: &[Value],
        attributes: Vec<Attribute>,
        kind: ElementType,
        shape: Vec<Dim>,
    ) -> Value {
        // `node` gives one value for each type and shape.
        self.node(operator, inputs, attributes, vec![(kind, shape)])[0]
    }

    fn describe_all(&self, values: &[Value]) -> String {
        let texts: Vec<String> = values.iter().map(|value| self.info(*value).to_string()).collect();
        texts.join(" and ")
    }

    fn same_float(&self, operator: &'static str, values: &[Value]) -> Result<ElementType> {
        match values.split_first() {
            Some((first, rest))
                if self.kind(*first).is_float()
                    && rest.iter().all(|v| self.kind(*v) == self.kind(*first)) =>
            {
                Ok(self.kind(*first))
            }
            _ => Err(self.error(operator, "one floating-point type", self.describe_all(values))),
        }
    }

    /// An axis counted from the front; negative ones count from the end.
    fn axis(&self, operator: &'static str, x: Value, axis: i64) -> Result<usize> {
        let rank = self.shape(x).len() as i64;
        let front = if axis < 0 { axis + rank } else { axis };
        if (0..rank).contains(&front) {
            // Not negative and below a length.
            Ok(front as usize)
        } else {
            Err(self.error(operator, format!("an axis of {}", self.info(x)), axis.to_string()))
        }
    }

    fn broadcast(&self, operator: &'static str, a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>> {
        let rank = a.len().max(b.len());
        let at =
            |shape: &[Dim], i: usize| (i + shape.len()).checked_sub(rank).map_or(Dim::Fixed(1), |i| shape[i]);
        (0..rank)
            .map(|i| match (at(a, i), at(b, i)) {
                (a, b) if a == b => Ok(a),
                (Dim::Fixed(1), b) => Ok(b),
                (a, Dim::Fixed(1)) => Ok(a),
                _ => Err(self.error(
                    operator,
                    "shapes that broadcast",
                    format!("{} and {}", shape_text(a), shape_text(b)),
                )),
            })
            .collect()
    }

    fn binary(&mut self, operator: &'static str, a: Value, b: Value) -> Result<Value> {
        let kind = self.same_float(operator, &[a, b])?;
        let shape = self.broadcast(operator, self.shape(a), self.shape(b))?;
        Ok(self.one(operator, &[a, b], vec![], kind, shape))
    }

    fn unary(&mut self, operator: &'static str, x: Value) -> Result<Value> {
        let kind = self.same_float(operator, &[x])?;
        let shape = self.shape(x).to_vec();
        Ok(self.one(operator, &[x], vec![], kind, shape))
    }

    /// a + b, broadcasting.
    pub fn add(&mut self, a: Value, b: Value) -> Result<Value> {
        self.binary("Add", a, b)
    }

    /// a − b, broadcasting.
    pub fn sub(&mut self, a: Value, b: Value) -> Result<Value> {
        self.binary("Sub", a, b)
    }

    /// a·b element by element, broadcasting.
    pub fn mul(&mut self, a: Value, b: Value) -> Result<Value> {
        self.binary("Mul", a, b)
    }

    /// a / b element by element, broadcasting.
    pub fn div(&mut self, a: Value, b: Value) -> Result<Value> {
        self.binary("Div", a, b)
    }

    /// Hyperbolic tangent.
    pub fn tanh(&mut self, x: Value) -> Result<Value> {
        self.unary("Tanh", x)
    }

    /// 1 / (1 + exp(−x)).
    pub fn sigmoid(&mut self, x: Value) -> Result<Value> {
        self.unary("Sigmoid", x)
    }

    /// Error function.
    pub fn erf(&mut self, x: Value) -> Result<Value> {
        self.unary("Erf", x)
    }

    /// max(x, 0).
    pub fn relu(&mut self, x: Value) -> Result<Value> {
        self.unary("Relu", x)
    }

    /// Square root.
    pub fn sqrt(&mut self, x: Value) -> Result<Value> {
        self.unary("Sqrt", x)
    }

    /// f32 only: opset 17 has no narrower cosine.
    pub fn cos(&mut self, x: Value) -> Result<Value> {
        self.unary("Cos", x)
    }

    /// f32 only: opset 17 has no narrower sine.
    pub fn sin(&mut self, x: Value) -> Result<Value> {
        self.unary("Sin", x)
    }

    /// The same value under another name.
    pub fn identity(&mut self, x: Value) -> Result<Value> {
        let (kind, shape) = (self.kind(x), self.shape(x).to_vec());
        Ok(self.one("Identity", &[x], vec![], kind, shape))
    }

    /// (…, m, k) x (…, k, n) → (…, m, n).
    pub fn matmul(&mut self, a: Value, b: Value) -> Result<Value> {
        let kind = self.same_float("MatMul", &[a, b])?;
        let ([a_batch @ .., m, k], [b_batch @ .., k2, n]) = (self.shape(a), self.shape(b)) else {
            return Err(self.error("MatMul", "two dimensions or more", self.describe_all(&[a, b])));
        };
        if k != k2 {
            return Err(self.error("MatMul", "the same inner dimension", self.describe_all(&[a, b])));
        }
        let mut shape = self.broadcast("MatMul", a_batch, b_batch)?;
        shape.extend([*m, *n]);
        Ok(self.one("MatMul", &[a, b], vec![], kind, shape))
    }

    /// Mean over the last axis, which stays as one.
    pub fn reduce_mean(&mut self, x: Value) -> Result<Value> {
        let kind = self.same_float("ReduceMean", &[x])?;
        self.axis("ReduceMean", x, -1)?;
        let mut shape = self.shape(x).to_vec();
        if let Some(last) = shape.last_mut() {
            *last = Dim::Fixed(1);
        }
        let attributes = vec![Attribute::Ints("axes", vec![-1]), Attribute::Int("keepdims", 1)];
        Ok(self.one("ReduceMean", &[x], attributes, kind, shape))
    }

    /// Over the last axis.
    pub fn softmax(&mut self, x: Value) -> Result<Value> {
        let kind = self.same_float("Softmax", &[x])?;
        self.axis("Softmax", x, -1)?;
        let shape = self.shape(x).to_vec();
        Ok(self.one("Softmax", &[x], vec![Attribute::Int("axis", -1)], kind, shape))
    }

    /// LayerNormalization over the last axis; scale and bias of that width.
    pub fn layer_normalization(
        &mut self,
        x: Value,
        scale: Value,
        bias: Option<Value>,
        eps: f64,
    ) -> Result<Value> {
        let inputs: Vec<Value> = [x, scale].into_iter().chain(bias).collect();
        let kind = self.same_float("LayerNormalization", &inputs)?;
        let shape = self.shape(x).to_vec();
        let width = shape.last().copied();
        if inputs
            .iter()
            .skip(1)
            .any(|value| self.shape(*value).len() != 1 || self.shape(*value).last().copied() != width)
        {
            let found = self.describe_all(&inputs);
            return Err(self.error("LayerNormalization", "scale and bias of the last axis' width", found));
        }
        let attributes = vec![Attribute::Int("axis", -1), Attribute::Float("epsilon", eps as f32)];
        Ok(self.one("LayerNormalization", &inputs, attributes, kind, shape))
    }

    /// Nothing where the type is right already.
    pub fn cast(&mut self, x: Value, kind: ElementType) -> Result<Value> {
        if self.kind(x) == kind {
            return Ok(x);
        }
        let shape = self.shape(x).to_vec();
        Ok(self.one("Cast", &[x], vec![Attribute::Int("to", i64::from(kind.number()))], kind, shape))
    }

    /// Same elements, other shape.
    ///
    /// A symbol that stands at the same axis before and after is copied; of the others the target may have one.
    pub fn reshape(&mut self, x: Value, target: &[Dim]) -> Result<Value> {
        let source = self.shape(x).to_vec();
        let wrong = |graph: &Self, why: &str| {
            graph.error(
                "Reshape",
                why.to_owned(),
                format!("{} to {}", shape_text(&source), shape_text(target)),
            )
        };
        let split = |shape: &[Dim]| {
            let mut symbols = Vec::new();
            let mut product = 1usize;
            for dim in shape {
                match dim {
                    Dim::Fixed(size) => product *= size,
                    Dim::Symbol(name) => symbols.push(*name),
                }
            }
            symbols.sort_unstable();
            (product, symbols)
        };
        if split(&source) != split(target) {
            return Err(wrong(self, "as many elements after as before"));
        }
        let mut inferred = 0;
        let sizes: Vec<i64> = target
            .iter()
            .enumerate()
            .map(|(i, dim)| match dim {
                Dim::Fixed(size) => *size as i64,
                Dim::Symbol(_) if source.get(i) == Some(dim) => 0,
                Dim::Symbol(_) => {
                    inferred += 1;
                    -1
                }
            })
            .collect();
        if inferred > 1 {
            return Err(wrong(self, "at most one symbol that moves"));
        }
        let (kind, sizes) = (self.kind(x), self.integers(&sizes)?);
        Ok(self.one("Reshape", &[x, sizes], vec![], kind, target.to_vec()))
    }

    /// Axis i of the result is axis `order[i]` of `x`.
    pub fn transpose(&mut self, x: Value, order: &[usize]) -> Result<Value> {
        let shape = self.shape(x);
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..shape.len()) {
            return Err(self.error(
                "Transpose",
                format!("an order of the axes of {}", self.info(x)),
                format!("{order:?}"),
            ));
        }
        let shape = order.iter().map(|axis| shape[*axis]).collect();
        let kind = self.kind(x);
        let order = order.iter().map(|axis| *axis as i64).collect();
        Ok(self.one("Transpose", &[x], vec![Attribute::Ints("perm", order)], kind, shape))
    }

    /// Joins along an axis whose lengths are numbers.
    pub fn concat(&mut self, parts: &[Value], axis: i64) -> Result<Value> {
        let kind = self.same_float("Concat", parts)?;
        let axis = self.axis("Concat", parts[0], axis)?;
        let mut shape = self.shape(parts[0]).to_vec();
        let mut total = 0;
        for part in parts {
            let mut other = self.shape(*part).to_vec();
            let length = other.get_mut(axis).map(|dim| std::mem::replace(dim, shape[axis]));
            match length {
                Some(Dim::Fixed(length)) if other == shape => total += length,
                _ => {
                    let found = self.describe_all(parts);
                    return Err(self.error("Concat", "equal shapes but for one axis of known length", found));
                }
            }
        }
        shape[axis] = Dim::Fixed(total);
        Ok(self.one("Concat", parts, vec![Attribute::Int("axis", axis as i64)], kind, shape))
    }

    /// Elements `from..to` along an axis of known length.
    pub fn slice(&mut self, x: Value, axis: i64, from: usize, to: usize) -> Result<Value> {
        let axis = self.axis("Slice", x, axis)?;
        let mut shape = self.shape(x).to_vec();
        match shape[axis] {
            Dim::Fixed(length) if from < to && to <= length => shape[axis] = Dim::Fixed(to - from),
            _ => {
                let expected = format!("a range inside axis {axis} of {}", self.info(x));
                return Err(self.error("Slice", expected, format!("{from}..{to}")));
            }
        }
        let kind = self.kind(x);
        let inputs =
            [x, self.integers(&[from as i64])?, self.integers(&[to as i64])?, self.integers(&[axis as i64])?];
        Ok(self.one("Slice", &inputs, vec![], kind, shape))
    }

    /// The first elements of `x` along `axis`, as many as `like` has along `like_axis`, a symbolic length.
    pub fn slice_like(&mut self, x: Value, axis: i64, like: Value, like_axis: i64) -> Result<Value> {
        let (axis, like_axis) = (self.axis("Slice", x, axis)?, self.axis("Slice", like, like_axis)?);
        let rank = self.shape(like).len();
        let sizes = self.one("Shape", &[like], vec![], ElementType::I64, vec![Dim::Fixed(rank)]);
        let length = self.slice(sizes, 0, like_axis, like_axis + 1)?;
        let mut shape = self.shape(x).to_vec();
        shape[axis] = self.shape(like)[like_axis];
        let kind = self.kind(x);
        let inputs = [x, self.integers(&[0])?, length, self.integers(&[axis as i64])?];
        Ok(self.one("Slice", &inputs, vec![], kind, shape))
    }

    /// Cuts an axis into parts of these lengths.
    pub fn split(&mut self, x: Value, axis: i64, lengths: &[usize]) -> Result<Vec<Value>> {
        let axis = self.axis("Split", x, axis)?;
        if self.shape(x)[axis] != Dim::Fixed(lengths.iter().sum()) {
            let expected = format!("lengths that add up to axis {axis} of {}", self.info(x));
            return Err(self.error("Split", expected, format!("{lengths:?}")));
        }
        let (kind, shape) = (self.kind(x), self.shape(x).to_vec());
        let outputs = lengths
            .iter()
            .map(|length| {
                let mut part = shape.clone();
                part[axis] = Dim::Fixed(*length);
                (kind, part)
            })
            .collect();
        let sizes: Vec<i64> = lengths.iter().map(|length| *length as i64).collect();
        let sizes = self.integers(&sizes)?;
        Ok(self.node("Split", &[x, sizes], vec![Attribute::Int("axis", axis as i64)], outputs))
    }

    /// Rows of `x` (n, …) by integers of any shape: (shape of the integers, …).
    pub fn gather(&mut self, x: Value, indices: Value) -> Result<Value> {
        if self.kind(indices) != ElementType::I64 || self.shape(x).is_empty() {
            let found = self.describe_all(&[x, indices]);
            return Err(self.error("Gather", "rows, and integers to choose them by", found));
        }
        let (kind, rest) = (self.kind(x), self.shape(x)[1..].to_vec());
        let shape = self.shape(indices).iter().copied().chain(rest).collect();
        Ok(self.one("Gather", &[x, indices], vec![Attribute::Int("axis", 0)], kind, shape))
    }

    /// Puts axes of length one where the result has these axes.
    pub fn unsqueeze(&mut self, x: Value, axes: &[usize]) -> Result<Value> {
        let mut shape = self.shape(x).to_vec();
        for axis in axes {
            if *axis > shape.len() {
                return Err(self.error(
                    "Unsqueeze",
                    format!("axes of {}", self.info(x)),
                    format!("{axes:?}"),
                ));
            }
            shape.insert(*axis, Dim::Fixed(1));
        }
        let kind = self.kind(x);
        let axes: Vec<i64> = axes.iter().map(|axis| *axis as i64).collect();
        let axes = self.integers(&axes)?;
        Ok(self.one("Unsqueeze", &[x, axes], vec![], kind, shape))
    }

    fn boolean(&mut self, operator: &'static str, inputs: &[Value]) -> Result<Value> {
        if inputs.iter().any(|value| self.kind(*value) != ElementType::Bool) {
            return Err(self.error(operator, "booleans", self.describe_all(inputs)));
        }
        let mut shape = Vec::new();
        for value in inputs {
            shape = self.broadcast(operator, &shape, self.shape(*value))?;
        }
        Ok(self.one(operator, inputs, vec![], ElementType::Bool, shape))
    }

    /// Of a boolean.
    pub fn not(&mut self, x: Value) -> Result<Value> {
        self.boolean("Not", &[x])
    }

    /// Of two booleans, broadcasting.
    pub fn and(&mut self, a: Value, b: Value) -> Result<Value> {
        self.boolean("And", &[a, b])
    }

    /// `a` where the condition holds, `b` elsewhere.
    pub fn select(&mut self, condition: Value, a: Value, b: Value) -> Result<Value> {
        let kind = self.same_float("Where", &[a, b])?;
        if self.kind(condition) != ElementType::Bool {
            return Err(self.error("Where", "a boolean condition", self.info(condition).to_string()));
        }
        let shape = self.broadcast("Where", self.shape(a), self.shape(b))?;
        let shape = self.broadcast("Where", self.shape(condition), &shape)?;
        Ok(self.one("Where", &[condition, a, b], vec![], kind, shape))
    }
}
