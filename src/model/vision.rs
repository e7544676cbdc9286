//! SigLIP2 vision tower and connector: frames to image tokens.

use tch::{Device, Kind, Tensor};

use super::{
    ModelError,
    layers::{JoinedLinear, LayerNorm, Linear, Loader, backbone_attention, merge_heads, split_heads},
    operators::{BackboneOperators, Sight},
    probe::Probe,
};
use crate::checkpoint::EagleConfig;

/// Side of the square of neighbouring patches that becomes one image token.
pub const UNSHUFFLE: i64 = 2;
/// Values of a patch come in multiples of this where the patches' own number does not matter: 16 bytes, which is what the
/// fast products of a GPU read at once.
const PATCH_WIDTH: u64 = 8;
/// The connector's LayerNorm keeps PyTorch's default.
const CONNECTOR_EPS: f64 = 1e-5;

/// Frames (N, H, W, 3) of bytes → values (byte − 127.5) / 127.5 of `kind`.
pub fn normalize_pixels(frames: &Tensor, kind: Kind) -> Result<Tensor, ModelError> {
    Ok(frames.f_to_kind(Kind::Float)?.f_sub_scalar(127.5)?.f_div_scalar(127.5)?.f_to_kind(kind)?)
}

/// Values (N, H, W, C) → patch vectors (N, H/p·W/p, p·p·C) in raster order, channel fastest.
pub fn patchify(pixels: &Tensor, patch: i64) -> Result<Tensor, ModelError> {
    let size = pixels.size();
    let (n, h, w, c) = (size[0], size[1], size[2], size[3]);
    let (rows, columns) = (h / patch, w / patch);
    Ok(pixels.f_reshape([n, rows, patch, columns, patch, c])?.f_permute([0, 1, 3, 2, 4, 5])?.f_reshape([
        n,
        rows * columns,
        patch * patch * c,
    ])?)
}

/// Resizes a (side, side, D) grid of position embeddings to `rows` x `columns`, raster order (rows·columns, D).
///
/// Antialiased bilinear with half-pixel centres, in f32, as the reference does it.
pub fn resize_positions(grid: &Tensor, rows: i64, columns: i64) -> Result<Tensor, ModelError> {
    let width = grid.size().last().copied().unwrap_or(0);
    let planes = grid.f_to_kind(Kind::Float)?.f_permute([2, 0, 1])?.f_unsqueeze(0)?.f_contiguous()?;
    let resized = planes.f_internal_upsample_bilinear2d_aa([rows, columns], false, None, None)?;
    Ok(resized.f_squeeze_dim(0)?.f_permute([1, 2, 0])?.f_reshape([rows * columns, width])?)
}

/// Patch features (N, P, D) of a `rows` x `columns` grid → (N, P/4, 4·D), channel index c·4 + dy·2 + dx.
pub fn pixel_unshuffle(x: &Tensor, rows: i64, columns: i64) -> Result<Tensor, ModelError> {
    let size = x.size();
    let (n, d) = (size[0], size[2]);
    Ok(x.f_reshape([n, rows, columns, d])?
        .f_permute([0, 3, 1, 2])?
        .f_pixel_unshuffle(UNSHUFFLE)?
        .f_permute([0, 2, 3, 1])?
        .f_reshape([n, rows * columns / (UNSHUFFLE * UNSHUFFLE), d * UNSHUFFLE * UNSHUFFLE])?)
}

/// One pre-norm encoder layer: full attention inside each image.
#[derive(Debug)]
pub struct VisionLayer {
    norm1: LayerNorm,
    /// Query, key and value; below as views.
    joined: JoinedLinear,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: i64,
}

impl VisionLayer {
    fn load(at: &Loader, heads: usize, eps: f64) -> Result<Self, ModelError> {
        let attn = at.at("self_attn");
        let (joined, [query, key, value]) =
            JoinedLinear::load([&attn.at("q_proj"), &attn.at("k_proj"), &attn.at("v_proj")])?;
        Ok(Self {
            norm1: LayerNorm::load(&at.at("layer_norm1"), eps)?,
            joined,
            query,
            key,
            value,
            out: Linear::load(&attn.at("out_proj"))?,
            norm2: LayerNorm::load(&at.at("layer_norm2"), eps)?,
            fc1: Linear::load(&at.at("mlp.fc1"))?,
            fc2: Linear::load(&at.at("mlp.fc2"))?,
            heads: heads as i64,
        })
    }

