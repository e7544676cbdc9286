//! The network's normalised actions → physical actions, and back.

use std::collections::BTreeMap;

use ndarray::{Array2, ArrayView1, ArrayView2, Axis, s};

use super::normalisation::{KeyName, Method, Normalisation};
use super::rotation::{POSE_DIM, Pose};
use super::setup::SetupError;
use super::state::{StateError, raw_state};
use crate::checkpoint::processor_config::{
    ActionConfig, ActionFormat, ActionRepresentation, ActionType, ModalityConfig, ProcessorConfig,
};
use crate::checkpoint::side_file::list;
use crate::checkpoint::statistics::{Statistics, StatisticsGroup};

/// Actions that cannot be decoded or encoded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ActionError {
    /// The state that a relative action refers to is unusable.
    #[error("reference of a relative action: {0}")]
    State(#[from] StateError),
    /// The network's output is too small for this embodiment.
    #[error(
        "normalised actions: expected at least {} x {} (time steps x values), found {} x {}",
        .expected[0], .expected[1], .found[0], .found[1]
    )]
    Output { expected: [usize; 2], found: [usize; 2] },
    /// The network's output holds a value that is not a number or infinite.
    #[error(
        "normalised actions: expected finite values, found {value} at time step {row}, value {column}; nothing may be \
         sent to the robot"
    )]
    OutputNotFinite { row: usize, column: usize, value: f32 },
    /// A key is absent.
    #[error("action key {key} is missing: found {found}")]
    Missing { key: String, found: String },
    /// A key has the wrong shape.
    #[error(
        "action key {key}: expected {} x {} (time steps x values), found {} x {}",
        .expected[0], .expected[1], .found[0], .found[1]
    )]
    Shape { key: String, expected: [usize; 2], found: [usize; 2] },
    /// A value is not a number or infinite, on the way in or by overflow on the way out.
    #[error("action key {key}: expected finite values, found {value} at time step {row}, value {column}")]
    NotFinite { key: String, row: usize, column: usize, value: f64 },
    /// Planned actions have another number of weights than rows.
    #[error("weights of planned actions: expected one per time step, {expected}, found {found}")]
    Weights { expected: usize, found: usize },
    /// A weight of a planned action is none.
    #[error("weights of planned actions: expected 0 to 1, found {weight} at time step {row}")]
    Weight { row: usize, weight: f32 },
    /// Six rotation numbers that determine no rotation.
    #[error(
        "action key {key}, {whose}: expected six rotation numbers in two independent rows, found {rotation:?}"
    )]
    NoRotation { key: String, whose: String, rotation: Vec<f64> },
}

/// One action key of an embodiment.
#[derive(Debug, Clone)]
pub struct ActionKey {
    name: String,
    first_column: usize,
    normalisation: Normalisation,
    reference: Option<Reference>,
}

/// What a relative action refers to.
#[derive(Debug, Clone)]
struct Reference {
    state_key: String,
    kind: ReferenceKind,
}

#[derive(Debug, Clone, Copy)]
enum ReferenceKind {
    /// Added value by value.
    Joints,
    /// A frame of reference.
    Pose,
}

/// Decodes the actions of one embodiment, as the reference's `decode_action` does.
#[derive(Debug, Clone)]
pub struct ActionProcessor {
    keys: Vec<ActionKey>,
    horizon: usize,
    clip_outliers: bool,
}

impl ActionKey {
    /// The key's name in `processor_config.json`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of values per time step.
    pub fn dim(&self) -> usize {
        self.normalisation.dim()
    }

    /// The state key that decoding adds to the network's output; `None` for an absolute action.
    pub fn reference_state(&self) -> Option<&str> {
        self.reference.as_ref().map(|reference| reference.state_key.as_str())
    }
}

