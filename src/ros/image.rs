//! Camera messages to RGB frames.
//!
//! Raw images follow `sensor_msgs/Image`: rows of `step` bytes, whose first `width` · channels bytes are pixels. As in
//! `cv_bridge`, the data must be exactly `step` · `height` bytes long: a message that contradicts its own header is
//! refused, not guessed at. `is_bigendian` says nothing about 8-bit samples and is ignored.
//!
//! Compressed images are recognised by their content; the `format` string only appears in messages, because publishers
//! disagree on what it says. Grey, 16-bit and transparent images become 8-bit RGB (alpha is dropped, not blended); EXIF
//! orientation is not applied, as ROS cameras do not use it. The JPEG decoder is not bit-identical with libjpeg-turbo, as
//! no two JPEG decoders need be: values may differ by a few steps of 255.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use super::msg::{CompressedImage, Header, Image};
use super::stamp::Stamp;

/// Largest width and height that is decoded: 64 megapixels, 192 MiB as RGB. What is larger is refused before anything
/// is allocated for it.
pub const MAX_SIDE: u32 = 8192;

/// The most memory that a decoder may take: the largest 8-bit RGBA image. A 16-bit one may have half as many pixels.
const MAX_DECODER_BYTES: u64 = MAX_SIDE as u64 * MAX_SIDE as u64 * 4;

/// The encodings of raw images that are understood.
pub const ENCODINGS: [&str; 8] = ["rgb8", "bgr8", "rgba8", "bgra8", "mono8", "8UC1", "8UC3", "8UC4"];

/// Why a camera message is no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The pixel format is none of [`ENCODINGS`].
    #[error(
        "expected one of the encodings {}, found {found:?}; let the camera driver or image_proc publish one of them",
        ENCODINGS.join(", ")
    )]
    Encoding {
        /// The message's encoding, shortened where it is absurdly long.
        found: String,
    },
    /// Width or height is 0.
    #[error("expected an image with pixels, found {width}x{height}")]
    Empty {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// Width or height is beyond [`MAX_SIDE`].
    #[error("expected at most {MAX_SIDE}x{MAX_SIDE} pixels, found {width}x{height}")]
    TooLarge {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// The rows overlap.
    #[error("{encoding} {width} pixels wide: expected a step of at least {expected} bytes, found {step}")]
    Step {
        /// The message's encoding.
        encoding: String,
        /// Columns.
        width: u32,
        /// Bytes of one row of pixels.
        expected: usize,
        /// The message's step.
        step: u32,
    },
    /// The data is not as long as the header says.
    #[error(
        "{encoding} {width}x{height} with a step of {step}: expected {expected} bytes of data, found {found}; \
         the publisher's header and data disagree"
    )]
    Length {
        /// The message's encoding.
        encoding: String,
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// The message's step.
        step: u32,
        /// `step` · `height`.
        expected: usize,
        /// Bytes in the message.
        found: usize,
    },
    /// The content is neither a JPEG nor a PNG file.
    #[error("format {format:?}: expected a JPEG or PNG file, found {found}")]
    Format {
        /// What the message says of its format.
        format: String,
        /// The first bytes, or that there are none.
        found: String,
    },
    /// The JPEG or PNG file is broken.
    #[error("format {format:?}: broken {kind} file of {length} bytes: {reason}")]
    Corrupt {
        /// What the message says of its format.
        format: String,
        /// JPEG or PNG.
        kind: &'static str,
        /// Bytes in the message.
        length: usize,
        /// What the decoder says.
        reason: String,
    },
}

/// A message of a camera, either way of transport.
#[derive(Debug, Clone, PartialEq)]
pub enum CameraMessage {
    /// `sensor_msgs/Image`.
    Raw(Image),
    /// `sensor_msgs/CompressedImage`.
    Compressed(CompressedImage),
}

impl CameraMessage {
    /// Acquisition time and optical frame.
    pub fn header(&self) -> &Header {
        match self {
            Self::Raw(image) => &image.header,
            Self::Compressed(image) => &image.header,
        }
    }

    /// Acquisition time; [`Stamp::UNSET`] where the publisher set none.
    pub fn stamp(&self) -> Stamp {
        Stamp::from(&self.header().stamp)
    }

