//! Runs a GR00T N1.6 policy as a ROS 2 node.

use std::{
    fmt,
    io::IsTerminal,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use groot_policy::{
    memory,
    node::{
        arguments::{self, RosArguments},
        config::{NodeConfig, effective_yaml},
        policy::{policy_options, ready, run},
    },
    ros::{
        rosout,
        transport::{LOG_DIRECTIVES, NodeName, NodeOptions, RosNode, shutdown_signal},
    },
};
use tracing_subscriber::{
    EnvFilter,
    fmt::{format::Writer, time::FormatTime},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

#[cfg(feature = "tensorrt")]
use groot_policy::engine_builder::auto_build::load_policy;
/// Without TensorRT there is nothing to build.
#[cfg(not(feature = "tensorrt"))]
use groot_policy::model::policy::load_policy;

const HELP: &str = "\
Runs a GR00T N1.6 policy as a ROS 2 node.

Usage: policy_node [--ros-args] --params-file FILE [-p NAME:=VALUE]... [OPTIONS]

Options:
  --params-file FILE     ROS 2 parameter file; may be given several times, later files win
  -p NAME:=VALUE         one parameter; wins over the files
  -r __node:=NAME        name of the node [default: policy_node]
  -r __ns:=NAMESPACE     namespace of the node
  -r FROM:=TO            another name for a topic or service
  --log-level LEVEL      error, warn, info, debug, trace, or tracing directives [default: info]
  --print-parameters     print the parameters in force as YAML and stop
  -h, --help             print this
  -V, --version          print the version

All parameters, annotated: config/policy.yaml. The demo: config/demo.yaml.";

/// How long the end waits for the last lines of the log to be sent.
const LAST_LINES: Duration = Duration::from_millis(100);

/// Milliseconds since the start: what reads well on a terminal.
struct SinceStart(Instant);

impl FormatTime for SinceStart {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{:9.3}s", self.0.elapsed().as_secs_f64())
    }
}

fn main() -> ExitCode {
    let arguments = match arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error.to_string()),
    };
    let mut print_parameters = false;
    for argument in &arguments.rest {
        match argument.as_str() {
            "-h" | "--help" => {
                println!("{HELP}");
                return ExitCode::SUCCESS;
            }
            "-V" | "--version" => {
                println!("policy_node {}", env!("CARGO_PKG_VERSION"));
                return ExitCode::SUCCESS;
            }
            "--print-parameters" => print_parameters = true,
            other => return usage(&format!("unknown option {other:?}")),
        }
    }
    memory::keep_for_frames();
    match start(&arguments, print_parameters) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("policy_node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("policy_node: {problem}\n\n{HELP}");
    ExitCode::from(2)
}

fn start(arguments: &RosArguments, print_parameters: bool) -> anyhow::Result<()> {
    let options = NodeOptions {
        namespace: arguments.namespace.clone().unwrap_or_default(),
        remaps: arguments.remaps.clone(),
        ..NodeOptions::new(arguments.node_name.as_deref().unwrap_or("policy_node"))
    };
    let name = NodeName::new(&options.namespace, &options.name)?;
    let config = NodeConfig::load_for(&name.qualified(), &arguments.params_files, &arguments.parameters)?;
    if print_parameters {
        print!("{}", effective_yaml(&name.qualified(), &config));
        return Ok(());
    }
    let level = arguments.log_level.clone().or_else(|| std::env::var("RUST_LOG").ok());
    let filter = format!("{},{LOG_DIRECTIVES}", level.as_deref().unwrap_or("info"));
    let terminal = tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_timer(SinceStart(Instant::now()))
        .with_ansi(std::io::stdout().is_terminal());
    let (rosout_layer, rosout_queue) = rosout::layer();
    tracing_subscriber::registry()
        .with(EnvFilter::try_new(&filter).with_context(|| format!("log level {filter:?}"))?)
        .with(terminal)
        .with(rosout_layer)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let node = RosNode::new(&NodeOptions {
            domain_id: config.domain_id,
            use_sim_time: config.use_sim_time,
            ..options
        })?;
        // A node without its log on the network is worth more than none.
        let rosout =
            rosout_queue.publish(&node).inspect_err(|error| tracing::warn!("no /rosout: {error}")).ok();
        let stop = async {
            if let Err(error) = shutdown_signal().await {
                tracing::error!("cannot listen for signals: {error}");
                std::future::pending::<()>().await;
            }
        };
        let policy = policy_options(&config);
        let instruction = config.instruction.clone();
        let load = move || ready(load_policy(&policy)?, &instruction);
        let result = run(config, node.clone(), load, stop).await;
        if let Some(rosout) = rosout {
            rosout.flush(LAST_LINES).await;
        }
        node.shutdown().await;
        result
    });
    // A task that is still decoding an image must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(200));
    Ok(result?)
}
