//! SigLIP2 and the connector: pixel values to image embeddings.

use ndarray::ArrayView3;

use super::positions::resize_positions;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::onnx::dit::Extent;
use crate::onnx::element::{self, ElementType};
use crate::onnx::error::OnnxError;
use crate::onnx::graph::{Dim, Graph, Source, Value};
use crate::onnx::host::{transposed, vector};
use crate::onnx::layers::{Builder, Style};

/// The module path occurs twice: a wrapper and the transformer inside it have the same name.
const TOWER: &str = "backbone.model.vision_model.vision_model";
const CONNECTOR: &str = "backbone.model.mlp1";
/// The connector's LayerNorm keeps PyTorch's default.
const CONNECTOR_EPS: f64 = 1e-5;
/// Colour channels.
const CHANNELS: usize = 3;

/// What the vision graph is for.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionOptions {
    /// Images at once: of all cameras, and of all samples.
    pub images: Extent,
    /// Height and width of every image in pixels, multiples of two patches. Fixed: the position embedding is resized to
    /// it when exporting.
    pub size: (usize, usize),
    pub style: Style,
    /// Every layer's intermediate values as further outputs, f32, for comparisons.
    pub expose: bool,
}

/// The vision tower with explicit attention, and the connector.
///
/// | input | type | shape |
/// |---|---|---|
/// | `pixel_values` | f32 | (images, 3, height, width): (byte − 127.5) / 127.5 |
///
/// | output | type | shape |
/// |---|---|---|
/// | `image_embeds` | f32 | (images, tokens of an image, language width) |
///
/// # Errors
/// A size that is no multiple of the unshuffled patch, or a checkpoint that lacks a tensor.
pub fn vision<'w>(checkpoint: &'w Checkpoint, options: &VisionOptions) -> Result<Graph<'w>, OnnxError> {
    let vision = &checkpoint.eagle.vision;
    let (patch, factor) = (vision.patch_size, checkpoint.eagle.unshuffle_factor());
    let (height, width) = options.size;
    let cell = patch * factor;
    if height == 0 || width == 0 || !height.is_multiple_of(cell) || !width.is_multiple_of(cell) {
        let expected = format!("height and width in multiples of {cell} pixels");
        return Err(OnnxError::request("image size", expected, format!("{height} x {width}")));
    }
    let (rows, columns) = (height / patch, width / patch);
    let images = options.images.dim("images")?;
    let mut b = Builder::new("vision", &checkpoint.weights, options.style)?;
    b.describe("graph", "vision");
    b.describe("kind", options.style.kind.name());
    let pixels =
        b.input("pixel_values", ElementType::F32, [images, CHANNELS.into(), height.into(), width.into()])?;

    let mut x = b.at("embeddings", |b| {
        let patches = patchify(b, pixels, images, (rows, columns), patch)?;
        embed(b, checkpoint, patches, (rows, columns))
    })?;
    b.expose(options.expose, "vision.patch_pos_embed", x)?;
    for layer in 0..vision.num_hidden_layers {
        let name = format!("vision.layer{layer}");
        x = b.at(&format!("layer{layer}"), |b| {
            encoder_layer(b, checkpoint, layer, x, &name, options.expose)
        })?;
        b.expose(options.expose, &format!("{name}.out"), x)?;
    }
    let embeds = b.at("connector", |b| {
        let normed = b.layer_norm(x, Some(&format!("{TOWER}.post_layernorm")), vision.layer_norm_eps)?;
        b.expose(options.expose, "vision.last_hidden", normed)?;
        let unshuffled = unshuffle(b, normed, images, (rows, columns), factor, vision.hidden_size)?;
        b.expose(options.expose, "vision.pixel_unshuffled", unshuffled)?;
        let normed = b.layer_norm(unshuffled, Some(&format!("{CONNECTOR}.0")), CONNECTOR_EPS)?;
        b.expose(options.expose, "vision.mlp1_norm", normed)?;
        let inner = b.linear(normed, &format!("{CONNECTOR}.1"))?;
        let inner = b.gelu_erf(inner)?;
        b.linear(inner, &format!("{CONNECTOR}.3"))
    })?;
    let embeds = b.cast(embeds, ElementType::F32)?;
    b.output("image_embeds", embeds)?;
    Ok(b.graph)
}

/// (N, 3, H, W) → patch vectors (N, patches, p·p·3), raster order, channel fastest.
fn patchify(
    b: &mut Builder,
    pixels: Value,
    images: Dim,
    (rows, columns): (usize, usize),
    patch: usize,
) -> Result<Value, OnnxError> {
    let [rows, columns, patch] = [rows, columns, patch].map(Dim::Fixed);
    let split = b.reshape(pixels, &[images, CHANNELS.into(), rows, patch, columns, patch])?;
    let ordered = b.transpose(split, &[0, 2, 4, 3, 5, 1])?;
    match (rows, columns, patch) {
        (Dim::Fixed(rows), Dim::Fixed(columns), Dim::Fixed(patch)) => {
            b.reshape(ordered, &[images, (rows * columns).into(), (patch * patch * CHANNELS).into()])
        }
        _ => Err(b.error("Reshape", "a known grid of patches", "symbols")),
    }
}

