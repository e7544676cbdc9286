//! The kept Qwen3 layers: token embeddings in, features after the final norm out.

use tch::{Kind, Tensor};

pub use super::sequence::{SequenceContext, inverse_frequencies, rotary_tables};
use super::{
    ModelError,
    layers::{JoinedLinear, Linear, Loader, RmsNorm, backbone_attention, merge_heads, split_heads},
    operators::{BackboneOperators, Sight},
    probe::Probe,
    sequence::rotate,
    tokens::TokenLayout,
};
use crate::checkpoint::{EagleConfig, TextConfig};

/// Memory in which queries, keys and values of a prompt stand together though they are computed apart: those of its first
/// tokens once, those of the others in each tick.
///
/// They stand as they leave their product, before norm and rotation, so that operators who know only the attention of a whole
/// prompt can compute that: the first tokens' queries, which nobody asks again, cost next to nothing there.
#[derive(Clone, Copy)]
pub struct Projections<'a> {
    /// One tensor per layer, (B, S, query, key and value columns).
    pub layers: &'a [Tensor],
    /// Tokens whose rows are there already; with 0 the rows that come are the first ones, and attend each other alone.
    pub known: i64,
}

/// [`Projections`] of one layer.
#[derive(Clone, Copy)]
struct Projection<'a> {
    all: &'a Tensor,
    known: i64,
}

/// One Qwen3 decoder layer.
#[derive(Debug)]
pub struct LanguageLayer {
    input_norm: RmsNorm,
    /// Query, key and value; below as views.
    joined: JoinedLinear,
    query: Linear,
    key: Linear,
    value: Linear,
    query_norm: RmsNorm,
    key_norm: RmsNorm,
    out: Linear,
    post_norm: RmsNorm,
    /// Gate and up; below as views.
    gate_up: JoinedLinear,
    gate: Linear,
    up: Linear,
    down: Linear,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
}

impl LanguageLayer {
    fn load(at: &Loader, config: &TextConfig) -> Result<Self, ModelError> {
        let (attn, mlp) = (at.at("self_attn"), at.at("mlp"));
        let eps = config.rms_norm_eps;
        let (joined, [query, key, value]) =
            JoinedLinear::load_without_bias([&attn.at("q_proj"), &attn.at("k_proj"), &attn.at("v_proj")])?;
        let (gate_up, [gate, up]) =
            JoinedLinear::load_without_bias([&mlp.at("gate_proj"), &mlp.at("up_proj")])?;
        Ok(Self {
            input_norm: RmsNorm::load(&at.at("input_layernorm"), eps)?,
            joined,
            query,
            key,
            value,
            query_norm: RmsNorm::load(&attn.at("q_norm"), eps)?,
            key_norm: RmsNorm::load(&attn.at("k_norm"), eps)?,
            out: Linear::load_without_bias(&attn.at("o_proj"))?,
            post_norm: RmsNorm::load(&at.at("post_attention_layernorm"), eps)?,
            gate_up,
            gate,
            up,
            down: Linear::load_without_bias(&mlp.at("down_proj"))?,
            heads: config.num_attention_heads as i64,
            kv_heads: config.num_key_value_heads as i64,
            head_dim: config.head_dim as i64,
        })
    }

    /// Columns of query, key and value together.
    pub fn projected(&self) -> i64 {
        self.joined.outputs()
    }

