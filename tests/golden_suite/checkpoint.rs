//! The golden directory as a checkpoint.

use std::collections::BTreeMap;
use std::fs;

use groot_policy::checkpoint::{Checkpoint, OpenOptions, Purpose, TensorSpec, key_table};

use crate::fixture::Fixture;

fn open(fixture: &Fixture) -> (Checkpoint, Vec<TensorSpec>) {
    let checkpoint = Checkpoint::open(&fixture.dir, &OpenOptions::default()).unwrap();
    let table = key_table(&checkpoint.config, &checkpoint.eagle);
    (checkpoint, table)
}

#[test]
fn the_key_table_is_exactly_what_the_checkpoint_holds_but_for_leftovers_of_training() {
    let (checkpoint, table) = open(&Fixture::load());
    let expected: BTreeMap<&str, &TensorSpec> = table.iter().map(|spec| (spec.name.as_str(), spec)).collect();
    for name in checkpoint.weights.names() {
        let spec = expected.get(name).unwrap_or_else(|| panic!("{name} is not in the table"));
        assert_eq!(checkpoint.weights.get(name).unwrap().shape, spec.shape, "{name}");
    }
    let absent: Vec<_> = table.iter().filter(|spec| checkpoint.weights.get(&spec.name).is_err()).collect();
    for spec in absent {
        assert_eq!(spec.purpose, Purpose::Unused, "{}", spec.name);
    }
}

#[test]
fn every_mapped_tensor_has_the_bytes_of_its_file() {
    let fixture = Fixture::load();
    let (checkpoint, _) = open(&fixture);
    let mut compared = 0;
    for entry in fs::read_dir(&fixture.dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let bytes = fs::read(&path).unwrap();
            for (name, tensor) in safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors() {
                let view = checkpoint.weights.get(&name).unwrap();
                assert_eq!((view.shape, view.bytes), (tensor.shape(), tensor.data()), "{name}");
                compared += 1;
            }
        }
    }
    assert_eq!(compared, checkpoint.weights.names().count());
}