/// Patch embedding; its bias is part of the resized position embedding.
fn embed(
    b: &mut Builder,
    checkpoint: &Checkpoint,
    patches: Value,
    (rows, columns): (usize, usize),
) -> Result<Value, OnnxError> {
    let vision = &checkpoint.eagle.vision;
    let width = vision.hidden_size;
    let module = format!("{TOWER}.embeddings.patch_embedding");
    let part = b.part(&module, true, 1.0)?;
    let grid_name = format!("{TOWER}.embeddings.position_embedding.weight");
    let weights = b.weights;
    let grid = element::decode(&weights.get(&grid_name)?);
    // `num_patches` is a square: checked when the configuration was read.
    let side = vision.num_patches.isqrt();
    let grid = ArrayView3::from_shape((side, side, width), &grid)
        .map_err(|_| OnnxError::Checkpoint(CheckpointError::NoSuchTensor { tensor: grid_name }))?;
    let mut positions = resize_positions(grid, rows, columns);
    if let Some(bias) = &part.bias {
        let bias = vector(bias);
        for mut row in positions.rows_mut() {
            row.zip_mut_with(&bias, |value, bias| *value = (f64::from(*value) + bias) as f32);
        }
    }
    let weight = Source::Compute(Box::new(move || Ok(transposed(&part.weight, 1.0))));
    let x = b.affine(patches, &module, (vision.patch_dim(), width), weight, None)?;
    let kind = b.style.kind;
    let values = Source::Values(positions.into_iter().collect());
    let positions = b.initializer("positions", kind, [rows * columns, width], values)?;
    b.add(x, positions)
}

fn encoder_layer(
    b: &mut Builder,
    checkpoint: &Checkpoint,
    layer: usize,
    x: Value,
    name: &str,
    expose: bool,
) -> Result<Value, OnnxError> {
    let vision = &checkpoint.eagle.vision;
    let (width, heads, eps) = (vision.hidden_size, vision.num_attention_heads, vision.layer_norm_eps);
    let module = format!("{TOWER}.encoder.layers.{layer}");
    let normed = b.layer_norm(x, Some(&format!("{module}.layer_norm1")), eps)?;
    let scale = (vision.head_dim() as f64).powf(-0.5);
    let parts = [("q_proj", scale), ("k_proj", 1.0), ("v_proj", 1.0)]
        .into_iter()
        .map(|(part, scale)| b.part(&format!("{module}.self_attn.{part}"), true, scale))
        .collect::<Result<_, _>>()?;
    let joined = b.joined(normed, &format!("{module}.self_attn.qkv_proj"), parts)?;
    let parts = b.split(joined, -1, &[width; 3])?;
    let q = b.split_heads(parts[0], heads)?;
    let k = b.split_heads_turned(parts[1], heads)?;
    let v = b.split_heads(parts[2], heads)?;
    let attended = b.attention(q, k, v, None)?;
    let merged = b.merge_heads(attended)?;
    let attended = b.linear(merged, &format!("{module}.self_attn.out_proj"))?;
    b.expose(expose, &format!("{name}.attn_out"), attended)?;
    let x = b.add(x, attended)?;
    let normed = b.layer_norm(x, Some(&format!("{module}.layer_norm2")), eps)?;
    let inner = b.linear(normed, &format!("{module}.mlp.fc1"))?;
    let inner = b.gelu_tanh(inner)?;
    let fed = b.linear(inner, &format!("{module}.mlp.fc2"))?;
    b.expose(expose, &format!("{name}.mlp_out"), fed)?;
    b.add(x, fed)
}

/// (N, rows·columns, D) → (N, rows·columns/f², D·f²), channel index c·f² + dy·f + dx.
fn unshuffle(
    b: &mut Builder,
    x: Value,
    images: Dim,
    (rows, columns): (usize, usize),
    factor: usize,
    width: usize,
) -> Result<Value, OnnxError> {
    let (down, across) = (rows / factor, columns / factor);
    let [f, y, x2, d] = [factor, down, across, width].map(Dim::Fixed);
    let split = b.reshape(x, &[images, y, f, x2, f, d])?;
    let ordered = b.transpose(split, &[0, 1, 3, 5, 2, 4])?;
    b.reshape(ordered, &[images, (down * across).into(), (width * factor * factor).into()])
}