    /// The frame in the message.
    ///
    /// # Errors
    /// As [`decode`] and [`decode_compressed`].
    pub fn decode(&self) -> Result<RgbImage, ImageError> {
        match self {
            Self::Raw(image) => decode(image),
            Self::Compressed(image) => decode_compressed(image),
        }
    }
}

/// How the samples of a pixel become red, green and blue.
#[derive(Clone, Copy)]
enum Layout {
    Rgb,
    Bgr,
    Rgba,
    Bgra,
    Grey,
}

impl Layout {
    /// `8UC3` and `8UC4` name no colours; they are taken as OpenCV, where these names come from, orders its own images.
    fn of(encoding: &str) -> Option<Self> {
        Some(match encoding {
            "rgb8" => Self::Rgb,
            "bgr8" | "8UC3" => Self::Bgr,
            "rgba8" => Self::Rgba,
            "bgra8" | "8UC4" => Self::Bgra,
            "mono8" | "8UC1" => Self::Grey,
            _ => return None,
        })
    }

    fn channels(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::Rgb | Self::Bgr => 3,
            Self::Rgba | Self::Bgra => 4,
        }
    }

    fn append(self, row: &[u8], rgb: &mut Vec<u8>) {
        match self {
            Self::Rgb => rgb.extend_from_slice(row),
            Self::Bgr => extend_pixels(rgb, row, |&[b, g, r]: &[u8; 3]| [r, g, b]),
            Self::Rgba => extend_pixels(rgb, row, |&[r, g, b, _]: &[u8; 4]| [r, g, b]),
            Self::Bgra => extend_pixels(rgb, row, |&[b, g, r, _]: &[u8; 4]| [r, g, b]),
            Self::Grey => extend_pixels(rgb, row, |&[v]: &[u8; 1]| [v, v, v]),
        }
    }
}

/// Writes into preallocated space by fixed-size chunks, which the compiler turns into shuffles.
fn extend_pixels<const N: usize>(rgb: &mut Vec<u8>, row: &[u8], convert: impl Fn(&[u8; N]) -> [u8; 3]) {
    let (pixels, _) = row.as_chunks::<N>();
    let start = rgb.len();
    rgb.resize(start + 3 * pixels.len(), 0);
    let (targets, _) = rgb[start..].as_chunks_mut::<3>();
    for (target, pixel) in targets.iter_mut().zip(pixels) {
        *target = convert(pixel);
    }
}

/// The frame in a raw image; one copy where it is `rgb8` without padding.
///
/// # Errors
/// A wrong encoding, no pixels, too many pixels, rows that overlap, data of another length than the header says.
pub fn decode(message: &Image) -> Result<RgbImage, ImageError> {
    let Image { width, height, step, .. } = *message;
    let Some(layout) = Layout::of(&message.encoding) else {
        return Err(ImageError::Encoding { found: shortened(&message.encoding) });
    };
    check_size(width, height)?;
    let encoding = || message.encoding.clone();
    // No overflow: at most 4 · 8192.
    let row_bytes = width as usize * layout.channels();
    if (step as usize) < row_bytes {
        return Err(ImageError::Step { encoding: encoding(), width, expected: row_bytes, step });
    }
    // No overflow: at most 2³² · 8192 on the 64-bit machines that the package is for.
    let expected = step as usize * height as usize;
    let found = message.data.len();
    if found != expected {
        return Err(ImageError::Length { encoding: encoding(), width, height, step, expected, found });
    }

    let mut rgb = Vec::with_capacity(width as usize * height as usize * 3);
    if step as usize == row_bytes {
        layout.append(&message.data, &mut rgb);
    } else {
        for row in message.data.chunks_exact(step as usize) {
            layout.append(&row[..row_bytes], &mut rgb);
        }
    }
    RgbImage::from_raw(width, height, rgb).ok_or(ImageError::Empty { width, height })
}

