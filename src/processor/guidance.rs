//! Actions that a new chunk is to agree with, in the network's range: what real-time chunking ties the denoising to.

use std::collections::BTreeMap;

use ndarray::{Array2, s};

use super::action::{ActionError, ActionProcessor};

/// Physical actions that a new chunk is to agree with, on the new chunk's time grid.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PlannedActions {
    /// Absolute actions of every action key, each of shape (embodiment's horizon, dimension), SI units.
    pub actions: BTreeMap<String, Array2<f32>>,
    /// How much each row counts: 1 is frozen, 0 is free. One per row.
    pub weights: Vec<f32>,
}

/// What denoising is pulled to: the network's own output, value by value.
#[derive(Debug, Clone, PartialEq)]
pub struct Guidance {
    /// Normalised actions (action horizon, max action dim).
    pub target: Array2<f32>,
    /// How strongly each value is pulled, 0 (not at all) to 1 (becomes the target), of the same shape.
    pub weights: Array2<f32>,
}

impl ActionProcessor {
    /// Planned actions in the network's range. `state` is the new observation's, so that relative actions refer to the
    /// state that the new chunk starts from; `shape` is the network's (action horizon, max action dim).
    ///
    /// Rows beyond the embodiment's horizon and the columns that pad its actions have weight 0.
    ///
    /// Where decoding the target gives the planned action back, a frozen row is exact to f32. It does not where the
    /// checkpoint clips outliers and the planned action lies outside the range of ±1: for a bounded key because no
    /// output of the network can say it (a relative action that is too far from the new state), for one by mean and
    /// deviation because training never showed more than one deviation. Such a value is pulled to the nearest one in
    /// range, and the hand-over has to bridge the rest.
    ///
    /// # Errors
    /// Actions or a state that [`encode`](Self::encode) refuses, another number of weights than rows, a weight outside 0
    /// to 1, a shape that is too small.
    pub fn guidance(
        &self,
        planned: &PlannedActions,
        state: &BTreeMap<String, Array2<f32>>,
        shape: (usize, usize),
    ) -> Result<Guidance, ActionError> {
        let expected = [self.horizon(), self.action_dim()];
        if shape.0 < expected[0] || shape.1 < expected[1] {
            return Err(ActionError::Output { expected, found: [shape.0, shape.1] });
        }
        if planned.weights.len() != self.horizon() {
            let found = planned.weights.len();
            return Err(ActionError::Weights { expected: self.horizon(), found });
        }
        if let Some((row, &weight)) =
            planned.weights.iter().enumerate().find(|(_, weight)| !(0.0..=1.0).contains(*weight))
        {
            return Err(ActionError::Weight { row, weight });
        }
        let mut guidance = Guidance { target: Array2::zeros(shape), weights: Array2::zeros(shape) };
        let mut first = 0;
        for (_, values) in self.encode(&planned.actions, state)? {
            let end = first + values.ncols();
            guidance.target.slice_mut(s![..self.horizon(), first..end]).assign(&values);
            first = end;
        }
        for (mut row, &weight) in guidance.weights.rows_mut().into_iter().zip(&planned.weights) {
            row.slice_mut(s![..first]).fill(weight);
        }
        Ok(guidance)
    }
}
