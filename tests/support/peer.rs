//! The peer of `tests/reference/dds_peer.py`, in a process of its own.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::Value;

/// A DDS participant that shares no code with the package.
pub struct Peer {
    process: Child,
    /// Taken at the end: closing it ends the process.
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts the peer in a DDS domain.
    pub fn start(domain: u16) -> Self {
        Self::start_on_bad_network(domain, 0)
    }

    /// Starts a peer that loses this many of a thousand packets that it sends.
    pub fn start_on_bad_network(domain: u16, lost: u16) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/dds_peer.py");
        let mut process = Command::new(python())
            .arg(script)
            .args([domain, lost].map(|number| number.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python starts");
        let commands = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().expect("its output is ours"));
        Self { process, commands, answers }
    }

    /// Sends a command and returns its answer. The script says which there are.
    pub fn ask(&mut self, command: Value) -> Value {
        let text: String = command.to_string().chars().take(200).collect();
        self.try_ask(command).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// Sends a command that may fail, and returns its answer or why there is none.
    pub fn try_ask(&mut self, command: Value) -> Result<Value, String> {
        let commands = self.commands.as_mut().expect("it has not ended");
        writeln!(commands, "{command}").expect("the peer listens");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the peer answers");
        let answer: Value =
            serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?} is no answer: {e}"));
        if answer["ok"] == true { Ok(answer) } else { Err(answer["error"].to_string()) }
    }

    /// Ends the process without its having said good-bye.
    pub fn kill(mut self) {
        self.process.kill().expect("it still runs");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.commands.take();
        if std::thread::panicking() {
            // It may be busy with what the test no longer waits for. An error means that it has ended.
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}

/// A Python that has the `cyclonedds` package.
fn python() -> PathBuf {
    let python = std::env::var_os("GROOT_TEST_PYTHON")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python"), PathBuf::from);
    let import = Command::new(&python).args(["-c", "import cyclonedds"]).output();
    let problem = match import {
        Ok(output) if output.status.success() => return python,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    panic!(
        "this test needs the Python package cyclonedds, and {} cannot import it: {problem}\n\
         Run `make setup`, or point GROOT_TEST_PYTHON to a Python that has it.",
        python.display()
    );
}
