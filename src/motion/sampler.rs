//! A chunk's pose at any time.

use super::chunk::MotionChunk;
use crate::ros::Stamp;

/// Where a time lies in a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before the first row is to be reached.
    Before,
    /// From the first row's time to the last one's.
    Inside,
    /// After the last row: the last pose is held.
    Held,
}

/// The pose at `time`, in the order of the chunk's layout.
///
/// | time | pose |
/// |---|---|
/// | up to the chunk's start | the start pose where it is known, else the first row |
/// | up to the first row | linear from the start pose where it is known, else the first row |
/// | between two rows | linear between them |
/// | after the last row | the last row |
///
/// Values are interpolated one by one, those of a rotation too: six rotation numbers between two rows are close to
/// orthonormal, not exactly so.
pub fn sample(chunk: &MotionChunk, time: Stamp) -> (Vec<f64>, Phase) {
    let values = chunk.values();
    let row = |index: usize| values.row(index).mapv(f64::from).to_vec();
    let last = chunk.horizon() - 1;
    // i128 holds any difference of two stamps, and the step time is above zero.
    let step = i128::try_from(chunk.step_time().as_nanos()).unwrap_or(i128::MAX);
    let elapsed = i128::from(time.0) - i128::from(chunk.start().0);
    let steps = elapsed.div_euclid(step);
    let share = elapsed.rem_euclid(step) as f64 / step as f64;
    if steps < 1 {
        let pose = match chunk.origin() {
            Some(origin) if steps < 0 => origin.to_vec(),
            Some(origin) => mix(origin, &row(0), share),
            None => row(0),
        };
        return (pose, Phase::Before);
    }
    // Row i is reached after i + 1 steps.
    match usize::try_from(steps - 1) {
        Ok(index) if index < last => (mix(&row(index), &row(index + 1), share), Phase::Inside),
        Ok(index) if index == last && share == 0.0 => (row(last), Phase::Inside),
        _ => (row(last), Phase::Held),
    }
}

