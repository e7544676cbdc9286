use std::path::Path;

use ndarray::{Axis, array, concatenate};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::processor::guidance::{Guidance, PlannedActions};

type Arrays = BTreeMap<String, Array2<f32>>;

/// Two time steps; `arm` is relative to the state `arm`, `hand` absolute by mean and deviation, `base` absolute.
fn config() -> Value {
    let other = json!({"delta_indices": [0], "modality_keys": ["x"]});
    let absolute = json!({"rep": "ABSOLUTE", "type": "NON_EEF", "format": "DEFAULT"});
    json!({"processor_kwargs": {
        "use_albumentations": true,
        "use_relative_action": true,
        "max_action_dim": 10,
        "modality_configs": {"robot": {
            "video": other,
            "language": other,
            "state": {"delta_indices": [-1, 0], "modality_keys": ["arm", "wrist"]},
            "action": {
                "delta_indices": [0, 1],
                "modality_keys": ["hand", "arm", "base"],
                "mean_std_embedding_keys": ["hand"],
                "action_configs": [
                    absolute, {"rep": "RELATIVE", "type": "NON_EEF", "format": "DEFAULT"}, absolute
                ],
            },
        }},
    }})
}

fn statistics() -> Value {
    let key = json!({"mean": [1.0, 0.5], "std": [2.0, 0.0], "min": [-1.0, 4.0], "max": [3.0, 4.0],
                     "q01": [0.0, 3.0], "q99": [1.0, 5.0]});
    json!({"robot": {
        "state": {"arm": key, "wrist": key},
        "action": {"hand": key, "arm": key, "base": key},
        "relative_action": {"arm": {
            "mean": [[0.0, 0.0], [1.0, 1.0]], "std": [[1.0, 1.0], [2.0, 0.0]],
            "min": [[-1.0, -2.0], [-4.0, 0.0]], "max": [[1.0, 2.0], [4.0, 1.0]],
            "q01": [[0.0, 0.0], [0.0, 0.0]], "q99": [[9.0, 9.0], [9.0, 9.0]],
        }},
    }})
}

fn processor_of(config: &Value, statistics: &Value) -> Result<ActionProcessor, SetupError> {
    let config = ProcessorConfig::parse(Path::new("processor_config.json"), config.to_string().as_bytes());
    let statistics = Statistics::parse(Path::new("statistics.json"), statistics.to_string().as_bytes());
    ActionProcessor::new(&config.unwrap(), &statistics.unwrap(), "robot")
}

fn processor() -> ActionProcessor {
    processor_of(&config(), &statistics()).unwrap()
}

fn with(mut document: Value, at: &str, value: Value) -> Value {
    let (parent, key) = at.rsplit_once('/').unwrap();
    let parent = document.pointer_mut(parent).unwrap();
    match key.parse::<usize>() {
        Ok(index) => parent[index] = value,
        Err(_) => parent[key] = value,
    }
    document
}

fn arrays<const N: usize>(entries: [(&str, Array2<f32>); N]) -> Arrays {
    entries.map(|(key, values)| (key.to_owned(), values)).into()
}

fn state() -> Arrays {
    // Only the last row counts.
    arrays([("arm", array![[50.0, 60.0], [10.0, 20.0]]), ("wrist", array![[0.0, 0.0], [-1.0, -2.0]])])
}

/// Columns: hand 2, arm 2, base 2, then padding; a third row beyond the horizon.
fn normalised() -> Array2<f32> {
    array![
        [1.5, 7.0, 0.5, -3.0, 0.5, 0.3, 9.0, 9.0, 9.0, 9.0],
        [-4.0, -7.0, 0.0, 0.5, -2.0, 2.0, 9.0, 9.0, 9.0, 9.0],
        [9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0]
    ]
}

