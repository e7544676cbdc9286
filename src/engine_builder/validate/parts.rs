//! Each part of the network in ONNX Runtime and in libtorch.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;
use ndarray::{Array2, ArrayD, IxDyn};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use super::{Validation, report::PartReport};
use crate::{
    checkpoint::Checkpoint,
    engine_builder::{
        backbone::{Reference, image_token, language_reference, vision_reference},
        graph::{EngineGraph, GraphPart, GraphRequest, Typing},
        lengths::Lengths,
        verify::torch_head,
    },
    model::{
        device::to_host,
        layers::Loader,
        network::to_tensor,
        probe::Probe,
        tensorrt::{CrossProjections, step_terms_tensor},
        tokens::TokenLayout,
    },
    onnx::{
        Data, ElementType,
        session::{GraphSession, Input},
        validate::{Comparison, NamedTensors, compare_in_order},
        write,
    },
};

/// A part of the network, in the order in which a tick goes through them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Vision tower and connector.
    Vision,
    /// Language model.
    Language,
    /// What a tick is conditioned on, and every denoising step.
    Dit,
}

/// What libtorch made of the parts that were run.
#[derive(Default)]
pub struct Values {
    /// Embeddings of the image tokens.
    images: Option<Tensor>,
    /// Of the backbone, (1, S, D).
    features: Option<Tensor>,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Vision, Self::Language, Self::Dit];

    /// Runs the part in libtorch, and where it is `wanted` its graph, too.
    pub(super) fn compare(
        self,
        validation: &Validation,
        values: &mut Values,
        wanted: bool,
    ) -> Result<Option<PartReport>> {
        let comparison = match self {
            Self::Vision => vision(validation, values, wanted)?,
            Self::Language => language(validation, values, wanted)?,
            Self::Dit => Some(dit(validation, values)?),
        };
        Ok(comparison.map(|comparison| PartReport { part: self, comparison }))
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vision => "vision",
            Self::Language => "language",
            Self::Dit => "dit",
        })
    }
}

/// An exported graph, ready to run.
struct Running {
    session: GraphSession,
    /// Names of the outputs, in the order in which they are computed.
    order: Vec<String>,
    model: PathBuf,
}

impl Running {
    fn start(validation: &Validation, part: GraphPart) -> Result<Self> {
        let graph = EngineGraph { part, typing: Typing::Weak };
        let exported = graph.graph(validation.exported, true)?;
        let order = exported.outputs().map(|output| output.name.clone()).collect();
        let written = write(&exported, validation.folder, graph.kind().as_str(), Data::Full)?;
        let session = GraphSession::open(&written.model, validation.library.as_deref())?;
        Ok(Self { session, order, model: written.model })
    }

    fn run(&mut self, inputs: &BTreeMap<String, Input>) -> Result<NamedTensors> {
        self.session.run(inputs).with_context(|| format!("{}", self.model.display()))
    }
}

fn input(tensor: &Tensor) -> Result<Input> {
    Ok(Input::F32(array(tensor)?))
}

/// The values of a tensor as f32.
fn array(tensor: &Tensor) -> Result<ArrayD<f32>> {
    let shape: Vec<usize> = tensor.size().iter().map(|&n| n.max(0) as usize).collect();
    Ok(ArrayD::from_shape_vec(IxDyn(&shape), to_host(tensor)?)?)
}

/// What the probe saw under the names that a graph gives out.
fn seen(probe: &Probe, order: &[String], prefix: &str) -> Result<NamedTensors> {
    let found = order.iter().filter_map(|name| Some((name, probe.get(&format!("{prefix}{name}"))?)));
    found.map(|(name, tensor)| Ok((name.clone(), array(tensor)?))).collect()
}

fn vision(validation: &Validation, values: &mut Values, wanted: bool) -> Result<Option<Comparison>> {
    let Validation { reference, inputs, device, .. } = validation;
    let frames = &inputs.frames;
    let mut probe = if wanted { Probe::on() } else { Probe::off() };
    let torch = vision_reference(reference, frames, *device, &mut probe)?;
    let (images, height, width, _) = frames.dim();
    let part = GraphPart::Vision { images: Lengths::fixed(images), size: (height, width) };
    let comparison = if wanted { Some(backbone(validation, part, &torch, &probe)?) } else { None };
    values.images = Some(torch.output.1);
    Ok(comparison)
}

fn language(validation: &Validation, values: &mut Values, wanted: bool) -> Result<Option<Comparison>> {
    let Validation { reference, inputs, device, .. } = validation;
    let mut probe = if wanted { Probe::on() } else { Probe::off() };
    let images = values.images.as_ref();
    let torch = language_reference(reference, &inputs.ids, images, Kind::Float, *device, &mut probe)?;
    let tokens = Lengths::fixed(inputs.ids.ncols());
    let part = GraphPart::Language { tokens, frequencies: ElementType::F32 };
    let comparison = if wanted { Some(backbone(validation, part, &torch, &probe)?) } else { None };
    values.features = Some(torch.output.1);
    Ok(comparison)
}

