//! What is being executed: one chunk, or several while one takes over from another.

use std::sync::Arc;

use super::{
    chunk::{ChunkError, Layout, MotionChunk},
    handover::Ramp,
    sampler::{Phase, mix, sample},
};
use crate::ros::Stamp;

/// The most chunks that may be taking over at once. Each is a prediction, and a ramp lasts a few steps, so more than two or
/// three mean that something is wrong; the cap bounds the work of a command.
pub const MAX_ENTERING: usize = 8;

/// One command.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Position values in the order of `layout`, SI units.
    pub positions: Vec<f64>,
    /// How the values stand.
    pub layout: Arc<Layout>,
    /// Where the time lies in the newest chunk; `Held` where a pose is held and there is no chunk.
    pub phase: Phase,
    /// Sequence of the newest chunk; None where a pose is held.
    pub sequence: Option<u64>,
}

impl Sample {
    /// The values of one action key.
    pub fn values(&self, key: &str) -> Option<&[f64]> {
        self.layout.values(&self.positions, key)
    }
}

/// What a plan starts from.
#[derive(Debug, Clone, PartialEq)]
enum Base {
    Chunk(MotionChunk),
    /// Held whatever the time; as long as the layout says.
    Pose(Vec<f64>),
}

#[derive(Debug, Clone, PartialEq)]
struct Entering {
    chunk: MotionChunk,
    ramp: Ramp,
}

/// A base and the chunks that take over from it, one after the other.
///
/// The pose is folded from the oldest to the newest: p ← p · (1 - w) + chunk · w. A chunk that comes while another is still
/// taking over thus starts from what is really being commanded.
#[derive(Debug, Clone, PartialEq)]
pub struct ActivePlan {
    layout: Arc<Layout>,
    base: Base,
    entering: Vec<Entering>,
}

impl ActivePlan {
    /// One chunk and nothing before it.
    pub fn of(chunk: MotionChunk) -> Self {
        Self { layout: chunk.layout().clone(), base: Base::Chunk(chunk), entering: Vec::new() }
    }

    /// A pose that is held.
    ///
    /// # Errors
    /// Another number of values than the layout has, or values that are not finite.
    pub fn hold(layout: Arc<Layout>, pose: Vec<f64>) -> Result<Self, ChunkError> {
        let expected = layout.dimension();
        if pose.len() != expected || pose.iter().any(|value| !value.is_finite()) {
            return Err(ChunkError::Origin { expected, found: pose });
        }
        Ok(Self { layout, base: Base::Pose(pose), entering: Vec::new() })
    }

    /// How the values of its poses stand.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The chunk that came last; None while a pose is held.
    pub fn newest(&self) -> Option<&MotionChunk> {
        match (self.entering.last(), &self.base) {
            (Some(entering), _) => Some(&entering.chunk),
            (None, Base::Chunk(chunk)) => Some(chunk),
            (None, Base::Pose(_)) => None,
        }
    }

    /// Every chunk that still has a say, oldest first.
    pub fn chunks(&self) -> impl Iterator<Item = &MotionChunk> {
        let base = match &self.base {
            Base::Chunk(chunk) => Some(chunk),
            Base::Pose(_) => None,
        };
        base.into_iter().chain(self.entering.iter().map(|entering| &entering.chunk))
    }

    /// Whether there is room for one more chunk to take over gradually.
    pub fn has_room(&self) -> bool {
        self.entering.len() < MAX_ENTERING
    }

    /// Lets `chunk`, which must have the plan's layout, take over along `ramp`.
    pub fn enter(&mut self, chunk: MotionChunk, ramp: Ramp) {
        self.entering.push(Entering { chunk, ramp });
    }

    /// Forgets what has no say any more at `now` and later.
    pub fn prune(&mut self, now: Stamp) {
        let Some(done) = self.entering.iter().rposition(|entering| entering.ramp.weight(now) >= 1.0) else {
            return;
        };
        if let Some(last) = self.entering.drain(..=done).next_back() {
            self.base = Base::Chunk(last.chunk);
        }
    }