    /// The norm before the attention, (B, S, D).
    pub fn input_norm(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.input_norm.forward(x)?)
    }

    /// Queries (B, S, heads, width) after their per-head norm, before rotation.
    pub fn queries(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        self.per_head(&self.query, &self.query_norm, self.heads, x)
    }

    /// Keys (B, S, kv heads, width) after their per-head norm, before rotation.
    pub fn keys(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        self.per_head(&self.key, &self.key_norm, self.kv_heads, x)
    }

    /// The per-head norm of the queries, (…, width).
    pub fn query_norm(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.query_norm.forward(x)?)
    }

    fn per_head(
        &self,
        linear: &Linear,
        norm: &RmsNorm,
        heads: i64,
        x: &Tensor,
    ) -> Result<Tensor, ModelError> {
        let size = x.size();
        let split = linear.forward(x)?.f_reshape([size[0], size[1], heads, self.head_dim])?;
        Ok(norm.forward(&split)?)
    }

    /// Causal grouped-query attention over normed input (B, S, D), without the residual.
    pub fn attend(
        &self,
        x: &Tensor,
        context: &SequenceContext,
        name: &str,
        probe: &mut Probe,
    ) -> Result<Tensor, ModelError> {
        let q = self.queries(x)?;
        probe.record(|| format!("{name}.q_normed"), &q);
        let k = self.keys(x)?;
        probe.record(|| format!("{name}.k_normed"), &k);
        let size = x.size();
        let v = self.value.forward(x)?.f_reshape([size[0], size[1], self.kv_heads, self.head_dim])?;
        let q = rotate(&q.f_transpose(1, 2)?, &context.cos, &context.sin)?;
        let k = rotate(&k.f_transpose(1, 2)?, &context.cos, &context.sin)?;
        let v = v.f_transpose(1, 2)?;
        let attended = backbone_attention(&q, &k, &v, context.mask.as_ref(), context.mask.is_none())?;
        let mut merged = merge_heads(&attended)?;
        if let Some(keep) = &context.keep {
            merged = merged.f_mul(keep)?;
        }
        Ok(self.out.forward(&merged)?)
    }

    /// down(silu(gate)·up) of (B, S, D).
    pub fn feed_forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.down.forward(&self.gate.forward(x)?.f_silu()?.f_mul(&self.up.forward(x)?)?)?)
    }

    /// The layer with one product for query, key and value and one for gate and up, on the residual stream `x` (B, S, D),
    /// which first takes up `addend`. Returns what the stream is to take up next.
    ///
    /// With `kept` rows before those of `x`, S are the rows of `x` alone, while `context` is that of all.
    fn forward_joined(
        &self,
        x: &mut Tensor,
        addend: Option<&Tensor>,
        context: &SequenceContext,
        operators: &dyn BackboneOperators,
        kept: Option<Projection>,
    ) -> Result<Tensor, ModelError> {
        let normed = operators.rms_norm(x, addend, &self.input_norm)?;
        let rows = normed.size().get(1).copied().unwrap_or(0);
        let known = kept.map_or(0, |kept| kept.known);
        let all = match kept {
            None => operators.linear(&normed, self.joined.all())?,
            Some(Projection { all, known: 0 }) => {
                let first = operators.linear(&normed, self.joined.all())?;
                all.f_narrow(1, 0, rows)?.f_copy_(&first)?;
                first
            }
            Some(Projection { all, known }) => {
                operators.linear_into(&normed, self.joined.all(), &mut all.f_narrow(1, known, rows)?)?;
                all.shallow_clone()
            }
        };
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let tables = (&context.cos, &context.sin);
        let norms = [&self.query_norm, &self.key_norm];
        let [q, k] = operators.norm_rotary(&all, [self.heads, self.kv_heads], norms, tables)?;
        let v = split_heads(&all.f_narrow(-1, queries + keys, keys)?, self.kv_heads)?;
        let sight = context.mask.as_ref().map_or(Sight::Causal, Sight::Masked);
        let mut merged = operators.attention([&q, &k, &v], sight, known)?;
        if let Some(keep) = &context.keep {
            merged = merged.f_mul(&keep.f_narrow(1, known, rows)?)?;
        }
        let attended = operators.linear(&merged, &self.out)?;
        let normed = operators.rms_norm(x, Some(&attended), &self.post_norm)?;
        let gate_up = operators.linear(&normed, self.gate_up.all())?;
        operators.linear(&operators.swiglu(&gate_up)?, &self.down)
    }

    /// (B, S, D) → (B, S, D).
    pub fn forward(
        &self,
        x: &Tensor,
        context: &SequenceContext,
        name: &str,
        probe: &mut Probe,
    ) -> Result<Tensor, ModelError> {
        let attended = self.attend(&self.input_norm(x)?, context, name, probe)?;
        probe.record(|| format!("{name}.attn_out"), &attended);
        let x = x.f_add(&attended)?;
        let fed = self.feed_forward(&self.post_norm.forward(&x)?)?;
        probe.record(|| format!("{name}.mlp_out"), &fed);
        Ok(x.f_add(&fed)?)
    }
}

/// The language model up to the kept layer, with the final norm and without a vocabulary head.
pub struct LanguageModel {
    embeddings: Tensor,
    layers: Vec<LanguageLayer>,
    norm: RmsNorm,
    frequencies: Tensor,
    kind: Kind,
}

impl LanguageModel {
    /// Loads the first `layers` layers from the module that holds `model`.
    pub fn load(at: &Loader, config: &EagleConfig, layers: usize) -> Result<Self, ModelError> {
        let at = at.at("model");
        let text = &config.text;
        Ok(Self {
            embeddings: at.at("embed_tokens").tensor("weight")?,
            layers: (0..layers)
                .map(|i| LanguageLayer::load(&at.at(format!("layers.{i}")), text))
                .collect::<Result<_, _>>()?,
            norm: RmsNorm::load(&at.at("norm"), text.rms_norm_eps)?,
            frequencies: inverse_frequencies(text.rope_theta, text.head_dim, at.kind())?,
            kind: at.kind(),
        })
    }

