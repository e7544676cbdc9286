//! Builds an engine from an ONNX file and runs it: queued kernel by kernel, and as a CUDA graph.
//!
//! ```text
//! tensorrt_smoke MODEL.onnx [--precision fp32|fp16|bf16|int8|strongly_typed] [--level 0..5] [--shape INPUT=1x50x128]...
//!                [--iterations 100] [--plan FILE] [--timing-cache FILE] [--inspect FILE]
//! ```
//!
//! Needs an NVIDIA GPU and TensorRT (folder in TENSORRT_LIB, or where the system's loader finds it), neither Python nor
//! libtorch nor a CUDA toolkit. Inputs are seeded noise, so that two precisions can be compared.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use cudarc::driver::{CudaStream, sys};
use groot_policy::atomic_file::write_atomically;
use groot_policy::engine::Precision;
use groot_policy::tensorrt::{
    BuildOptions, BuildProgress, Builder, CapturedContext, Context, DataType, Device, DeviceBuffer, Engine,
    Launch, Library, LoadOptions, Profile, Runtime, ShapeRange,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[derive(Parser)]
struct Arguments {
    onnx: PathBuf,
    #[arg(long, default_value = "fp16")]
    precision: Precision,
    /// Builder optimisation level; TensorRT's default if absent.
    #[arg(long)]
    level: Option<u8>,
    /// Shape of an input with free dimensions, such as `context=1x250x2048`.
    #[arg(long, value_parser = parse_shape)]
    shape: Vec<(String, Vec<i64>)>,
    #[arg(long, default_value_t = 100)]
    iterations: usize,
    /// Keep the plan in this file, or take it from there if it exists.
    #[arg(long)]
    plan: Option<PathBuf>,
    #[arg(long)]
    timing_cache: Option<PathBuf>,
    /// Write what the engine inspector says to this file.
    #[arg(long)]
    inspect: Option<PathBuf>,
}

fn parse_shape(text: &str) -> Result<(String, Vec<i64>), String> {
    let (name, shape) = text.split_once('=').ok_or("expected INPUT=1x2x3")?;
    let shape = shape.split('x').map(|extent| extent.parse().map_err(|_| format!("no number: {extent}")));
    Ok((name.to_owned(), shape.collect::<Result<_, _>>()?))
}

fn main() -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let library = Library::load(&LoadOptions::from_env())?;
    let device = Device::new(0)?;
    println!(
        "TensorRT {} (shim for {}), {} (compute capability {}, {} GiB, driver's CUDA {}.{})",
        library.version(),
        library.header_version(),
        device.name(),
        device.compute_capability(),
        device.total_memory() >> 30,
        device.driver_cuda().0,
        device.driver_cuda().1
    );
    let runtime = Runtime::new(&library, &device)?;
    let engine = match &arguments.plan {
        Some(path) if path.exists() => runtime.deserialise(&std::fs::read(path)?)?,
        _ => build(&library, &device, &runtime, &arguments)?,
    };
    println!(
        "engine: {} layers, {} profile(s), {:.1} MiB for a context",
        engine.layers(),
        engine.profiles(),
        engine.context_memory() as f64 / (1 << 20) as f64
    );
    if let Some(path) = &arguments.inspect {
        write_atomically(path, engine.inspect()?.as_bytes())?;
    }
    run(&device, &engine, &arguments)
}

fn build(
    library: &Arc<Library>,
    device: &Device,
    runtime: &Runtime,
    arguments: &Arguments,
) -> Result<Engine> {
    let mut builder = Builder::new(library, device, arguments.precision)?;
    builder.parse(&arguments.onnx)?;
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    builder.layers().into_iter().for_each(|layer| *kinds.entry(layer.kind).or_default() += 1);
    println!("network: {kinds:?}");
    let mut profile = Profile::default();
    for input in builder.tensors().iter().filter(|tensor| tensor.is_input && tensor.is_dynamic()) {
        let Some((_, shape)) = arguments.shape.iter().find(|(name, _)| *name == input.name) else {
            bail!(
                "input {:?} has the shape {:?}: give it with --shape {}=...",
                input.name,
                input.shape,
                input.name
            );
        };
        profile = profile.with(&input.name, ShapeRange::fixed(shape.clone()));
    }
    let mut options = BuildOptions::new(arguments.precision);
    options.optimisation_level = arguments.level;
    options.timing_cache = arguments.timing_cache.clone();
    options.detailed_profiling = arguments.inspect.is_some();
    if !profile.0.is_empty() {
        options.profiles.push(profile);
    }
    options.progress = Some(Arc::new(|progress| {
        if let BuildProgress::Started { phase, steps, .. } = progress {
            eprintln!("{phase} ({steps} steps)");
        }
        true
    }));
    let (plan, report) = builder.build(options)?;
    println!("built in {:.1} s: {report:?}", report.duration.as_secs_f64());
    if let Some(path) = &arguments.plan {
        write_atomically(path, &plan)?;
    }
    Ok(runtime.deserialise(&plan)?)
}