impl ActionProcessor {
    /// Sets up the transforms of `embodiment`; everything that can be wrong with its configuration and statistics is
    /// found here.
    pub fn new(
        config: &ProcessorConfig,
        statistics: &Statistics,
        embodiment: &str,
    ) -> Result<Self, SetupError> {
        let modalities = config.embodiment(embodiment)?;
        let setup = Setup {
            config,
            statistics,
            embodiment,
            action: modalities.action,
            state_keys: &modalities.state.modality_keys,
        };
        let mut keys = Vec::with_capacity(setup.action.modality_keys.len());
        let mut first_column = 0;
        for (index, key) in setup.action.modality_keys.iter().enumerate() {
            let action_config = setup.action.action_configs.as_ref().and_then(|configs| configs.get(index));
            let key = setup.key(key, action_config, first_column)?;
            first_column += key.dim();
            keys.push(key);
        }
        if first_column > config.max_action_dim {
            return Err(SetupError::TooWide {
                embodiment: embodiment.to_owned(),
                group: StatisticsGroup::Action,
                found: first_column,
                limit: config.max_action_dim,
            });
        }
        Ok(Self { keys, horizon: setup.action.delta_indices.len(), clip_outliers: config.clip_outliers })
    }

    /// Action keys in the order of their columns.
    pub fn keys(&self) -> &[ActionKey] {
        &self.keys
    }

    /// Number of values of all keys together.
    pub fn action_dim(&self) -> usize {
        self.keys.iter().map(ActionKey::dim).sum()
    }

    /// Number of time steps of a decoded chunk.
    pub fn horizon(&self) -> usize {
        self.horizon
    }

    /// Physical actions per key in the order of [`Self::keys`], each of shape (horizon, dimension).
    ///
    /// `normalised` is the network's output, (time steps, padded values), of which the first rows and columns count;
    /// `state` the raw state that the observation held.
    pub fn decode(
        &self,
        normalised: ArrayView2<f32>,
        state: &BTreeMap<String, Array2<f32>>,
    ) -> Result<Vec<(String, Array2<f32>)>, ActionError> {
        self.decode_f64(normalised, state)?
            .into_iter()
            .map(|(key, values)| {
                let values = to_finite_f32(&key, &values)?;
                Ok((key, values))
            })
            .collect()
    }

    /// [`Self::decode`] before the last rounding to f32.
    pub fn decode_f64(
        &self,
        normalised: ArrayView2<f32>,
        state: &BTreeMap<String, Array2<f32>>,
    ) -> Result<Vec<(String, Array2<f64>)>, ActionError> {
        let expected = [self.horizon, self.action_dim()];
        if normalised.nrows() < expected[0] || normalised.ncols() < expected[1] {
            return Err(ActionError::Output { expected, found: [normalised.nrows(), normalised.ncols()] });
        }
        if let Some(((row, column), &value)) = normalised.indexed_iter().find(|(_, value)| !value.is_finite())
        {
            return Err(ActionError::OutputNotFinite { row, column, value });
        }
        self.keys
            .iter()
            .map(|key| {
                let columns = key.first_column..key.first_column + key.dim();
                // The slice is within what was compared above.
                let mut values = key.normalisation.restore(normalised.slice(s![..self.horizon, columns]));
                if let Some(reference) = &key.reference {
                    reference.add_to(&key.name, &mut values, state)?;
                }
                Ok((key.name.clone(), values))
            })
            .collect()
    }

    /// The inverse of [`Self::decode`], as the reference's `apply_action`: relative conversion, normalisation and (with
    /// `clip_outliers`, for every key) clipping. Each key must have the shape (horizon, dimension).
    pub fn encode(
        &self,
        actions: &BTreeMap<String, Array2<f32>>,
        state: &BTreeMap<String, Array2<f32>>,
    ) -> Result<Vec<(String, Array2<f32>)>, ActionError> {
        self.keys
            .iter()
            .map(|key| {
                let values = self.physical(actions, key)?;
                let normalised = match &key.reference {
                    None => key.normalisation.normalise(values),
                    Some(reference) => {
                        let mut values = values.mapv(f64::from);
                        reference.take_from(&key.name, &mut values, state)?;
                        let normalised = key.normalisation.normalise_f64(values.view());
                        normalised.mapv(|x| x as f32)
                    }
                };
                let normalised =
                    if self.clip_outliers { normalised.mapv(|x| x.clamp(-1.0, 1.0)) } else { normalised };
                let normalised = to_finite_f32(&key.name, &normalised.mapv(f64::from))?;
                Ok((key.name.clone(), normalised))
            })
            .collect()
    }

