//! Highest rates of known hardware.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What bounds every program on a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hardware {
    /// Name on the command line, or what to call it.
    pub name: String,
    /// Memory bandwidth in bytes a second.
    pub bytes_per_second: f64,
    /// FLOPs a second in 16-bit floating point with f32 accumulation, dense.
    pub flops_per_second: f64,
    /// Where the figures come from.
    pub source: String,
}

/// A name that stands for no known hardware.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected one of the presets {known}, found {found:?}; or give --bandwidth-gbs and --tflops")]
pub struct UnknownHardware {
    known: String,
    found: String,
}

/// A preset: name, GB/s, TFLOP/s, source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preset(&'static str, f64, f64, &'static str);

impl Hardware {
    /// Jetson AGX Orin 64 GB. NVIDIA names 170 sparse INT8 TOPS for its GPU: a quarter of that in dense 16 bits.
    pub const ORIN_AGX_64: Preset = Preset(
        "orin-agx-64",
        204.8,
        42.5,
        "Jetson AGX Orin technical brief: 204.8 GB/s; GPU 170 sparse INT8 TOPS, a quarter of it dense FP16",
    );
    /// Jetson AGX Thor. NVIDIA names 2070 sparse FP4 TFLOPS: an eighth of that in dense 16 bits.
    pub const THOR: Preset = Preset(
        "thor",
        273.0,
        258.75,
        "Jetson Thor data sheet: 273 GB/s; 2070 sparse FP4 TFLOPS, an eighth of it dense FP16",
    );
    /// GeForce RTX 4090.
    pub const RTX_4090: Preset = Preset(
        "rtx-4090",
        1008.0,
        165.2,
        "Ada GPU architecture white paper: 1008 GB/s; dense BF16 with FP32 accumulation 165.2 TFLOPS",
    );
    /// GeForce RTX 5090.
    pub const RTX_5090: Preset = Preset(
        "rtx-5090",
        1792.0,
        209.5,
        "RTX Blackwell GPU architecture white paper: 1792 GB/s; dense BF16 with FP32 accumulation 209.5 TFLOPS",
    );
    /// H100 SXM, 80 GB HBM3.
    pub const H100: Preset =
        Preset("h100", 3350.0, 989.4, "H100 data sheet (SXM): 3.35 TB/s; dense BF16 989.4 TFLOPS");

    /// All presets.
    pub const PRESETS: [Preset; 5] =
        [Self::ORIN_AGX_64, Self::THOR, Self::RTX_4090, Self::RTX_5090, Self::H100];

    /// Rates of one's own, in GB/s and TFLOP/s.
    pub fn given(bandwidth_gbs: f64, tflops: f64) -> Self {
        Self {
            name: format!("{bandwidth_gbs} GB/s, {tflops} TFLOP/s"),
            bytes_per_second: bandwidth_gbs * 1e9,
            flops_per_second: tflops * 1e12,
            source: "given on the command line".to_owned(),
        }
    }

    /// The preset of a GPU that calls itself so, as `NVIDIA H100 80GB HBM3` does.
    pub fn of_gpu(name: &str) -> Option<Self> {
        let name = name.to_lowercase();
        // An H100 with PCIe or NVL has other rates.
        let known = [
            ("h100 80gb hbm3", Self::H100),
            ("rtx 5090", Self::RTX_5090),
            ("rtx 4090", Self::RTX_4090),
            ("thor", Self::THOR),
            ("orin", Self::ORIN_AGX_64),
        ];
        let laptop = name.contains("laptop");
        known.into_iter().find(|(part, _)| name.contains(part) && !laptop).map(|(_, preset)| preset.into())
    }
}

impl From<Preset> for Hardware {
    fn from(Preset(name, bandwidth, tflops, source): Preset) -> Self {
        Self { name: name.to_owned(), source: source.to_owned(), ..Self::given(bandwidth, tflops) }
    }
}

impl FromStr for Hardware {
    type Err = UnknownHardware;

    fn from_str(name: &str) -> Result<Self, UnknownHardware> {
        let preset = Self::PRESETS.into_iter().find(|preset| preset.0 == name);
        preset.map(Self::from).ok_or_else(|| UnknownHardware {
            known: Self::PRESETS.map(|preset| preset.0).join(", "),
            found: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_known_by_its_name_and_others_are_refused_with_the_list() {
        for preset in Hardware::PRESETS {
            assert_eq!(preset.0.parse::<Hardware>().unwrap(), preset.into());
        }
        let error = "a100".parse::<Hardware>().unwrap_err().to_string();
        assert!(error.contains("orin-agx-64, thor, rtx-4090, rtx-5090, h100"), "{error}");
    }

    #[test]
    fn a_gpu_is_recognised_by_what_it_calls_itself() {
        let of = |name| Hardware::of_gpu(name).map(|hardware| hardware.name);
        assert_eq!(of("NVIDIA H100 80GB HBM3").as_deref(), Some("h100"));
        assert_eq!(of("NVIDIA GeForce RTX 4090").as_deref(), Some("rtx-4090"));
        assert_eq!(of("NVIDIA GeForce RTX 4090 Laptop GPU"), None);
        assert_eq!(of("NVIDIA H100 PCIe"), None);
    }
}
