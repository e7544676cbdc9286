//! YAML text to a tree that remembers its lines.
//!
//! The tree is built from the parser's events, not by deserialising: a problem deep in a file can then name its line, a
//! duplicate key or an alias is seen, and quoted text is told from unquoted text, which ROS reads differently.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};

/// Deepest nesting that is read; the deepest parameter lies at 7.
const MAX_DEPTH: usize = 24;

/// A node of the tree.
#[derive(Debug)]
pub(super) struct Node {
    /// Line of the node's beginning, counted from 1.
    pub line: usize,
    pub content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    /// Nothing, `~` or `null`.
    Null,
    Scalar {
        text: String,
        /// Whether the text may stand for something else than text.
        plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<(Key, Node)>),
}

#[derive(Debug)]
pub(super) struct Key {
    pub line: usize,
    pub name: String,
}

impl Content {
    pub fn noun(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Scalar { .. } => "a single value",
            Self::Sequence(_) => "a list",
            Self::Mapping(_) => "a mapping",
        }
    }
}

/// Why a text is no tree, and the line of it.
pub(super) struct SyntaxError {
    pub line: usize,
    pub message: String,
}

impl SyntaxError {
    fn new(span: Span, message: impl Into<String>) -> Self {
        Self { line: span.start.line(), message: message.into() }
    }
}

impl From<ScanError> for SyntaxError {
    fn from(error: ScanError) -> Self {
        Self { line: error.marker().line(), message: format!("broken YAML: {}", error.info()) }
    }
}

/// Reads the one document of `text`; `None` where there is none.
///
/// A key that is given twice does not stop the reading: it goes to `duplicates`, and its first value counts.
pub(super) fn parse(text: &str, duplicates: &mut Vec<SyntaxError>) -> Result<Option<Node>, SyntaxError> {
    let mut events = Parser::new_from_str(text);
    let mut root = None;
    while let Some(event) = events.next() {
        let (event, span) = event?;
        match event {
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd | Event::Nothing => {}
            Event::DocumentStart(_) if root.is_none() => {}
            Event::DocumentStart(_) => {
                return Err(SyntaxError::new(span, "expected one YAML document, found a second one"));
            }
            event => root = Some(node(event, span, &mut events, duplicates, 0)?),
        }
    }
    Ok(root)
}

type Events<'a> = dyn Iterator<Item = Result<(Event<'a>, Span), ScanError>> + 'a;

fn node<'a>(
    event: Event<'a>,
    span: Span,
    events: &mut Events<'a>,
    duplicates: &mut Vec<SyntaxError>,
    depth: usize,
) -> Result<Node, SyntaxError> {
    if depth > MAX_DEPTH {
        return Err(SyntaxError::new(span, format!("expected at most {MAX_DEPTH} levels of nesting")));
    }
    let content = match event {
        Event::Scalar(text, style, _, tag) => {
            let text_tag = match tag.as_deref() {
                None => false,
                Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => true,
                Some(tag) => {
                    return Err(SyntaxError::new(span, format!("expected no tag but !!str, found {tag}")));
                }
            };
            let plain = style == ScalarStyle::Plain && !text_tag;
            match text.as_ref() {
                "" | "~" | "null" | "Null" | "NULL" if plain => Content::Null,
                _ => Content::Scalar { text: text.into_owned(), plain },
            }
        }
        Event::SequenceStart(..) => {
            let mut elements = Vec::new();
            while let Some((event, span)) = events.next().transpose()? {
                if event == Event::SequenceEnd {
                    break;
                }
                elements.push(node(event, span, events, duplicates, depth + 1)?);
            }
            Content::Sequence(elements)
        }
        Event::MappingStart(..) => {
            let mut entries: Vec<(Key, Node)> = Vec::new();
            while let Some((event, span)) = events.next().transpose()? {
                if event == Event::MappingEnd {
                    break;
                }
                let key = key(event, span)?;
                let Some((event, value_span)) = events.next().transpose()? else { break };
                let value = node(event, value_span, events, duplicates, depth + 1)?;
                if let Some((first, _)) = entries.iter().find(|(other, _)| other.name == key.name) {
                    let message = format!("{}: this key was already given in line {}", key.name, first.line);
                    duplicates.push(SyntaxError::new(span, message));
                } else {
                    entries.push((key, value));
                }
            }
            Content::Mapping(entries)
        }
        Event::Alias(_) => {
            return Err(SyntaxError::new(span, "ROS parameter files have no aliases; write the value out"));
        }
        _ => return Err(SyntaxError::new(span, "expected a value")),
    };
    Ok(Node { line: span.start.line(), content })
}

