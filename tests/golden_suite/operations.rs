//! Single operations: layers and blocks on the stored inputs, tables at the real model's dimensions, every epsilon.

use groot_policy::{
    checkpoint::{Checkpoint, EagleConfig},
    model::{
        action_head::ActionHead,
        backbone::Backbone,
        dit::{DitEngine, Modulation, TorchDit, timestep_features},
        embodiment::{ActionEncoder, Mlp, action_time_features},
        language::{SequenceContext, inverse_frequencies, rotary_tables},
        layers::{Loader, plain_layer_norm},
        probe::Probe,
        tokens::TokenLayout,
        vision::{patchify, pixel_unshuffle, resize_positions},
    },
};
use ndarray::{Array2, ArrayD};
use tch::{Device, Kind, Tensor};

use crate::{
    fixture::{Fixture, GoldenFile},
    tensors::{Comparison, to_tensor},
};

/// Epsilons that the reference's modules have, spelled out here so that the test does not borrow the code's own.
const DIT_BLOCK_EPS: f64 = 1e-5;
const DIT_OUTPUT_EPS: f64 = 1e-6;

struct Operations {
    file: GoldenFile,
    kind: Kind,
    checkpoint: Checkpoint,
    comparison: Comparison,
    limit: fn(&ArrayD<f64>) -> f64,
    /// Names compared or used as inputs; every name of the file must end up here.
    seen: std::collections::BTreeSet<String>,
}

impl Operations {
    fn input(&mut self, name: &str) -> Tensor {
        self.seen.insert(name.to_owned());
        to_tensor(&self.file.f64(name), self.kind)
    }

    fn integers(&mut self, name: &str) -> Array2<i64> {
        self.seen.insert(name.to_owned());
        let array = self.file.i64(name);
        let rows = if array.ndim() == 1 { 1 } else { array.shape()[0] };
        let columns = array.len() / rows;
        array.into_shape_with_order((rows, columns)).unwrap()
    }

    fn check(&mut self, name: &str, got: &Tensor) {
        self.seen.insert(name.to_owned());
        let want = self.file.f64(name);
        let limit = (self.limit)(&want);
        self.comparison.check(name, got, &want, limit);
    }