/// `from` · (1 - share) + `to` · share, value by value, never outside what lies between the two.
///
/// Exact at both ends: a share of 0 gives `from` and one of 1 gives `to`.
pub fn mix(from: &[f64], to: &[f64], share: f64) -> Vec<f64> {
    let value = |(&a, &b): (&f64, &f64)| (a * (1.0 - share) + b * share).max(a.min(b)).min(a.max(b));
    from.iter().zip(to).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::motion::chunk::{
        MotionGroup,
        tests::{STEP, chunk, ms},
    };
    use ndarray::array;
    use proptest::prelude::*;

    fn at(chunk: &MotionChunk, milliseconds: i64) -> (f64, Phase) {
        let (pose, phase) = sample(chunk, ms(milliseconds));
        assert_eq!(pose.len(), 1);
        (pose[0], phase)
    }

    #[test]
    fn rows_are_met_at_their_times_and_interpolated_between() {
        let chunk = chunk(ms(1000), 0, &[1.0, 3.0, 2.0]);
        for (time, value) in [(1100, 1.0), (1125, 1.5), (1150, 2.0), (1200, 3.0), (1250, 2.5), (1300, 2.0)] {
            assert_eq!(at(&chunk, time), (value, Phase::Inside), "{time} ms");
        }
    }

    #[test]
    fn without_a_start_pose_the_first_row_is_held_until_its_time() {
        let chunk = chunk(ms(1000), 0, &[1.0, 3.0]);
        for time in [-5000, 0, 1000, 1050, 1099] {
            assert_eq!(at(&chunk, time), (1.0, Phase::Before), "{time} ms");
        }
    }

    #[test]
    fn a_known_start_pose_is_left_at_the_chunks_start() {
        let chunk = chunk(ms(1000), 0, &[1.0, 3.0]).with_origin(vec![0.0]).unwrap();
        for (time, value) in [(-5000, 0.0), (999, 0.0), (1000, 0.0), (1025, 0.25), (1075, 0.75)] {
            assert_eq!(at(&chunk, time), (value, Phase::Before), "{time} ms");
        }
        assert_eq!(at(&chunk, 1100), (1.0, Phase::Inside));
    }

    #[test]
    fn after_the_last_row_its_pose_is_held() {
        let chunk = chunk(ms(1000), 0, &[1.0, 3.0]);
        assert_eq!(at(&chunk, 1200), (3.0, Phase::Inside));
        assert_eq!(sample(&chunk, Stamp(1_200_000_001)), (vec![3.0], Phase::Held));
        assert_eq!(at(&chunk, 1_000_000), (3.0, Phase::Held));
        assert_eq!(sample(&chunk, Stamp(i64::MAX)), (vec![3.0], Phase::Held));
    }

    #[test]
    fn a_chunk_of_one_row_has_one_instant_inside() {
        let chunk = chunk(ms(1000), 0, &[4.0]);
        assert_eq!(at(&chunk, 1099), (4.0, Phase::Before));
        assert_eq!(at(&chunk, 1100), (4.0, Phase::Inside));
        assert_eq!(at(&chunk, 1101), (4.0, Phase::Held));
    }

    #[test]
    fn all_keys_are_sampled_in_the_order_of_the_layout() {
        let group = |key: &str, values| MotionGroup { key: key.into(), joints: vec![], values };
        let groups = vec![group("base", array![[0.0, 8.0], [1.0, 4.0]]), group("arm", array![[-1.0], [1.0]])];
        let chunk = MotionChunk::new(ms(0), STEP, 0, groups).unwrap();
        assert_eq!(sample(&chunk, ms(125)), (vec![0.25, 7.0, -0.5], Phase::Inside));
    }

    proptest! {
        #[test]
        fn any_stamps_give_a_pose_between_the_rows(
            start in any::<i64>(), time in any::<i64>(), nanoseconds in 1u64.., sequence in any::<u64>(),
            rows in proptest::collection::vec(-1e30f32..1e30, 1..6), origin in proptest::option::of(-1e30f64..1e30),
        ) {
            let group = MotionGroup {
                key: "arm".into(), joints: vec![], values: ndarray::Array2::from_shape_vec((rows.len(), 1), rows.clone()).unwrap(),
            };
            let step = std::time::Duration::from_nanos(nanoseconds);
            let mut chunk = MotionChunk::new(Stamp(start), step, sequence, vec![group]).unwrap();
            if let Some(origin) = origin {
                chunk = chunk.with_origin(vec![origin]).unwrap();
            }
            let all = || rows.iter().map(|&row| f64::from(row)).chain(origin);
            let (pose, _) = sample(&chunk, Stamp(time));
            prop_assert!(pose[0] >= all().fold(f64::INFINITY, f64::min));
            prop_assert!(pose[0] <= all().fold(f64::NEG_INFINITY, f64::max));
        }

        #[test]
        fn a_chunk_moves_no_faster_than_its_rows(
            rows in proptest::collection::vec(-3.0f32..3.0, 1..8), time in -200i64..1200, gap in 0i64..300,
        ) {
            let chunk = chunk(ms(0), 0, &rows);
            let steepest = rows.windows(2).map(|pair| f64::from((pair[1] - pair[0]).abs())).fold(0.0, f64::max);
            let moved = (at(&chunk, time + gap).0 - at(&chunk, time).0).abs();
            prop_assert!(moved <= steepest * gap as f64 / 100.0 + 1e-6);
        }

        #[test]
        fn a_mixture_meets_both_ends_and_stays_between(a in -1e9f64..1e9, b in -1e9f64..1e9, share in 0.0..1.0f64) {
            prop_assert_eq!(mix(&[a], &[b], 0.0), vec![a]);
            prop_assert_eq!(mix(&[a], &[b], 1.0), vec![b]);
            let mixed = mix(&[a], &[b], share)[0];
            prop_assert!(mixed >= a.min(b) && mixed <= a.max(b));
        }
    }
}
