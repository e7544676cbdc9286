//! From the node's configuration to the policy's options.

use super::config::{Device, NodeConfig};
use crate::model::policy::PolicyOptions;

/// How the configuration asks for a policy.
pub fn policy_options(config: &NodeConfig) -> PolicyOptions {
    PolicyOptions {
        checkpoint: config.checkpoint.path.clone(),
        tokenizer: config.checkpoint.tokenizer.clone(),
        eagle_config: config.checkpoint.eagle_config.clone(),
        embodiment: config.embodiment.clone(),
        device: match config.device {
            Device::Auto => "auto".to_owned(),
            Device::Cpu => "cpu".to_owned(),
            Device::Cuda(index) => format!("cuda:{index}"),
        },
        kind: None,
        denoising_steps: config.denoising_steps,
        engine: config.engine.clone(),
        mode: config.mode,
        preprocessing: config.preprocessing,
    }
}