    fn root(&self) -> Loader<'_> {
        Loader::new(&self.checkpoint.weights, Device::Cpu, self.kind)
    }

    fn dit(&self) -> TorchDit {
        TorchDit::load(&self.root().at("action_head.model"), &self.checkpoint.config).unwrap()
    }

    fn timesteps_and_blocks(&mut self) {
        let mut dit = self.dit();
        let t = self.integers("timestep.t");
        let features = timestep_features(t.as_slice().unwrap()).unwrap();
        self.check("timestep.proj256", &features);
        self.check("timestep.temb", &dit.time_embedding(&features).unwrap());

        let (x, temb, enc) = (self.input("block.x"), self.input("block.temb"), self.input("block.enc"));
        let mask = self.integers("block.mask");
        let (rows, keys) = mask.dim();
        let flat: Vec<bool> = mask.iter().map(|&m| m != 0).collect();
        let mask = Tensor::from_slice(&flat).reshape([rows as i64, 1, 1, keys as i64]);
        let modulation = |dit: &TorchDit, i: usize| {
            let both = dit.blocks()[i].modulation(&temb).unwrap();
            let pair = both.chunk(2, -1);
            (both.shallow_clone(), Modulation::new(&pair[0], &pair[1]).unwrap())
        };
        let (pair, modulation0) = modulation(&dit, 0);
        self.check("block0.norm1_linear", &pair);
        self.check("block0.norm1", &modulation0.apply(&x, DIT_BLOCK_EPS).unwrap());
        let over = dit.blocks()[0].key_values(&enc).unwrap();
        self.check("block0.attn_nomask", &dit.blocks()[0].attend(&x, &over, None).unwrap());
        self.check("block0.attn_mask", &dit.blocks()[0].attend(&x, &over, Some(&mask)).unwrap());
        let own = dit.blocks()[1].key_values(&x).unwrap();
        self.check("block1.attn_self", &dit.blocks()[1].attend(&x, &own, None).unwrap());
        self.check("block0.norm3", &plain_layer_norm(&x, DIT_BLOCK_EPS).unwrap());
        let inner = dit.blocks()[0].feed_forward_in(&x).unwrap();
        self.check("block0.ff_proj", &inner);
        self.check("block0.ff_gelu", &inner.gelu("tanh"));
        self.check("block0.ff", &dit.blocks()[0].feed_forward(&x).unwrap());
        let mut off = Probe::off();
        let out =
            dit.blocks()[0].forward(&x, &modulation0, Some((&over, Some(&mask))), "", &mut off).unwrap();
        self.check("block0.out", &out);
        let (_, modulation1) = modulation(&dit, 1);
        let out = dit.blocks()[1].forward(&x, &modulation1, None, "", &mut off).unwrap();
        self.check("block1.out", &out);

        // Each row has a timestep of its own, so each is a tick of its own.
        let image = self.integers("dit.image_mask");
        let valid = self.integers("dit.attention_mask");
        dit.set_timesteps(&[250, 750]).unwrap();
        let rows: Vec<Tensor> = (0..image.nrows())
            .map(|row| {
                let one = row..row + 1;
                let ids = image.slice(ndarray::s![one.clone(), ..]).to_owned();
                let valid = valid.slice(ndarray::s![one, ..]).mapv(|v| v != 0);
                let layout = TokenLayout::new(ids.view(), valid.view(), 1, Device::Cpu).unwrap();
                let row = row as i64;
                dit.condition(&enc.narrow(0, row, 1), &layout, &mut off).unwrap();
                dit.step(row as usize, &x.narrow(0, row, 1), &mut off).unwrap()
            })
            .collect();
        self.check("dit.out", &Tensor::cat(&rows, 0));
    }

    fn embodiment_layers(&mut self) {
        let ids = self.integers("cat.ids");
        let (state, action, decoder_in) =
            (self.input("cat.state"), self.input("cat.action"), self.input("cat.decoder_in"));
        let width = action_width(&self.checkpoint);
        let mut rows: [Vec<Tensor>; 5] = Default::default();
        // Row 0 runs at t = 250, row 1 at t = 750.
        for (row, (&id, t)) in ids.iter().zip([250, 750]).enumerate() {
            let at = self.root().at("action_head");
            let (row, id) = (row as i64, id as usize);
            let encoder = Mlp::load(&at.at("state_encoder"), id).unwrap();
            let decoder = Mlp::load(&at.at("action_decoder"), id).unwrap();
            let mut actions = ActionEncoder::load(&at.at("action_encoder"), id).unwrap();
            actions.set_timesteps(&[t]).unwrap();
            let own = state.narrow(0, row, 1);
            rows[0].push(encoder.hidden(&own).unwrap());
            rows[1].push(encoder.forward(&own).unwrap());
            let a = action.narrow(0, row, 1);
            rows[2].push(actions.forward(&a, 0, &mut Probe::off()).unwrap());
            let tau = action_time_features(&[t], width).unwrap();
            rows[3].push(tau.unsqueeze(0).expand([1, a.size()[1], width as i64], false));
            rows[4].push(decoder.forward(&decoder_in.narrow(0, row, 1)).unwrap());
        }
        let names =
            ["cat.state_layer1", "cat.state_encoder", "cat.action_encoder", "cat.tau", "cat.action_decoder"];
        for (name, rows) in names.iter().zip(&rows) {
            self.check(name, &Tensor::cat(rows, 0));
        }
    }

    fn language(&mut self) {
        let eagle = self.checkpoint.eagle.clone();
        let backbone =
            Backbone::load(&self.root().at("backbone.model"), &self.checkpoint.config, &eagle).unwrap();
        let layer = &backbone.language().layers()[0];
        let x = self.input("qwen.x");
        let normed = layer.input_norm(&x).unwrap();
        self.check("qwen.rms", &normed);
        let length = x.size()[1] as usize;
        // Any mixture of token kinds does: the layer sees only the length.
        let ids = Array2::from_shape_fn((1, length), |(_, i)| (i % 2) as i64);
        let valid = Array2::from_elem((1, length), true);
        let layout = TokenLayout::new(ids.view(), valid.view(), 1, Device::Cpu).unwrap();
        let frequencies = inverse_frequencies(eagle.text.rope_theta, eagle.text.head_dim, self.kind).unwrap();
        let context = SequenceContext::new(&frequencies, &layout, self.kind).unwrap();
        self.check("qwen.cos", &context.rotary().0.unsqueeze(0));
        self.check("qwen.sin", &context.rotary().1.unsqueeze(0));
        let mut off = Probe::off();
        self.check("qwen.q_normed", &layer.queries(&x).unwrap());
        self.check("qwen.attn", &layer.attend(&x, &context, "", &mut off).unwrap());
        self.check("qwen.mlp", &layer.feed_forward(&x).unwrap());
        self.check("qwen.layer", &layer.forward(&x, &context, "", &mut off).unwrap());

        let enc = self.input("eps.enc");
        self.check("eps.llm_rms", &layer.input_norm(&enc).unwrap());
        let q = self.input("eps.q_in");
        self.check("eps.q_norm", &layer.query_norm(&q).unwrap());
    }

    fn vision(&mut self) {
        let eagle = self.checkpoint.eagle.clone();
        let mut backbone =
            Backbone::load(&self.root().at("backbone.model"), &self.checkpoint.config, &eagle).unwrap();
        let tower = backbone.vision();
        let x = self.input("siglip.x");
        // Two images, packed one after the other: the first has two thirds of the patches.
        let total = x.size()[1];
        let first = total * 2 / 3;
        let images = [x.narrow(1, 0, first), x.narrow(1, first, total - first)];
        let layer = &tower.layers()[0];
        let attended: Vec<Tensor> = images.iter().map(|x| layer.attend(x).unwrap()).collect();
        self.check("siglip.attn", &Tensor::cat(&attended, 1));
        self.check("siglip.mlp", &layer.feed_forward(&x).unwrap());
        let out: Vec<Tensor> =
            images.iter().map(|x| layer.forward(x, "", &mut Probe::off()).unwrap()).collect();
        self.check("siglip.layer", &Tensor::cat(&out, 1));
        let pixels = self.input("siglip.pixels").permute([0, 2, 3, 1]);
        let patch = eagle.vision.patch_size as i64;
        let (rows, columns) = (pixels.size()[1] / patch, pixels.size()[2] / patch);
        assert_eq!(patchify(&pixels, patch).unwrap().size()[1], rows * columns);
        self.check("siglip.patch_pos", &tower.embed(&pixels).unwrap().squeeze_dim(0));
        let features = self.input("siglip.unshuffle_in");
        let unshuffled = pixel_unshuffle(&features, rows, columns).unwrap();
        self.check("siglip.unshuffle_out", &unshuffled);
        self.check("mlp1.out", &tower.connector().forward(&unshuffled, &mut Probe::off()).unwrap());

        let vis = self.input("eps.vis");
        self.check("eps.vit_ln1", &tower.layers()[0].norm1(&vis).unwrap());
        self.check("eps.vit_post", &tower.post_norm(&vis).unwrap());
        let wide = self.input("eps.mlp1_in");
        self.check("eps.mlp1_norm", &tower.connector().norm(&wide).unwrap());

        if self.file.contains("posinterp.grid") {
            self.seen.insert("posinterp.grid".to_owned());
            let grid = to_tensor(&self.file.f64("posinterp.grid"), Kind::Float);
            for name in self.file.names() {
                if let Some((rows, columns)) =
                    name.strip_prefix("posinterp.").and_then(|size| size.split_once('x'))
                {
                    let (rows, columns) = (rows.parse().unwrap(), columns.parse().unwrap());
                    self.check(&name, &resize_positions(&grid, rows, columns).unwrap());
                }
            }
        }
    }

    fn head_norms(&mut self) {
        let dit = Box::new(self.dit());
        let head = ActionHead::load(&self.root().at("action_head"), &self.checkpoint.config, 0, dit).unwrap();
        let x = self.input("vlln.in");
        self.check("vlln.out", &head.context(&x).unwrap());
        let enc = self.input("eps.enc");
        self.check("eps.vlln", &head.context(&enc).unwrap());
        let x = self.input("eps.x");
        self.check("eps.dit_norm1", &plain_layer_norm(&x, DIT_BLOCK_EPS).unwrap());
        self.check("eps.dit_norm3", &plain_layer_norm(&x, DIT_BLOCK_EPS).unwrap());
        self.check("eps.dit_norm_out", &plain_layer_norm(&x, DIT_OUTPUT_EPS).unwrap());
    }

    /// Tables at the dimensions of the released 3B model.
    fn real_tables(&mut self) {
        if !self.file.contains("real.rope_inv_freq") {
            return;
        }
        let text = EagleConfig::n1d6_3b().text;
        let exact = inverse_frequencies(text.rope_theta, text.head_dim, Kind::Float).unwrap();
        let rounded = inverse_frequencies(text.rope_theta, text.head_dim, Kind::BFloat16).unwrap();
        self.check("real.rope_inv_freq", &exact);
        self.check("real.rope_inv_freq_bf16", &rounded);
        let half = text.head_dim as i64 / 2;
        for (suffix, frequencies) in [("", &exact), ("_bf16inv", &rounded)] {
            let (cos, sin) = rotary_tables(frequencies, 512).unwrap();
            let every_seventh = |table: &Tensor| table.slice(0, 0, None, 7).narrow(1, 0, half);
            self.check(&format!("real.rope_cos{suffix}"), &every_seventh(&cos));
            self.check(&format!("real.rope_sin{suffix}"), &every_seventh(&sin));
        }
        self.check("real.action_tau1536", &action_time_features(&[0, 250, 500, 750], 1536).unwrap());
    }
}

