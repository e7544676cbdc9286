//! A robot that exists only as pictures and joint angles: smooth motion, the same for the same seed and time.
//!
//! It stands in for cameras and joints where no robot is at hand: in the demo, in tests, in recordings.

use std::f64::consts::TAU;

use image::{Rgb, RgbImage};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Largest width or height of a picture; larger ones are cut to it.
const MAX_SIZE: u32 = 4096;

/// Names of the joints of the demo's robot, in the order of its state keys: `left_arm` (6), `right_arm` (6), `gripper`
/// (2) and `base` (2).
pub fn demo_joint_names() -> Vec<String> {
    [("left_arm", 6), ("right_arm", 6), ("gripper", 2), ("base", 2)]
        .into_iter()
        .flat_map(|(key, joints)| (1..=joints).map(move |joint| format!("{key}_joint_{joint}")))
        .collect()
}

/// What the robot looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntheticOptions {
    /// Camera names.
    pub cameras: Vec<String>,
    /// Width and height of the pictures in pixels, 1 to 4096.
    pub size: (u32, u32),
    /// Joint names.
    pub joints: Vec<String>,
    /// Seed of colours and motion.
    pub seed: u64,
}

impl Default for SyntheticOptions {
    /// The demo's robot: cameras `front` and `wrist` of 640x480, [`demo_joint_names`], seed 0.
    fn default() -> Self {
        Self {
            cameras: vec!["front".to_owned(), "wrist".to_owned()],
            size: (640, 480),
            joints: demo_joint_names(),
            seed: 0,
        }
    }
}

/// A robot with cameras that see a two-link arm and a square that wanders over a gradient.
#[derive(Debug, Clone)]
pub struct SyntheticRobot {
    cameras: Vec<Camera>,
    joints: Vec<Swing>,
}

#[derive(Debug, Clone)]
struct Camera {
    name: String,
    background: RgbImage,
    square: Rgb<u8>,
    arm: Rgb<u8>,
    square_x: Swing,
    square_y: Swing,
}

/// A sine around zero.
#[derive(Debug, Clone, Copy)]
struct Swing {
    amplitude: f64,
    /// Hz.
    frequency: f64,
    phase: f64,
}

impl Swing {
    fn new(random: &mut ChaCha8Rng, amplitude: f64) -> Self {
        Self { amplitude, frequency: random.random_range(0.05..0.2), phase: random.random_range(0.0..TAU) }
    }

    fn at(&self, time: f64) -> f64 {
        self.amplitude * (TAU * self.frequency * time + self.phase).sin()
    }
}

impl SyntheticRobot {
    /// Makes the robot.
    pub fn new(options: &SyntheticOptions) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(options.seed);
        let joints = options
            .joints
            .iter()
            .map(|_| {
                let amplitude = random.random_range(0.2..0.6);
                Swing::new(&mut random, amplitude)
            })
            .collect();
        let (width, height) = (options.size.0.clamp(1, MAX_SIZE), options.size.1.clamp(1, MAX_SIZE));
        let cameras =
            options.cameras.iter().map(|name| Camera::new(name, width, height, &mut random)).collect();
        Self { cameras, joints }
    }

    /// What a camera sees `time` seconds after the start; `None` for a name that is none of its cameras.
    pub fn frame(&self, camera: &str, time: f64) -> Option<RgbImage> {
        let camera = self.cameras.iter().find(|c| c.name == camera)?;
        let angle = |joint: usize| self.joints.get(joint).map_or(0.0, |swing| swing.at(time));
        Some(camera.render(time, angle(0), angle(1)))
    }

    /// Joint positions `time` seconds after the start, in the order of the names, within ±0.6 (rad or m).
    pub fn joints(&self, time: f64) -> Vec<f64> {
        self.joints.iter().map(|swing| swing.at(time)).collect()
    }
}

impl Camera {
    fn new(name: &str, width: u32, height: u32, random: &mut ChaCha8Rng) -> Self {
        let mut colour =
            |range: std::ops::Range<u8>| Rgb([0; 3].map(|_: u8| random.random_range(range.clone())));
        let (near, far) = (colour(0..100), colour(80..180));
        let (square, arm) = (colour(180..255), colour(120..255));
        let blend =
            |a: u8, b: u8, share: f64| (f64::from(a) * (1.0 - share) + f64::from(b) * share).round() as u8;
        let background = RgbImage::from_fn(width, height, |x, y| {
            let share = 0.5 * (f64::from(x) / f64::from(width) + f64::from(y) / f64::from(height));
            Rgb(std::array::from_fn(|channel| blend(near[channel], far[channel], share)))
        });
        Self {
            name: name.to_owned(),
            background,
            square,
            arm,
            square_x: Swing::new(random, 0.35),
            square_y: Swing::new(random, 0.35),
        }
    }

