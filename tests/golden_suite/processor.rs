//! State and action transforms.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use groot_policy::checkpoint::embodiments::EmbodimentIds;
use groot_policy::checkpoint::processor_config::{ActionRepresentation, ActionType, ProcessorConfig};
use groot_policy::checkpoint::statistics::Statistics;
use groot_policy::processor::action::ActionProcessor;
use groot_policy::processor::state::StateProcessor;
use ndarray::{Array2, ArrayD, Axis, Ix2, Ix3};

use crate::fixture::{Fixture, GoldenFile, ObservationInfo, max_abs_diff};

static FIXTURE: LazyLock<Fixture> = LazyLock::new(Fixture::load);
static CONFIG: LazyLock<ProcessorConfig> = LazyLock::new(|| ProcessorConfig::load(&FIXTURE.dir).unwrap());
static STATISTICS: LazyLock<Statistics> = LazyLock::new(|| Statistics::load(&FIXTURE.dir).unwrap());

type State = BTreeMap<String, Array2<f32>>;

fn state_processor(tag: &str) -> StateProcessor {
    StateProcessor::new(&CONFIG, &STATISTICS, tag).unwrap()
}

fn action_processor(tag: &str) -> ActionProcessor {
    ActionProcessor::new(&CONFIG, &STATISTICS, tag).unwrap()
}

fn two_axes(values: ArrayD<f32>) -> Array2<f32> {
    values.into_dimensionality::<Ix2>().unwrap()
}

/// Row `sample` of a tensor with a batch axis.
fn sample(values: ArrayD<f32>, sample: usize) -> Array2<f32> {
    values.into_dimensionality::<Ix3>().unwrap().index_axis_move(Axis(0), sample)
}

/// Whether a key of decoded actions is computed in f64 from end to end. Relative end-effector poses are not: the reference
/// takes the current pose's f32 rotation to a matrix in f32, then through a quaternion.
fn is_exact(tag: &str, key: &str) -> bool {
    let action = CONFIG.embodiment(tag).unwrap().action;
    let mut configs = action.modality_keys.iter().zip(action.action_configs.iter().flatten());
    let config = configs.find(|(name, _)| *name == key);
    config.is_none_or(|(_, config)| {
        config.rep == ActionRepresentation::Absolute || config.kind == ActionType::NonEef
    })
}

/// Exact, but for relative end-effector poses.
fn assert_action(what: &str, tag: &str, key: &str, found: ArrayD<f64>, expected: ArrayD<f64>) {
    let difference = max_abs_diff(what, &found, &expected);
    let tolerance = if is_exact(tag, key) { 0.0 } else { 1e-6 };
    assert!(difference <= tolerance, "{what}: {difference}");
}

fn assert_equal(what: &str, found: &Array2<f32>, expected: &Array2<f32>) {
    assert_eq!(found, expected, "{what}");
}

/// Embodiments of `processor.safetensors` that have some tensor `{tag}.{kind}…`.
fn tags(golden: &GoldenFile, kind: &str) -> Vec<String> {
    let tags: Vec<_> = CONFIG
        .embodiments()
        .filter(|tag| golden.names().iter().any(|name| name.starts_with(&format!("{tag}.{kind}"))))
        .map(str::to_owned)
        .collect();
    assert!(!tags.is_empty(), "no embodiment with {kind}");
    tags
}

/// The raw state of sample `b` of an embodiment in `processor.safetensors`; `None` beyond the last.
fn raw_state(golden: &GoldenFile, tag: &str, b: usize) -> Option<State> {
    state_processor(tag)
        .keys()
        .map(|(key, _)| {
            let name = format!("{tag}.state_raw.{key}.b{b}");
            golden.contains(&name).then(|| (key.to_owned(), two_axes(golden.f32(&name))))
        })
        .collect()
}

#[test]
fn normalised_states_are_exactly_the_references() {
    let golden = FIXTURE.file("processor");
    for tag in tags(&golden, "state_raw.") {
        let samples: Vec<_> = (0..).map_while(|b| raw_state(&golden, &tag, b)).collect();
        assert!(!samples.is_empty());
        for (b, state) in samples.iter().enumerate() {
            for (key, values) in state_processor(&tag).process_keys(state).unwrap() {
                let name = format!("{tag}.state_norm.{key}.b{b}");
                assert_equal(&name, &values, &two_axes(golden.f32(&name)));
            }
        }
    }
}