    /// Rounds the rotary frequencies to `kind`, whatever the model's own type is: for comparisons with a model of that type.
    ///
    /// # Errors
    /// libtorch has no memory.
    pub fn round_frequencies(&mut self, config: &EagleConfig, kind: Kind) -> Result<(), ModelError> {
        let text = &config.text;
        self.frequencies = inverse_frequencies(text.rope_theta, text.head_dim, kind)?;
        Ok(())
    }

    /// The decoder layers.
    pub fn layers(&self) -> &[LanguageLayer] {
        &self.layers
    }

    /// The norm after the last layer, (…, D).
    pub fn norm(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.norm.forward(x)?)
    }

    /// Width of embeddings and features.
    pub fn width(&self) -> i64 {
        self.embeddings.size().last().copied().unwrap_or(0)
    }

    /// The type it computes in.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What all layers share for prompts of this layout.
    pub fn context(&self, layout: &TokenLayout) -> Result<SequenceContext, ModelError> {
        SequenceContext::new(&self.frequencies, layout, self.kind)
    }

    /// Embeddings of token ids (B, S) as words: (B, S, D).
    pub fn words(&self, ids: &Tensor) -> Result<Tensor, ModelError> {
        let mut size = ids.size();
        size.push(self.embeddings.size()[1]);
        Ok(self.embeddings.f_index_select(0, &ids.f_reshape([-1])?)?.f_reshape(size)?)
    }

    /// Token embeddings with the image tokens' rows replaced by `images` (all images in order, flat): (B, S, D).
    pub fn embed(&self, layout: &TokenLayout, images: &Tensor) -> Result<Tensor, ModelError> {
        let (batch, s) = (layout.batch(), layout.seq_len());
        let width = self.embeddings.size()[1];
        let mut rows = self.words(&layout.input_ids)?.f_reshape([-1, width])?;
        let images = images.f_reshape([-1, width])?;
        let expected = layout.image.index().size()[0];
        if layout.image.mask.is_some() || images.size()[0] != expected {
            return Err(ModelError::Input {
                what: "image tokens",
                expected: format!("as many as the prompts hold, {expected}, the same in each"),
                found: images.size()[0].to_string(),
            });
        }
        let rows = rows.f_index_copy_(0, layout.image.index(), &images)?;
        Ok(rows.f_reshape([batch, s, width])?)
    }

    /// [`forward`](Self::forward) with joined products and the given operators; it rounds as they do. The embeddings become
    /// the residual stream.
    ///
    /// # Errors
    /// libtorch or the operators refuse.
    pub fn forward_joined(
        &self,
        embeddings: Tensor,
        context: &SequenceContext,
        operators: &dyn BackboneOperators,
    ) -> Result<Tensor, ModelError> {
        self.forward_kept(embeddings, context, operators, None)
    }

    /// [`forward_joined`](Self::forward_joined) of a part of the prompt: (B, R, D) → (B, R, D).
    ///
    /// `context` is that of the known tokens and of those that come, together.
    ///
    /// # Errors
    /// libtorch or the operators refuse.
    pub fn forward_kept(
        &self,
        mut embeddings: Tensor,
        context: &SequenceContext,
        operators: &dyn BackboneOperators,
        kept: Option<Projections>,
    ) -> Result<Tensor, ModelError> {
        let mut addend = None;
        for (number, layer) in self.layers.iter().enumerate() {
            let kept = kept.map(|kept| Projection { all: &kept.layers[number], known: kept.known });
            addend =
                Some(layer.forward_joined(&mut embeddings, addend.as_ref(), context, operators, kept)?);
        }
        operators.rms_norm(&mut embeddings, addend.as_ref(), &self.norm)
    }

    /// Embeddings (B, S, D) → features (B, S, D) after the final norm.
    pub fn forward(
        &self,
        embeddings: &Tensor,
        context: &SequenceContext,
        probe: &mut Probe,
    ) -> Result<Tensor, ModelError> {
        if probe.is_on() {
            probe.record(|| "llm.inv_freq".to_owned(), &self.frequencies);
            probe.record(|| "llm.rope_cos".to_owned(), &context.cos);
            probe.record(|| "llm.rope_sin".to_owned(), &context.sin);
        }
        let mut x = embeddings.shallow_clone();
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, context, &format!("llm.layer{i}"), probe)?;
            probe.record(|| format!("llm.layer{i}.out"), &x);
        }
        self.norm(&x)
    }
}
