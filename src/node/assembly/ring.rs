//! The newest samples of one input, in the order of their stamps.

use std::collections::VecDeque;
use std::time::Duration;

use crate::ros::Stamp;

/// A stamp that lies further behind the newest one than this, or than the ring's window, means that the clock was set
/// back, not that a message was late.
const CLOCK_JUMP: Duration = Duration::from_secs(1);

/// What became of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It is the newest one.
    Newest,
    /// It came late and was sorted in behind newer ones.
    OutOfOrder,
    /// There is one with its stamp already; it was dropped.
    Duplicate,
    /// Its stamp lies far behind: the clock was set back, and all older samples were dropped.
    ClockJump,
}

/// A sample and its times.
#[derive(Debug, Clone)]
pub(super) struct Entry<T> {
    pub stamp: Stamp,
    pub received: Stamp,
    pub value: T,
}

impl<T> Entry<T> {
    /// Time since the sample was taken or received, whichever is longer: a publisher whose clock runs ahead cannot make a
    /// sample younger than its arrival.
    pub fn age(&self, now: Stamp) -> Duration {
        now.elapsed_since(self.stamp).max(now.elapsed_since(self.received))
    }
}

/// Samples in strictly rising order of their stamps, the oldest dropped by count and by window.
#[derive(Debug)]
pub(super) struct Ring<T> {
    entries: VecDeque<Entry<T>>,
    capacity: usize,
    window: Duration,
}

impl<T> Ring<T> {
    /// A ring of at most `capacity` samples (at least one) that lie at most `window` behind the newest.
    pub fn new(capacity: usize, window: Duration) -> Self {
        Self { entries: VecDeque::new(), capacity: capacity.max(1), window }
    }

    pub fn set_window(&mut self, window: Duration) {
        self.window = window;
    }

    pub fn insert(&mut self, entry: Entry<T>) -> Arrival {
        let arrival = match self.newest() {
            Some(newest) if entry.stamp < newest.stamp => {
                if newest.stamp.elapsed_since(entry.stamp) > CLOCK_JUMP.max(self.window) {
                    self.entries.clear();
                    Arrival::ClockJump
                } else {
                    Arrival::OutOfOrder
                }
            }
            _ => Arrival::Newest,
        };
        match self.entries.binary_search_by_key(&entry.stamp, |other| other.stamp) {
            Ok(_) => return Arrival::Duplicate,
            Err(position) => self.entries.insert(position, entry),
        }
        while self.entries.len() > self.capacity || self.oldest_is_beyond_window() {
            self.entries.pop_front();
        }
        arrival
    }

    fn oldest_is_beyond_window(&self) -> bool {
        match (self.entries.front(), self.entries.back()) {
            (Some(oldest), Some(newest)) => newest.stamp.elapsed_since(oldest.stamp) > self.window,
            _ => false,
        }
    }

    pub fn newest(&self) -> Option<&Entry<T>> {
        self.entries.back()
    }

    /// The newest sample that is not newer than `stamp`.
    pub fn newest_until(&self, stamp: Stamp) -> Option<&Entry<T>> {
        let end = self.entries.partition_point(|entry| entry.stamp <= stamp);
        self.entries.get(end.checked_sub(1)?)
    }

    /// The sample whose stamp lies nearest to `stamp`, the older one of two at equal distance.
    pub fn nearest(&self, stamp: Stamp) -> Option<&Entry<T>> {
        let older = self.newest_until(stamp);
        let newer = self.entries.get(self.entries.partition_point(|entry| entry.stamp <= stamp));
        older.into_iter().chain(newer).min_by_key(|entry| entry.stamp.distance(stamp))
    }

    /// Removes the sample with this stamp, if it is still there.
    pub fn remove(&mut self, stamp: Stamp) {
        if let Ok(position) = self.entries.binary_search_by_key(&stamp, |entry| entry.stamp) {
            self.entries.remove(position);
        }
    }

