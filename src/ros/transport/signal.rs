//! Being asked to stop.

use tokio::signal::unix::{SignalKind, signal};

/// Completes when the process is asked to stop: Ctrl-C (`SIGINT`), or `SIGTERM` from `ros2 launch`, systemd, docker.
///
/// # Errors
/// The signal handlers cannot be installed.
pub async fn shutdown_signal() -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