/// The frame in a JPEG or PNG image.
///
/// # Errors
/// Neither JPEG nor PNG, no pixels, too many pixels, a broken file. A JPEG that ends early is refused too: its missing
/// rows would be grey.
pub fn decode_compressed(message: &CompressedImage) -> Result<RgbImage, ImageError> {
    let format = || shortened(&message.format);
    let data = message.data.as_slice();
    let (content, kind) = match image::guess_format(data) {
        Ok(content @ ImageFormat::Jpeg) => (content, "JPEG"),
        Ok(content @ ImageFormat::Png) => (content, "PNG"),
        _ => return Err(ImageError::Format { format: format(), found: first_bytes(data) }),
    };
    let corrupt = |reason: String| ImageError::Corrupt { format: format(), kind, length: data.len(), reason };
    if content == ImageFormat::Jpeg && !ends_as_jpeg(data) {
        return Err(corrupt("the end marker is missing, the file was cut off".into()));
    }

    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(data), content);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| corrupt(e.to_string()))?;
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    if decoder.total_bytes() > MAX_DECODER_BYTES {
        return Err(ImageError::TooLarge { width, height });
    }
    let decoded = DynamicImage::from_decoder(decoder).map_err(|e| corrupt(e.to_string()))?;
    Ok(decoded.into_rgb8())
}

fn check_size(width: u32, height: u32) -> Result<(), ImageError> {
    if width == 0 || height == 0 {
        return Err(ImageError::Empty { width, height });
    }
    if width > MAX_SIDE || height > MAX_SIDE {
        return Err(ImageError::TooLarge { width, height });
    }
    Ok(())
}

/// Whether the last bytes are the end marker, apart from the zeros with which some cameras fill up their buffers.
fn ends_as_jpeg(data: &[u8]) -> bool {
    let end = data.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    data[..end].ends_with(&[0xff, 0xd9])
}

fn first_bytes(data: &[u8]) -> String {
    if data.is_empty() {
        return "no data".into();
    }
    let start: Vec<String> = data.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{} bytes that start with {}", data.len(), start.join(" "))
}

