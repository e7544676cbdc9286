//! Ranges from histograms: how much of the tail is cut so that the rest is finer.

use super::histogram::Histogram;

/// Levels of one sign in 8 bits, zero included.
const QUANTISED: usize = 128;

/// Stands for zero in a quantised distribution: with zero itself no range that cuts anything off could be compared.
const LEAST_PROBABILITY: f64 = 1e-4;

impl Histogram {
    /// The range that holds this share (0 to 1) of the values: the upper end of the bin in which the share is reached, at
    /// most the greatest value. None if nothing was seen, or the share is no share.
    pub fn percentile(&self, share: f64) -> Option<f64> {
        if self.count() == 0 || !(0.0..=1.0).contains(&share) {
            return None;
        }
        let wanted = share * self.count() as f64;
        let mut seen = 0_u64;
        for (i, &count) in self.bins.iter().enumerate() {
            seen += count;
            if count > 0 && seen as f64 >= wanted {
                return Some(((i + 1) as f64 * self.width()).min(self.max_abs()));
            }
        }
        Some(self.max_abs())
    }

    /// The range that loses the least information: of all ends of bins, the one at which the distribution cut off there
    /// (what is beyond counts into its last bin) differs least, by Kullback-Leibler divergence, from itself in 128 levels.
    /// None if nothing was seen.
    pub fn entropy(&self) -> Option<f64> {
        if self.count() == 0 {
            return None;
        }
        let used = self.bins.iter().rposition(|&count| count > 0)? + 1;
        if used <= QUANTISED {
            return Some(self.max_abs());
        }
        let mut best = (f64::INFINITY, used);
        // What lies in bin `end` and beyond.
        let mut beyond = 0_u64;
        for end in (QUANTISED..=used).rev() {
            if let Some(divergence) = divergence(&self.bins[..end], beyond)
                // On a tie the smaller range wins: finer, at no loss.
                && divergence <= best.0
            {
                best = (divergence, end);
            }
            beyond += self.bins[end - 1];
        }
        Some((best.1 as f64 * self.width()).min(self.max_abs()))
    }
}

/// How far `kept`, with `beyond` more values in its last bin, is from `kept` in 128 levels. None if `kept` is empty.
fn divergence(kept: &[u64], beyond: u64) -> Option<f64> {
    let last = kept.len().checked_sub(1)?;
    let inside: u64 = kept.iter().sum();
    if inside == 0 {
        return None;
    }
    let total = (inside + beyond) as f64;
    let reference = |bin: usize| if bin == last { kept[bin] + beyond } else { kept[bin] };
    // Whole bins; lengths that are no multiple spread the rest evenly.
    let bins_of = |level: usize| level * kept.len() / QUANTISED..(level + 1) * kept.len() / QUANTISED;
    // What is cut off may fall where nothing else is: no level answers for it, and its probability would be zero.
    let nothing_at_end = beyond > 0 && bins_of(QUANTISED - 1).all(|bin| kept[bin] == 0);
    let rest = if nothing_at_end { 1.0 - LEAST_PROBABILITY } else { 1.0 };
    let mut sum = 0.0;
    for level in 0..QUANTISED {
        let filled = bins_of(level).filter(|&bin| reference(bin) > 0).count();
        // A level's values go back, in equal parts, to those of its bins that have any.
        let share = kept[bins_of(level)].iter().sum::<u64>() as f64 / filled.max(1) as f64 / inside as f64;
        let quantised = if share > 0.0 { share * rest } else { LEAST_PROBABILITY };
        for bin in bins_of(level).filter(|&bin| reference(bin) > 0) {
            let reference = reference(bin) as f64 / total;
            sum += reference * (reference / quantised).ln();
        }
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, StandardNormal};

    use super::*;

    fn of(values: impl IntoIterator<Item = f32>) -> Histogram {
        let mut histogram = Histogram::default();
        histogram.observe(values);
        histogram
    }

    #[test]
    fn a_percentile_cuts_the_share_that_it_says() {
        // 1/8, 2/8, ... 8/8: half of them are at most 4/8.
        let histogram = of((1..=8_u8).map(|i| f32::from(i) / 8.0));
        assert_eq!(histogram.percentile(0.5), Some(0.5));
        assert_eq!(histogram.percentile(0.51), Some(0.625));
        assert_eq!(histogram.percentile(1.0), Some(1.0));
        assert_eq!(histogram.percentile(0.0), Some(0.125));
    }

    #[test]
    fn there_is_no_range_of_nothing_and_no_share_beyond_one() {
        assert_eq!(Histogram::default().percentile(0.5), None);
        assert_eq!(Histogram::default().entropy(), None);
        assert_eq!(of([1.0]).percentile(1.5), None);
        assert_eq!(of([1.0]).percentile(f64::NAN), None);
    }

    #[test]
    fn the_divergence_is_what_it_is_by_hand() {
        // 128 bins are their own 128 levels: no loss without a tail.
        let even = vec![3_u64; 128];
        assert_eq!(divergence(&even, 0), Some(0.0));
        // A tail of 128·3 in the last bin: P = (3 ×127, 387)/768, Q = 1/128 each.
        let p_last = 387.0 / 768.0_f64;
        let p = 3.0 / 768.0_f64;
        let expected = 127.0 * p * (p * 128.0).ln() + p_last * (p_last * 128.0).ln();
        assert!((divergence(&even, 384).expect("comparable") - expected).abs() < 1e-12);
        // 256 bins, pairs (1, 3): each level of 4 goes back as 2 and 2.
        let pairs: Vec<u64> = (0..256).map(|i| if i % 2 == 0 { 1 } else { 3 }).collect();
        let expected = 0.25 * 0.5_f64.ln() + 0.75 * 1.5_f64.ln();
        assert!((divergence(&pairs, 0).expect("comparable") - expected).abs() < 1e-12);
        // A tail where nothing else is: 64 bins of 1/69 for 1/64 each, 5/69 for the least probability.
        let expected =
            64.0 / 69.0 * (64.0 / 69.0 / (1.0 - 1e-4_f64)).ln() + 5.0 / 69.0 * (5.0 / 69.0 / 1e-4_f64).ln();
        assert!((divergence(&[1, 0].repeat(64), 5).expect("comparable") - expected).abs() < 1e-12);
        assert_eq!(divergence(&[0; 128], 5), None);
    }

    #[test]
    fn a_lone_far_outlier_is_cut_off_and_the_bulk_is_kept() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let bulk: Vec<f32> = (0..100_000).map(|_| StandardNormal.sample(&mut random)).collect();
        let alone = of(bulk.iter().copied()).entropy().expect("a range");
        assert!((2.5..5.0).contains(&alone), "{alone}");
        let histogram = of(bulk.into_iter().chain([20.0]));
        let range = histogram.entropy().expect("a range");
        assert!((2.5..10.0).contains(&range), "{range}");
        assert_eq!(histogram.max_abs(), 20.0);
    }

    proptest! {
        #[test]
        fn ranges_are_within_what_was_seen_and_grow_with_the_share(
            values in prop::collection::vec(-50_f32..50.0, 1..300),
            a in 0_f64..1.0,
            b in 0_f64..1.0,
        ) {
            let histogram = of(values);
            let (low, high) = (a.min(b), a.max(b));
            let low = histogram.percentile(low).expect("values");
            let high = histogram.percentile(high).expect("values");
            prop_assert!(low <= high && high <= histogram.max_abs());
            let entropy = histogram.entropy().expect("values");
            prop_assert!(entropy <= histogram.max_abs());
            prop_assert!(histogram.max_abs() == 0.0 || entropy > 0.0);
        }
    }
}
