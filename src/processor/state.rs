//! Robot state → the state vector that the network reads.

use std::collections::BTreeMap;

use ndarray::{Array2, ArrayView2, Axis, concatenate, s};

use super::normalisation::{KeyName, Method, Normalisation};
use super::setup::SetupError;
use super::sincos;
use crate::checkpoint::processor_config::ProcessorConfig;
use crate::checkpoint::side_file::list;
use crate::checkpoint::statistics::{Statistics, StatisticsGroup};

/// A raw state that cannot be processed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StateError {
    /// A key is absent.
    #[error("state key {key} is missing: expected {expected}, found {found}")]
    Missing { key: String, expected: String, found: String },
    /// A key has the wrong number of time steps or values.
    #[error(
        "state key {key}: expected {expected} (time steps x values), found {} x {}",
        .found[0], .found[1]
    )]
    Shape { key: String, expected: String, found: [usize; 2] },
    /// A value is not a number or infinite.
    #[error("state key {key}: expected finite values, found {value} at time step {row}, value {column}")]
    NotFinite { key: String, row: usize, column: usize, value: f32 },
    /// A finite value overflows when it is normalised.
    #[error("state key {key}: {value} at time step {row}, value {column} is too large to be normalised")]
    Overflow { key: String, row: usize, column: usize, value: f32 },
}

#[derive(Debug, Clone)]
struct StateKey {
    name: String,
    dim: usize,
    encoding: Encoding,
}

#[derive(Debug, Clone)]
enum Encoding {
    /// All sines, then all cosines.
    SinCos,
    Normalised {
        normalisation: Normalisation,
        clip: bool,
    },
}

/// Encodes the state of one embodiment, as the reference's `apply_state` does.
#[derive(Debug, Clone)]
pub struct StateProcessor {
    keys: Vec<StateKey>,
    time_steps: usize,
    max_state_dim: usize,
}

impl StateProcessor {
    /// Sets up the transforms of `embodiment`; everything that can be wrong with its statistics is found here.
    pub fn new(
        config: &ProcessorConfig,
        statistics: &Statistics,
        embodiment: &str,
    ) -> Result<Self, SetupError> {
        let modality = config.embodiment(embodiment)?.state;
        let keys = modality
            .modality_keys
            .iter()
            .map(|key| {
                let key_statistics = statistics.key(embodiment, StatisticsGroup::State, key)?;
                let name = KeyName { embodiment, group: StatisticsGroup::State, key };
                let encoding = if config.apply_sincos_state_encoding
                    && modality.sin_cos_embedding_keys.contains(key)
                {
                    Encoding::SinCos
                } else if modality.mean_std_embedding_keys.contains(key) {
                    Encoding::Normalised {
                        normalisation: Normalisation::new(name, key_statistics, Method::MeanStd)?,
                        clip: false,
                    }
                } else {
                    let method = if config.use_percentiles { Method::Percentiles } else { Method::MinMax };
                    Encoding::Normalised {
                        normalisation: Normalisation::new(name, key_statistics, method)?,
                        clip: config.clip_outliers,
                    }
                };
                Ok(StateKey { name: key.clone(), dim: key_statistics.dim(), encoding })
            })
            .collect::<Result<Vec<_>, SetupError>>()?;
        let processor =
            Self { keys, time_steps: modality.delta_indices.len(), max_state_dim: config.max_state_dim };
        if processor.encoded_dim() > config.max_state_dim {
            return Err(SetupError::TooWide {
                embodiment: embodiment.to_owned(),
                group: StatisticsGroup::State,
                found: processor.encoded_dim(),
                limit: config.max_state_dim,
            });
        }
        Ok(processor)
    }

    /// State keys and their numbers of raw values, in the order of concatenation.
    pub fn keys(&self) -> impl Iterator<Item = (&str, usize)> {
        self.keys.iter().map(|key| (key.name.as_str(), key.dim))
    }

    /// Number of time steps that every key must have.
    pub fn time_steps(&self) -> usize {
        self.time_steps
    }

    /// Number of values after encoding, before padding.
    pub fn encoded_dim(&self) -> usize {
        self.keys.iter().map(StateKey::encoded_dim).sum()
    }

    /// Encodes each key: shape (time steps, dimension), twice the dimension for sine and cosine.
    pub fn process_keys(
        &self,
        state: &BTreeMap<String, Array2<f32>>,
    ) -> Result<Vec<(String, Array2<f32>)>, StateError> {
        self.keys
            .iter()
            .map(|key| {
                let raw = raw_state(state, &key.name, Some(self.time_steps), key.dim)?;
                Ok((key.name.clone(), key.encode(raw)?))
            })
            .collect()
    }

