//! The parameters in force, as a parameter file that would give them again.

use serde_yaml::{Mapping, Value};

use super::{ParameterValue, Parameters};

/// A parameter file for the node with the fully qualified name `node`, as `ros2 param dump` writes it.
///
/// # Errors
/// None is known: every parameter has a form in YAML.
pub fn effective_yaml(node: &str, parameters: &Parameters) -> Result<String, serde_yaml::Error> {
    let mut root = Mapping::new();
    for (name, value) in parameters.iter() {
        // `a.b.c` becomes three levels of mappings.
        let mut level = &mut root;
        let mut parts = name.split('.').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                level.insert(part.into(), yaml(value));
                break;
            }
            let next = level.entry(part.into()).or_insert_with(|| Value::Mapping(Mapping::new()));
            match next {
                Value::Mapping(mapping) => level = mapping,
                // A parameter and a group of one name cannot both be in the table.
                _ => break,
            }
        }
    }
    let mut section = Mapping::new();
    section.insert("ros__parameters".into(), Value::Mapping(root));
    let mut file = Mapping::new();
    file.insert(node.into(), Value::Mapping(section));
    serde_yaml::to_string(&file)
}

fn yaml(value: &ParameterValue) -> Value {
    fn list<T: Clone + Into<Value>>(values: &[T]) -> Value {
        Value::Sequence(values.iter().cloned().map(Into::into).collect())
    }
    match value {
        ParameterValue::Bool(value) => (*value).into(),
        ParameterValue::Integer(value) => (*value).into(),
        ParameterValue::Double(value) => (*value).into(),
        ParameterValue::String(value) => value.as_str().into(),
        ParameterValue::BoolArray(values) => list(values),
        ParameterValue::IntegerArray(values) => list(values),
        ParameterValue::DoubleArray(values) => list(values),
        ParameterValue::StringArray(values) => list(values),
        ParameterValue::EmptyArray => Value::Sequence(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::node::config::NodeConfig;

    #[test]
    fn what_is_dumped_gives_the_same_parameters_when_it_is_loaded() {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo.yaml");
        for text in
            ["on", "yes", "12", "0x10", "1e3", "~", "null", "a: b", "# no comment", " spaces ", "é\n\"'"]
        {
            let overrides =
                [("instruction".to_owned(), format!("{text:?}")), ("rate".to_owned(), "2".to_owned())];
            let config = NodeConfig::load(std::slice::from_ref(&demo), &overrides).unwrap();
            let dumped = effective_yaml("/policy_node", &config.parameters).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("dump.yaml");
            std::fs::write(&file, &dumped).unwrap();
            let again = NodeConfig::load(&[file], &[]).unwrap_or_else(|e| panic!("{e}\n{dumped}"));
            let all = |config: &NodeConfig| -> Vec<_> {
                config.parameters.iter().map(|(n, v)| (n.to_owned(), v.clone())).collect()
            };
            assert_eq!(all(&again), all(&config), "{dumped}");
            assert_eq!(again.instruction, text);
        }
    }
}
