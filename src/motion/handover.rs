//! How a chunk takes over from the one before it.
//!
//! Two chunks never agree: the noise differs, the observation differs, and the robot lags behind what it was told. Three
//! ways to deal with it:
//!
//! | mode | at the hand-over | in position | in velocity |
//! |---|---|---|---|
//! | `replace` | the new chunk is in force at once | jumps | jumps |
//! | `blend` | weights ramp from the old to the new one over the overlap | continuous | continuous but for the ramp's own motion |
//! | `rtc` | the new chunk was denoised so that it agrees with the old one until then | continuous | continuous, without averaging two plans |
//!
//! **The ramp** is smoothstep, 3u² - 2u³, not linear: its slope is zero at both ends, so that the command leaves the old chunk
//! with the old chunk's velocity and joins the new one with the new one's. A linear ramp would add a velocity jump of
//! (new - old) / duration at either end. In between smoothstep adds at most 1.5 · (new - old) / duration.
//!
//! **Real-time chunking** (Black, Galliker, Levine: Real-Time Execution of Action Chunking Flow Policies, 2025) ties the rows that
//! will be executed before the answer comes to the running plan (weight 1, frozen), the next ones with a weight that decays
//! over the overlap, and leaves the rest free. A short ramp of one step remains in force at the hand-over: it bridges what
//! freezing cannot make equal (rows that fall between the old chunk's rows, values outside the network's range). An answer
//! that comes when the frozen rows are over is blended in over the whole overlap.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use ndarray::Array2;

use super::{
    chunk::{MotionChunk, row_time},
    plan::ActivePlan,
};
use crate::{processor::guidance::PlannedActions, ros::Stamp};

/// How a chunk takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HandoverMode {
    /// At once.
    Replace,
    /// By a weighted ensemble over the overlap.
    #[default]
    Blend,
    /// By real-time chunking.
    Rtc,
}

impl HandoverMode {
    /// All modes, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::Replace, Self::Blend, Self::Rtc];

    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::Blend => "blend",
            Self::Rtc => "rtc",
        }
    }
}

impl fmt::Display for HandoverMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no mode's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected replace, blend or rtc, found {0:?}")]
pub struct UnknownMode(pub String);

impl FromStr for HandoverMode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        Self::ALL.into_iter().find(|mode| mode.name() == name).ok_or_else(|| UnknownMode(name.to_owned()))
    }
}

/// A weight that rises from 0 at `start` to 1 a `duration` later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ramp {
    /// Where it begins.
    pub start: Stamp,
    /// How long it takes; zero is a step.
    pub duration: Duration,
}

impl Ramp {
    /// The weight at `time`, 0 to 1: smoothstep, rising monotonically.
    pub fn weight(&self, time: Stamp) -> f64 {
        let elapsed = i128::from(time.0) - i128::from(self.start.0);
        let duration = i128::try_from(self.duration.as_nanos()).unwrap_or(i128::MAX);
        if elapsed >= duration {
            return if elapsed < 0 { 0.0 } else { 1.0 };
        }
        let share = (elapsed as f64 / duration as f64).clamp(0.0, 1.0);
        share * share * (3.0 - 2.0 * share)
    }
}

/// The rows of a new chunk that are tied to the running plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TiedRows {
    /// Rows that will have been reached, or are being approached, when the answer comes.
    pub frozen: usize,
    /// Rows after them over which the weight decays.
    pub decaying: usize,
}

impl TiedRows {
    /// Counts them on the grid of a chunk of `horizon` rows that starts at `start`, for an answer that comes at `arrival`
    /// while `running` is executed, with at most `overlap` decaying rows.
    ///
    /// The first row at or after the arrival is frozen too: at that moment the command is on its way there.
    /// Rows after the running chunk's end are not tied, for nothing is planned there.
    pub fn count(
        (start, step_time, horizon): (Stamp, Duration, usize),
        arrival: Stamp,
        running: &MotionChunk,
        overlap: usize,
    ) -> Self {
        let times = || (0..horizon).map(|row| row_time(start, step_time, row));
        let planned = times().take_while(|&time| time <= running.end()).count();
        let frozen = (times().take_while(|&time| time < arrival).count() + 1).min(planned);
        Self { frozen, decaying: overlap.min(planned - frozen) }
    }

