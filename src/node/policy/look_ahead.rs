//! The next observation is decoded and pre-processed on the CPU while the network works off the current one.
//!
//! A tick that ends before the next one is due has no use for that: the next one begins with frames that come when the
//! network is idle. One that takes longer would leave the network idle while the CPU works. From the moment on at which the
//! next tick would have begun, each new set of frames is therefore offered to [`Ahead`], and when the tick is over:
//!
//! | state | what the next tick sees |
//! |---|---|
//! | a set is ready, none under way | that, at once |
//! | one is under way | that, as soon as it is ready |
//! | another one waits behind it | is not waited for |
//! | instruction changed, set too old, clock set back, not the very next tick | the newest set, made ready now as without all this |
//!
//! With a set every T and D to make one ready, a set that came u < T before the network is free starts at the age of
//! max(u, D): a newer one than it is not to be had sooner. To take an older one that is ready instead of waiting D - u would
//! save that time and make the observation T older, which is more; to begin with the newest only when the network is free,
//! as without all this, gives u + D, and costs the network D in each tick.

use std::{convert::Infallible, sync::Arc, time::Duration, time::Instant};

use super::{
    Shared,
    arrivals::{Arrivals, Frames},
    lock,
};
use crate::{
    ahead::Ahead,
    model::policy::{Preparation, Prepared},
    node::assembly::{Assembled, Selection},
    ros::Stamp,
};

/// A set of frames on its way to a tick.
struct Candidate {
    selection: Selection,
    of: Origin,
}

/// Where a set comes from.
struct Origin {
    /// The tick during which it was selected.
    tick: u64,
    /// When.
    selected: Stamp,
    /// The frames that had come by then.
    frames: Frames,
}

/// An observation for a tick.
pub(super) struct Observed {
    /// What the robot saw.
    pub(super) assembled: Assembled,
    /// What the network reads of it, where it was made ready before.
    pub(super) prepared: Option<Prepared>,
    /// The frames that had come when it was selected.
    pub(super) frames: Frames,
}

/// See the module.
pub(super) struct LookAhead {
    /// None where nobody knows how to prepare.
    ahead: Option<Ahead<Candidate, Option<(Observed, Origin)>>>,
}

impl LookAhead {
    pub(super) fn new(preparation: Option<Preparation>) -> std::io::Result<Self> {
        let spawn = |preparation: Preparation| {
            Ahead::spawn("look_ahead", move |Candidate { selection, of }| {
                // What is wrong with it is found again, and told, when its turn comes.
                let assembled = selection.decode().ok()?;
                let prepared = Some(preparation.prepare(&assembled.observation).ok()?);
                Some((Observed { assembled, prepared, frames: of.frames.clone() }, of))
            })
        };
        Ok(Self { ahead: preparation.map(spawn).transpose()? })
    }

    /// What was made ready and may be seen in place of `selection`, the newest set at `now`, by the tick after `tick`. Waits
    /// for what is under way.
    pub(super) fn take(
        &self,
        selection: &Selection,
        tick: u64,
        now: Stamp,
        max_age: Duration,
    ) -> Option<Observed> {
        let ahead = self.ahead.as_ref()?;
        while let Some(result) = ahead.take() {
            let Some((observed, origin)) = result else { continue };
            let Observed { assembled, .. } = &observed;
            let newest = assembled.image_stamp == selection.image_stamp();
            let recent = origin.tick == tick
                && assembled.image_stamp <= selection.image_stamp()
                && assembled.is_fresh_after(now.elapsed_since(origin.selected), max_age);
            if assembled.observation.instruction == selection.instruction() && (newest || recent) {
                return Some(observed);
            }
        }
        None
    }

    /// Forgets what was made ready: the next tick does not follow the one before at once.
    pub(super) fn forget(&self) {
        if let Some(ahead) = &self.ahead {
            ahead.forget();
        }
    }

    /// Has each new set of frames made ready from `opening` on, at which the tick after `tick` would have begun. `used` are
    /// the frames that had come when the observation of `tick` was selected.
    pub(super) async fn watch(
        &self,
        shared: &Arc<Shared>,
        tick: u64,
        opening: Instant,
        mut used: Frames,
    ) -> Infallible {
        let Some(ahead) = &self.ahead else { return std::future::pending().await };
        tokio::time::sleep_until(opening.into()).await;
        let arrivals: &Arrivals = &shared.arrivals;
        let mut last = None;
        loop {
            arrivals.all_newer(&used).await;
            let frames = arrivals.frames();
            used = frames.clone();
            let Some(now) = shared.now() else { continue };
            // Why there is none is found again, and told, when the tick comes that needs one.
            let Ok(selection) = lock(&shared.assembler).newest(now) else { continue };
            if last.replace(selection.image_stamp()) != Some(selection.image_stamp()) {
                ahead.offer(Candidate { selection, of: Origin { tick, selected: now, frames } });
            }
        }
    }
}