    pub fn stamps(&self) -> impl Iterator<Item = Stamp> {
        self.entries.iter().map(|entry| entry.stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: i64 = 1_000_000_000;

    fn entry(stamp: i64) -> Entry<()> {
        Entry { stamp: Stamp(stamp), received: Stamp(stamp), value: () }
    }

    fn ring(capacity: usize, stamps: &[i64]) -> Ring<()> {
        let mut ring = Ring::new(capacity, Duration::from_secs(10));
        for &stamp in stamps {
            ring.insert(entry(stamp));
        }
        ring
    }

    fn stamps<T>(ring: &Ring<T>) -> Vec<i64> {
        ring.stamps().map(|stamp| stamp.0).collect()
    }

    #[test]
    fn late_samples_are_sorted_in_and_duplicates_dropped() {
        let mut ring = ring(4, &[10, 20, 30]);
        assert_eq!(ring.insert(entry(15)), Arrival::OutOfOrder);
        assert_eq!(ring.insert(entry(20)), Arrival::Duplicate);
        assert_eq!(ring.insert(entry(30)), Arrival::Duplicate);
        assert_eq!(ring.insert(entry(40)), Arrival::Newest);
        assert_eq!(stamps(&ring), [15, 20, 30, 40]);
    }

    #[test]
    fn a_stamp_far_behind_empties_the_ring() {
        let mut ring = ring(4, &[20 * SECOND, 21 * SECOND]);
        assert_eq!(ring.insert(entry(11 * SECOND)), Arrival::OutOfOrder);
        assert_eq!(ring.insert(entry(11 * SECOND - 1)), Arrival::ClockJump);
        assert_eq!(stamps(&ring), [11 * SECOND - 1]);
    }

    #[test]
    fn samples_beyond_the_window_are_dropped_but_never_the_newest() {
        let ring = ring(10, &[0, 5 * SECOND, 10 * SECOND + 1]);
        assert_eq!(stamps(&ring), [5 * SECOND, 10 * SECOND + 1]);
        let mut ring = Ring::new(10, Duration::ZERO);
        ring.insert(entry(1));
        ring.insert(entry(2));
        assert_eq!(stamps(&ring), [2]);
    }

    #[test]
    fn lookups_find_the_neighbours() {
        let ring = ring(4, &[10, 20, 30]);
        let at = |entry: Option<&Entry<()>>| entry.map(|entry| entry.stamp.0);
        for (stamp, until, nearest) in
            [(5, None, 10), (10, Some(10), 10), (15, Some(10), 10), (16, Some(10), 20), (99, Some(30), 30)]
        {
            assert_eq!(at(ring.newest_until(Stamp(stamp))), until, "{stamp}");
            assert_eq!(at(ring.nearest(Stamp(stamp))), Some(nearest), "{stamp}");
        }
        assert_eq!(at(Ring::<()>::new(4, Duration::ZERO).nearest(Stamp(0))), None);
    }

    #[test]
    fn the_age_counts_from_the_stamp_or_the_arrival_whichever_is_longer_ago() {
        let age = |stamp, received| {
            Entry { stamp: Stamp(stamp), received: Stamp(received), value: () }.age(Stamp(100)).as_nanos()
        };
        assert_eq!(age(40, 60), 60);
        assert_eq!(age(200, 60), 40);
        assert_eq!(age(200, 300), 0);
    }

    proptest! {
        #[test]
        fn stamps_always_rise_within_capacity_and_window(
            stamps in prop::collection::vec(any::<i64>(), 0..40), capacity in 0usize..6, window in any::<u64>()
        ) {
            let mut ring = Ring::new(capacity, Duration::from_nanos(window));
            for stamp in stamps {
                ring.insert(entry(stamp));
                let kept: Vec<Stamp> = ring.stamps().collect();
                prop_assert!(kept.is_sorted_by(|a, b| a < b));
                prop_assert!((1..=capacity.max(1)).contains(&kept.len()));
                prop_assert!(kept[kept.len() - 1].elapsed_since(kept[0]).as_nanos() <= u128::from(window));
            }
        }
    }
}
