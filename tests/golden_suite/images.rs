//! Every image stage, to the last bit.

use groot_policy::processor::image::{ImageTransform, image_tokens, pixel_values};
use image::RgbImage;
use ndarray::{ArrayD, ArrayViewD, Axis};
use serde_json::Value;

use crate::fixture::{Fixture, GoldenFile, ObservationInfo, max_abs_diff};

/// The transform that the fixture's `processor_config.json` asks for.
fn transform(fixture: &Fixture) -> ImageTransform {
    let path = fixture.dir.join("processor_config.json");
    let config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let of = |key: &str| &config["processor_kwargs"][key];
    let first = |key: &str| of(key)[0].as_f64().unwrap_or_else(|| panic!("{key} in {}", path.display()));
    let edge = of("shortest_image_edge").as_f64().unwrap_or_else(|| first("image_target_size"));
    let fraction =
        of("crop_fraction").as_f64().unwrap_or_else(|| first("image_crop_size") / first("image_target_size"));
    ImageTransform::new(edge as u32, fraction).unwrap()
}

fn to_image(pixels: ArrayViewD<u8>) -> RgbImage {
    let &[height, width, 3] = pixels.shape() else { panic!("{:?} is no RGB image", pixels.shape()) };
    RgbImage::from_raw(width as u32, height as u32, pixels.iter().copied().collect()).unwrap()
}

/// Compares all stages of one frame that the file holds under `prefix`; says how many there were.
fn check(transform: &ImageTransform, frame: &RgbImage, golden: &GoldenFile, prefix: &str) -> usize {
    let stages = transform.stages(frame).unwrap();
    assert_eq!(transform.apply(frame).unwrap(), stages.s4, "{prefix}: apply against stages");
    let names: Vec<String> = golden.names().into_iter().filter(|name| name.starts_with(prefix)).collect();
    let mut compared = 0;
    for name in &names {
        let ours = match &name[prefix.len()..] {
            "raw" => continue,
            "s1_smallest_max" => &stages.s1,
            "s2_center_crop" => &stages.s2,
            "s3_smallest_max" => &stages.s3,
            "s4_pil_multiple28" => &stages.s4,
            "pixel_values" => {
                // Stored as a batch of one image.
                let ours = pixel_values(&stages.s4).mapv(f64::from).insert_axis(Axis(0)).into_dyn();
                assert_eq!(max_abs_diff(name, &ours, &golden.f64(name)), 0.0, "{name}");
                compared += 1;
                continue;
            }
            other => panic!("{name}: the suite does not know the stage {other}"),
        };
        let theirs = to_image(golden.u8(name).view());
        assert_eq!(ours.dimensions(), theirs.dimensions(), "{name}");
        let differing = ours.iter().zip(theirs.iter()).filter(|(a, b)| a != b).count();
        assert_eq!(differing, 0, "{name}: {differing} of {} values differ", ours.len());
        compared += 1;
    }
    compared
}

/// The frames of an observation in the order of its images: by sample, then by time, then by camera.
fn frames(observation: &ObservationInfo, inputs: &GoldenFile) -> Vec<RgbImage> {
    let videos: Vec<ArrayD<u8>> = observation
        .cameras
        .iter()
        .map(|camera| {
            let video = inputs.u8(&format!("video.{camera}"));
            // The batch axis is only there where the batch has more than one sample.
            if video.ndim() == 4 { video.insert_axis(Axis(0)) } else { video }
        })
        .collect();
    let mut frames = Vec::new();
    for sample in 0..observation.batch {
        for time in 0..videos[0].len_of(Axis(1)) {
            for video in &videos {
                frames.push(to_image(video.index_axis(Axis(0), sample).index_axis(Axis(0), time)));
            }
        }
    }
    frames
}

#[test]
fn every_image_stage_of_every_observation_is_reproduced() {
    let fixture = Fixture::load();
    let transform = transform(&fixture);
    let mut compared = 0;
    for observation in &fixture.manifest.observations {
        let frames = frames(observation, &fixture.file(&format!("{}.inputs", observation.name)));
        assert_eq!(frames.len(), observation.num_images, "{}", observation.name);
        let golden = fixture.file(&format!("{}.preproc", observation.name));
        for (i, frame) in frames.iter().enumerate() {
            compared += check(&transform, frame, &golden, &format!("image{i}."));
        }
    }
    assert!(compared > 0, "the fixture holds no image stage");
}

#[test]
fn every_stage_of_the_extra_sizes_is_reproduced() {
    let fixture = Fixture::load();
    let transform = transform(&fixture);
    let golden = fixture.file("images");
    let mut compared = 0;
    for name in golden.names() {
        if let Some(size) = name.strip_suffix("raw") {
            compared += check(&transform, &to_image(golden.u8(&name).view()), &golden, size);
        }
    }
    assert!(compared > 0, "the fixture holds no extra size");
}

#[test]
fn every_size_of_the_image_table_is_reproduced() {
    let fixture = Fixture::load();
    let transform = transform(&fixture);
    for row in &fixture.manifest.image_table {
        let [height, width] = row.raw;
        let stages = transform.stages(&RgbImage::new(width, height)).unwrap();
        let ours =
            [&stages.s1, &stages.s2, &stages.s3, &stages.s4].map(|image| [image.height(), image.width()]);
        assert_eq!(ours, [row.s1, row.s2, row.s3, row.s4], "{width}x{height}");
        assert_eq!(transform.resized_size(width, height).unwrap(), stages.s3.dimensions());
        assert_eq!(transform.output_size(width, height).unwrap(), stages.s4.dimensions());
        assert_eq!(image_tokens(stages.s4.width(), stages.s4.height()), row.tokens, "{width}x{height}");
    }
}
