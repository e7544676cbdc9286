//! The parameters in force, as a parameter file that would give them again.

use std::fmt::Write as _;
use std::path::Path;

use super::{NodeConfig, ParameterValue};

/// A parameter file for the node with the fully qualified name `node`. Paths are absolute, so that it can be kept anywhere.
pub fn effective_yaml(node: &str, config: &NodeConfig) -> String {
    let checkpoint = &config.checkpoint;
    let paths: [(&str, Option<&Path>); 4] = [
        ("checkpoint.path", Some(&checkpoint.path)),
        ("checkpoint.tokenizer", checkpoint.tokenizer.as_deref()),
        ("checkpoint.eagle_config", checkpoint.eagle_config.as_deref()),
        ("tensorrt.engines", config.engine.as_ref().map(|choice| choice.folder.as_path())),
    ];
    let mut yaml = format!("{}:\n  ros__parameters:\n", quoted(node));
    let mut open: Vec<&str> = Vec::new();
    for (name, value) in config.parameters.iter() {
        let mut groups: Vec<&str> = name.split('.').collect();
        // `split` gives at least one part.
        let field = groups.pop().unwrap_or_default();
        // Names come in alphabetical order, so that a group's parameters stand together.
        let shared = open.iter().zip(&groups).take_while(|(a, b)| a == b).count();
        for (depth, group) in groups.iter().enumerate().skip(shared) {
            let _ = writeln!(yaml, "{}{}:", indent(depth), quoted(group));
        }
        let path = paths.iter().find_map(|(path, value)| if *path == name { *value } else { None });
        let text = match path.and_then(|path| std::path::absolute(path).ok()) {
            Some(path) => quoted(&path.to_string_lossy()),
            None => scalar_or_list(value),
        };
        let _ = writeln!(yaml, "{}{}: {text}", indent(groups.len()), quoted(field));
        open = groups;
    }
    yaml
}

fn indent(depth: usize) -> String {
    " ".repeat(4 + 2 * depth)
}

fn scalar_or_list(value: &ParameterValue) -> String {
    fn list<T>(values: &[T], show: impl Fn(&T) -> String) -> String {
        format!("[{}]", values.iter().map(show).collect::<Vec<_>>().join(", "))
    }
    match value {
        ParameterValue::Bool(value) => value.to_string(),
        ParameterValue::Integer(value) => value.to_string(),
        ParameterValue::Double(value) => double(value),
        ParameterValue::String(value) => quoted(value),
        ParameterValue::BoolArray(values) => list(values, bool::to_string),
        ParameterValue::IntegerArray(values) => list(values, i64::to_string),
        ParameterValue::DoubleArray(values) => list(values, double),
        ParameterValue::StringArray(values) => list(values, |value| quoted(value)),
        ParameterValue::EmptyArray => "[]".to_owned(),
    }
}

/// Always with a point or an exponent, so that it is read as a double again.
fn double(value: &f64) -> String {
    match *value {
        value if value.is_nan() => ".nan".to_owned(),
        f64::INFINITY => ".inf".to_owned(),
        f64::NEG_INFINITY => "-.inf".to_owned(),
        value => format!("{value:?}"),
    }
}

/// Bare where every reader takes it for text, else in JSON's quotation marks, which are YAML's too.
fn quoted(text: &str) -> String {
    let bare = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_/".contains(c))
        && ParameterValue::from_plain(text) == ParameterValue::String(text.to_owned())
        && !matches!(text.to_ascii_lowercase().as_str(), "null" | "inf" | "nan" | "infinity");
    if bare { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn demo() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo.yaml")
    }

    #[test]
    fn what_is_dumped_gives_the_same_configuration_when_it_is_loaded() {
        for text in
            ["on", "yes", "12", "0x10", "1e3", "~", "null", "a: b", "# no comment", " spaces ", "é\n\"'"]
        {
            let overrides =
                [("instruction".to_owned(), format!("{text:?}")), ("rate".to_owned(), "2".to_owned())];
            let config = NodeConfig::load(&[demo()], &overrides).unwrap();
            let dumped = effective_yaml("/policy_node", &config);
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("dump.yaml");
            std::fs::write(&file, &dumped).unwrap();
            let again = NodeConfig::load(&[file], &[]).unwrap_or_else(|e| panic!("{e}\n{dumped}"));
            assert_eq!(effective_yaml("/policy_node", &again), dumped);
            assert_eq!(again.instruction, text);
            assert_eq!(again.state, config.state);
            assert!(again.checkpoint.path.is_absolute() && again.checkpoint.path.is_dir());
        }
    }

    #[test]
    fn other_yaml_readers_see_the_same_values() {
        let config = NodeConfig::load(&[demo()], &[("instruction".to_owned(), "'on'".to_owned())]).unwrap();
        let yaml: serde_yaml::Value = serde_yaml::from_str(&effective_yaml("/policy_node", &config)).unwrap();
        let parameters = &yaml["/policy_node"]["ros__parameters"];
        assert_eq!(parameters["instruction"], "on");
        assert_eq!(parameters["cameras"]["front"]["topic"], "/front/image_raw");
        assert_eq!(parameters["state"]["gripper"]["joints"][1], "gripper_joint_2");
        assert_eq!(parameters["rate"], 5.0);
    }
}