#[test]
fn each_key_is_decoded_by_its_own_rule() {
    let decoded = processor().decode(normalised().view(), &state()).unwrap();
    let expected = [
        // x · 2 + 1, unclipped; no deviation: kept.
        ("hand", array![[4.0, 7.0], [-7.0, -7.0]]),
        // Row 0: (1.5 / 2) · 2 - 1 = 0.5; clipped to -1: -2. Row 1: 0.5 · 8 - 4 = 0; 0.75 · 1 + 0. Plus (10, 20).
        ("arm", array![[10.5, 18.0], [10.0, 20.75]]),
        // (1.5 / 2) · 4 - 1 = 2; clipped: -1. The constant value is 4 whatever comes.
        ("base", array![[2.0, 4.0], [-1.0, 4.0]]),
    ];
    assert_eq!(decoded, expected.map(|(key, values)| (key.to_owned(), values)));
}

#[test]
fn percentiles_hold_for_absolute_actions_only() {
    let processor =
        processor_of(&with(config(), "/processor_kwargs/use_percentiles", json!(true)), &statistics())
            .unwrap();
    let decoded = processor.decode(normalised().view(), &state()).unwrap();
    assert_eq!(decoded[1].1, array![[10.5, 18.0], [10.0, 20.75]]);
    // (1.5 / 2) · 1 + 0; (1.3 / 2) · 2 + 3 with 1.3 rounded to f32; clipped: 0 and 5.
    assert_eq!(decoded[2].1, array![[0.75, 4.3], [0.0, 5.0]]);
}

#[test]
fn relative_actions_by_mean_and_deviation_use_the_relative_statistics() {
    let at = "/processor_kwargs/modality_configs/robot/action/mean_std_embedding_keys";
    let processor = processor_of(&with(config(), at, json!(["arm"])), &statistics()).unwrap();
    let decoded = processor.decode(normalised().view(), &state()).unwrap();
    // Row 0: mean 0, deviation 1. Row 1: 0 · 2 + 1; no deviation: 0.5 kept. Plus (10, 20).
    assert_eq!(decoded[1].1, array![[10.5, 17.0], [11.0, 20.5]]);
}

#[test]
fn without_the_global_switch_relative_actions_are_taken_as_absolute() {
    let config = with(config(), "/processor_kwargs/use_relative_action", json!(false));
    let processor = processor_of(&config, &statistics()).unwrap();
    assert!(processor.keys().iter().all(|key| key.reference_state().is_none()));
    // By the absolute statistics: (1.5 / 2) · 4 - 1 = 2 and 0.5 · 4 - 1 = 1; constant 4. No state is needed.
    let decoded = processor.decode(normalised().view(), &BTreeMap::new()).unwrap();
    assert_eq!(decoded[1].1, array![[2.0, 4.0], [1.0, 4.0]]);
}

#[test]
fn a_state_key_of_its_own_is_the_reference() {
    let at = "/processor_kwargs/modality_configs/robot/action/action_configs/1/state_key";
    let processor = processor_of(&with(config(), at, json!("wrist")), &statistics()).unwrap();
    let decoded = processor.decode(normalised().view(), &state()).unwrap();
    assert_eq!(decoded[1].1, array![[-0.5, -4.0], [-1.0, -1.25]]);
    assert_eq!(processor.keys()[1].reference_state(), Some("wrist"));
}

#[test]
fn keys_columns_and_horizon_are_exposed() {
    let processor = processor();
    let keys: Vec<_> =
        processor.keys().iter().map(|key| (key.name(), key.dim(), key.reference_state())).collect();
    assert_eq!(keys, [("hand", 2, None), ("arm", 2, Some("arm")), ("base", 2, None)]);
    assert_eq!((processor.action_dim(), processor.horizon()), (6, 2));
}

