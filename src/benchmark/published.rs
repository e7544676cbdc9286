//! NVIDIA's own figures for the same table. None of them was measured here.

/// Where they stand.
pub const SOURCE: &str =
    "NVIDIA/Isaac-GR00T, scripts/deployment/README.md, inference timing of GR00T-N1.6-3B, 4 denoising steps";

/// The standard case whose shape is that of the table: one camera, the base checkpoint's horizon.
pub const CASE: &str = "nvidia-1cam";

/// One row of the table, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Published {
    /// Device, as the table calls it.
    pub device: &'static str,
    /// What ran the network.
    pub mode: &'static str,
    /// Frames, text and state to the network's inputs.
    pub data_processing: f64,
    /// Vision tower and language model.
    pub backbone: f64,
    /// Everything behind them.
    pub action_head: f64,
    /// All of it.
    pub end_to_end: f64,
    /// Ticks per second.
    pub hz: f64,
}

const fn row(
    device: &'static str,
    mode: &'static str,
    [data_processing, backbone, action_head, end_to_end, hz]: [f64; 5],
) -> Published {
    Published { device, mode, data_processing, backbone, action_head, end_to_end, hz }
}

/// All rows.
pub const TABLE: [Published; 15] = [
    row("RTX 5090", "PyTorch eager", [2.0, 18.0, 38.0, 58.0, 17.3]),
    row("RTX 5090", "torch.compile", [2.0, 18.0, 16.0, 37.0, 27.3]),
    row("RTX 5090", "TensorRT DiT", [2.0, 18.0, 11.0, 31.0, 32.1]),
    row("H100", "PyTorch eager", [4.0, 23.0, 49.0, 77.0, 13.0]),
    row("H100", "torch.compile", [4.0, 23.0, 11.0, 38.0, 26.3]),
    row("H100", "TensorRT DiT", [4.0, 22.0, 10.0, 36.0, 27.9]),
    row("RTX 4090", "PyTorch eager", [2.0, 25.0, 55.0, 82.0, 12.2]),
    row("RTX 4090", "torch.compile", [2.0, 25.0, 17.0, 44.0, 22.8]),
    row("RTX 4090", "TensorRT DiT", [2.0, 24.0, 16.0, 43.0, 23.3]),
    row("Thor", "PyTorch eager", [5.0, 38.0, 74.0, 117.0, 8.6]),
    row("Thor", "torch.compile", [5.0, 39.0, 61.0, 105.0, 9.5]),
    row("Thor", "TensorRT DiT", [5.0, 38.0, 49.0, 92.0, 10.9]),
    row("Orin", "PyTorch eager", [6.0, 93.0, 202.0, 300.0, 3.3]),
    row("Orin", "torch.compile", [6.0, 93.0, 101.0, 199.0, 5.0]),
    row("Orin", "TensorRT DiT", [6.0, 95.0, 72.0, 173.0, 5.8]),
];

/// The table's device that a GPU is, which calls itself so.
pub fn device(gpu: &str) -> Option<&'static str> {
    let gpu = gpu.to_lowercase();
    TABLE.iter().map(|row| row.device).find(|device| gpu.contains(&device.to_lowercase()))
}

/// The rows for a GPU that calls itself so; those of the H100 where it is none of the table's.
pub fn rows_for(gpu: &str) -> Vec<Published> {
    let device = device(gpu).unwrap_or("H100");
    TABLE.into_iter().filter(|row| row.device == device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_shown_its_own_rows_and_any_other_those_of_the_h100() {
        let devices = |gpu: &str| rows_for(gpu).iter().map(|row| row.device).collect::<Vec<_>>();
        assert_eq!(devices("NVIDIA GeForce RTX 5090"), ["RTX 5090"; 3]);
        assert_eq!(devices("Orin (nvgpu)"), ["Orin"; 3]);
        assert_eq!(devices("NVIDIA A100"), ["H100"; 3]);
        assert_eq!(rows_for("").len(), 3);
    }

    #[test]
    fn the_parts_of_a_row_add_up_to_the_whole_within_rounding() {
        for row in TABLE {
            let parts = row.data_processing + row.backbone + row.action_head;
            assert!((parts - row.end_to_end).abs() <= 2.0, "{row:?}");
            assert!((1000.0 / row.end_to_end / row.hz - 1.0).abs() < 0.02, "{row:?}");
        }
    }
}
