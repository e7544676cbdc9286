//! Which head denoises and what the backbone does between its products, by execution mode.
//!
//! A fused part is chosen only after it has agreed with the plain one on a made-up observation (`trial`), on the GPU that is there. The plain
//! head is dropped before the fused one is loaded, so that there is never memory for two.

use tch::Kind;

use super::{
    ModelError, action_head::ActionHead, backbone::Backbone, layers::Loader, operators::BackboneOperators,
};
use crate::{
    checkpoint::{EagleConfig, ModelConfig},
    execution::ExecutionMode,
};

/// What a network is put together from.
pub struct Selection {
    /// What denoises.
    pub head: ActionHead,
    /// What the backbone does between joined products; None for the plain path.
    pub operators: Option<Box<dyn BackboneOperators>>,
    /// Why `auto` did without fused kernels.
    pub without: Option<String>,
}

/// Configuration of the model whose parts are chosen.
#[derive(Clone, Copy)]
pub struct Sizes<'a> {
    /// Action head and more.
    pub model: &'a ModelConfig,
    /// Backbone.
    pub eagle: &'a EagleConfig,
    /// Row of the per-embodiment weights.
    pub embodiment: usize,
}

/// Chooses for a mode. `engine` is the head of a TensorRT engine, which then stays whatever the mode.
///
/// # Errors
/// A part cannot be loaded, or the mode asks for fused kernels and they cannot be had. `auto` does without.
pub fn select(
    mode: ExecutionMode,
    root: &Loader,
    sizes: Sizes,
    backbone: &mut Backbone,
    engine: Option<ActionHead>,
) -> Result<Selection, ModelError> {
    let at = root.at("action_head");
    let (wanted, must) = match mode {
        ExecutionMode::GraphFused => (true, true),
        ExecutionMode::Auto => (root.device().is_cuda() && root.kind() == Kind::BFloat16, false),
        ExecutionMode::Eager | ExecutionMode::Graph => (false, false),
    };
    let with = |head: Option<ActionHead>, operators, without| {
        let plain = || ActionHead::on_libtorch(&at, sizes.model, sizes.embodiment);
        Ok(Selection { head: head.map_or_else(plain, Ok)?, operators, without })
    };
    if !wanted {
        return with(engine, None, None);
    }
    // The fused head is made where there is no other.
    match fused(&at, sizes, backbone, engine.is_none()) {
        Ok((operators, made)) => with(engine.or(made), Some(operators), None),
        Err(error) if must => Err(error),
        Err(error) => {
            let reason = error.to_string();
            tracing::warn!("the network runs without fused kernels: {reason}");
            with(engine, None, Some(reason))
        }
    }
}

type Fused = (Box<dyn BackboneOperators>, Option<ActionHead>);

/// Fused operators, and the fused head where it is wanted, each after it has agreed with the plain ones.
#[cfg(feature = "cuda")]
fn fused(at: &Loader, sizes: Sizes, backbone: &mut Backbone, with_head: bool) -> Result<Fused, ModelError> {
    use super::{
        fused::{FusedVelocity, operators::Operators},
        trial::{Trial, agree},
    };
    let operators = Box::new(Operators::new(at.device())?);
    let trial = Trial::new(sizes.model, sizes.eagle);
    let (features, layout) = trial.features(backbone)?;
    let joined = trial.joined_features(backbone, &layout, &*operators)?;
    let cosine = agree("fused operators of the backbone", &joined, &features)?;
    tracing::info!("fused operators agree with the plain backbone: cosine {cosine:.6}");
    if !with_head {
        return Ok((operators, None));
    }
    let mut plain = ActionHead::on_libtorch(at, sizes.model, sizes.embodiment)?;
    let expected = trial.way(&mut plain, &features, &layout)?;
    drop(plain);
    let velocity = FusedVelocity::load_beside(&operators, at, sizes.model, sizes.embodiment)?;
    let mut head = ActionHead::with_engine(at, sizes.model, sizes.embodiment, Box::new(velocity))?;
    let found = trial.way(&mut head, &features, &layout)?;
    let cosine = agree("fused denoising steps", &found, &expected)?;
    tracing::info!("fused denoising steps agree with the plain ones: cosine {cosine:.6}");
    Ok((operators, Some(head)))
}

#[cfg(not(feature = "cuda"))]
fn fused(at: &Loader, _: Sizes, _: &mut Backbone, _: bool) -> Result<Fused, ModelError> {
    Err(ModelError::Device {
        requested: format!("{:?}", at.device()),
        reason:
            "this program was built without fused kernels (feature `cuda`): choose the mode graph or eager"
                .to_owned(),
    })
}