#[test]
fn decoded_actions_are_exactly_the_references() {
    let golden = FIXTURE.file("processor");
    for tag in tags(&golden, "action_norm") {
        let processor = action_processor(&tag);
        let normalised = golden.f32(&format!("{tag}.action_norm"));
        for b in 0..normalised.shape()[0] {
            let state = raw_state(&golden, &tag, b).unwrap();
            let normalised = sample(normalised.clone(), b);
            for (key, values) in processor.decode_f64(normalised.view(), &state).unwrap() {
                let name = format!("{tag}.decoded64.{key}");
                let expected = golden.f64(&name).index_axis_move(Axis(0), b);
                assert_action(&name, &tag, &key, values.into_dyn(), expected);
            }
            for (key, values) in processor.decode(normalised.view(), &state).unwrap() {
                let name = format!("{tag}.decoded.{key}");
                let expected = golden.f64(&name).index_axis_move(Axis(0), b);
                assert_action(&name, &tag, &key, values.mapv(f64::from).into_dyn(), expected);
            }
        }
    }
}

#[test]
fn encoded_actions_are_exactly_the_references() {
    let golden = FIXTURE.file("processor");
    for tag in tags(&golden, "apply_action.") {
        let processor = action_processor(&tag);
        let state = raw_state(&golden, &tag, 0).unwrap();
        let actions: State = processor
            .keys()
            .iter()
            .map(|key| {
                (key.name().to_owned(), sample(golden.f32(&format!("{tag}.decoded.{}", key.name())), 0))
            })
            .collect();
        for (key, values) in processor.encode(&actions, &state).unwrap() {
            let name = format!("{tag}.apply_action.{key}");
            assert_action(&name, &tag, &key, values.mapv(f64::from).into_dyn(), golden.f64(&name));
        }
    }
}

/// The raw state of one sample of an observation, which has a batch axis only where there are several.
fn observed_state(observation: &ObservationInfo, b: usize) -> State {
    let golden = FIXTURE.file(&format!("{}.inputs", observation.name));
    state_processor(&observation.embodiment_tag)
        .keys()
        .map(|(key, _)| {
            let values = golden.f32(&format!("state.{key}"));
            let values = if values.ndim() == 3 { sample(values, b) } else { two_axes(values) };
            (key.to_owned(), values)
        })
        .collect()
}

#[test]
fn states_of_the_observations_are_exactly_the_references() {
    for observation in &FIXTURE.manifest.observations {
        let golden = FIXTURE.file(&format!("{}.preproc", observation.name));
        let processor = state_processor(&observation.embodiment_tag);
        for b in 0..observation.batch {
            let state = observed_state(observation, b);
            let padded = sample(golden.f32("state_padded"), b);
            assert_equal(&observation.name, &processor.process(&state).unwrap(), &padded);
            for (key, values) in processor.process_keys(&state).unwrap() {
                let plain = format!("state_norm.{key}");
                let name = if golden.contains(&plain) { plain } else { format!("{plain}.b{b}") };
                // An observation of which only the padded vector was kept.
                if golden.contains(&name) {
                    assert_equal(
                        &format!("{}: {name}", observation.name),
                        &values,
                        &two_axes(golden.f32(&name)),
                    );
                }
            }
        }
    }
}

#[test]
fn embodiment_indices_are_the_references() {
    let ids = EmbodimentIds::load(&FIXTURE.dir).unwrap();
    for observation in &FIXTURE.manifest.observations {
        let golden = FIXTURE.file(&format!("{}.preproc", observation.name));
        let index = ids.index(&observation.embodiment_tag, usize::MAX).unwrap() as i64;
        let expected = golden.i64("embodiment_id");
        assert_eq!(expected.len(), observation.batch);
        assert!(expected.iter().all(|&found| found == index), "{}", observation.name);
    }
}

#[test]
fn actions_decoded_from_the_references_output_are_the_references() {
    for observation in &FIXTURE.manifest.observations {
        let golden = FIXTURE.file(&format!("{}.fp32", observation.name));
        let processor = action_processor(&observation.embodiment_tag);
        for b in 0..observation.batch {
            let normalised = sample(golden.f32("action_pred"), b);
            let decoded = processor.decode(normalised.view(), &observed_state(observation, b)).unwrap();
            let keys: Vec<_> = decoded.iter().map(|(key, _)| key.as_str()).collect();
            assert_eq!(keys, processor.keys().iter().map(|key| key.name()).collect::<Vec<_>>());
            for (key, values) in decoded {
                let name = format!("action.{key}");
                let expected = golden.f64(&name).index_axis_move(Axis(0), b);
                let what = format!("{}: {name}", observation.name);
                let values = values.mapv(f64::from).into_dyn();
                assert_action(&what, &observation.embodiment_tag, &key, values, expected);
            }
        }
    }
}