    /// One key of physical actions, checked.
    fn physical<'a>(
        &self,
        actions: &'a BTreeMap<String, Array2<f32>>,
        key: &ActionKey,
    ) -> Result<ArrayView2<'a, f32>, ActionError> {
        let values = actions.get(&key.name).ok_or_else(|| ActionError::Missing {
            key: key.name.clone(),
            found: list(actions.keys().map(String::as_str)),
        })?;
        let expected = [self.horizon, key.dim()];
        let found = [values.nrows(), values.ncols()];
        if expected != found {
            return Err(ActionError::Shape { key: key.name.clone(), expected, found });
        }
        match values.indexed_iter().find(|(_, value)| !value.is_finite()) {
            Some(((row, column), &value)) => {
                let value = f64::from(value);
                Err(ActionError::NotFinite { key: key.name.clone(), row, column, value })
            }
            None => Ok(values.view()),
        }
    }
}

fn to_finite_f32(key: &str, values: &Array2<f64>) -> Result<Array2<f32>, ActionError> {
    match values.indexed_iter().find(|&(_, &value)| !(value as f32).is_finite()) {
        Some(((row, column), &value)) => {
            Err(ActionError::NotFinite { key: key.to_owned(), row, column, value })
        }
        None => Ok(values.mapv(|value| value as f32)),
    }
}

/// What the construction of every key needs.
struct Setup<'a> {
    config: &'a ProcessorConfig,
    statistics: &'a Statistics,
    embodiment: &'a str,
    action: &'a ModalityConfig,
    state_keys: &'a [String],
}

impl Setup<'_> {
    fn key(
        &self,
        key: &str,
        action_config: Option<&ActionConfig>,
        first_column: usize,
    ) -> Result<ActionKey, SetupError> {
        let embodiment = self.embodiment;
        // The dimension is that of the absolute statistics even where relative ones do the normalising.
        let absolute = self.statistics.key(embodiment, StatisticsGroup::Action, key)?;
        let relative = match action_config {
            Some(ActionConfig { rep: ActionRepresentation::Delta, .. }) => {
                return Err(SetupError::Delta { embodiment: embodiment.to_owned(), key: key.to_owned() });
            }
            Some(config @ ActionConfig { rep: ActionRepresentation::Relative, .. }) => {
                Some(config).filter(|_| self.config.use_relative_action)
            }
            Some(ActionConfig { rep: ActionRepresentation::Absolute, .. }) | None => None,
        };
        let reference = relative.map(|config| self.reference(key, config, absolute.dim())).transpose()?;
        let (group, key_statistics) = match reference {
            None => (StatisticsGroup::Action, absolute),
            Some(_) => {
                let group = StatisticsGroup::RelativeAction;
                (group, self.statistics.key(embodiment, group, key)?)
            }
        };
        let method = if self.action.mean_std_embedding_keys.iter().any(|name| name == key) {
            Method::MeanStd
        } else if self.config.use_percentiles && reference.is_none() {
            Method::Percentiles
        } else {
            Method::MinMax
        };
        let normalisation = Normalisation::new(KeyName { embodiment, group, key }, key_statistics, method)?;
        let horizon = self.action.delta_indices.len();
        let rows_fit = reference.is_none() || key_statistics.mean.nrows() == horizon;
        if normalisation.dim() != absolute.dim() || !rows_fit {
            return Err(SetupError::StatisticsShape {
                embodiment: embodiment.to_owned(),
                group,
                key: key.to_owned(),
                expected: format!(
                    "{horizon} x {} values (action horizon x values of action.{key})",
                    absolute.dim()
                ),
                found: [key_statistics.mean.nrows(), key_statistics.dim()],
            });
        }
        Ok(ActionKey { name: key.to_owned(), first_column, normalisation, reference })
    }

    fn reference(&self, key: &str, config: &ActionConfig, dim: usize) -> Result<Reference, SetupError> {
        let kind = match (config.kind, config.format) {
            (ActionType::NonEef, ActionFormat::Default) => ReferenceKind::Joints,
            (ActionType::Eef, ActionFormat::XyzRot6d) if dim == POSE_DIM => ReferenceKind::Pose,
            (kind, format) => {
                return Err(SetupError::RelativeLayout {
                    embodiment: self.embodiment.to_owned(),
                    key: key.to_owned(),
                    kind,
                    format,
                    dim,
                });
            }
        };
        // The reference takes an empty name for none.
        let state_key = config.state_key.as_deref().filter(|name| !name.is_empty()).unwrap_or(key);
        if !self.state_keys.iter().any(|name| name == state_key) {
            return Err(SetupError::NoReferenceState {
                embodiment: self.embodiment.to_owned(),
                key: key.to_owned(),
                state_key: state_key.to_owned(),
                found: list(self.state_keys.iter().map(String::as_str)),
            });
        }
        let state = self.statistics.key(self.embodiment, StatisticsGroup::State, state_key)?;
        if state.dim() != dim {
            return Err(SetupError::StatisticsShape {
                embodiment: self.embodiment.to_owned(),
                group: StatisticsGroup::State,
                key: state_key.to_owned(),
                expected: format!("{dim} values, like the relative action {key} that refers to it"),
                found: [1, state.dim()],
            });
        }
        Ok(Reference { state_key: state_key.to_owned(), kind })
    }
}