/// Text from the network as it may appear in a message.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 64;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ros::msg::ByteBuf;
    use image::{GrayImage, ImageBuffer, Luma, Rgb, Rgba};
    use proptest::prelude::*;

    fn raw(encoding: &str, width: u32, height: u32, step: u32, data: Vec<u8>) -> Image {
        Image {
            encoding: encoding.into(),
            width,
            height,
            step,
            data: ByteBuf::from(data),
            ..Image::default()
        }
    }

    fn compressed(format: &str, data: Vec<u8>) -> CompressedImage {
        CompressedImage { format: format.into(), data: ByteBuf::from(data), ..CompressedImage::default() }
    }

    fn file(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// A smooth picture, which JPEG keeps well.
    fn picture(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([40 + (x % 160) as u8, 60 + (y % 160) as u8, 120]))
    }

    #[test]
    fn each_encoding_gives_the_same_two_pixels() {
        let expected = [1, 2, 3, 4, 5, 6];
        for (encoding, data) in [
            ("rgb8", vec![1, 2, 3, 4, 5, 6]),
            ("bgr8", vec![3, 2, 1, 6, 5, 4]),
            ("8UC3", vec![3, 2, 1, 6, 5, 4]),
            ("rgba8", vec![1, 2, 3, 9, 4, 5, 6, 9]),
            ("bgra8", vec![3, 2, 1, 9, 6, 5, 4, 9]),
            ("8UC4", vec![3, 2, 1, 9, 6, 5, 4, 9]),
        ] {
            let step = data.len() as u32;
            let frame = decode(&raw(encoding, 2, 1, step, data)).unwrap();
            assert_eq!(frame.as_raw().as_slice(), expected, "{encoding}");
        }
        for encoding in ["mono8", "8UC1"] {
            let frame = decode(&raw(encoding, 2, 1, 2, vec![7, 9])).unwrap();
            assert_eq!(frame.as_raw().as_slice(), [7, 7, 7, 9, 9, 9], "{encoding}");
        }
        assert_eq!(ENCODINGS.iter().filter(|e| Layout::of(e).is_none()).count(), 0);
    }

    #[test]
    fn padding_at_the_end_of_rows_is_left_out() {
        let data = vec![1, 2, 3, 99, 99, 4, 5, 6, 99, 99];
        let frame = decode(&raw("rgb8", 1, 2, 5, data)).unwrap();
        assert_eq!(frame.as_raw().as_slice(), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn endianness_does_not_matter_for_bytes() {
        let message = Image { is_bigendian: 1, ..raw("rgb8", 1, 1, 3, vec![1, 2, 3]) };
        assert_eq!(decode(&message).unwrap().as_raw().as_slice(), [1, 2, 3]);
    }

    #[test]
    fn an_unknown_encoding_names_the_supported_ones() {
        for encoding in ["16UC1", "bayer_rggb8", "yuv422_yuy2", "RGB8", ""] {
            let text = decode(&raw(encoding, 2, 2, 4, vec![0; 8])).unwrap_err().to_string();
            assert!(text.contains("rgb8, bgr8, rgba8, bgra8, mono8"), "{text}");
            assert!(text.contains(&format!("found {encoding:?}")), "{text}");
        }
        let text = decode(&raw(&"é".repeat(100_000), 2, 2, 4, vec![0; 8])).unwrap_err().to_string();
        assert!(text.len() < 500, "{} bytes", text.len());
    }

    #[test]
    fn data_that_disagrees_with_the_header_is_refused_either_way() {
        for found in [0, 921_599, 921_601, 1_000_000] {
            let error = decode(&raw("rgb8", 640, 480, 1920, vec![0; found])).unwrap_err();
            assert_eq!(
                error,
                ImageError::Length {
                    encoding: "rgb8".into(),
                    width: 640,
                    height: 480,
                    step: 1920,
                    expected: 921_600,
                    found
                }
            );
            assert!(error.to_string().contains(&format!("expected 921600 bytes of data, found {found}")));
        }
    }

    #[test]
    fn an_image_without_pixels_is_refused() {
        for (width, height) in [(0, 4), (4, 0), (0, 0)] {
            let error = decode(&raw("rgb8", width, height, 12, vec![0; 48])).unwrap_err();
            assert_eq!(error, ImageError::Empty { width, height });
        }
    }

    #[test]
    fn overlapping_rows_are_refused() {
        let error = decode(&raw("rgb8", 4, 2, 11, vec![0; 22])).unwrap_err();
        assert_eq!(error, ImageError::Step { encoding: "rgb8".into(), width: 4, expected: 12, step: 11 });
    }

    #[test]
    fn absurd_sizes_are_refused_before_any_allocation() {
        for (width, height, step) in [(u32::MAX, u32::MAX, u32::MAX), (8193, 1, 24_579), (1, 8193, 3)] {
            let error = decode(&raw("rgb8", width, height, step, vec![])).unwrap_err();
            assert_eq!(error, ImageError::TooLarge { width, height });
        }
        let error = decode(&raw("rgb8", 1, 8192, u32::MAX, vec![])).unwrap_err();
        assert!(matches!(error, ImageError::Length { found: 0, .. }), "{error}");
    }

    #[test]
    fn a_png_comes_through_exactly_whatever_its_format_string_says() {
        let picture = picture(37, 21);
        for format in ["png", "jpeg", "rgb8; png compressed bgr8", ""] {
            let message = compressed(format, file(picture.clone(), ImageFormat::Png));
            assert_eq!(decode_compressed(&message).unwrap(), picture);
        }
    }

    #[test]
    fn a_jpeg_comes_through_nearly() {
        let picture = picture(64, 48);
        let frame = decode_compressed(&compressed("jpeg", file(picture.clone(), ImageFormat::Jpeg))).unwrap();
        assert_eq!(frame.dimensions(), picture.dimensions());
        let worst = frame.iter().zip(picture.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(worst <= 24, "{worst}");
        let sum: u64 = frame.iter().zip(picture.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        assert!(sum / frame.len() as u64 <= 3, "mean difference {}", sum as f64 / frame.len() as f64);
    }

    #[test]
    fn grey_transparent_and_deep_files_become_rgb() {
        let grey = GrayImage::from_pixel(3, 2, Luma([77]));
        for format in [ImageFormat::Png, ImageFormat::Jpeg] {
            let frame = decode_compressed(&compressed("", file(grey.clone(), format))).unwrap();
            assert_eq!(*frame.get_pixel(1, 1), Rgb([77, 77, 77]), "{format:?}");
        }
        let transparent = image::RgbaImage::from_pixel(3, 2, Rgba([10, 20, 30, 0]));
        let frame = decode_compressed(&compressed("png", file(transparent, ImageFormat::Png))).unwrap();
        assert_eq!(*frame.get_pixel(2, 1), Rgb([10, 20, 30]));
        let deep: ImageBuffer<Rgb<u16>, _> = ImageBuffer::from_pixel(3, 2, Rgb([0, 0x8080, 0xffff]));
        let frame = decode_compressed(&compressed("png", file(deep, ImageFormat::Png))).unwrap();
        assert_eq!(*frame.get_pixel(0, 0), Rgb([0, 0x80, 0xff]));
    }

    #[test]
    fn a_file_that_is_neither_jpeg_nor_png_shows_its_first_bytes() {
        let text =
            decode_compressed(&compressed("compressedDepth png", vec![0; 12])).unwrap_err().to_string();
        assert!(
            text.contains("compressedDepth png") && text.contains("12 bytes that start with 00 00"),
            "{text}"
        );
        let text = decode_compressed(&compressed("jpeg", vec![])).unwrap_err().to_string();
        assert!(text.contains("found no data"), "{text}");
    }

    #[test]
    fn a_file_cut_off_anywhere_is_refused() {
        for format in [ImageFormat::Jpeg, ImageFormat::Png] {
            let whole = file(picture(64, 48), format);
            // The last chunk of a PNG carries no pixels.
            let end = if format == ImageFormat::Png { 17 } else { 1 };
            for length in [3, 20, whole.len() / 2, whole.len() - end] {
                let decoded = decode_compressed(&compressed("x", whole[..length].to_vec()));
                let error = decoded.map(drop).unwrap_err();
                assert!(
                    matches!(error, ImageError::Corrupt { .. } | ImageError::Format { .. }),
                    "{format:?} cut to {length}: {error}"
                );
            }
        }
    }

    #[test]
    fn zeros_after_the_end_of_a_jpeg_are_tolerated() {
        let mut data = file(picture(16, 16), ImageFormat::Jpeg);
        data.extend([0; 100]);
        assert_eq!(decode_compressed(&compressed("jpeg", data)).unwrap().dimensions(), (16, 16));
    }

    #[test]
    fn a_file_that_claims_a_huge_size_is_refused_by_its_header() {
        let mut png = file(picture(4, 4), ImageFormat::Png);
        png[16..24].copy_from_slice(&[0, 0, 0x60, 0, 0, 0, 0x60, 0]); // 24576x24576 in IHDR
        let crc = png_crc(&png[12..29]);
        png[29..33].copy_from_slice(&crc.to_be_bytes());
        let error = decode_compressed(&compressed("png", png)).unwrap_err();
        assert_eq!(error, ImageError::TooLarge { width: 24576, height: 24576 });

        let mut jpeg = file(picture(4, 4), ImageFormat::Jpeg);
        let start = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        jpeg[start + 5..start + 9].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
        let error = decode_compressed(&compressed("jpeg", jpeg)).unwrap_err();
        assert_eq!(error, ImageError::TooLarge { width: 65535, height: 65535 });
    }

    fn png_crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
        })
    }

    proptest! {
        #[test]
        fn any_size_and_padding_round_trips(
            width in 1u32..40, height in 1u32..12, padding in 0u32..9, seed in any::<u8>()
        ) {
            let frame = RgbImage::from_fn(width, height, |x, y| {
                Rgb([seed.wrapping_add(x as u8), seed ^ (y as u8), (x * y) as u8])
            });
            let step = width * 3 + padding;
            let mut data = Vec::new();
            for row in frame.rows() {
                data.extend(row.flat_map(|&Rgb([r, g, b])| [b, g, r]));
                data.resize(data.len() + padding as usize, 0xee);
            }
            prop_assert_eq!(decode(&raw("bgr8", width, height, step, data)).unwrap(), frame);
        }

        #[test]
        fn no_bytes_make_the_decoders_panic(
            mut data in prop::collection::vec(any::<u8>(), 0..300), start in 0usize..3,
            width in any::<u32>(), height in any::<u32>(), step in any::<u32>(), encoding in 0..ENCODINGS.len(),
        ) {
            let _ = decode(&raw(ENCODINGS[encoding], width, height, step, data.clone()));
            let whole = match start {
                0 => vec![],
                1 => file(picture(8, 8), ImageFormat::Jpeg),
                _ => file(picture(8, 8), ImageFormat::Png),
            };
            // Random bytes inside a good file reach deeper than random bytes alone.
            let middle = whole.len() / 2;
            data.splice(0..0, whole[..middle].iter().copied());
            data.extend(&whole[middle..]);
            let _ = decode_compressed(&compressed("x", data));
        }
    }
}