fn key(event: Event<'_>, span: Span) -> Result<Key, SyntaxError> {
    match event {
        Event::Scalar(text, ..) if !text.is_empty() => {
            Ok(Key { line: span.start.line(), name: text.into_owned() })
        }
        _ => Err(SyntaxError::new(span, "expected a name as key")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Option<Node>, SyntaxError> {
        let mut duplicates = Vec::new();
        let root = super::parse(text, &mut duplicates)?;
        duplicates.pop().map_or(Ok(root), Err)
    }

    fn message(text: &str) -> (usize, String) {
        let error = parse(text).err().unwrap_or_else(|| panic!("accepted: {text}"));
        (error.line, error.message)
    }

    #[test]
    fn each_node_knows_its_line() {
        let root = parse("# comment\na:\n  b: 1\n  c: [x,\n      'y']\n").ok().flatten().unwrap();
        let Content::Mapping(entries) = root.content else { panic!() };
        assert_eq!((entries[0].0.line, entries[0].0.name.as_str()), (2, "a"));
        let Content::Mapping(inner) = &entries[0].1.content else { panic!() };
        assert_eq!((inner[0].0.line, inner[1].0.line), (3, 4));
        let Content::Sequence(elements) = &inner[1].1.content else { panic!() };
        assert_eq!(elements[1].line, 5);
        assert!(matches!(&elements[0].content, Content::Scalar { text, plain: true } if text == "x"));
        assert!(matches!(&elements[1].content, Content::Scalar { text, plain: false } if text == "y"));
    }

    #[test]
    fn nothing_tilde_and_null_are_null_unless_quoted() {
        for text in ["a:", "a: ~", "a: null", "{a: }"] {
            let Some(Node { content: Content::Mapping(entries), .. }) = parse(text).ok().flatten() else {
                panic!()
            };
            assert!(matches!(entries[0].1.content, Content::Null), "{text}");
        }
        for text in ["a: ''", "a: \"~\"", "a: !!str", "a: !!str null"] {
            let Some(Node { content: Content::Mapping(entries), .. }) = parse(text).ok().flatten() else {
                panic!()
            };
            assert!(matches!(entries[0].1.content, Content::Scalar { plain: false, .. }), "{text}");
        }
    }

    #[test]
    fn an_empty_text_is_no_document() {
        for text in ["", "# only a comment\n", "\n\n"] {
            assert!(matches!(parse(text), Ok(None)), "{text:?}");
        }
    }

    #[test]
    fn what_ros_has_no_use_for_is_refused_with_its_line() {
        assert_eq!(message("a: 1\nb: 2\na: 3\n"), (3, "a: this key was already given in line 1".into()));
        assert!(message("a: &x 1\nb: *x\n").1.contains("no aliases"));
        assert!(message("a: !!binary AAAA\n").1.contains("expected no tag"));
        assert_eq!(message("a: 1\n---\nb: 2\n").1, "expected one YAML document, found a second one");
        assert!(message("? [1, 2]\n: 3\n").1.contains("expected a name as key"));
        let (line, text) = message("a:\n  b: [1, 2\nc: 3\n");
        assert!(line >= 2 && text.starts_with("broken YAML"), "{line} {text}");
    }

    #[test]
    fn deep_nesting_is_refused() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(&nested(MAX_DEPTH)).is_ok());
        assert!(message(&nested(MAX_DEPTH + 2)).1.contains("levels of nesting"));
        assert!(parse(&nested(10_000)).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[a-c:{}\\[\\],&*!|>'\"~ \\n\\-#?0-9]{0,80}") {
            let _ = parse(&text);
        }
    }
}