    fn render(&self, time: f64, shoulder: f64, elbow: f64) -> RgbImage {
        let mut picture = self.background.clone();
        let (width, height) = (f64::from(picture.width()), f64::from(picture.height()));
        let unit = width.min(height);

        let centre = ((0.5 + self.square_x.at(time)) * width, (0.5 + self.square_y.at(time)) * height);
        let half = 0.08 * unit;
        fill(&mut picture, centre, half, self.square, |x, y| x.abs().max(y.abs()) <= half);

        let mut joint = (0.5 * width, height);
        let mut angle = 0.0;
        for (bend, length) in [(shoulder, 0.35 * unit), (elbow, 0.25 * unit)] {
            angle += bend;
            let end = (joint.0 + length * angle.sin(), joint.1 - length * angle.cos());
            link(&mut picture, joint, end, 0.02 * unit, self.arm);
            joint = end;
        }
        picture
    }
}

/// Paints the pixels around `centre`, at most `reach` away in x and y, whose offset from it lies `inside`.
fn fill(
    picture: &mut RgbImage,
    centre: (f64, f64),
    reach: f64,
    colour: Rgb<u8>,
    inside: impl Fn(f64, f64) -> bool,
) {
    // A cast from f64 saturates, so what lies outside the picture is cut off.
    let range = |centre: f64, size: u32| {
        (centre - reach).floor() as u32..((centre + reach).ceil() as u32).saturating_add(1).min(size)
    };
    for y in range(centre.1, picture.height()) {
        for x in range(centre.0, picture.width()) {
            if inside(f64::from(x) - centre.0, f64::from(y) - centre.1) {
                picture.put_pixel(x, y, colour);
            }
        }
    }
}

/// Paints a thick line: all pixels within `radius` of the segment.
fn link(picture: &mut RgbImage, from: (f64, f64), to: (f64, f64), radius: f64, colour: Rgb<u8>) {
    let (dx, dy) = (0.5 * (to.0 - from.0), 0.5 * (to.1 - from.1));
    let half_length = dx.hypot(dy).max(f64::EPSILON);
    let (ux, uy) = (dx / half_length, dy / half_length);
    let middle = (from.0 + dx, from.1 + dy);
    fill(picture, middle, half_length + radius, colour, |x, y| {
        let along = (x * ux + y * uy).clamp(-half_length, half_length);
        (x - along * ux).hypot(y - along * uy) <= radius
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(seed: u64) -> SyntheticRobot {
        SyntheticRobot::new(&SyntheticOptions { size: (64, 48), seed, ..SyntheticOptions::default() })
    }

    #[test]
    fn the_same_seed_and_time_make_the_same_picture_and_joints() {
        assert_eq!(small(3).frame("front", 1.25), small(3).frame("front", 1.25));
        assert_eq!(small(3).joints(1.25), small(3).joints(1.25));
        assert_ne!(small(3).frame("front", 1.25), small(4).frame("front", 1.25));
        assert_ne!(small(3).joints(1.25), small(4).joints(1.25));
    }

    #[test]
    fn pictures_and_joints_move_smoothly() {
        let robot = small(0);
        assert_ne!(robot.frame("front", 0.0), robot.frame("front", 1.0));
        assert_ne!(robot.frame("front", 0.0), robot.frame("wrist", 0.0));
        assert_eq!(robot.frame("rear", 0.0), None);
        let (now, soon) = (robot.joints(2.0), robot.joints(2.01));
        assert_eq!(now.len(), 16);
        // 0.6 rad at 0.2 Hz are at most 0.76 rad/s.
        assert!(now.iter().zip(&soon).all(|(a, b)| a != b && (a - b).abs() < 0.0076), "{now:?} {soon:?}");
    }

    #[test]
    fn every_size_can_be_rendered() {
        for size in [(0, 0), (1, 1), (1, 300), (301, 2)] {
            let robot = SyntheticRobot::new(&SyntheticOptions { size, ..SyntheticOptions::default() });
            let picture = robot.frame("front", 7.0).unwrap();
            assert_eq!(picture.dimensions(), (size.0.max(1), size.1.max(1)));
        }
    }
}