fn action_width(checkpoint: &Checkpoint) -> usize {
    checkpoint.config.input_embedding_dim
}

fn run(mode: &str, kind: Kind, limit: fn(&ArrayD<f64>) -> f64) {
    let fixture = Fixture::load();
    let mut operations = Operations {
        file: fixture.file(&format!("ops.{mode}")),
        kind,
        checkpoint: Checkpoint::open(&fixture.dir, &Default::default()).unwrap(),
        comparison: Comparison::default(),
        limit,
        seen: Default::default(),
    };
    operations.timesteps_and_blocks();
    operations.embodiment_layers();
    operations.language();
    operations.vision();
    operations.head_norms();
    operations.real_tables();
    for name in operations.file.names() {
        if !operations.seen.contains(&name) {
            operations.comparison.fail(format!("{name}: the golden file has it, the test has not"));
        }
    }
    operations.comparison.finish(&format!("ops.{mode}"));
}

#[test]
fn every_single_operation_is_reproduced_in_f32() {
    run("fp32", Kind::Float, |_| 5e-5);
}

/// Four units in the last place of the largest value: a matrix product rounds once or twice, a block several times.
#[test]
fn every_single_operation_is_reproduced_in_bf16_to_a_few_roundings() {
    run("bf16", Kind::BFloat16, |want| {
        let largest = want.iter().fold(0f64, |m, v| m.max(v.abs()));
        4.0 * largest.max(1e-3) / 256.0
    });
}
