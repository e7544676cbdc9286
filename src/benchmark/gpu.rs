//! The state of the GPU while it is measured, as `nvidia-smi` says.

use std::{
    io::Read,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::evaluation::Gpu;

/// What is asked for, in the order of [`parse`].
const QUERY: &str = "name,driver_version,compute_cap,memory.total,clocks.sm,clocks.mem,pstate,power.draw,power.limit,\
                     temperature.gpu";
/// How long an answer is waited for. It comes in some 50 ms; a driver in trouble never answers.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer that is read.
const MAX_ANSWER: u64 = 1 << 16;

/// A question that is being answered. The GPU can be kept at work meanwhile, so that the clocks are those under load.
pub struct Question {
    child: Child,
    asked: Instant,
}

impl Question {
    /// Asks for the GPU with this number, as CUDA counts them. None where there is no `nvidia-smi`.
    pub fn ask(ordinal: usize) -> Option<Self> {
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
        // nvidia-smi does not heed the variable, and takes numbers and UUIDs alike.
        let chosen = visible.split(',').nth(ordinal).map(str::trim).filter(|id| !id.is_empty());
        let id = chosen.map_or_else(|| ordinal.to_string(), str::to_owned);
        let child = Command::new("nvidia-smi")
            .args([
                format!("--query-gpu={QUERY}"),
                "--format=csv,noheader,nounits".into(),
                format!("--id={id}"),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        Some(Self { child, asked: Instant::now() })
    }

    /// Whether [`answer`](Self::answer) would wait.
    pub fn is_open(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None)) && self.asked.elapsed() < PATIENCE
    }

    /// The answer; None where there is no usable one.
    pub fn answer(mut self) -> Option<Gpu> {
        while self.is_open() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let ended = matches!(self.child.try_wait(), Ok(Some(status)) if status.success());
        if !ended {
            // It ended by itself or is told to; nothing more can be done about it.
            let _ = self.child.kill();
            let _ = self.child.wait();
            return None;
        }
        let mut text = String::new();
        self.child.stdout.take()?.take(MAX_ANSWER).read_to_string(&mut text).ok()?;
        parse(text.lines().next()?)
    }
}

/// What the driver says of a GPU where there is no `nvidia-smi`: no clocks.
pub fn by_driver(ordinal: usize) -> Option<Gpu> {
    #[cfg(feature = "tensorrt")]
    {
        let device = crate::tensorrt::Device::new(ordinal).ok()?;
        Some(Gpu {
            name: device.name().to_owned(),
            compute_capability: device.compute_capability().to_string(),
            memory_bytes: Some(device.total_memory() as u64),
            ..Gpu::default()
        })
    }
    #[cfg(not(feature = "tensorrt"))]
    {
        // Nothing here asks the driver.
        let _ = ordinal;
        None
    }
}

/// One line of the answer. What the GPU does not tell ("[N/A]" on a Jetson, for instance) stays empty.
fn parse(line: &str) -> Option<Gpu> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    let text = |i: usize| {
        let text = fields.get(i).copied().unwrap_or_default();
        if text.starts_with('[') { String::new() } else { text.to_owned() }
    };
    let number = |i: usize| text(i).parse::<f64>().ok().filter(|value| *value >= 0.0 && *value < 1e12);
    let whole = |i: usize| number(i).map(|value| value.round() as u64);
    let name = text(0);
    if name.is_empty() {
        return None;
    }
    Some(Gpu {
        name,
        driver: text(1),
        compute_capability: text(2),
        memory_bytes: whole(3).map(|mib| mib << 20),
        sm_mhz: whole(4),
        memory_mhz: whole(5),
        power_state: text(6),
        power_draw_w: whole(7),
        power_limit_w: whole(8),
        temperature_c: whole(9),
        ..Gpu::default()
    })
}

/// Clocks, power state and power of a GPU in one line.
pub fn state(gpu: &Gpu) -> String {
    let known = |value: Option<u64>, unit: &str| value.map(|value| format!("{value} {unit}"));
    let parts = [
        known(gpu.sm_mhz, "MHz").map(|clock| format!("SM {clock}")),
        known(gpu.memory_mhz, "MHz").map(|clock| format!("memory {clock}")),
        Some(gpu.power_state.clone()).filter(|state| !state.is_empty()),
        known(gpu.power_draw_w, "W"),
        known(gpu.temperature_c, "degrees"),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_field_by_field() {
        let gpu = parse("NVIDIA H100 80GB HBM3, 580.65.06, 9.0, 81559, 1980, 2619, P0, 412.36, 700.00, 41")
            .unwrap();
        assert_eq!((gpu.name.as_str(), gpu.driver.as_str()), ("NVIDIA H100 80GB HBM3", "580.65.06"));
        assert_eq!((gpu.sm_mhz, gpu.memory_mhz, gpu.power_draw_w), (Some(1980), Some(2619), Some(412)));
        assert_eq!(state(&gpu), "SM 1980 MHz, memory 2619 MHz, P0, 412 W, 41 degrees");
    }

    #[test]
    fn what_a_jetson_does_not_tell_stays_empty() {
        let gpu =
            parse("Orin (nvgpu), 540.4.0, 8.7, [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A]").unwrap();
        assert_eq!((gpu.memory_bytes, gpu.sm_mhz, gpu.power_state.as_str()), (None, None, ""));
        assert_eq!(state(&gpu), "");
        assert_eq!(parse(""), None);
        assert_eq!(parse("[N/A]"), None);
    }
}
