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

#[cfg(test)]
mod tests {
    use ndarray::{Array2, Array3, Array4};

    use super::*;
    use crate::{
        node::assembly::{AssemblerConfig, ObservationAssembler},
        processor::ModelInputs,
        ros::{
            image::CameraMessage,
            msg::{ByteBuf, Header, Image, JointState},
        },
    };

    const MAX_AGE: Duration = Duration::from_millis(200);
    const OLD: &str = "pick up the cup";

    fn at(milliseconds: u64) -> Stamp {
        Stamp(1_000_000_000_000) + Duration::from_millis(milliseconds)
    }

    /// One camera, one joint, and a preparation that always works.
    struct Scene {
        assembler: ObservationAssembler,
        ahead: LookAhead,
    }

    impl Scene {
        fn new() -> Self {
            let mut assembler = ObservationAssembler::new(AssemblerConfig {
                cameras: vec!["front".to_owned()],
                state: vec![("arm".to_owned(), vec!["joint".to_owned()])],
                video_offsets: vec![Duration::ZERO],
                state_offsets: vec![Duration::ZERO],
                max_age: MAX_AGE,
                max_skew: Duration::from_millis(50),
                max_state_age: MAX_AGE,
            });
            assembler.set_instruction(OLD);
            let preparation = Preparation::new(|_| {
                let inputs = ModelInputs {
                    images: Array4::zeros((1, 28, 28, 3)),
                    input_ids: Array2::zeros((1, 1)),
                    attention_mask: Array2::from_elem((1, 1), true),
                    state: Array3::zeros((1, 1, 1)),
                };
                Ok(Prepared { inputs, took: Duration::ZERO })
            });
            Self { assembler, ahead: LookAhead::new(Some(preparation)).unwrap() }
        }

        /// The newest set once a frame and a joint sample of that time have come.
        fn select(&mut self, time: Stamp) -> Selection {
            let header = Header { stamp: time.into(), ..Header::default() };
            let image = Image {
                header: header.clone(),
                height: 2,
                width: 2,
                encoding: "rgb8".to_owned(),
                step: 6,
                data: ByteBuf::from(vec![7; 12]),
                ..Image::default()
            };
            self.assembler.on_image("front", time, CameraMessage::Raw(image)).unwrap();
            let joints = JointState {
                header,
                name: vec!["joint".to_owned()],
                position: vec![0.5],
                ..JointState::default()
            };
            self.assembler.on_joints(time, &joints).unwrap();
            self.assembler.select(time).unwrap()
        }

        /// Has a set of `time` made ready during `tick`.
        fn offer(&mut self, tick: u64, time: Stamp) {
            let selection = self.select(time);
            let frames = Arrivals::new(1).frames();
            let of = Origin { tick, selected: time, frames };
            self.ahead.ahead.as_ref().unwrap().offer(Candidate { selection, of });
        }

        /// Stamp of what is seen in place of the newest set, of `time`, by the tick after `tick`.
        fn take(&mut self, tick: u64, time: Stamp) -> Option<Stamp> {
            let newest = self.select(time);
            let observed = self.ahead.take(&newest, tick, time, MAX_AGE)?;
            assert!(observed.prepared.is_some());
            Some(observed.assembled.image_stamp)
        }
    }

    #[test]
    fn the_very_next_tick_sees_what_was_made_ready_though_a_newer_set_has_come() {
        let mut scene = Scene::new();
        scene.offer(3, at(100));
        assert_eq!(scene.take(3, at(130)), Some(at(100)));
        assert_eq!(scene.take(3, at(160)), None, "nothing is seen twice");
    }

    #[test]
    fn the_newest_of_several_offers_is_seen() {
        let mut scene = Scene::new();
        scene.offer(3, at(100));
        scene.offer(3, at(130));
        // The second is under way or ready, whatever became of the first.
        let seen = std::iter::from_fn(|| scene.take(3, at(140))).last();
        assert_eq!(seen, Some(at(130)));
    }

    #[test]
    fn what_was_made_ready_for_another_instruction_is_never_seen() {
        let mut scene = Scene::new();
        scene.offer(3, at(100));
        scene.assembler.set_instruction("stop");
        assert_eq!(scene.take(3, at(130)), None);
        // Not even where nothing newer has come.
        let mut scene = Scene::new();
        scene.offer(3, at(100));
        scene.assembler.set_instruction("stop");
        assert_eq!(scene.take(3, at(100)), None);
    }

    #[test]
    fn a_later_tick_sees_it_only_where_nothing_newer_has_come() {
        let mut scene = Scene::new();
        scene.offer(3, at(100));
        assert_eq!(scene.take(4, at(130)), None);
        scene.offer(4, at(200));
        let newest = scene.assembler.select(at(230)).unwrap();
        let observed = scene.ahead.take(&newest, 5, at(230), MAX_AGE).unwrap();
        assert_eq!(observed.assembled.image_stamp, at(200));
    }

    #[test]
    fn a_set_that_grew_too_old_is_not_seen() {
        let mut scene = Scene::new();
        scene.offer(3, at(100));
        assert_eq!(scene.take(3, at(301)), None);
        scene.offer(3, at(400));
        assert_eq!(scene.take(3, at(600)), Some(at(400)));
    }

    #[test]
    fn a_set_from_before_the_clock_was_set_back_is_not_seen() {
        let mut scene = Scene::new();
        scene.offer(3, at(60_000));
        assert_eq!(scene.take(3, at(100)), None);
    }

    #[test]
    fn what_was_forgotten_is_not_seen() {
        let mut scene = Scene::new();
        scene.offer(3, at(100));
        scene.ahead.forget();
        assert_eq!(scene.take(3, at(130)), None);
    }

    #[test]
    fn a_frame_that_cannot_be_decoded_is_left_to_the_tick_that_needs_it() {
        let mut scene = Scene::new();
        let image = Image {
            header: Header { stamp: at(100).into(), ..Header::default() },
            height: 2,
            width: 2,
            encoding: "no such encoding".to_owned(),
            ..Image::default()
        };
        scene.select(at(90));
        scene.assembler.on_image("front", at(100), CameraMessage::Raw(image)).unwrap();
        let selection = scene.assembler.select(at(100)).unwrap();
        assert_eq!(selection.image_stamp(), at(100));
        let of = Origin { tick: 3, selected: at(100), frames: Arrivals::new(1).frames() };
        scene.ahead.ahead.as_ref().unwrap().offer(Candidate { selection, of });
        assert_eq!(scene.take(3, at(130)), None);
    }
}
