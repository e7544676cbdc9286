//! Whether an engine has the inputs of the graph that it was built from.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::{
    engine::ShapeRecord,
    tensorrt::{Engine, ShapeRange, TensorRtError},
};

/// Reads the engine's inputs and compares them with the graph's.
///
/// # Errors
/// Every input that is missing, too many, or of other shapes.
pub fn check_tensors(engine: &Engine, expected: &BTreeMap<String, ShapeRecord>) -> Result<()> {
    let inputs = engine.tensors().iter().filter(|tensor| tensor.is_input);
    let found = inputs
        .map(|tensor| {
            let ShapeRange { min, opt, max } = match tensor.is_dynamic() {
                true => engine.shape_range(&tensor.name, 0)?,
                false => ShapeRange::fixed(tensor.shape.clone()),
            };
            Ok((tensor.name.clone(), ShapeRecord { min, opt, max }))
        })
        .collect::<Result<BTreeMap<_, _>, TensorRtError>>()?;
    let differences = differences(expected, &found);
    ensure!(differences.is_empty(), "the engine has other inputs than the graph: {}", differences.join("; "));
    Ok(())
}

fn differences(
    expected: &BTreeMap<String, ShapeRecord>,
    found: &BTreeMap<String, ShapeRecord>,
) -> Vec<String> {
    let told = |shape: Option<&ShapeRecord>| shape.map_or("none".to_owned(), ToString::to_string);
    let mut names: Vec<&String> = expected.keys().chain(found.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let differ = names.into_iter().filter(|name| expected.get(*name) != found.get(*name));
    differ
        .map(|name| format!("{name}: expected {}, found {}", told(expected.get(name)), told(found.get(name))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_that_are_missing_too_many_or_of_other_shapes_are_each_named_with_both_sides() {
        let fixed = |shape: &[i64]| ShapeRecord { min: shape.into(), opt: shape.into(), max: shape.into() };
        let named = |shapes: &[(&str, &[i64])]| -> BTreeMap<String, ShapeRecord> {
            shapes.iter().map(|(name, shape)| ((*name).to_owned(), fixed(shape))).collect()
        };
        let expected = named(&[("actions", &[1, 50, 128]), ("keys_0", &[1, 40, 1536]), ("state", &[1, 1])]);
        assert_eq!(differences(&expected, &expected), Vec::<String>::new());
        let found = named(&[("actions", &[1, 50, 128]), ("keys_0", &[1, 41, 1536]), ("mask", &[1])]);
        assert_eq!(
            differences(&expected, &found),
            [
                "keys_0: expected [1, 40, 1536], found [1, 41, 1536]",
                "mask: expected none, found [1]",
                "state: expected [1, 1], found none",
            ]
        );
    }
}
