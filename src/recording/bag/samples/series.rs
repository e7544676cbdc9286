//! Recorded positions over time.

use std::{collections::VecDeque, time::Duration};

use crate::ros::Stamp;

/// Most entries that are kept: minutes of joint states at 1 kHz, far more than any horizon.
const ENTRIES: usize = 1 << 17;

/// What was recorded at one time.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Entry {
    /// Positions.
    Point(Vec<f32>),
    /// Positions to be reached at later times, which rise.
    Path(Vec<(Stamp, Vec<f32>)>),
}

/// What a source recorded, in the order of its stamps.
#[derive(Debug, Default)]
pub(super) struct Series {
    entries: VecDeque<(Stamp, Entry)>,
}

impl Series {
    /// Adds an entry; a later one of the same stamp replaces the one before. A stamp more than `jump` behind the newest
    /// means that the clock was set back: what was before is forgotten.
    pub fn insert(&mut self, stamp: Stamp, entry: Entry, jump: Duration) {
        if self.newest().is_some_and(|newest| newest.elapsed_since(stamp) > jump) {
            self.entries.clear();
        }
        match self.entries.binary_search_by_key(&stamp, |(stamp, _)| *stamp) {
            // Found by the search.
            Ok(place) => self.entries[place].1 = entry,
            Err(place) => self.entries.insert(place, (stamp, entry)),
        }
        if self.entries.len() > ENTRIES {
            self.entries.pop_front();
        }
    }

    pub fn newest(&self) -> Option<Stamp> {
        self.entries.back().map(|(stamp, _)| *stamp)
    }

    /// Forgets what lies before `stamp`, but for the last entry before it, which holds on.
    pub fn forget_before(&mut self, stamp: Stamp) {
        while self.entries.get(1).is_some_and(|(next, _)| *next <= stamp) {
            self.entries.pop_front();
        }
    }

    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// The position at `time` on the straight line between the neighbouring points, at most `max_gap` apart.
    pub fn between(&self, time: Stamp, max_gap: Duration) -> Option<Vec<f32>> {
        let after = self.entries.partition_point(|(stamp, _)| *stamp < time);
        let (next, Entry::Point(next_point)) = self.entries.get(after)? else { return None };
        if *next == time {
            return Some(next_point.clone());
        }
        let (last, Entry::Point(last_point)) = self.entries.get(after.checked_sub(1)?)? else { return None };
        (next.elapsed_since(*last) <= max_gap).then(|| line((*last, last_point), (*next, next_point), time))
    }

    /// The command in force: that of the newest path at `reach`; or the newest point that was commanded until `give`, at
    /// most `max_gap` before.
    pub fn commanded(&self, give: Stamp, reach: Stamp, max_gap: Duration) -> Option<Vec<f32>> {
        let until = |time: Stamp| {
            let end = self.entries.partition_point(|(stamp, _)| *stamp <= time);
            self.entries.get(end.checked_sub(1)?)
        };
        let entry = match until(reach)? {
            (_, Entry::Path(points)) => return along(points, reach, max_gap),
            (_, Entry::Point(_)) => until(give)?,
        };
        match entry {
            (_, Entry::Path(points)) => along(points, reach, max_gap),
            (stamp, Entry::Point(point)) => (give.elapsed_since(*stamp) <= max_gap).then(|| point.clone()),
        }
    }
}

/// A path at `time`: its first point before that is due, on straight lines between its points, its last one for `max_gap`.
fn along(points: &[(Stamp, Vec<f32>)], time: Stamp, max_gap: Duration) -> Option<Vec<f32>> {
    let after = points.partition_point(|(stamp, _)| *stamp < time);
    match (after.checked_sub(1).and_then(|before| points.get(before)), points.get(after)) {
        (None, next) => next.map(|(_, point)| point.clone()),
        (Some((last, point)), None) => (time.elapsed_since(*last) <= max_gap).then(|| point.clone()),
        (Some((last, from)), Some((next, to))) => Some(line((*last, from), (*next, to), time)),
    }
}

fn line((start, from): (Stamp, &[f32]), (end, to): (Stamp, &[f32]), time: Stamp) -> Vec<f32> {
    let span = end.since(start) as f64;
    let share = if span > 0.0 { time.since(start) as f64 / span } else { 1.0 };
    let blend =
        |(from, to): (&f32, &f32)| (f64::from(*from) + share * (f64::from(*to) - f64::from(*from))) as f32;
    from.iter().zip(to).map(blend).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: Duration = Duration::from_nanos(500);
    const JUMP: Duration = Duration::from_nanos(1000);

    fn points(entries: &[(i64, f32)]) -> Series {
        let mut series = Series::default();
        entries
            .iter()
            .for_each(|&(stamp, value)| series.insert(Stamp(stamp), Entry::Point(vec![value]), JUMP));
        series
    }

    fn value(found: Option<Vec<f32>>) -> Option<f32> {
        found.map(|values| values[0])
    }

    #[test]
    fn positions_lie_on_lines_between_samples_that_are_near_enough() {
        let series = points(&[(100, 1.0), (200, 2.0), (701, 9.0)]);
        let at = |time| value(series.between(Stamp(time), GAP));
        assert_eq!([100, 150, 200, 701].map(at), [Some(1.0), Some(1.5), Some(2.0), Some(9.0)]);
        // Before the first, within the gap, behind the last.
        assert_eq!([99, 201, 700, 702].map(at), [None; 4]);
    }

    #[test]
    fn a_command_holds_until_the_next_one_or_the_gap() {
        let series = points(&[(100, 1.0), (200, 2.0)]);
        let at = |give| value(series.commanded(Stamp(give), Stamp(give + 50), GAP));
        assert_eq!(
            [99, 100, 199, 200, 700, 701].map(at),
            [None, Some(1.0), Some(1.0), Some(2.0), Some(2.0), None]
        );
    }

    #[test]
    fn the_newest_path_is_followed_where_a_row_is_to_be_reached() {
        let mut series = points(&[(100, 7.0)]);
        let path =
            |values: &[(i64, f32)]| Entry::Path(values.iter().map(|&(t, v)| (Stamp(t), vec![v])).collect());
        series.insert(Stamp(200), path(&[(250, 1.0), (350, 2.0)]), JUMP);
        series.insert(Stamp(400), path(&[(450, 5.0), (550, 6.0)]), JUMP);
        let at = |reach| value(series.commanded(Stamp(reach - 50), Stamp(reach), GAP));
        assert_eq!(
            [199, 200, 250, 300, 390, 400, 500, 1050, 1051].map(at),
            [Some(7.0), Some(1.0), Some(1.0), Some(1.5), Some(2.0), Some(5.0), Some(5.5), Some(6.0), None]
        );
    }

    #[test]
    fn late_entries_are_sorted_in_and_a_clock_that_was_set_back_starts_anew() {
        let mut series = points(&[(3000, 3.0), (2500, 2.5), (3000, 3.5)]);
        assert_eq!(value(series.between(Stamp(2750), GAP)), Some(3.0));
        series.insert(Stamp(1999), Entry::Point(vec![0.0]), JUMP);
        assert_eq!(series.newest(), Some(Stamp(1999)));
        let mut series = points(&[(100, 1.0), (200, 2.0), (300, 3.0)]);
        series.forget_before(Stamp(250));
        assert_eq!(value(series.between(Stamp(250), GAP)), Some(2.5));
        assert_eq!(series.between(Stamp(150), GAP), None);
    }
}
