//! The machine that measured.

use std::{collections::BTreeMap, fs, io::Read, path::Path};

use serde::{Deserialize, Serialize};

/// What decides a machine's speed, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// Board or product, where the system says (Jetsons do); else empty.
    pub board: String,
    /// Distribution.
    pub os: String,
    /// Kernel release.
    pub kernel: String,
    /// Processor.
    pub cpu: Cpu,
    /// Main memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Accelerators, given by who measured.
    pub gpus: Vec<Gpu>,
    /// Power mode of the whole machine: a Jetson's `nvpmodel`, for instance. Given by who measured.
    pub power_mode: String,
    /// Versions of libraries: `libtorch`, `TensorRT`, `CUDA`. Given by who measured.
    pub software: BTreeMap<String, String>,
}

/// A processor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// Model name.
    pub model: String,
    /// Instruction set: `x86_64`.
    pub architecture: String,
    /// Logical cores that the system lists.
    pub cores: Option<u64>,
    /// Logical cores that this process may use: fewer in a container.
    pub usable_cores: Option<u64>,
    /// Frequency governor: `performance`, `powersave`.
    pub governor: String,
    /// Highest clock in MHz.
    pub max_mhz: Option<u64>,
}

/// An accelerator.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gpu {
    /// Product name.
    pub name: String,
    /// Driver version.
    pub driver: String,
    /// CUDA version of the runtime.
    pub cuda: String,
    /// Compute capability: `8.7`.
    pub compute_capability: String,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Streaming multiprocessors' clock in MHz, while measuring.
    pub sm_mhz: Option<u64>,
    /// Memory clock in MHz, while measuring.
    pub memory_mhz: Option<u64>,
    /// Performance state: `P0`.
    pub power_state: String,
    /// Power in watts, while measuring.
    pub power_draw_w: Option<u64>,
    /// Power limit in watts.
    pub power_limit_w: Option<u64>,
    /// Degrees Celsius, while measuring.
    pub temperature_c: Option<u64>,
}

impl Machine {
    /// What Linux says about this machine; the accelerators, the power mode and the libraries are for the caller to add.
    /// What cannot be read stays empty.
    pub fn of_this_system() -> Self {
        let mut machine = Self::from_root(Path::new("/"));
        machine.cpu.usable_cores = std::thread::available_parallelism().ok().map(|cores| cores.get() as u64);
        machine
    }

    /// As [`of_this_system`](Self::of_this_system), from a folder that holds `proc`, `sys` and `etc`.
    fn from_root(root: &Path) -> Self {
        let read = |path: &str| read_start(&root.join(path));
        let cpuinfo = read("proc/cpuinfo");
        let model = field(&cpuinfo, "model name").or_else(|| field(&cpuinfo, "Model")).unwrap_or_else(|| {
            let part = field(&cpuinfo, "CPU part").map(|part| format!("ARM part {part}"));
            part.unwrap_or_default()
        });
        let cores = cpuinfo.lines().filter(|line| key(line) == Some("processor")).count() as u64;
        let governor = read("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        let max_khz = read("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq");
        let memory = field(&read("proc/meminfo"), "MemTotal");
        let kib = memory.and_then(|memory| memory.split_whitespace().next()?.parse::<u64>().ok());
        let os = read("etc/os-release");
        let os = os.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        Self {
            board: read("proc/device-tree/model").trim_matches(['\0', '\n', ' ']).to_owned(),
            os: os.unwrap_or_default().trim_matches('"').to_owned(),
            kernel: read("proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: Cpu {
                model,
                architecture: std::env::consts::ARCH.to_owned(),
                cores: (cores > 0).then_some(cores),
                usable_cores: None,
                governor: governor.trim().to_owned(),
                max_mhz: max_khz.trim().parse::<u64>().ok().map(|khz| khz / 1000),
            },
            memory_bytes: kib.and_then(|kib| kib.checked_mul(1024)),
            ..Self::default()
        }
    }
}

/// The beginning of a small system file as text; empty where it cannot be read.
fn read_start(path: &Path) -> String {
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(1 << 20).read_to_end(&mut bytes));
    if read.is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn key(line: &str) -> Option<&str> {
    line.split_once(':').map(|(key, _)| key.trim())
}

/// The first value of `key: value` lines that is not empty.
fn field(text: &str, name: &str) -> Option<String> {
    let values = text.lines().filter(|line| key(line) == Some(name));
    let mut values = values.filter_map(|line| line.split_once(':').map(|(_, value)| value.trim()));
    values.find(|value| !value.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn an_x86_machine_is_read_from_its_system_files() {
        let cpuinfo = "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\n\nprocessor\t: 1\nmodel name\t: Some CPU @ 3 GHz\n";
        let root = root(&[
            ("proc/cpuinfo", cpuinfo),
            ("proc/meminfo", "MemTotal:       16000 kB\nMemFree: 1 kB\n"),
            ("proc/sys/kernel/osrelease", "6.1.0\n"),
            ("etc/os-release", "NAME=\"D\"\nPRETTY_NAME=\"Debian 12\"\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "4100000\n"),
        ]);
        let machine = Machine::from_root(root.path());
        assert_eq!(machine.cpu.model, "Some CPU @ 3 GHz");
        assert_eq!((machine.cpu.cores, machine.cpu.max_mhz), (Some(2), Some(4100)));
        assert_eq!(machine.cpu.governor, "performance");
        assert_eq!((machine.os.as_str(), machine.kernel.as_str()), ("Debian 12", "6.1.0"));
        assert_eq!((machine.memory_bytes, machine.board.as_str()), (Some(16_384_000), ""));
    }

    #[test]
    fn a_jetson_names_its_board_and_an_arm_part() {
        let root = root(&[
            ("proc/cpuinfo", "processor\t: 0\nCPU part\t: 0xd42\n"),
            ("proc/device-tree/model", "NVIDIA Jetson AGX Orin\0"),
        ]);
        let machine = Machine::from_root(root.path());
        assert_eq!(machine.board, "NVIDIA Jetson AGX Orin");
        assert_eq!((machine.cpu.model.as_str(), machine.cpu.cores), ("ARM part 0xd42", Some(1)));
    }

    #[test]
    fn what_cannot_be_read_stays_empty() {
        let machine = Machine::from_root(&root(&[]).path().join("nowhere"));
        assert_eq!((machine.cpu.model.as_str(), machine.cpu.cores, machine.memory_bytes), ("", None, None));
    }

    #[test]
    fn this_machine_has_cores_and_memory() {
        let machine = Machine::of_this_system();
        assert!(machine.cpu.cores.unwrap() >= 1 && machine.cpu.usable_cores.unwrap() >= 1);
        assert!(machine.memory_bytes.unwrap() > 1 << 20);
    }
}