    /// LayerNorm before the attention, (N, P, D).
    pub fn norm1(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.norm1.forward(x)?)
    }

    /// Self-attention inside each image, (N, P, D), without the residual.
    pub fn attend(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let q = split_heads(&self.query.forward(x)?, self.heads)?;
        let k = split_heads(&self.key.forward(x)?, self.heads)?;
        let v = split_heads(&self.value.forward(x)?, self.heads)?;
        Ok(self.out.forward(&merge_heads(&backbone_attention(&q, &k, &v, None, false)?)?)?)
    }

    /// The feed-forward half, (N, P, D), without norm and residual.
    pub fn feed_forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.fc2.forward(&self.fc1.forward(x)?.f_gelu("tanh")?)?)
    }

    /// The layer with one product for query, key and value, on the residual stream `x` (N, P, D), which first takes up
    /// `addend`. Returns what the stream is to take up next.
    fn forward_joined(
        &self,
        x: &mut Tensor,
        addend: Option<&Tensor>,
        operators: &dyn BackboneOperators,
    ) -> Result<Tensor, ModelError> {
        let normed = operators.layer_norm(x, addend, &self.norm1)?;
        let parts = operators.linear(&normed, self.joined.all())?.f_chunk(3, -1)?;
        let [q, k, v] = parts.as_slice() else {
            return Err(ModelError::Input {
                what: "query, key and value",
                expected: "three of the same width".to_owned(),
                found: parts.len().to_string(),
            });
        };
        let split = |x: &Tensor| split_heads(x, self.heads);
        let attended = operators.attention([&split(q)?, &split(k)?, &split(v)?], Sight::All, 0)?;
        let attended = operators.linear(&attended, &self.out)?;
        let normed = operators.layer_norm(x, Some(&attended), &self.norm2)?;
        operators.linear(&operators.linear_gelu(&normed, &self.fc1)?, &self.fc2)
    }

    /// (N, P, D) → (N, P, D); `name` is where the probe files the halves.
    pub fn forward(&self, x: &Tensor, name: &str, probe: &mut Probe) -> Result<Tensor, ModelError> {
        let attended = self.attend(&self.norm1(x)?)?;
        probe.record(|| format!("{name}.attn_out"), &attended);
        let x = x.f_add(&attended)?;
        let fed = self.feed_forward(&self.norm2.forward(&x)?)?;
        probe.record(|| format!("{name}.mlp_out"), &fed);
        Ok(x.f_add(&fed)?)
    }
}

/// LayerNorm, Linear, exact GELU, Linear: unshuffled patch features to language-model embeddings.
#[derive(Debug)]
pub struct Connector {
    norm: LayerNorm,
    first: Linear,
    second: Linear,
}

impl Connector {
    fn load(at: &Loader) -> Result<Self, ModelError> {
        Ok(Self {
            norm: LayerNorm::load(&at.at(0), CONNECTOR_EPS)?,
            first: Linear::load(&at.at(1))?,
            second: Linear::load(&at.at(3))?,
        })
    }

    /// The connector's LayerNorm, (…, 4·D).
    pub fn norm(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.norm.forward(x)?)
    }

    /// (…, 4·D) → (…, language width).
    pub fn forward(&self, x: &Tensor, probe: &mut Probe) -> Result<Tensor, ModelError> {
        let normed = self.norm(x)?;
        probe.record(|| "vision.mlp1_norm".to_owned(), &normed);
        Ok(self.second.forward(&self.first.forward(&normed)?.f_gelu("none")?)?)
    }
}

impl Connector {
    /// [`forward`](Self::forward) with the given operators.
    fn forward_joined(&self, x: &Tensor, operators: &dyn BackboneOperators) -> Result<Tensor, ModelError> {
        let normed = operators.layer_norm(&mut x.f_contiguous()?, None, &self.norm)?;
        operators.linear(&operators.linear(&normed, &self.first)?.f_gelu("none")?, &self.second)
    }
}

/// The vision tower with its connector.
pub struct VisionTower {
    patch_embedding: Linear,
    /// The same for patches whose width is one that products are fast for.
    padded_embedding: Linear,
    /// (side, side, D), f32 on the CPU: resized once per image size.
    position_grid: Tensor,
    layers: Vec<VisionLayer>,
    post_norm: LayerNorm,
    connector: Connector,
    patch: i64,
    device: Device,
    kind: Kind,
    /// Resized position embeddings of the image size last seen.
    positions: Option<((i64, i64), Tensor)>,
}

impl VisionTower {
    /// Loads tower and connector from the module that holds `vision_model` and `mlp1`.
    pub fn load(at: &Loader, config: &EagleConfig) -> Result<Self, ModelError> {
        let vision = &config.vision;
        let tower = at.at("vision_model.vision_model");
        let layers = (0..vision.num_hidden_layers)
            .map(|i| {
                let at = tower.at(format!("encoder.layers.{i}"));
                VisionLayer::load(&at, vision.num_attention_heads, vision.layer_norm_eps)
            })
            .collect::<Result<_, _>>()?;
        let side = (vision.num_patches as f64).sqrt() as i64;
        let position_grid = tower
            .at("embeddings.position_embedding")
            .tensor("weight")?
            .f_to_device(Device::Cpu)?
            .f_to_kind(Kind::Float)?
            .f_reshape([side, side, vision.hidden_size as i64])?;
        let patch_embedding = Linear::load(&tower.at("embeddings.patch_embedding"))?;
        let inputs = patch_embedding.weight().size2()?.1 as u64;
        Ok(Self {
            padded_embedding: patch_embedding.padded(inputs.next_multiple_of(PATCH_WIDTH) as i64)?,
            patch_embedding,
            position_grid,
            layers,
            post_norm: LayerNorm::load(&tower.at("post_layernorm"), vision.layer_norm_eps)?,
            connector: Connector::load(&at.at("mlp1"))?,
            patch: vision.patch_size as i64,
            device: at.device(),
            kind: at.kind(),
            positions: None,
        })
    }

