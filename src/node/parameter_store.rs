//! The node's parameters as the network sees them: read, described and changed by name, without the network.
//!
//! Every accepted change is a new, whole and valid [`NodeConfig`], which whoever watches the store receives. So nothing that
//! runs ever sees half of a change, nor values that contradict one another.

use std::sync::Arc;

use tokio::sync::watch;

use super::config::{Constraint, NodeConfig, ParameterSpec, ParameterType, ParameterValue, Parameters};
use crate::ros::{
    parameters,
    srv::{
        FloatingPointRange, IntegerRange, ListParametersResult, Parameter, ParameterDescriptor,
        ParameterValue as Wire, SetParametersResult, parameter_type,
    },
};

/// The parameters of a running node.
#[derive(Debug)]
pub struct ParameterStore {
    config: watch::Sender<Arc<NodeConfig>>,
}

/// The changes of a configuration since a moment. None is lost, whenever they are asked for; several that nobody asked for
/// meanwhile are one.
#[derive(Debug)]
pub struct ConfigChanges {
    /// What whoever asks knows. Not what is in force when they first ask: a change may have come before.
    before: Arc<NodeConfig>,
    receiver: watch::Receiver<Arc<NodeConfig>>,
}

impl ConfigChanges {
    /// Waits for a change: the configuration before and after. None when the store is gone.
    pub async fn next(&mut self) -> Option<(Arc<NodeConfig>, Arc<NodeConfig>)> {
        self.receiver.changed().await.ok()?;
        let after = self.receiver.borrow_and_update().clone();
        Some((std::mem::replace(&mut self.before, after.clone()), after))
    }
}

impl ParameterStore {
    /// A store of the parameters that a configuration was built from.
    pub fn new(config: NodeConfig) -> Self {
        Self { config: watch::Sender::new(Arc::new(config)) }
    }

    /// The configuration in force, now and after each change.
    pub fn watch(&self) -> watch::Receiver<Arc<NodeConfig>> {
        self.config.subscribe()
    }