    /// Encodes all keys, side by side and padded with zeros: shape (time steps, max_state_dim).
    pub fn process(&self, state: &BTreeMap<String, Array2<f32>>) -> Result<Array2<f32>, StateError> {
        let mut padded = Array2::zeros((self.time_steps, self.max_state_dim));
        let mut start = 0;
        for (_, values) in self.process_keys(state)? {
            let end = start + values.ncols();
            // The widths were added up against max_state_dim at construction.
            padded.slice_mut(s![.., start..end]).assign(&values);
            start = end;
        }
        Ok(padded)
    }
}

impl StateKey {
    fn encoded_dim(&self) -> usize {
        match self.encoding {
            Encoding::SinCos => 2 * self.dim,
            Encoding::Normalised { .. } => self.dim,
        }
    }

    fn encode(&self, raw: ArrayView2<f32>) -> Result<Array2<f32>, StateError> {
        let encoded = match &self.encoding {
            Encoding::SinCos => {
                // Both halves have the shape of `raw`, so that they can be put side by side.
                return Ok(concatenate![Axis(1), raw.mapv(sincos::sin), raw.mapv(sincos::cos)]);
            }
            Encoding::Normalised { normalisation, clip } => {
                let normalised = normalisation.normalise(raw);
                if *clip { normalised.mapv_into(|x| x.clamp(-1.0, 1.0)) } else { normalised }
            }
        };
        match encoded.indexed_iter().zip(raw).find(|((_, encoded), _)| !encoded.is_finite()) {
            Some((((row, column), _), &value)) => {
                Err(StateError::Overflow { key: self.name.clone(), row, column, value })
            }
            None => Ok(encoded),
        }
    }
}

