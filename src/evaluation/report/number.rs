//! Figures as text.

/// A latency in milliseconds, to three or four digits.
pub(crate) fn milliseconds(value: f64) -> String {
    match value {
        _ if value < 9.995 => format!("{value:.2}"),
        _ if value < 999.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// An error: plain where it is of everyday size, with an exponent where it is tiny or huge.
pub(crate) fn error(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if !(0.001..10_000.0).contains(&size) => format!("{value:.2e}"),
        size if size < 0.01 => format!("{value:.5}"),
        size if size < 1.0 => format!("{value:.4}"),
        size if size < 100.0 => format!("{value:.3}"),
        _ => format!("{value:.1}"),
    }
}

/// A cosine to six decimals; nearer to one, what is missing.
pub(crate) fn cosine(value: f64) -> String {
    let missing = 1.0 - value;
    if value == 1.0 {
        "1".to_owned()
    } else if missing > 0.0 && missing < 5e-7 {
        format!("1-{missing:.0e}")
    } else {
        format!("{value:.6}")
    }
}

/// Ticks per second.
pub(crate) fn rate(value: f64) -> String {
    if value < 99.95 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// How many times.
pub(crate) fn ratio(value: f64) -> String {
    match value {
        _ if value < 0.01 => format!("{value:.1e}x"),
        _ if value < 9.995 => format!("{value:.2}x"),
        _ if value < 9999.5 => format!("{value:.0}x"),
        _ => format!("{value:.1e}x"),
    }
}

/// A whole number with its thousands parted.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    let groups: Vec<String> = groups.map(|group| String::from_utf8_lossy(group).into_owned()).collect();
    groups.join(" ")
}

/// Bytes as GiB or MiB.
pub(crate) fn bytes(value: u64) -> String {
    let mib = value as f64 / (1u64 << 20) as f64;
    if mib >= 1024.0 { format!("{:.1} GiB", mib / 1024.0) } else { format!("{mib:.1} MiB") }
}

/// Text from outside for a terminal or a page: control characters, and those that turn the direction of writing or cannot
/// be seen, are shown as a replacement character.
pub(crate) fn printable(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
            || matches!(c, '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}' | '\u{e0000}'..='\u{e007f}')
    };
    text.chars().map(|c| if hidden(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_keep_what_matters() {
        assert_eq!([1.234, 12.34, 123.46, 1234.5].map(milliseconds), ["1.23", "12.3", "123.5", "1234"]);
        assert_eq!(
            [0.0, 2e-5, 0.00118, 0.087, 3.764, 1e6].map(error),
            ["0", "2.00e-5", "0.00118", "0.0870", "3.764", "1.00e6"]
        );
        assert_eq!([1.0, 0.999978, -0.5, 0.0].map(cosine), ["1", "0.999978", "-0.500000", "0.000000"]);
        assert_eq!(cosine(1.0 - 3e-8), "1-3e-8");
        assert_eq!([1.42, 0.001, 12.0].map(ratio), ["1.42x", "1.0e-3x", "12x"]);
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1 000", "1 234 567"]);
        assert_eq!([rate(4.237), rate(512.3)], ["4.2", "512"]);
        assert_eq!([bytes(64 << 30), bytes(1 << 19)], ["64.0 GiB", "0.5 MiB"]);
    }

    #[test]
    fn what_a_terminal_would_obey_is_not_printed() {
        assert_eq!(printable("a\x1b[31m\u{202e}b\n\u{200b}ä"), "a\u{fffd}[31m\u{fffd}b\u{fffd}\u{fffd}ä");
    }
}
