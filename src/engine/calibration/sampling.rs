//! A bounded, even choice from a stream whose length nobody knows.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Keeps the same number of items of each stratum (denoising step), each item of a stratum with the same probability
/// (reservoir sampling). The choice depends on the seed and on what is offered, and on nothing else.
#[derive(Debug)]
pub struct StratifiedSample<T> {
    strata: Vec<Stratum<T>>,
}

#[derive(Debug)]
struct Stratum<T> {
    capacity: usize,
    offered: u64,
    /// With the number under which each was offered.
    kept: Vec<(u64, T)>,
    random: ChaCha8Rng,
}

impl<T> StratifiedSample<T> {
    /// Keeps `count` items in all; what does not divide evenly goes to the first strata.
    pub fn new(strata: usize, count: usize, seed: u64) -> Self {
        let strata = (0..strata)
            .map(|stratum| {
                // One stream for each: what one stratum is offered does not change the choice in another.
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                random.set_stream(stratum as u64);
                let capacity = count / strata + usize::from(stratum < count % strata);
                Stratum { capacity, offered: 0, kept: Vec::new(), random }
            })
            .collect();
        Self { strata }
    }

    /// Offers an item, which is only made if it is kept (for now). A stratum that does not exist keeps nothing.
    ///
    /// # Errors
    /// Those of `make`; the item then counts as offered and is not kept.
    pub fn offer<E>(&mut self, stratum: usize, make: impl FnOnce() -> Result<T, E>) -> Result<bool, E> {
        let Some(stratum) = self.strata.get_mut(stratum) else {
            return Ok(false);
        };
        let number = stratum.offered;
        stratum.offered += 1;
        if stratum.kept.len() < stratum.capacity {
            stratum.kept.push((number, make()?));
            return Ok(true);
        }
        let place = stratum.random.random_range(0..=number);
        match usize::try_from(place).ok().and_then(|place| stratum.kept.get_mut(place)) {
            Some(kept) => {
                *kept = (number, make()?);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// How many were offered to each stratum.
    pub fn offered(&self) -> Vec<u64> {
        self.strata.iter().map(|stratum| stratum.offered).collect()
    }

    /// What was kept, stratum by stratum, in the order in which it was offered.
    pub fn into_items(self) -> Vec<(usize, T)> {
        let mut items = Vec::new();
        for (number, mut stratum) in self.strata.into_iter().enumerate() {
            stratum.kept.sort_by_key(|(offered, _)| *offered);
            items.extend(stratum.kept.into_iter().map(|(_, item)| (number, item)));
        }
        items
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn choose(seed: u64, count: usize, per_step: [u32; 4]) -> Vec<(usize, u32)> {
        let mut sample = StratifiedSample::new(4, count, seed);
        for (step, offered) in per_step.into_iter().enumerate() {
            for item in 0..offered {
                sample.offer(step, || Ok::<_, Infallible>(item)).expect("infallible");
            }
        }
        sample.into_items()
    }

    #[test]
    fn every_step_gets_its_share_and_the_same_seed_the_same_items() {
        let items = choose(7, 10, [100; 4]);
        let share = |step| items.iter().filter(|(of, _)| *of == step).count();
        assert_eq!([share(0), share(1), share(2), share(3)], [3, 3, 2, 2]);
        assert_eq!(items, choose(7, 10, [100; 4]));
        assert_ne!(items, choose(8, 10, [100; 4]));
    }

    #[test]
    fn the_choice_in_one_step_does_not_depend_on_the_others() {
        let of_step_3 =
            |items: Vec<(usize, u32)>| items.into_iter().filter(|(step, _)| *step == 3).collect::<Vec<_>>();
        assert_eq!(of_step_3(choose(1, 8, [100; 4])), of_step_3(choose(1, 8, [3, 50, 7, 100])));
    }

    #[test]
    fn a_short_step_gives_what_it_has() {
        assert_eq!(choose(1, 8, [1, 0, 2, 2]), [(0, 0), (2, 0), (2, 1), (3, 0), (3, 1)]);
    }

    #[test]
    fn items_are_made_only_when_they_are_kept() {
        let mut sample = StratifiedSample::new(1, 2, 0);
        let mut made = 0;
        for _ in 0..1000 {
            sample
                .offer(0, || {
                    made += 1;
                    Ok::<_, Infallible>(())
                })
                .expect("infallible");
        }
        // The expected number is 2·(1 + ln(1000/2)) = 14.
        assert!(made < 60, "{made}");
        assert_eq!(sample.offered(), [1000]);
    }

    #[test]
    fn every_item_is_as_likely_as_any_other() {
        // 4 of 20, 4000 times: 800 each, with a standard deviation of 25.
        let mut counts = [0_u32; 20];
        for seed in 0..4000 {
            let mut sample = StratifiedSample::new(1, 4, seed);
            for item in 0..20_usize {
                sample.offer(0, || Ok::<_, Infallible>(item)).expect("infallible");
            }
            sample.into_items().into_iter().for_each(|(_, item)| counts[item] += 1);
        }
        assert!(counts.iter().all(|count| (650..950).contains(count)), "{counts:?}");
    }
}