fn run(device: &Device, engine: &Engine, arguments: &Arguments) -> Result<()> {
    let stream = device.new_stream()?;
    let mut context = Context::new(engine)?;
    for (input, shape) in &arguments.shape {
        context.set_shape(input, shape)?;
    }
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut buffers: BTreeMap<String, Arc<DeviceBuffer>> = BTreeMap::new();
    for tensor in engine.tensors() {
        let buffer = Arc::new(device.allocate(context.bytes(&tensor.name)?)?);
        println!(
            "{} {:?}: {} {:?}, {}",
            if tensor.is_input { "input" } else { "output" },
            tensor.name,
            tensor.data_type,
            context.shape(&tensor.name)?,
            engine.format(&tensor.name)?
        );
        if tensor.is_input {
            buffer.upload(&noise(tensor.data_type, buffer.bytes(), &mut random)?, &stream)?;
        }
        context.bind(&tensor.name, Arc::clone(&buffer))?;
        buffers.insert(tensor.name.clone(), buffer);
    }
    context.enqueue(&stream)?;
    stream.synchronize()?;
    let plain = outputs(engine, &buffers, &stream)?;
    for (name, bytes) in &plain {
        print_values(engine.tensor(name)?.data_type, name, bytes);
    }
    time("enqueue", arguments.iterations, &stream, || Ok(context.enqueue(&stream)?))?;

    let mut captured = CapturedContext::new(context);
    let launches = [captured.run(&stream)?, captured.run(&stream)?];
    println!("first run: {:?}, second: {:?}", launches[0], launches[1]);
    if let Some(reason) = captured.fallback() {
        println!("no CUDA graph: {reason}");
    }
    stream.synchronize()?;
    let graph = outputs(engine, &buffers, &stream)?;
    println!("the graph's outputs are {}", if graph == plain { "the same to the bit" } else { "DIFFERENT" });
    time("CUDA graph", arguments.iterations, &stream, || {
        captured.run(&stream).map(|_| ()).map_err(Into::into)
    })?;

    // The default stream, as libtorch's current one usually is: launching works there, capturing would not.
    // SAFETY: null is the default stream.
    let default = unsafe { device.external_stream(std::ptr::null_mut()) };
    println!("on the default stream: {:?}", captured.run(&default)?);
    default.synchronize()?;
    if launches[1] == Launch::Graph && outputs(engine, &buffers, &stream)? != plain {
        bail!("the outputs on the default stream differ");
    }
    Ok(())
}

/// Mean and median of the runs, by events on the device, and what the host needs to queue one.
fn time(
    what: &str,
    iterations: usize,
    stream: &CudaStream,
    mut run: impl FnMut() -> Result<()>,
) -> Result<()> {
    for _ in 0..10 {
        run()?;
    }
    stream.synchronize()?;
    let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let began = Instant::now();
    let mut events = vec![stream.record_event(flags)?];
    for _ in 0..iterations {
        run()?;
        events.push(stream.record_event(flags)?);
    }
    let queued = began.elapsed();
    stream.synchronize()?;
    let mut times =
        events.windows(2).map(|pair| pair[0].elapsed_ms(&pair[1])).collect::<Result<Vec<_>, _>>()?;
    times.sort_by(f32::total_cmp);
    let Some(&median) = times.get(times.len() / 2) else {
        bail!("--iterations must be at least 1");
    };
    println!(
        "{what}: median {median:.4} ms, mean {:.4} ms on the device; {:.4} ms of the host to queue",
        times.iter().sum::<f32>() / times.len() as f32,
        queued.as_secs_f64() * 1e3 / iterations as f64
    );
    Ok(())
}

fn outputs(
    engine: &Engine,
    buffers: &BTreeMap<String, Arc<DeviceBuffer>>,
    stream: &CudaStream,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut all = BTreeMap::new();
    for tensor in engine.tensors().iter().filter(|tensor| !tensor.is_input) {
        let buffer = buffers.get(&tensor.name).context("an output without memory")?;
        let mut bytes = vec![0; buffer.bytes()];
        buffer.download(&mut bytes, stream)?;
        all.insert(tensor.name.clone(), bytes);
    }
    Ok(all)
}

/// Values in [-1, 1) of a floating-point type, ones of any other.
fn noise(data_type: DataType, bytes: usize, random: &mut ChaCha8Rng) -> Result<Vec<u8>> {
    let mut value = || random.random_range(-1.0_f32..1.0);
    Ok(match data_type {
        DataType::F32 => (0..bytes / 4).flat_map(|_| value().to_le_bytes()).collect(),
        DataType::F16 => (0..bytes / 2).flat_map(|_| to_f16(value()).to_le_bytes()).collect(),
        // bf16 is the upper half of f32.
        DataType::Bf16 => {
            (0..bytes / 2).flat_map(|_| ((value().to_bits() >> 16) as u16).to_le_bytes()).collect()
        }
        DataType::Bool | DataType::I8 | DataType::U8 => vec![1; bytes],
        DataType::I32 => (0..bytes / 4).flat_map(|_| 1_i32.to_le_bytes()).collect(),
        DataType::I64 => (0..bytes / 8).flat_map(|_| 1_i64.to_le_bytes()).collect(),
        other => bail!("inputs of type {other} are not made here"),
    })
}

/// f16 of a value in (-1, 1), cut off rather than rounded; what is too small becomes zero.
fn to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, exponent, mantissa) = ((bits >> 16) & 0x8000, (bits >> 23) & 0xff, bits & 0x7f_ffff);
    let half = if exponent <= 127 - 15 { sign } else { sign | ((exponent - 112) << 10) | (mantissa >> 13) };
    half as u16
}

fn print_values(data_type: DataType, name: &str, bytes: &[u8]) {
    if data_type != DataType::F32 {
        println!("{name}: {} bytes of {data_type}", bytes.len());
        return;
    }
    let values: Vec<f32> =
        bytes.chunks_exact(4).filter_map(|b| b.try_into().map(f32::from_le_bytes).ok()).collect();
    let count = values.len().max(1) as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
    let square = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / count;
    let bad = values.iter().filter(|v| !v.is_finite()).count();
    println!(
        "{name}: first {:?}, mean {mean:.6}, root mean square {:.6}, {bad} not finite",
        &values[..values.len().min(5)],
        square.sqrt()
    );
}