    /// A weight per row of `horizon` rows: 1, then c · (e^c - 1) / (e - 1) with c falling linearly, then 0.
    pub fn weights(&self, horizon: usize) -> Vec<f32> {
        let weight = |row: usize| match row.checked_sub(self.frozen) {
            None => 1.0,
            Some(after) if after < self.decaying => {
                let c = (self.decaying - after) as f64 / (self.decaying + 1) as f64;
                (c * c.exp_m1() / 1f64.exp_m1()) as f32
            }
            Some(_) => 0.0,
        };
        (0..horizon).map(weight).collect()
    }
}

/// What `plan` will do at the rows of a chunk of `horizon` rows that starts at `start`, with the weights of `tied`.
pub fn planned_actions(
    plan: &ActivePlan,
    (start, step_time, horizon): (Stamp, Duration, usize),
    tied: TiedRows,
) -> PlannedActions {
    let poses: Vec<Vec<f64>> =
        (0..horizon).map(|row| plan.sample(row_time(start, step_time, row)).positions).collect();
    let values = |key: &super::chunk::KeyLayout| {
        let first = key.columns.start;
        // Every pose has as many values as the plan's layout, of which the key's columns are a part.
        let array = Array2::from_shape_fn((horizon, key.columns.len()), |(row, column)| {
            poses[row][first + column] as f32
        });
        (key.key.clone(), array)
    };
    let actions: BTreeMap<_, _> = plan.layout().keys.iter().map(values).collect();
    PlannedActions { actions, weights: tied.weights(horizon) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::motion::chunk::tests::{STEP, chunk, ms};
    use proptest::prelude::*;

    #[test]
    fn modes_are_known_by_their_names() {
        for mode in HandoverMode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        let error = "average".parse::<HandoverMode>().unwrap_err().to_string();
        assert_eq!(error, "expected replace, blend or rtc, found \"average\"");
    }

    #[test]
    fn the_ramp_rises_smoothly_from_zero_to_one() {
        let ramp = Ramp { start: ms(1000), duration: Duration::from_millis(200) };
        let weights = [900, 1000, 1050, 1100, 1150, 1200, 1300].map(|time| ramp.weight(ms(time)));
        assert_eq!(weights, [0.0, 0.0, 0.15625, 0.5, 0.84375, 1.0, 1.0]);
    }

    #[test]
    fn a_ramp_without_duration_is_a_step() {
        let ramp = Ramp { start: ms(1000), duration: Duration::ZERO };
        assert_eq!([999, 1000, 1001].map(|time| ramp.weight(ms(time))), [0.0, 1.0, 1.0]);
    }

    #[test]
    fn the_ramp_has_no_slope_at_its_ends_and_at_most_one_and_a_half_between() {
        let ramp = Ramp { start: Stamp(0), duration: Duration::from_secs(1) };
        let slope = |from: i64| (ramp.weight(Stamp(from + 1000)) - ramp.weight(Stamp(from))) * 1e6;
        assert!(slope(0) < 1e-5 && slope(999_999_000) < 1e-5);
        let steepest = (0..1_000_000_000).step_by(1_000_000).map(slope).fold(0.0, f64::max);
        assert!((1.49..=1.5 + 1e-6).contains(&steepest), "{steepest}");
    }

    #[test]
    fn rows_until_the_answer_comes_are_frozen_and_the_one_being_approached_too() {
        let running = chunk(ms(0), 0, &[0.0; 16]);
        let count = |arrival| TiedRows::count((ms(250), STEP, 16), ms(arrival), &running, 4);
        // Rows at 350, 450, 550, ...
        assert_eq!(count(250), TiedRows { frozen: 1, decaying: 4 });
        assert_eq!(count(350), TiedRows { frozen: 1, decaying: 4 });
        assert_eq!(count(351), TiedRows { frozen: 2, decaying: 4 });
        assert_eq!(count(540), TiedRows { frozen: 3, decaying: 4 });
    }

    #[test]
    fn nothing_is_tied_beyond_the_running_chunks_end() {
        let running = chunk(ms(0), 0, &[0.0; 6]);
        let count =
            |start, arrival, horizon| TiedRows::count((ms(start), STEP, horizon), ms(arrival), &running, 4);
        // It ends at 600; rows at 350, 450, 550.
        assert_eq!(count(250, 300, 16), TiedRows { frozen: 1, decaying: 2 });
        assert_eq!(count(250, 1250, 16), TiedRows { frozen: 3, decaying: 0 });
        assert_eq!(count(900, 950, 16), TiedRows::default());
        assert_eq!(count(0, 950, 0), TiedRows::default());
    }

    #[test]
    fn weights_are_one_then_decay_then_zero() {
        let weights = TiedRows { frozen: 2, decaying: 3 }.weights(7);
        assert_eq!(&weights[..2], &[1.0, 1.0]);
        // c = 3/4, 1/2, 1/4; by hand: c · (e^c - 1) / (e - 1).
        for (weight, expected) in weights[2..5].iter().zip([0.487_551, 0.188_770_33, 0.041_324_044]) {
            assert!((weight - expected).abs() < 1e-6, "{weight} {expected}");
        }
        assert_eq!(&weights[5..], &[0.0, 0.0]);
        assert_eq!(TiedRows { frozen: 9, decaying: 0 }.weights(2), [1.0, 1.0]);
        assert_eq!(TiedRows::default().weights(2), [0.0, 0.0]);
    }

    #[test]
    fn planned_actions_are_what_the_plan_does_at_the_new_rows() {
        let plan = ActivePlan::of(chunk(ms(0), 0, &[1.0, 2.0, 4.0, 5.0]));
        let planned = planned_actions(&plan, (ms(50), STEP, 5), TiedRows { frozen: 2, decaying: 0 });
        assert_eq!(planned.weights, [1.0, 1.0, 0.0, 0.0, 0.0]);
        // At 150, 250, 350, 450 and 550; it ends at 400.
        assert_eq!(planned.actions["arm"].column(0).to_vec(), [1.5, 3.0, 4.5, 5.0, 5.0]);
    }

    #[test]
    fn planned_actions_include_a_hand_over_in_progress() {
        let mut plan = ActivePlan::of(chunk(ms(0), 0, &[0.0; 4]));
        plan.enter(chunk(ms(0), 1, &[8.0; 4]), Ramp { start: ms(100), duration: Duration::from_millis(200) });
        let planned = planned_actions(&plan, (ms(50), STEP, 2), TiedRows { frozen: 2, decaying: 0 });
        assert_eq!(planned.actions["arm"].column(0).to_vec(), [1.25, 6.75]);
    }

    proptest! {
        #[test]
        fn any_ramp_rises_monotonically_from_zero_to_one(
            start in any::<i64>(), duration in any::<u64>(), a in any::<i64>(), b in any::<i64>(),
        ) {
            let ramp = Ramp { start: Stamp(start), duration: Duration::from_nanos(duration) };
            let (early, late) = (ramp.weight(Stamp(a.min(b))), ramp.weight(Stamp(a.max(b))));
            prop_assert!(0.0 <= early && early <= late && late <= 1.0);
        }

        #[test]
        fn weights_never_rise_and_never_leave_zero_to_one(frozen in 0usize..20, decaying in 0usize..20, horizon in 0usize..40) {
            let weights = TiedRows { frozen, decaying }.weights(horizon);
            prop_assert_eq!(weights.len(), horizon);
            prop_assert!(weights.iter().all(|weight| (0.0..=1.0).contains(weight)));
            prop_assert!(weights.windows(2).all(|pair| pair[1] <= pair[0]));
        }
    }
}