/// A part of the backbone: one input, one output, and every layer between.
fn backbone(
    validation: &Validation,
    part: GraphPart,
    torch: &Reference,
    probe: &Probe,
) -> Result<Comparison> {
    let mut graph = Running::start(validation, part)?;
    let (name, values) = &torch.input;
    let outputs = graph.run(&BTreeMap::from([((*name).to_owned(), input(values)?)]))?;
    let mut expected = seen(probe, &graph.order, "")?;
    let (name, values) = &torch.output;
    expected.insert((*name).to_owned(), array(values)?);
    Ok(compare_in_order(&graph.order, &expected, &outputs)?)
}

fn dit(validation: &Validation, values: &Values) -> Result<Comparison> {
    let Validation { reference, inputs, device, .. } = validation;
    let device = *device;
    let features = values.features.as_ref().or(inputs.features.as_ref());
    let features = features.context("the backbone's features, which nobody computed")?;
    let valid = Array2::from_elem(inputs.ids.dim(), true);
    let layout = TokenLayout::new(inputs.ids.view(), valid.view(), image_token(&reference.eagle), device)?;
    let lengths = |count: i64| Lengths::fixed(count.max(1) as usize);
    let request = GraphRequest {
        embodiment: inputs.embodiment,
        text: lengths(layout.text.len()),
        image: lengths(layout.image.len()),
    };

    let mut head = torch_head(reference, inputs.embodiment, device, Kind::Float)?;
    let features = head.adopt(features)?;
    let state = head.adopt(&to_tensor(inputs.state.view())?)?;
    let context = head.context(&features)?;
    let mut probe = Probe::on();
    let state_tokens = head.condition(&features, &layout, &state, &mut probe)?;
    drop(head.denoise(&state_tokens, &to_tensor(inputs.noise.view())?.f_to_device(device)?, &mut probe)?);

    let mut expected = cross(reference, &context, &layout, device)?;
    expected.insert("state_tokens".to_owned(), array(&state_tokens)?);
    let mut graph = Running::start(validation, GraphPart::Condition(request))?;
    let outputs = graph.run(&BTreeMap::from([
        ("text_features".to_owned(), input(&layout.text.gather(&features)?)?),
        ("image_features".to_owned(), input(&layout.image.gather(&features)?)?),
        ("state".to_owned(), input(&state)?),
    ]))?;
    let mut comparison = named(compare_in_order(&graph.order, &expected, &outputs)?, "condition");
    drop(graph);

    let steps = head.steps();
    drop(head);
    let terms = step_terms_tensor(reference, inputs.embodiment, steps)?;
    let mut graph = Running::start(validation, GraphPart::Fused(request))?;
    // In the graph, the position embedding is a part of it; `sa_embs` holds it with the state's tokens.
    graph.order.retain(|name| name != "action_tokens");
    let given: BTreeMap<String, Input> =
        expected.into_iter().map(|(name, values)| (name, Input::F32(values))).collect();
    for step in 0..steps {
        let prefix = format!("head.step{step}.");
        let actions = probe.get(&format!("{prefix}actions_acc_in")).context("the actions before a step")?;
        let mut given = given.clone();
        given.insert("actions".to_owned(), input(actions)?);
        given.insert("step_terms".to_owned(), input(&terms.f_select(0, step as i64)?)?);
        let outputs = graph.run(&given)?;
        let expected = seen(&probe, &graph.order, &prefix)?;
        let one = named(compare_in_order(&graph.order, &expected, &outputs)?, &format!("step{step}"));
        comparison.layers.extend(one.layers);
        comparison.unmatched.extend(one.unmatched);
    }
    Ok(comparison)
}

/// The keys and values of the context, as the fused graph takes them.
fn cross(
    checkpoint: &Checkpoint,
    context: &Tensor,
    layout: &TokenLayout,
    device: Device,
) -> Result<NamedTensors> {
    let at = Loader::new(&checkpoint.weights, device, Kind::Float).at("action_head.model");
    let projections = CrossProjections::load(&at, &checkpoint.config)?;
    let projected = projections.project(context, layout)?;
    projected.iter().map(|one| Ok((one.input.to_owned(), array(&one.tokens)?))).collect()
}

/// The layers' names with where they are in the tick.
fn named(mut comparison: Comparison, place: &str) -> Comparison {
    let prefixed = |name: &String| format!("{place}.{name}");
    comparison.layers.iter_mut().for_each(|layer| layer.name = prefixed(&layer.name));
    comparison.unmatched.iter_mut().for_each(|name| *name = prefixed(name));
    comparison
}