/// Takes one key out of a raw state and checks it: `time_steps` rows (any number but none where it is `None`) of `dim`
/// finite values.
pub(crate) fn raw_state<'a>(
    state: &'a BTreeMap<String, Array2<f32>>,
    key: &str,
    time_steps: Option<usize>,
    dim: usize,
) -> Result<ArrayView2<'a, f32>, StateError> {
    let expected = || match time_steps {
        Some(time_steps) => format!("{time_steps} x {dim}"),
        None => format!("at least 1 x {dim}"),
    };
    let raw = state.get(key).ok_or_else(|| StateError::Missing {
        key: key.to_owned(),
        expected: expected(),
        found: list(state.keys().map(String::as_str)),
    })?;
    let rows_fit = time_steps.map_or(raw.nrows() > 0, |time_steps| raw.nrows() == time_steps);
    if !rows_fit || raw.ncols() != dim {
        return Err(StateError::Shape {
            key: key.to_owned(),
            expected: expected(),
            found: [raw.nrows(), raw.ncols()],
        });
    }
    match raw.indexed_iter().find(|(_, value)| !value.is_finite()) {
        Some(((row, column), &value)) => {
            Err(StateError::NotFinite { key: key.to_owned(), row, column, value })
        }
        None => Ok(raw.view()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::path::Path;

    fn statistics() -> Value {
        let key = json!({"mean": [1.0, 0.0], "std": [2.0, 0.0], "min": [-1.0, 4.0], "max": [3.0, 4.0],
                         "q01": [0.0, 4.0], "q99": [1.0, 6.0]});
        json!({"robot": {"state": {"arm": key, "hand": key, "base": key}}})
    }

    fn config(kwargs: Value) -> Value {
        let other = json!({"delta_indices": [0], "modality_keys": ["x"]});
        let mut document = json!({"processor_kwargs": {
            "use_albumentations": true,
            "apply_sincos_state_encoding": true,
            "max_state_dim": 10,
            "modality_configs": {"robot": {"video": other, "action": other, "language": other, "state": {
                "delta_indices": [-1, 0],
                "modality_keys": ["hand", "arm", "base"],
                "sin_cos_embedding_keys": ["arm"],
                "mean_std_embedding_keys": ["hand", "arm"],
            }}},
        }});
        for (key, value) in kwargs.as_object().unwrap() {
            document["processor_kwargs"][key] = value.clone();
        }
        document
    }

    fn processor(kwargs: Value, statistics: &Value) -> Result<StateProcessor, SetupError> {
        let config =
            ProcessorConfig::parse(Path::new("processor_config.json"), config(kwargs).to_string().as_bytes());
        let statistics = Statistics::parse(Path::new("statistics.json"), statistics.to_string().as_bytes());
        StateProcessor::new(&config.unwrap(), &statistics.unwrap(), "robot")
    }

    fn state() -> BTreeMap<String, Array2<f32>> {
        ["arm", "hand", "base"].map(|key| (key.to_owned(), array![[0.0, 0.0], [5.0, 6.0]])).into()
    }

    #[test]
    fn keys_are_encoded_by_the_first_rule_that_fits_and_padded() {
        let padded = processor(json!({}), &statistics()).unwrap().process(&state()).unwrap();
        // hand: (x - 1) / 2, second value kept, not clipped. arm: sines then cosines although also listed for mean and
        // deviation. base: (0 + 1) / 4 -> -0.5, (5 + 1) / 4 -> 2 clipped to 1; constant -> 0. Two columns of padding.
        let (sin, cos) = (sincos::sin, sincos::cos);
        assert_eq!(
            padded,
            array![
                [-0.5, 0.0, 0.0, 0.0, 1.0, 1.0, -0.5, 0.0, 0.0, 0.0],
                [2.0, 6.0, sin(5.0), sin(6.0), cos(5.0), cos(6.0), 1.0, 0.0, 0.0, 0.0],
            ]
        );
    }

    #[test]
    fn sine_and_cosine_need_the_global_switch() {
        let plain = processor(json!({"apply_sincos_state_encoding": false}), &statistics()).unwrap();
        let keys = plain.process_keys(&state()).unwrap();
        // Without the switch the arm falls through to mean and deviation.
        assert_eq!(keys[1], ("arm".to_owned(), array![[-0.5, 0.0], [2.0, 6.0]]));
        assert_eq!(plain.encoded_dim(), 6);
    }

    #[test]
    fn percentiles_and_unclipped_values_follow_their_switches() {
        let settings = json!({"use_percentiles": true, "clip_outliers": false});
        let keys = processor(settings, &statistics()).unwrap().process_keys(&state()).unwrap();
        // base: 2 · (0 - 0) / 1 - 1 = -1, 2 · 5 - 1 = 9; 2 · (0 - 4) / 2 - 1 = -5, 2 · (6 - 4) / 2 - 1 = 1.
        assert_eq!(keys[2].1, array![[-1.0, -5.0], [9.0, 1.0]]);
    }

    #[test]
    fn broken_states_are_refused_with_the_keys_name() {
        let processor = processor(json!({}), &statistics()).unwrap();
        let with = |key: &str, value: Array2<f32>| {
            let mut state = state();
            state.insert(key.to_owned(), value);
            processor.process(&state).unwrap_err().to_string()
        };
        let mut missing = state();
        missing.remove("arm");
        assert_eq!(
            processor.process(&missing).unwrap_err().to_string(),
            "state key arm is missing: expected 2 x 2, found base, hand"
        );
        assert_eq!(
            with("arm", array![[0.0, 0.0]]),
            "state key arm: expected 2 x 2 (time steps x values), found 1 x 2"
        );
        assert_eq!(
            with("hand", array![[0.0], [0.0]]),
            "state key hand: expected 2 x 2 (time steps x values), found 2 x 1"
        );
        assert_eq!(
            with("base", array![[0.0, 0.0], [0.0, f32::NAN]]),
            "state key base: expected finite values, found NaN at time step 1, value 1"
        );
        assert!(
            with("arm", array![[f32::INFINITY, 0.0], [0.0, 0.0]])
                .contains("found inf at time step 0, value 0")
        );
    }

    #[test]
    fn a_value_that_overflows_is_refused() {
        let mut statistics = statistics();
        statistics["robot"]["state"]["hand"]["std"] = json!([1e-30, 0.0]);
        let mut state = state();
        state.insert("hand".to_owned(), array![[0.0, 0.0], [1e30, 0.0]]);
        let message = processor(json!({}), &statistics).unwrap().process(&state).unwrap_err().to_string();
        assert!(message.contains("state key hand") && message.contains("too large"), "{message}");
    }

    #[test]
    fn a_state_wider_than_the_network_is_refused() {
        let message = processor(json!({"max_state_dim": 7}), &statistics()).unwrap_err().to_string();
        assert!(
            message.contains("8 values") && message.contains("max_state_dim") && message.contains("allows 7")
        );
    }

    #[test]
    fn missing_statistics_are_an_error_with_embodiment_and_key() {
        let mut statistics = statistics();
        statistics["robot"]["state"].as_object_mut().unwrap().remove("hand");
        let message = processor(json!({}), &statistics).unwrap_err().to_string();
        assert!(message.contains("robot.state") && message.contains("\"hand\""), "{message}");
    }

    proptest! {
        #[test]
        fn clipped_and_trigonometric_values_stay_between_minus_one_and_one(x in -1e6f32..1e6, y in -1e6f32..1e6) {
            let mut state = state();
            state.insert("arm".to_owned(), array![[x, y], [y, x]]);
            state.insert("base".to_owned(), array![[x, y], [y, x]]);
            let keys = processor(json!({}), &statistics()).unwrap().process_keys(&state).unwrap();
            prop_assert!(keys[1..].iter().all(|(_, values)| values.iter().all(|v| v.abs() <= 1.0)));
        }
    }
}