    /// The changes from now on.
    pub fn changes(&self) -> ConfigChanges {
        let mut receiver = self.watch();
        let before = receiver.borrow_and_update().clone();
        ConfigChanges { before, receiver }
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<NodeConfig> {
        self.config.borrow().clone()
    }

    /// Every parameter that is set.
    pub fn all(&self) -> Vec<Parameter> {
        let config = self.config();
        let parameter = |(name, value): (&str, &ParameterValue)| Parameter {
            name: name.to_owned(),
            value: to_wire(value),
        };
        config.parameters.iter().map(parameter).collect()
    }

    /// The value of each name; one of the kind `NOT_SET` where there is no such parameter.
    pub fn get(&self, names: &[String]) -> Vec<Wire> {
        let config = self.config();
        names.iter().map(|name| config.parameters.get(name).map(to_wire).unwrap_or_default()).collect()
    }

    /// The kind of each name's value.
    pub fn types(&self, names: &[String]) -> Vec<u8> {
        let config = self.config();
        let kind = |name: &String| config.parameters.spec(name).map_or(parameter_type::NOT_SET, kind_of);
        names.iter().map(kind).collect()
    }

    /// What each name means; for a name without parameter, only the name.
    pub fn describe(&self, names: &[String]) -> Vec<ParameterDescriptor> {
        let config = self.config();
        let describe = |name: &String| match config.parameters.spec(name) {
            Some(spec) => descriptor(name, spec),
            None => ParameterDescriptor { name: name.clone(), ..ParameterDescriptor::default() },
        };
        names.iter().map(describe).collect()
    }

    /// The names below `prefixes`, as [`parameters::list`] finds them.
    pub fn list(&self, prefixes: &[String], depth: u64) -> ListParametersResult {
        let config = self.config();
        parameters::list(config.parameters.iter().map(|(name, _)| name), prefixes, depth)
    }

    /// Sets all of the parameters or none of them. Gives back those that are set, with the values that they have now.
    ///
    /// # Errors
    /// Why not.
    pub fn set(&self, changes: &[Parameter]) -> Result<Vec<Parameter>, String> {
        let mut outcome = Ok(Vec::new());
        // Under the watch's lock, so that no change made meanwhile is lost.
        self.config.send_if_modified(|config| match changed(config, changes) {
            Ok(new) => {
                let set = changes.iter().map(|change| Parameter {
                    name: change.name.clone(),
                    value: new.parameters.get(&change.name).map(to_wire).unwrap_or_default(),
                });
                outcome = Ok(set.collect());
                *config = Arc::new(new);
                !changes.is_empty()
            }
            Err(reason) => {
                outcome = Err(reason);
                false
            }
        });
        outcome
    }
}

/// The answer to an attempt to set parameters.
pub fn result_of<T>(outcome: &Result<T, String>) -> SetParametersResult {
    match outcome {
        Ok(_) => SetParametersResult::success(),
        Err(reason) => SetParametersResult::refusal(reason),
    }
}

fn changed(config: &NodeConfig, changes: &[Parameter]) -> Result<NodeConfig, String> {
    let mut parameters: Parameters = config.parameters.clone();
    for Parameter { name, value } in changes {
        let value = from_wire(value).map_err(|fault| format!("{name}: {fault}"))?;
        parameters.change(name, &value).map_err(|error| error.to_string())?;
    }
    NodeConfig::from_parameters(parameters).map_err(|error| {
        let problems: Vec<String> = error.problems.iter().map(ToString::to_string).collect();
        problems.join("; ")
    })
}

fn descriptor(name: &str, spec: &ParameterSpec) -> ParameterDescriptor {
    let unit = if spec.unit.is_empty() { String::new() } else { format!(" In {}.", spec.unit) };
    let mut descriptor = ParameterDescriptor {
        name: name.to_owned(),
        r#type: kind_of(spec),
        description: format!("{}{unit}", spec.description),
        read_only: !spec.dynamic,
        ..ParameterDescriptor::default()
    };
    match spec.constraint {
        Constraint::None => {}
        Constraint::Integers(from_value, to_value) => {
            descriptor.integer_range = vec![IntegerRange { from_value, to_value, step: 0 }];
        }
        Constraint::Doubles(from_value, to_value) => {
            descriptor.floating_point_range = vec![FloatingPointRange { from_value, to_value, step: 0.0 }];
        }
        _ => descriptor.additional_constraints = spec.expected(),
    }
    descriptor
}

fn kind_of(spec: &ParameterSpec) -> u8 {
    match spec.kind {
        ParameterType::Bool => parameter_type::BOOL,
        ParameterType::Integer => parameter_type::INTEGER,
        ParameterType::Double => parameter_type::DOUBLE,
        ParameterType::String => parameter_type::STRING,
        ParameterType::StringArray => parameter_type::STRING_ARRAY,
    }
}

/// A value as the network has it.
fn to_wire(value: &ParameterValue) -> Wire {
    use parameter_type as kind;
    let wire = Wire::default();
    match value.clone() {
        ParameterValue::Bool(bool_value) => Wire { r#type: kind::BOOL, bool_value, ..wire },
        ParameterValue::Integer(integer_value) => Wire { r#type: kind::INTEGER, integer_value, ..wire },
        ParameterValue::Double(double_value) => Wire { r#type: kind::DOUBLE, double_value, ..wire },
        ParameterValue::String(string_value) => Wire { r#type: kind::STRING, string_value, ..wire },
        ParameterValue::BoolArray(bool_array_value) => {
            Wire { r#type: kind::BOOL_ARRAY, bool_array_value, ..wire }
        }
        ParameterValue::IntegerArray(integer_array_value) => {
            Wire { r#type: kind::INTEGER_ARRAY, integer_array_value, ..wire }
        }
        ParameterValue::DoubleArray(double_array_value) => {
            Wire { r#type: kind::DOUBLE_ARRAY, double_array_value, ..wire }
        }
        ParameterValue::StringArray(string_array_value) => {
            Wire { r#type: kind::STRING_ARRAY, string_array_value, ..wire }
        }
        // What the table checked has a kind; of all kinds of lists only that of texts is in it.
        ParameterValue::EmptyArray => Wire { r#type: kind::STRING_ARRAY, ..wire },
    }
}

/// A value from the network. `ros2 param set` cannot know of which kind an empty list is meant to be.
fn from_wire(wire: &Wire) -> Result<ParameterValue, String> {
    use ParameterValue as V;
    use parameter_type as kind;
    fn list<T: Clone>(values: &[T], make: impl Fn(Vec<T>) -> ParameterValue) -> ParameterValue {
        if values.is_empty() { ParameterValue::EmptyArray } else { make(values.to_vec()) }
    }
    Ok(match wire.r#type {
        kind::BOOL => V::Bool(wire.bool_value),
        kind::INTEGER => V::Integer(wire.integer_value),
        kind::DOUBLE => V::Double(wire.double_value),
        kind::STRING => V::String(wire.string_value.clone()),
        kind::BOOL_ARRAY => list(&wire.bool_array_value, V::BoolArray),
        kind::INTEGER_ARRAY => list(&wire.integer_array_value, V::IntegerArray),
        kind::DOUBLE_ARRAY => list(&wire.double_array_value, V::DoubleArray),
        kind::STRING_ARRAY => list(&wire.string_array_value, V::StringArray),
        kind::BYTE_ARRAY if wire.byte_array_value.is_empty() => V::EmptyArray,
        kind::BYTE_ARRAY => return Err("expected another kind of value, found a list of bytes".to_owned()),
        kind::NOT_SET => return Err("the parameters of this node cannot be deleted".to_owned()),
        unknown => return Err(format!("expected a kind of value from 0 to 9, found {unknown}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::config::parameter_table;

    fn store() -> ParameterStore {
        let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo.yaml");
        ParameterStore::new(NodeConfig::load(&[demo], &[]).unwrap())
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn double(name: &str, double_value: f64) -> Parameter {
        let value = Wire { r#type: parameter_type::DOUBLE, double_value, ..Wire::default() };
        Parameter { name: name.to_owned(), value }
    }

    fn integer(name: &str, integer_value: i64) -> Parameter {
        let value = Wire { r#type: parameter_type::INTEGER, integer_value, ..Wire::default() };
        Parameter { name: name.to_owned(), value }
    }

    fn string(name: &str, text: &str) -> Parameter {
        let value = Wire { r#type: parameter_type::STRING, string_value: text.to_owned(), ..Wire::default() };
        Parameter { name: name.to_owned(), value }
    }

    #[test]
    fn values_and_kinds_are_those_of_the_configuration() {
        let store = store();
        let asked =
            names(&["rate", "cameras.front.topic", "use_sim_time", "state.gripper.joints", "nothing"]);
        let values = store.get(&asked);
        assert_eq!(values[0], double("rate", 5.0).value);
        assert_eq!(values[1].string_value, "/front/image_raw");
        assert_eq!((values[2].r#type, values[2].bool_value), (parameter_type::BOOL, false));
        assert_eq!(values[3].string_array_value, ["gripper_joint_1", "gripper_joint_2"]);
        assert_eq!(values[4], Wire::default());
        let kinds: Vec<u8> = values.iter().map(|value| value.r#type).collect();
        assert_eq!(kinds, [3, 4, 1, 9, 0]);
        assert_eq!(store.types(&asked), kinds);
    }

    #[test]
    fn every_parameter_is_listed_with_its_value_and_described() {
        let store = store();
        let listed = store.list(&[], parameters::DEPTH_RECURSIVE).names;
        let all = store.all();
        assert_eq!(listed, all.iter().map(|parameter| parameter.name.clone()).collect::<Vec<_>>());
        assert!(
            ["rate", "use_sim_time", "cameras.wrist.transport"].iter().all(|n| listed.iter().any(|l| l == n))
        );
        for (parameter, descriptor) in all.iter().zip(store.describe(&listed)) {
            assert_eq!((&descriptor.name, descriptor.r#type), (&parameter.name, parameter.value.r#type));
            assert!(!descriptor.description.is_empty() && !descriptor.dynamic_typing, "{descriptor:?}");
            let spec = parameter_table().iter().find(|spec| spec.matches(&parameter.name)).unwrap();
            assert_eq!(descriptor.read_only, !spec.dynamic);
        }
    }

    #[test]
    fn descriptors_tell_unit_range_and_constraints() {
        let described = store().describe(&names(&["rate", "denoising_steps", "device", "nothing"]));
        let range = FloatingPointRange { from_value: 0.01, to_value: 200.0, step: 0.0 };
        assert_eq!(described[0].floating_point_range, [range]);
        assert!(described[0].description.ends_with(" In Hz.") && !described[0].read_only);
        assert_eq!(described[1].integer_range, [IntegerRange { from_value: 0, to_value: 1000, step: 0 }]);
        assert_eq!(described[2].additional_constraints, "auto, cpu, cuda or cuda:N");
        assert!(described[2].read_only);
        assert_eq!(described[3], ParameterDescriptor { name: "nothing".to_owned(), ..Default::default() });
    }

    #[test]
    fn an_accepted_change_reaches_whoever_watches() {
        let store = store();
        let mut watching = store.watch();
        // An integer is taken for a number, and kept as one.
        assert_eq!(store.set(&[integer("rate", 10)]), Ok(vec![double("rate", 10.0)]));
        assert!(watching.has_changed().unwrap());
        assert_eq!(watching.borrow_and_update().rate, 10.0);
        assert_eq!(store.get(&names(&["rate"])), [double("rate", 10.0).value]);
        assert_eq!(store.set(&[]), Ok(vec![]));
        assert!(!watching.has_changed().unwrap());
    }

    #[tokio::test]
    async fn a_change_that_came_before_anybody_asked_is_not_lost() {
        let store = store();
        let mut changes = store.changes();
        store.set(&[string("instruction", "wave")]).unwrap();
        let (before, after) = changes.next().await.unwrap();
        assert_ne!(before.instruction, "wave");
        assert_eq!(after.instruction, "wave");
        store.set(&[double("rate", 20.0)]).unwrap();
        let (before, after) = changes.next().await.unwrap();
        assert_eq!((before.rate, after.rate, before.instruction.as_str()), (5.0, 20.0, "wave"));
        drop(store);
        assert!(changes.next().await.is_none());
    }

    #[test]
    fn a_refused_change_says_why_and_changes_nothing() {
        let store = store();
        let watching = store.watch();
        let deleted = Parameter { name: "rate".to_owned(), value: Wire::default() };
        let strange = Parameter { name: "rate".to_owned(), value: Wire { r#type: 77, ..Wire::default() } };
        for (change, reason) in [
            (double("rate", 0.0), "rate: expected a number from 0.01 to 200 Hz, found 0"),
            (double("rate", f64::NAN), "rate: expected a number from 0.01 to 200 Hz, found NaN"),
            (
                string("rate", "fast"),
                "rate: expected a number from 0.01 to 200 Hz, found the string \"fast\"",
            ),
            (
                string("device", "cpu"),
                "device cannot change while the node runs: set it in the parameter file or with -p device:=..., and \
                 restart the node",
            ),
            (
                double("ratte", 1.0),
                "ratte is not a parameter of this node: unknown parameter; did you mean rate?",
            ),
            (
                string("cameras.side.topic", "/side"),
                "cameras.side.topic is not a parameter of this node: it was not given a value at the start",
            ),
            (deleted, "rate: the parameters of this node cannot be deleted"),
            (strange, "rate: expected a kind of value from 0 to 9, found 77"),
            (
                string("instruction", &"x".repeat(4097)),
                "instruction: expected a string of at most 4096 characters, found 4097",
            ),
        ] {
            assert_eq!(store.set(&[change]), Err(reason.to_owned()));
        }
        assert!(!watching.has_changed().unwrap());
    }

    #[test]
    fn several_changes_are_made_together_or_not_at_all() {
        let store = store();
        let mut watching = store.watch();
        let half_wrong = [double("rate", 20.0), double("max_age_ms", -1.0)];
        assert!(store.set(&half_wrong).unwrap_err().starts_with("max_age_ms: "));
        assert_eq!(store.config().rate, 5.0);
        assert_eq!(store.set(&[double("rate", 20.0), string("instruction", "wave")]).unwrap().len(), 2);
        let config = watching.borrow_and_update().clone();
        assert_eq!((config.rate, config.instruction.as_str()), (20.0, "wave"));
        assert!(!watching.has_changed().unwrap(), "one change for both");
    }

    #[test]
    fn every_kind_of_value_survives_the_way_over_the_network() {
        for value in [
            ParameterValue::Bool(true),
            ParameterValue::Integer(-7),
            ParameterValue::Double(0.5),
            ParameterValue::String("é".to_owned()),
            ParameterValue::BoolArray(vec![true]),
            ParameterValue::IntegerArray(vec![1, 2]),
            ParameterValue::DoubleArray(vec![0.5]),
            ParameterValue::StringArray(vec![String::new()]),
            ParameterValue::EmptyArray,
        ] {
            assert_eq!(from_wire(&to_wire(&value)), Ok(value));
        }
    }
}