#[test]
fn encoding_is_relative_normalised_and_clipped_for_every_key() {
    let actions = physical();
    let encoded = processor().encode(&actions, &state()).unwrap();
    let expected = [
        // (x - 1) / 2 and kept, then clipped.
        ("hand", array![[0.5, 0.25], [1.0, 1.0]]),
        // Minus (10, 20): (0.5, 2), (0, 0.25). Row 0 in [-1, 1] and [-2, 2], row 1 in [-4, 4] and [0, 1].
        ("arm", array![[0.5, 1.0], [0.0, -0.5]]),
        // (2 + 1) / 4 -> 0.5; constant -> 0; below -> -1.
        ("base", array![[0.5, 0.0], [-1.0, 0.0]]),
    ];
    assert_eq!(encoded, expected.map(|(key, values)| (key.to_owned(), values)));

    let unclipped = with(config(), "/processor_kwargs/clip_outliers", json!(false));
    let encoded = processor_of(&unclipped, &statistics()).unwrap().encode(&actions, &state()).unwrap();
    assert_eq!(encoded[0].1, array![[0.5, 0.25], [4.0, 7.0]]);
    assert_eq!(encoded[2].1, array![[0.5, 0.0], [-5.0, 0.0]]);
}

/// `hand` alone, an end-effector pose relative to the state `hand`.
fn pose_processor() -> ActionProcessor {
    let nine = |value: f64| json!(vec![value; 9]);
    let key = json!({"mean": nine(0.0), "std": nine(1.0), "min": nine(-1.0), "max": nine(1.0)});
    let statistics = json!({"robot": {
        "state": {"hand": key},
        "action": {"hand": key},
        "relative_action": {"hand": {
            "mean": [nine(0.0), nine(0.0)], "std": [nine(1.0), nine(1.0)],
            "min": [[-0.5, -0.25, -1, -1, -1, -1, -1, -1, -1], [-1, -0.5, -2, -1, -1, -1, -1, -1, -1]],
            "max": [[0.5, 0.75, 1, 1, 1, 1, 1, 1, 1], [1, 1.5, 2, 1, 1, 1, 1, 1, 1]],
        }},
    }});
    let robot = "/processor_kwargs/modality_configs/robot";
    let config = with(config(), &format!("{robot}/state/modality_keys"), json!(["hand"]));
    let action = json!({
        "delta_indices": [0, 1],
        "modality_keys": ["hand"],
        "action_configs": [{"rep": "RELATIVE", "type": "EEF", "format": "XYZ_ROT6D"}],
    });
    processor_of(&with(config, &format!("{robot}/action"), action), &statistics).unwrap()
}

fn pose_state() -> Arrays {
    arrays([("hand", array![[0.4, -0.3, 1.2, 0.6, 0.64, 0.48, -0.8, 0.48, 0.36]])])
}

fn pose_output() -> Array2<f32> {
    let rows = array![
        [0.5, -0.5, 0.25, 0.9, 0.1, -0.2, -0.3, 0.8, 0.4],
        [1.5, 0.0, -0.75, 0.2, 0.7, 0.6, -0.9, 0.1, -0.3]
    ];
    concatenate![Axis(1), rows, Array2::zeros((2, 1))]
}

/// By NumPy and SciPy (matrices through `scipy.spatial.transform.Rotation`): T_ref · T_rel for the two above.
fn pose_absolute() -> Array2<f64> {
    array![
        [
            0.6700000087916849,
            -0.4100000020364923,
            1.4000000492980083,
            0.6852188360168505,
            0.484619305417093,
            0.54370881506995,
            -0.6992045628000072,
            0.228673494629603,
            0.6773635746137633
        ],
        [
            0.6000000516573571,
            -1.4000000086923432,
            -0.2999999485909939,
            -0.6165743762832481,
            0.407276752012951,
            0.6737667888674133,
            -0.7274303368947508,
            -0.6220405907575306,
            -0.2896732787386717
        ]
    ]
}

/// SciPy's Gram-Schmidt on the f32 state rounds to f32, which shows at 1e-8.
const POSE_TOLERANCE: f64 = 1e-7;

fn worst(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    (a - b).iter().fold(0.0, |worst, difference| f64::max(worst, difference.abs()))
}

#[test]
fn end_effector_poses_are_composed_with_the_current_pose() {
    let processor = pose_processor();
    let decoded = processor.decode_f64(pose_output().view(), &pose_state()).unwrap();
    assert_eq!(decoded[0].0, "hand");
    assert!(worst(&decoded[0].1, &pose_absolute()) < POSE_TOLERANCE);
}

