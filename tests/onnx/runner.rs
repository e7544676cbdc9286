//! The bridge to `onnx_graph.py`, and tensors on both sides of it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use groot_policy::onnx::{Data, Graph, Written, write};
use ndarray::{ArrayD, IxDyn};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::checkpoint_writer::{Tensor, Tensors, read_tensors, write_tensors};

/// A Python with `onnx` and ONNX Runtime, and a folder for what goes there and back.
pub struct Runner {
    process: Child,
    answers: BufReader<ChildStdout>,
    pub folder: TempDir,
}

/// What runs a graph.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    OnnxRuntime,
    /// The evaluator of the `onnx` package, which knows bf16.
    Evaluator,
}

#[cfg(all(feature = "tensorrt", feature = "torch"))]
/// How operands are moved before they are rounded.
#[derive(Clone, Copy, Default)]
pub struct Moved {
    /// In parts of the root of their mean square.
    pub noise: f64,
    /// In steps of the rounding.
    pub dither: f64,
    pub seed: u64,
}

impl Runner {
    /// Starts it on the Python that `GROOT_TEST_PYTHON` names, otherwise on the one that the set-up made.
    pub fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = std::env::var_os("GROOT_TEST_PYTHON")
            .map_or_else(|| root.join(".venv/bin/python"), PathBuf::from);
        let mut process = Command::new(&python)
            .arg(root.join("tests/reference/onnx_graph.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}; run `make setup`", python.display()));
        let mut answers = BufReader::new(process.stdout.take().unwrap());
        let mut versions = String::new();
        answers.read_line(&mut versions).unwrap();
        assert!(
            versions.starts_with("onnx "),
            "{} could not run onnx_graph.py; run `make setup`, or name a Python that has onnx and onnxruntime in \
             GROOT_TEST_PYTHON",
            python.display()
        );
        Self { process, answers, folder: tempfile::tempdir().unwrap() }
    }

    pub fn try_ask(&mut self, request: &Value) -> Result<Value, String> {
        let requests = self.process.stdin.as_mut().unwrap();
        writeln!(requests, "{request}").unwrap();
        requests.flush().unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"));
        match answer.get("error") {
            Some(error) => Err(error.to_string()),
            None => Ok(answer),
        }
    }

    /// Writes a graph and has it checked; gives back where it is and what the checker found.
    pub fn write(&mut self, graph: &Graph, stem: &str) -> (Written, Value) {
        let written = write(graph, self.folder.path(), stem, Data::Full).unwrap();
        let answer = self.check(&written.model);
        (written, answer)
    }

    pub fn check(&mut self, model: &Path) -> Value {
        let answer = self.try_ask(&json!({"do": "check", "model": model}));
        let answer = answer.unwrap_or_else(|e| panic!("{}: {e}", model.display()));
        // Shape inference knows nearly all values; where it knows nothing, nothing was compared.
        let count = |key: &str| answer[key].as_u64().unwrap();
        assert!(count("compared") * 10 >= count("values") * 9, "{}: {answer}", model.display());
        answer
    }

    pub fn run(&mut self, model: &Path, inputs: &Tensors) -> Tensors {
        self.run_on(Engine::OnnxRuntime, model, inputs)
    }

    #[cfg(all(feature = "tensorrt", feature = "torch"))]
    /// The plain graph in f64, with the operands of products whose weights have a range rounded to INT8, after they were moved at
    /// random.
    pub fn fake_quantise(
        &mut self,
        model: &Path,
        inputs: &Tensors,
        ranges: &BTreeMap<String, f32>,
        moved: Moved,
    ) -> Tensors {
        let Moved { noise, dither, seed } = moved;
        let more = json!({"ranges": ranges, "noise": noise, "dither": dither, "seed": seed});
        self.exchange("fake_quantise", model, inputs, more)
    }

    pub fn run_on(&mut self, engine: Engine, model: &Path, inputs: &Tensors) -> Tensors {
        let what = if engine == Engine::OnnxRuntime { "run" } else { "evaluate" };
        self.exchange(what, model, inputs, json!({}))
    }

    fn exchange(&mut self, what: &str, model: &Path, inputs: &Tensors, more: Value) -> Tensors {
        let path = |name: &str| self.folder.path().join(name);
        let (from, to) = (path("inputs.safetensors"), path("outputs.safetensors"));
        write_tensors(&from, inputs);
        let mut request = json!({"do": what, "model": model, "inputs": from, "outputs": to});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.try_ask(&request).unwrap_or_else(|e| panic!("{}: {e}", model.display()));
        read_tensors(&to)
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // The script ends with its input.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

pub fn floats(array: &ArrayD<f32>) -> Tensor {
    let data = array.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor { dtype: Dtype::F32, shape: array.shape().to_vec(), data }
}

pub fn integers(array: &ArrayD<i64>) -> Tensor {
    let data = array.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor { dtype: Dtype::I64, shape: array.shape().to_vec(), data }
}

pub fn booleans(array: &ArrayD<bool>) -> Tensor {
    let data = array.iter().map(|value| u8::from(*value)).collect();
    Tensor { dtype: Dtype::BOOL, shape: array.shape().to_vec(), data }
}

pub fn array(tensor: &Tensor) -> ArrayD<f32> {
    ArrayD::from_shape_vec(IxDyn(&tensor.shape), tensor.values()).unwrap()
}

/// Names and shapes as the checker's answer has them.
pub fn signature(values: &Value) -> BTreeMap<String, (String, Vec<String>)> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let entries = values.as_array().unwrap().iter().map(|entry| {
        let shape = entry[2].as_array().unwrap().iter().map(text).collect();
        (text(&entry[0]), (text(&entry[1]), shape))
    });
    entries.collect()
}

/// ONNX Runtime's library in the package of the tests' Python.
#[cfg(feature = "onnxruntime")]
pub fn onnxruntime_library() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var_os("GROOT_TEST_PYTHON").map_or_else(|| root.join(".venv/bin/python"), Into::into);
    let find = "import glob, importlib.util as u; print(glob.glob(u.find_spec('onnxruntime').submodule_search_locations[0] \
                + '/capi/libonnxruntime.so*')[0])";
    let output = Command::new(python).args(["-c", find]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().into()
}
