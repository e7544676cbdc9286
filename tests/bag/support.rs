//! The bags of the Python side, and what is in them.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use groot_policy::recording::bag::{Bag, RawMessage};

/// What a bag holds: topic, type, log time, CRC-32 of the bytes.
pub type Listed = (String, String, i64, u32);

/// Runs `bags.py`; its output.
pub fn python(arguments: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var_os("GROOT_TEST_PYTHON").map_or_else(|| root.join(".venv/bin/python"), PathBuf::from);
    let output = Command::new(&python)
        .arg(root.join("tests/reference/bags.py"))
        .args(arguments)
        .output()
        .unwrap_or_else(|error| {
            panic!("{}: {error}; run `make setup`, or name a Python that has rosbags and mcap in GROOT_TEST_PYTHON", python.display())
        });
    assert!(output.status.success(), "bags.py: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The folder with the bags; made once.
pub fn bags() -> &'static Path {
    static BAGS: OnceLock<PathBuf> = OnceLock::new();
    BAGS.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bags_{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        python(&["make", folder.to_str().unwrap()]);
        folder
    })
}

/// What is in every bag but the empty ones, sorted.
pub fn expected() -> Vec<Listed> {
    let text = std::fs::read(bags().join("messages.json")).unwrap();
    let mut listed: Vec<Listed> = serde_json::from_slice(&text).unwrap();
    listed.sort_by(order);
    listed
}

/// By time, then anything that is the same for the same messages.
pub fn order(a: &Listed, b: &Listed) -> std::cmp::Ordering {
    (a.2, &a.0, a.3).cmp(&(b.2, &b.0, b.3))
}

pub fn listed(message: &RawMessage) -> Listed {
    let crc = crc32fast::hash(&message.data);
    (message.topic().to_owned(), message.channel.kind.clone(), message.log_time.0, crc)
}

/// All messages of a bag, in the order that the reader gives.
pub fn read(bag: &Bag) -> Vec<Listed> {
    bag.messages().map(|message| listed(&message.unwrap())).collect()
}

/// A copy of a bag's file or folder for a test to damage.
pub fn copy(name: &str, folder: &Path) -> PathBuf {
    let (from, to) = (bags().join(name), folder.join(name));
    if from.is_dir() {
        std::fs::create_dir(&to).unwrap();
        for entry in std::fs::read_dir(&from).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    } else {
        std::fs::copy(&from, &to).unwrap();
    }
    to
}
