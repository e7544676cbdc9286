//! What NVRTC makes of the kernels for each generation of GPUs: needs NVRTC and no GPU.

use std::collections::HashMap;

use super::gpu::Gpu;
use super::kernels;
use super::nvrtc::{Nvrtc, Target};
use super::skinny::{self, MOST_TILES, Skinny};
use super::source::Source;
use super::warpgroup::{self, Warpgroup};
use crate::engine::ComputeCapability;

/// Generations, and kilobytes of shared memory that a block can have.
const GENERATIONS: [((u32, u32), u32); 5] =
    [((8, 0), 163), ((8, 7), 163), ((8, 9), 99), ((9, 0), 227), ((10, 0), 227)];
/// Registers of a multiprocessor.
const REGISTERS: usize = 65_536;
/// Bytes of local memory that the compiler may use where it rather keeps to fewer registers: an array in local memory, or
/// sums that do not fit, would be hundreds.
const MOST_LOCAL: usize = 32;

/// What the assembler says of a kernel.
#[derive(Debug, Default, Clone, Copy)]
struct Usage {
    registers: usize,
    local: usize,
    shared: usize,
}

/// The number before `unit`, as in `Used 39 registers, used 1 barriers, 128 bytes smem`.
fn number_before(line: &str, unit: &str) -> Option<usize> {
    line.split(unit)
        .next()
        .filter(|before| before.len() < line.len())?
        .split_whitespace()
        .last()?
        .parse()
        .ok()
}

/// By kernel, from the messages of `--ptxas-options=-v`.
fn usages(log: &str) -> HashMap<String, Usage> {
    let mut all: HashMap<String, Usage> = HashMap::new();
    let mut kernel = None;
    for line in log.lines() {
        if let Some((_, name)) = line.split_once("Compiling entry function '") {
            kernel = name.split('\'').next().map(str::to_owned);
        }
        let Some(name) = &kernel else { continue };
        let usage = all.entry(name.clone()).or_default();
        usage.registers = number_before(line, " registers").unwrap_or(usage.registers);
        usage.shared = number_before(line, " bytes smem").unwrap_or(usage.shared);
        for unit in [" bytes stack frame", " bytes spill stores", " bytes spill loads"] {
            usage.local = usage.local.max(number_before(line, unit).unwrap_or(0));
        }
    }
    all
}

/// Each shape with as many tokens as it takes on this GPU, which need most registers; half of them in clusters, where there
/// are clusters.
fn products(gpu: &Gpu) -> Vec<(Skinny, usize)> {
    let largest = |shape: Skinny| {
        (1..=MOST_TILES).rev().find(|&tiles| shape.fits(gpu, tiles)).map(|tiles| (shape, tiles))
    };
    let chosen = Skinny::ALL.into_iter().enumerate().map(|(i, shape)| match i % 2 {
        1 if gpu.overlaps() => shape.in_clusters(Skinny::CLUSTERS[i / 2 % Skinny::CLUSTERS.len()]),
        _ => shape,
    });
    chosen.filter_map(largest).collect()
}

#[test]
fn every_kernel_compiles_for_each_generation_and_stays_in_its_registers() {
    use rayon::prelude::*;
    let nvrtc = match Nvrtc::load() {
        Ok(nvrtc) => nvrtc,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let mut work: Vec<(Target, u32, Source)> = Vec::new();
    for ((major, minor), kilobytes) in GENERATIONS {
        let capability = ComputeCapability { major, minor };
        let target = nvrtc.target(capability);
        if target != Target::Machine(capability) {
            eprintln!("skipped {capability}: not known to NVRTC {:?}", nvrtc.version());
            continue;
        }
        let gpu = Gpu::emulated_with(capability, kilobytes << 10);
        let products = products(&gpu);
        assert!(products.len() >= Skinny::ALL.len() / 2, "{target}: {} products", products.len());
        if (major, minor) == (9, 0) {
            let target = Target::Specific(capability);
            for tiles in [1, 3, 7, 8] {
                let all = warpgroup::all().into_iter().filter(|shape| shape.fits(&gpu, tiles));
                let all: Vec<Warpgroup> = all.collect();
                work.extend(
                    all.chunks(18).map(|all| (target, kilobytes << 10, warpgroup::source(all, tiles))),
                );
            }
        }
        let all = kernels::sources().into_iter().chain(products.chunks(4).map(skinny::source));
        work.extend(all.map(|source| (target, kilobytes << 10, source)));
    }
    assert!(!work.is_empty(), "NVRTC {:?} knows none of the generations", nvrtc.version());
    work.par_iter().for_each(|(target, shared, source)| {
        let result = nvrtc.compile_with(source.name, &source.cuda(), *target, &["--ptxas-options=-v"]);
        let (code, log) = result.unwrap();
        assert!(code.len() > 1000, "{} for {target}: {} bytes", source.name, code.len());
        let usages = usages(&log);
        let kernels = source.cuda().matches("KERNEL(").count();
        assert!(!usages.is_empty() && usages.len() <= kernels, "{} for {target}: {log}", source.name);
        for (kernel, usage) in usages {
            let what = format!("{kernel} for {target}: {usage:?}");
            // Norms of the widest rows have 1024 threads.
            let threads = match source.name {
                "norm.cu" if ["residual_norm_wide", "backbone_norm"].contains(&kernel.as_str()) => 1024,
                "norm.cu" => 512,
                "gemm.cu" => gemm_threads(&kernel),
                "gemm_warpgroup.cu" => warpgroup_threads(&kernel),
                "sequence_attention.cu" => attention_threads(&kernel),
                _ => 256,
            };
            assert!(
                usage.registers > 0 && usage.registers.next_multiple_of(8) * threads <= REGISTERS,
                "{what}"
            );
            assert!(usage.local <= MOST_LOCAL, "{what}");
            assert!(usage.shared <= *shared as usize, "{what}");
        }
    });
}

/// Of a kernel's name.
fn gemm_threads(kernel: &str) -> usize {
    let numbers: Vec<usize> = kernel.split('_').filter_map(|part| part.parse().ok()).collect();
    32 * (numbers[1] * numbers[2] + numbers[5])
}

/// Of a kernel's name.
fn warpgroup_threads(kernel: &str) -> usize {
    let groups = kernel.split('_').find_map(|part| part.parse::<usize>().ok());
    groups.unwrap() * 128 + 32
}

/// Of a kernel's name.
fn attention_threads(kernel: &str) -> usize {
    let warps: usize = kernel.rsplit('_').next().and_then(|warps| warps.parse().ok()).unwrap();
    128 * warps
}

#[test]
fn code_for_later_generations_is_text_and_what_is_no_code_is_refused_with_the_reason() {
    let nvrtc = match Nvrtc::load() {
        Ok(nvrtc) => nvrtc,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let target = Target::Virtual(ComputeCapability { major: 9, minor: 0 });
    for source in kernels::sources() {
        let code = nvrtc.compile(source.name, &source.cuda(), target).unwrap();
        assert!(String::from_utf8_lossy(&code.0).contains(".target sm_90"), "{}", source.name);
        assert_eq!(code.0.last(), Some(&0), "{}", source.name);
    }
    let target = Target::Machine(ComputeCapability { major: 9, minor: 0 });
    let error = nvrtc.compile("broken.cu", "not C++", target).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("broken.cu") && error.contains("sm_90") && error.contains("error"), "{error}");
}
