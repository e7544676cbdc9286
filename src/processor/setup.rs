//! What can be wrong between `processor_config.json` and `statistics.json`, found once at load.

use crate::checkpoint::processor_config::{ActionFormat, ActionType};
use crate::checkpoint::side_file::SideFileError;
use crate::checkpoint::statistics::StatisticsGroup;

/// The state or action transforms of an embodiment cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A side file lacks something or holds nonsense.
    #[error(transparent)]
    SideFile(#[from] SideFileError),
    /// The keys together are wider than the network's input or output.
    #[error(
        "embodiment {embodiment}: the {group} keys have {found} values together, but max_{group}_dim in \
         processor_config.json allows {limit}; statistics.json and processor_config.json do not belong together"
    )]
    TooWide { embodiment: String, group: StatisticsGroup, found: usize, limit: usize },
    /// Percentile normalisation without percentiles.
    #[error(
        "embodiment {embodiment}: use_percentiles is set, but statistics.json has no q01 and q99 for \
         {group}.{key}"
    )]
    NoPercentiles { embodiment: String, group: StatisticsGroup, key: String },
    /// A lower bound above its upper bound would turn the robot's motion around.
    #[error(
        "embodiment {embodiment}: {group}.{key} in statistics.json: expected a lower bound below the upper bound, \
         found {low} and {high} (row {row}, value {column})"
    )]
    InvertedBounds {
        embodiment: String,
        group: StatisticsGroup,
        key: String,
        row: usize,
        column: usize,
        low: f64,
        high: f64,
    },
    /// Actions relative to the previous action; the reference does not decode them either.
    #[error(
        "embodiment {embodiment}: action key {key} has the representation DELTA; only ABSOLUTE and RELATIVE can be \
         decoded"
    )]
    Delta { embodiment: String, key: String },
    /// A relative action in a layout that cannot be converted to absolute values.
    #[error(
        "embodiment {embodiment}: relative action key {key}: expected NON_EEF with format DEFAULT, or EEF with format \
         XYZ_ROT6D and 9 values; found {kind:?} with format {format:?} and {dim} values"
    )]
    RelativeLayout { embodiment: String, key: String, kind: ActionType, format: ActionFormat, dim: usize },
    /// A relative action refers to a state key that the embodiment lacks.
    #[error(
        "embodiment {embodiment}: relative action key {key}: expected its reference state key {state_key} among the \
         state keys, found {found}"
    )]
    NoReferenceState { embodiment: String, key: String, state_key: String, found: String },
    /// The statistics of a key do not fit what they normalise.
    #[error(
        "embodiment {embodiment}: {group}.{key} in statistics.json: expected {expected}, found {} x {} values",
        .found[0], .found[1]
    )]
    StatisticsShape {
        embodiment: String,
        group: StatisticsGroup,
        key: String,
        expected: String,
        found: [usize; 2],
    },
}