    /// The pose at `time`.
    pub fn sample(&self, time: Stamp) -> Sample {
        let (mut positions, mut phase) = match &self.base {
            Base::Chunk(chunk) => sample(chunk, time),
            Base::Pose(pose) => (pose.clone(), Phase::Held),
        };
        for entering in &self.entering {
            let (pose, new_phase) = sample(&entering.chunk, time);
            positions = mix(&positions, &pose, entering.ramp.weight(time));
            phase = new_phase;
        }
        let sequence = self.newest().map(MotionChunk::sequence);
        Sample { positions, layout: self.layout.clone(), phase, sequence }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::motion::chunk::tests::{chunk, ms};
    use std::time::Duration;

    fn at(plan: &ActivePlan, milliseconds: i64) -> f64 {
        plan.sample(ms(milliseconds)).positions[0]
    }

    fn ramp(start: i64, milliseconds: u64) -> Ramp {
        Ramp { start: ms(start), duration: Duration::from_millis(milliseconds) }
    }

    #[test]
    fn one_chunk_is_sampled_as_it_is() {
        let plan = ActivePlan::of(chunk(ms(0), 4, &[1.0, 3.0]));
        let sample = plan.sample(ms(150));
        assert_eq!(
            (sample.positions.as_slice(), sample.phase, sample.sequence),
            (&[2.0][..], Phase::Inside, Some(4))
        );
        assert_eq!(sample.values("arm"), Some(&[2.0][..]));
        assert_eq!(plan.sample(ms(500)).phase, Phase::Held);
    }

    #[test]
    fn a_held_pose_is_held_at_any_time_and_must_fit_the_layout() {
        let layout = chunk(ms(0), 0, &[1.0]).layout().clone();
        let plan = ActivePlan::hold(layout.clone(), vec![0.5]).unwrap();
        for time in [Stamp(i64::MIN), ms(0), Stamp(i64::MAX)] {
            let sample = plan.sample(time);
            assert_eq!((sample.positions, sample.phase, sample.sequence), (vec![0.5], Phase::Held, None));
        }
        assert!(plan.newest().is_none());
        for pose in [vec![], vec![1.0, 1.0], vec![f64::INFINITY]] {
            assert!(ActivePlan::hold(layout.clone(), pose).is_err());
        }
    }

    #[test]
    fn an_entering_chunk_takes_over_along_its_ramp() {
        let mut plan = ActivePlan::of(chunk(ms(0), 0, &[0.0, 0.0, 0.0, 0.0]));
        plan.enter(chunk(ms(0), 1, &[8.0, 8.0, 8.0, 8.0]), ramp(100, 200));
        // Smoothstep: 5/32 of the way after a quarter of the time.
        for (time, value) in
            [(50, 0.0), (100, 0.0), (150, 1.25), (200, 4.0), (250, 6.75), (300, 8.0), (900, 8.0)]
        {
            assert_eq!(at(&plan, time), value, "{time} ms");
        }
        assert_eq!(plan.sample(ms(150)).sequence, Some(1));
    }

    #[test]
    fn a_chunk_that_comes_during_a_hand_over_starts_from_the_mixture() {
        let mut plan = ActivePlan::of(chunk(ms(0), 0, &[0.0, 0.0, 0.0, 0.0]));
        plan.enter(chunk(ms(0), 1, &[8.0, 8.0, 8.0, 8.0]), ramp(100, 200));
        plan.enter(chunk(ms(0), 2, &[-4.0, -4.0, -4.0, -4.0]), ramp(200, 200));
        assert_eq!(at(&plan, 200), 4.0);
        // 6.75 and 5/32 of the way from it to -4.
        assert_eq!(at(&plan, 250), 6.75 - 10.75 * 5.0 / 32.0);
        assert_eq!(at(&plan, 400), -4.0);
    }

    #[test]
    fn pruning_forgets_what_was_taken_over_and_changes_nothing_later() {
        let mut plan = ActivePlan::of(chunk(ms(0), 0, &[0.0, 1.0, 2.0, 3.0]));
        plan.enter(chunk(ms(0), 1, &[8.0, 7.0, 6.0, 5.0]), ramp(100, 100));
        plan.enter(chunk(ms(0), 2, &[1.0, 1.0, 1.0, 1.0]), ramp(150, 100));
        let before: Vec<_> = (200..600).map(|time| at(&plan, time)).collect();
        plan.prune(ms(199));
        assert_eq!(plan.chunks().count(), 3);
        plan.prune(ms(200));
        assert_eq!(plan.chunks().map(MotionChunk::sequence).collect::<Vec<_>>(), [1, 2]);
        assert_eq!((200..600).map(|time| at(&plan, time)).collect::<Vec<_>>(), before);
        plan.prune(ms(250));
        assert_eq!(plan.chunks().map(MotionChunk::sequence).collect::<Vec<_>>(), [2]);
    }
}
