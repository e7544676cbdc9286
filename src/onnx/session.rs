//! Graphs run by ONNX Runtime, a shared library that is looked for when it is needed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::{ArrayD, IxDyn};
use ort::session::{Session, SessionInputValue, builder::GraphOptimizationLevel};
use ort::value::Tensor;
use thiserror::Error;

use super::validate::NamedTensors;

/// The environment variable that names the library.
pub const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";

/// Why a graph did not run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SessionError {
    /// There is no ONNX Runtime.
    #[error(
        "ONNX Runtime: expected libonnxruntime.so, found none in {searched}; set {LIBRARY_VARIABLE} to the library, or \
         `pip install onnxruntime` into .venv"
    )]
    NoLibrary { searched: String },
    /// What was found is none, or is too old.
    #[error("{path}: not a usable ONNX Runtime (1.17 or newer): {reason}", path = path.display())]
    Library { path: PathBuf, reason: String },
    /// ONNX Runtime refused the graph.
    #[error("{path}: ONNX Runtime cannot load the graph: {reason}", path = path.display())]
    Load { path: PathBuf, reason: String },
    /// Inputs do not fit the graph, or a node failed.
    #[error("{path}: ONNX Runtime: {reason}", path = path.display())]
    Run { path: PathBuf, reason: String },
}

/// A value of a graph's input.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    F32(ArrayD<f32>),
    I64(ArrayD<i64>),
    Bool(ArrayD<bool>),
}

/// A graph, ready to run on the CPU.
pub struct GraphSession {
    path: PathBuf,
    session: Session,
}

impl GraphSession {
    /// Loads a graph; its weights lie where it says.
    ///
    /// `library` is ONNX Runtime's shared library. `None` takes the one that `ORT_DYLIB_PATH` names, or else the one in a
    /// Python's `onnxruntime` package: of the active virtual environment, or of `.venv` in the working directory. One
    /// process has one library: the first that was loaded.
    ///
    /// # Errors
    /// There is no library, or it refuses the graph.
    pub fn open(model: &Path, library: Option<&Path>) -> Result<Self, SessionError> {
        let library = match library {
            Some(path) => path.to_owned(),
            None => find_library()?,
        };
        let reason = |error: &dyn std::fmt::Display| error.to_string();
        ort::init_from(&library)
            .map_err(|error| SessionError::Library { path: library.clone(), reason: reason(&error) })?
            // False where an earlier call has done it already.
            .commit();
        let refused = |reason: String| SessionError::Load { path: model.to_owned(), reason };
        let builder = Session::builder().map_err(|error| refused(reason(&error)))?;
        let mut builder = builder
            .with_optimization_level(GraphOptimizationLevel::Level3)
            .map_err(|error| refused(reason(&error)))?;
        let session = builder.commit_from_file(model).map_err(|error| refused(reason(&error)))?;
        Ok(Self { path: model.to_owned(), session })
    }

    /// Names of the inputs that a run needs.
    pub fn inputs(&self) -> Vec<String> {
        self.session.inputs().iter().map(|input| input.name().to_owned()).collect()
    }

    /// All outputs for these inputs.
    ///
    /// # Errors
    /// An input is missing or of another type or shape, or an output is not f32.
    pub fn run(&mut self, inputs: &BTreeMap<String, Input>) -> Result<NamedTensors, SessionError> {
        let path = self.path.clone();
        let missing: Vec<String> =
            self.inputs().into_iter().filter(|name| !inputs.contains_key(name)).collect();
        if !missing.is_empty() {
            let given: Vec<&str> = inputs.keys().map(String::as_str).collect();
            let reason = format!("expected the inputs {}, found only {given:?}", missing.join(", "));
            return Err(SessionError::Run { path, reason });
        }
        let failed = |error: ort::Error| SessionError::Run { path: path.clone(), reason: error.to_string() };
        let values = inputs
            .iter()
            .map(|(name, input)| {
                let value: SessionInputValue = match input {
                    Input::F32(array) => tensor(array)?.into(),
                    Input::I64(array) => tensor(array)?.into(),
                    Input::Bool(array) => tensor(array)?.into(),
                };
                Ok((name.clone(), value))
            })
            .collect::<Result<Vec<_>, ort::Error>>()
            .map_err(&failed)?;
        let outputs = self.session.run(values).map_err(&failed)?;
        outputs
            .iter()
            .map(|(name, value)| {
                let (shape, values) = value.try_extract_tensor::<f32>().map_err(&failed)?;
                // Of an actual tensor, so none is negative.
                let shape: Vec<usize> =
                    shape.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
                let array = ArrayD::from_shape_vec(IxDyn(&shape), values.to_vec());
                let array = array.map_err(|error| SessionError::Run {
                    path: path.clone(),
                    reason: format!("output {name}: {error}"),
                })?;
                Ok((name.to_owned(), array))
            })
            .collect()
    }
}

fn tensor<T: ort::value::PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static>(
    array: &ArrayD<T>,
) -> Result<Tensor<T>, ort::Error> {
    let values: Vec<T> = array.iter().cloned().collect();
    Tensor::from_array((array.shape().to_vec(), values))
}

/// The library that the environment names, or that a Python environment holds.
fn find_library() -> Result<PathBuf, SessionError> {
    if let Some(path) = std::env::var_os(LIBRARY_VARIABLE).filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let environments = std::env::var_os("VIRTUAL_ENV").map(PathBuf::from).into_iter();
    let environments: Vec<PathBuf> = environments.chain([PathBuf::from(".venv")]).collect();
    let found = environments.iter().find_map(|environment| library_in(environment));
    found.ok_or_else(|| {
        let mut searched = vec![format!("{LIBRARY_VARIABLE} (not set)")];
        searched.extend(environments.iter().map(|path| path.display().to_string()));
        SessionError::NoLibrary { searched: searched.join(", ") }
    })
}

/// `lib/python3.*/site-packages/onnxruntime/capi/libonnxruntime.so*` of a virtual environment, absolute.
fn library_in(environment: &Path) -> Option<PathBuf> {
    let entries = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries(environment.join("lib"))
        .flat_map(|python| entries(python.path().join("site-packages/onnxruntime/capi")))
        .map(|entry| entry.path())
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("libonnxruntime.so")
        })
        .and_then(|path| std::path::absolute(path).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_found_in_a_virtual_environment_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(library_in(folder.path()), None);
        let capi = folder.path().join("lib/python3.11/site-packages/onnxruntime/capi");
        std::fs::create_dir_all(&capi).unwrap();
        std::fs::write(capi.join("libonnxruntime_providers_shared.so"), "").unwrap();
        assert_eq!(library_in(folder.path()), None);
        std::fs::write(capi.join("libonnxruntime.so.1.23.2"), "").unwrap();
        assert_eq!(library_in(folder.path()).unwrap(), capi.join("libonnxruntime.so.1.23.2"));
    }

    #[test]
    fn a_file_that_is_no_library_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let fake = folder.path().join("libonnxruntime.so");
        std::fs::write(&fake, "not a library").unwrap();
        let error = GraphSession::open(Path::new("any.onnx"), Some(&fake)).err().unwrap().to_string();
        assert!(
            error.contains("libonnxruntime.so") && error.contains("not a usable ONNX Runtime"),
            "{error}"
        );
    }
}