impl Reference {
    /// Relative values to absolute ones, in place.
    fn add_to(
        &self,
        key: &str,
        values: &mut Array2<f64>,
        state: &BTreeMap<String, Array2<f32>>,
    ) -> Result<(), ActionError> {
        let current = self.current(values.ncols(), state)?;
        match self.kind {
            ReferenceKind::Joints => *values += &current,
            ReferenceKind::Pose => {
                self.for_each_pose(key, values, &current, |reference, pose| reference.compose(&pose))?;
            }
        }
        Ok(())
    }

    /// Absolute values to relative ones, in place.
    fn take_from(
        &self,
        key: &str,
        values: &mut Array2<f64>,
        state: &BTreeMap<String, Array2<f32>>,
    ) -> Result<(), ActionError> {
        let current = self.current(values.ncols(), state)?;
        match self.kind {
            ReferenceKind::Joints => *values -= &current,
            ReferenceKind::Pose => {
                self.for_each_pose(key, values, &current, |reference, pose| pose.relative_to(reference))?;
            }
        }
        Ok(())
    }

    /// The last time step of the reference state.
    fn current(
        &self,
        dim: usize,
        state: &BTreeMap<String, Array2<f32>>,
    ) -> Result<ndarray::Array1<f64>, StateError> {
        let raw = raw_state(state, &self.state_key, None, dim)?;
        // `raw_state` refuses a state without rows.
        Ok(raw.index_axis(Axis(0), raw.nrows() - 1).mapv(f64::from))
    }

    fn for_each_pose(
        &self,
        key: &str,
        values: &mut Array2<f64>,
        current: &ndarray::Array1<f64>,
        convert: impl Fn(&Pose, Pose) -> Pose,
    ) -> Result<(), ActionError> {
        let whose = || format!("its reference state {}", self.state_key);
        let reference = pose(key, whose, current.view())?;
        for (step, mut row) in values.rows_mut().into_iter().enumerate() {
            let converted = convert(&reference, pose(key, || format!("time step {step}"), row.view())?);
            row.iter_mut().zip(converted.to_xyz_rot6d()).for_each(|(value, new)| *value = new);
        }
        Ok(())
    }
}

fn pose(key: &str, whose: impl Fn() -> String, row: ArrayView1<f64>) -> Result<Pose, ActionError> {
    let mut values = [0.0; POSE_DIM];
    values.iter_mut().zip(row).for_each(|(value, &new)| *value = new);
    Pose::from_xyz_rot6d(values).ok_or_else(|| ActionError::NoRotation {
        key: key.to_owned(),
        whose: whose(),
        rotation: values[3..].to_vec(),
    })
}

#[cfg(test)]
mod tests;