#[test]
fn encoding_a_pose_gives_its_orthonormal_relative_pose() {
    let actions = arrays([("hand", pose_absolute().mapv(|v| v as f32))]);
    let encoded = pose_processor().encode(&actions, &pose_state()).unwrap();
    // By NumPy and SciPy; the rotation rows are those of `pose_output` after Gram-Schmidt.
    let expected = array![
        [0.5, -0.5, 0.25, 0.97049495, 0.10783281, -0.21566553, -0.01943717, 0.92650321, 0.37578450],
        [1.0, 0.0, -0.75, 0.21199963, 0.74199849, 0.63599873, -0.92445401, 0.36331176, -0.11571228]
    ];
    // The absolute pose was rounded to f32.
    assert!(worst(&encoded[0].1.mapv(f64::from), &expected) < 5e-7);
}

#[test]
fn a_pose_without_a_rotation_is_refused() {
    let mut output = pose_output();
    output.row_mut(1).slice_mut(s![3..9]).fill(0.0);
    let message = pose_processor().decode(output.view(), &pose_state()).unwrap_err().to_string();
    assert!(message.contains("action key hand, time step 1") && message.contains("[0.0, 0.0,"), "{message}");

    let state = arrays([("hand", array![[0.4, -0.3, 1.2, 1.0, 0.0, 0.0, 2.0, 0.0, 0.0]])]);
    let message = pose_processor().decode(pose_output().view(), &state).unwrap_err().to_string();
    assert!(message.contains("action key hand, its reference state hand"), "{message}");
}

#[test]
fn broken_configurations_are_refused_at_load_with_the_keys_name() {
    let robot = "/processor_kwargs/modality_configs/robot";
    let arm = format!("{robot}/action/action_configs/1");
    for (at, value, parts) in [
        (format!("{arm}/rep"), json!("DELTA"), ["action key arm", "DELTA"]),
        (
            format!("{arm}/type"),
            json!("EEF"),
            ["relative action key arm", "found Eef with format Default and 2"],
        ),
        (
            format!("{arm}/format"),
            json!("XYZ_ROT6D"),
            ["relative action key arm", "NonEef with format XyzRot6d"],
        ),
        (
            format!("{arm}/state_key"),
            json!("tail"),
            ["relative action key arm", "tail among the state keys, found arm, wrist"],
        ),
        (format!("{robot}/action/delta_indices"), json!([0, 1, 2]), ["relative_action.arm", "3 x 2 values"]),
        (
            format!("{robot}/action/modality_keys"),
            json!(["hand", "leg", "base"]),
            ["robot.action", "\"leg\""],
        ),
        ("/processor_kwargs/max_action_dim".to_owned(), json!(5), ["6 values", "allows 5"]),
    ] {
        let message = processor_of(&with(config(), &at, value), &statistics()).unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{at}: {message}");
    }
}

#[test]
fn statistics_that_do_not_fit_are_refused_at_load_with_the_keys_name() {
    let one = json!({"mean": [1.0], "std": [2.0], "min": [-1.0], "max": [3.0]});
    let narrow =
        json!({"mean": [[0.0], [0.0]], "std": [[1.0], [1.0]], "min": [[0.0], [0.0]], "max": [[1.0], [1.0]]});
    let inverted = json!({"mean": [0.0, 0.0], "std": [1.0, 1.0], "min": [0.0, 3.0], "max": [1.0, 2.0]});
    for (at, value, parts) in [
        ("/robot/relative_action", json!({}), ["robot.relative_action", "\"arm\""]),
        ("/robot/relative_action/arm", narrow, ["relative_action.arm", "found 2 x 1"]),
        ("/robot/state/arm", one, ["state.arm", "found 1 x 1"]),
        ("/robot/action/base", inverted, ["action.base", "found 3 and 2"]),
    ] {
        let message = processor_of(&config(), &with(statistics(), at, value)).unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{at}: {message}");
    }
}