    /// The encoder layers.
    pub fn layers(&self) -> &[VisionLayer] {
        &self.layers
    }

    /// The LayerNorm after the last layer, (N, P, D).
    pub fn post_norm(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.post_norm.forward(x)?)
    }

    /// The connector.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Position embeddings for a `rows` x `columns` grid of patches, (rows·columns, D).
    pub fn positions(&mut self, rows: i64, columns: i64) -> Result<Tensor, ModelError> {
        if let Some((size, positions)) = &self.positions
            && *size == (rows, columns)
        {
            return Ok(positions.shallow_clone());
        }
        let positions = resize_positions(&self.position_grid, rows, columns)?
            .f_to_kind(self.kind)?
            .f_to_device(self.device)?;
        self.positions = Some(((rows, columns), positions.shallow_clone()));
        Ok(positions)
    }

    /// Position embeddings for frames of `height` x `width` pixels.
    pub fn positions_of(&mut self, height: i64, width: i64) -> Result<Tensor, ModelError> {
        self.positions(height / self.patch, width / self.patch)
    }

    /// Patch embedding plus position embedding of values (N, H, W, 3): (N, P, D).
    pub fn embed(&mut self, pixels: &Tensor) -> Result<Tensor, ModelError> {
        let size = pixels.size();
        let positions = self.positions_of(size[1], size[2])?;
        let patches = patchify(pixels, self.patch)?;
        Ok(self.patch_embedding.forward(&patches)?.f_add(&positions)?)
    }

    /// Rows and columns of patches of frames (N, H, W, 3).
    fn grid(&self, frames: &Tensor) -> Result<(i64, i64), ModelError> {
        let size = frames.size();
        let cell = self.patch * UNSHUFFLE;
        if size.len() != 4
            || size[3] != 3
            || size[1] % cell != 0
            || size[2] % cell != 0
            || size[1] * size[2] == 0
        {
            return Err(ModelError::Input {
                what: "frames",
                expected: format!("(N, H, W, 3) with H and W multiples of {cell}"),
                found: format!("{size:?}"),
            });
        }
        Ok((size[1] / self.patch, size[2] / self.patch))
    }

    /// [`forward`](Self::forward) with joined products and the given operators; it rounds as they do.
    ///
    /// # Errors
    /// As there.
    pub fn forward_joined(
        &mut self,
        frames: &Tensor,
        operators: &dyn BackboneOperators,
    ) -> Result<Tensor, ModelError> {
        let (rows, columns) = self.grid(frames)?;
        let width = self.padded_embedding.weight().size2()?.1;
        let patches = operators.patches(&frames.f_to_device(self.device)?, self.patch, width, self.kind)?;
        let mut x = operators.linear(&patches, &self.padded_embedding)?;
        // What the first norm is to take up, in the shape of the stream; of one image that is no copy.
        let positions = self.positions(rows, columns)?.f_unsqueeze(0)?;
        let mut addend = Some(positions.f_expand_as(&x)?.f_contiguous()?);
        for layer in &self.layers {
            addend = Some(layer.forward_joined(&mut x, addend.as_ref(), operators)?);
        }
        let x = operators.layer_norm(&mut x, addend.as_ref(), &self.post_norm)?;
        self.connector.forward_joined(&pixel_unshuffle(&x, rows, columns)?, operators)
    }

    /// Frames of bytes (N, H, W, 3), H and W multiples of two patches → image tokens (N, P/4, language width).
    pub fn forward(&mut self, frames: &Tensor, probe: &mut Probe) -> Result<Tensor, ModelError> {
        let (rows, columns) = self.grid(frames)?;
        if probe.is_on() {
            probe.record(|| "vision.pos_embed".to_owned(), &self.positions(rows, columns)?);
        }
        let pixels = normalize_pixels(&frames.f_to_device(self.device)?, self.kind)?;
        let mut x = self.embed(&pixels)?;
        probe.record(|| "vision.patch_pos_embed".to_owned(), &x);
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, &format!("vision.layer{i}"), probe)?;
            probe.record(|| format!("vision.layer{i}.out"), &x);
        }
        let x = self.post_norm(&x)?;
        probe.record(|| "vision.last_hidden".to_owned(), &x);
        let x = pixel_unshuffle(&x, rows, columns)?;
        probe.record(|| "vision.pixel_unshuffled".to_owned(), &x);
        let x = self.connector.forward(&x, probe)?;
        probe.record(|| "vision.mlp1".to_owned(), &x);
        Ok(x)
    }
}