#[test]
fn an_output_that_is_not_finite_or_too_small_is_refused() {
    let processor = processor();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        // Also in the padding, where the network computes as well.
        for at in [(0, 0), (1, 5), (0, 9), (2, 0)] {
            let mut output = normalised();
            output[at] = value;
            let message = processor.decode(output.view(), &state()).unwrap_err().to_string();
            assert!(
                message.contains(&format!("found {value} at time step {}, value {}", at.0, at.1)),
                "{message}"
            );
        }
    }
    let output = normalised();
    for (view, found) in [(output.slice(s![..1, ..]), "1 x 10"), (output.slice(s![.., ..5]), "3 x 5")] {
        let message = processor.decode(view, &state()).unwrap_err().to_string();
        assert!(
            message.contains("at least 2 x 6") && message.contains(&format!("found {found}")),
            "{message}"
        );
    }
}

#[test]
fn an_unusable_reference_state_is_refused() {
    let processor = processor();
    for (broken, part) in [
        (BTreeMap::new(), "arm is missing: expected at least 1 x 2, found nothing"),
        (
            arrays([("arm", Array2::zeros((0, 2)))]),
            "expected at least 1 x 2 (time steps x values), found 0 x 2",
        ),
        (arrays([("arm", array![[1.0]])]), "found 1 x 1"),
        (arrays([("arm", array![[1.0, f32::NAN]])]), "found NaN at time step 0, value 1"),
    ] {
        let message = processor.decode(normalised().view(), &broken).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_decoded_value_that_overflows_is_refused() {
    let mut output = normalised();
    output[[1, 0]] = 3e38;
    let message = processor().decode(output.view(), &state()).unwrap_err().to_string();
    assert_eq!(message, "action key hand: expected finite values, found inf at time step 1, value 0");
}

#[test]
fn broken_actions_are_not_encoded() {
    let good = arrays([
        ("hand", Array2::zeros((2, 2))),
        ("arm", Array2::zeros((2, 2))),
        ("base", Array2::zeros((2, 2))),
    ]);
    let mut missing = good.clone();
    missing.remove("base");
    let message = processor().encode(&missing, &state()).unwrap_err().to_string();
    assert_eq!(message, "action key base is missing: found arm, hand");
    for (value, part) in [
        (Array2::zeros((1, 2)), "expected 2 x 2 (time steps x values), found 1 x 2"),
        (array![[0.0, 0.0], [f32::NAN, 0.0]], "found NaN at time step 1, value 0"),
    ] {
        let mut actions = good.clone();
        actions.insert("arm".to_owned(), value);
        let message = processor().encode(&actions, &state()).unwrap_err().to_string();
        assert!(message.starts_with("action key arm: ") && message.contains(part), "{message}");
    }
}

fn physical() -> Arrays {
    arrays([
        ("hand", array![[2.0, 0.25], [9.0, 7.0]]),
        ("arm", array![[10.5, 22.0], [10.0, 20.25]]),
        ("base", array![[2.0, 4.0], [-9.0, 5.0]]),
    ])
}

fn planned(actions: Arrays, weights: &[f32]) -> PlannedActions {
    PlannedActions { actions, weights: weights.to_vec() }
}

#[test]
fn guidance_is_the_encoded_plan_with_padding_that_does_not_count() {
    let guidance = processor().guidance(&planned(physical(), &[1.0, 0.25]), &state(), (3, 8)).unwrap();
    // As `encode` has it: hand 2, arm 2, base 2, then padding; the third row is beyond the horizon.
    let target = array![
        [0.5, 0.25, 0.5, 1.0, 0.5, 0.0, 0.0, 0.0],
        [1.0, 1.0, 0.0, -0.5, -1.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    ];
    let weights = array![
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0],
        [0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    ];
    assert_eq!(guidance, Guidance { target, weights });
}

#[test]
fn guidance_refers_relative_actions_to_the_state_that_the_new_chunk_starts_from() {
    let plan = planned(physical(), &[1.0, 1.0]);
    let moved = arrays([("arm", array![[10.25, 21.0]]), ("wrist", array![[0.0, 0.0]])]);
    let guidance = processor().guidance(&plan, &moved, (2, 6)).unwrap();
    // Minus (10.25, 21): (0.25, 1) in [-1, 1] and [-2, 2]; (-0.25, -0.75) in [-4, 4] and [0, 1], the latter clipped.
    assert_eq!(guidance.target.slice(s![.., 2..4]), array![[0.25, 0.5], [-0.0625, -1.0]]);
    // So what can be said is said exactly, whatever the state; what cannot is the nearest value in range.
    let decoded = processor().decode(guidance.target.view(), &moved).unwrap();
    assert_eq!(decoded[1].1, array![[10.5, 22.0], [10.0, 21.0]]);
}

#[test]
fn plans_that_do_not_fit_give_no_guidance() {
    let guidance = |weights: &[f32], shape| {
        processor().guidance(&planned(physical(), weights), &state(), shape).unwrap_err().to_string()
    };
    for (message, part) in [
        (guidance(&[1.0], (2, 6)), "one per time step, 2, found 1"),
        (guidance(&[1.0, 1.5], (2, 6)), "expected 0 to 1, found 1.5 at time step 1"),
        (guidance(&[f32::NAN, 1.0], (2, 6)), "found NaN at time step 0"),
        (guidance(&[1.0, 1.0], (1, 6)), "at least 2 x 6 (time steps x values), found 1 x 6"),
        (guidance(&[1.0, 1.0], (2, 5)), "found 2 x 5"),
    ] {
        assert!(message.contains(part), "{message}");
    }
    let mut missing = physical();
    missing.remove("base");
    let message = processor().guidance(&planned(missing, &[1.0, 1.0]), &state(), (2, 6)).unwrap_err();
    assert_eq!(message.to_string(), "action key base is missing: found arm, hand");
}

proptest! {
    #[test]
    fn encoding_undoes_decoding_inside_the_bounds(values in proptest::collection::vec(-1.0f32..=1.0, 20)) {
        let output = Array2::from_shape_vec((2, 10), values).unwrap();
        let processor = processor();
        let decoded = processor.decode(output.view(), &state()).unwrap().into_iter().collect();
        let encoded = processor.encode(&decoded, &state()).unwrap();
        let views: Vec<_> = encoded.iter().map(|(_, values)| values.view()).collect();
        let encoded = ndarray::concatenate(Axis(1), &views).unwrap();
        for ((row, column), &value) in encoded.indexed_iter() {
            // The base's second value is constant: it decodes to 4 and encodes to 0.
            let expected = if column == 5 { 0.0 } else { output[[row, column]] };
            // Values up to 24 are rounded to f32, in ranges as narrow as 1.
            prop_assert!((value - expected).abs() < 1e-5, "{row} {column}: {value} {expected}");
        }
    }

    #[test]
    fn decoded_actions_stay_inside_their_bounds(values in proptest::collection::vec(-1e6f32..1e6, 20)) {
        let output = Array2::from_shape_vec((2, 10), values).unwrap();
        let decoded = processor().decode(output.view(), &state()).unwrap();
        let (low, high) = (array![[9.0, 18.0], [6.0, 20.0]], array![[11.0, 22.0], [14.0, 21.0]]);
        for (at, &value) in decoded[1].1.indexed_iter() {
            prop_assert!(value >= low[at] && value <= high[at]);
        }
        for row in decoded[2].1.rows() {
            prop_assert!((-1.0..=3.0).contains(&row[0]) && row[1] == 4.0);
        }
    }

    #[test]
    fn decoded_poses_have_orthonormal_rows(values in proptest::collection::vec(-1.0f32..1.0, 20)) {
        let output = Array2::from_shape_vec((2, 10), values).unwrap();
        // Rows that happen to be all but parallel are refused, which is as good.
        let Ok(decoded) = pose_processor().decode_f64(output.view(), &pose_state()) else { return Ok(()) };
        for row in decoded[0].1.rows() {
            let dot = |a: usize, b: usize| (0..3).map(|i| row[a + i] * row[b + i]).sum::<f64>();
            for (found, expected) in [(dot(3, 3), 1.0), (dot(6, 6), 1.0), (dot(3, 6), 0.0)] {
                prop_assert!((found - expected).abs() < 1e-9);
            }
        }
    }
}
