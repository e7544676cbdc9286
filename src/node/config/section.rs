//! Parameter files and overrides to a flat list of named values: which sections of a file are for this node, in which
//! order they count, and what ROS allows inside them.

use std::path::Path;

use super::document::{self, Content, Node};
use super::problem::Problem;
use super::value::{ParameterValue, quoted};

/// The key under which a node's parameters stand.
const PARAMETERS_KEY: &str = "ros__parameters";

/// Largest file that is read: whoever names a checkpoint as parameter file gets a message instead of a full memory.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// The file; `None` for an override.
    pub file: Option<std::path::PathBuf>,
    pub line: Option<usize>,
    pub path: String,
}

impl Source {
    pub fn problem(&self, message: impl Into<String>) -> Problem {
        Problem { file: self.file.clone(), line: self.line, path: self.path.clone(), message: message.into() }
    }
}

/// A named value as it was given, not yet checked against the table.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub name: String,
    /// `None` where it cannot be read; that is already among the problems.
    pub value: Option<ParameterValue>,
    pub source: Source,
}

/// Reads the values for `node` (a fully qualified name) out of a file, in the order in which they override one another:
/// sections that match by `**`, then by `*`, then by the node's very name.
pub(super) fn read_file(path: &Path, node: &str, problems: &mut Vec<Problem>) -> Vec<Given> {
    let file = FileReader { path, problems };
    match std::fs::metadata(path).map(|metadata| metadata.len()) {
        Ok(length) if length > MAX_FILE_BYTES => {
            let message =
                format!("expected a parameter file of at most {MAX_FILE_BYTES} bytes, found {length}");
            file.problems.push(file.problem(None, "", message));
            Vec::new()
        }
        _ => match std::fs::read_to_string(path) {
            Ok(text) => file.read(&text, node),
            Err(error) => {
                file.problems.push(file.problem(None, "", format!("cannot be read: {error}")));
                Vec::new()
            }
        },
    }
}

/// The same for a text that is said to come from `path`.
#[cfg(test)]
pub(super) fn read_text(path: &Path, text: &str, node: &str, problems: &mut Vec<Problem>) -> Vec<Given> {
    FileReader { path, problems }.read(text, node)
}

struct FileReader<'a> {
    path: &'a Path,
    problems: &'a mut Vec<Problem>,
}

struct Section<'a> {
    /// Node name or pattern, e.g. `/**` or `policy_node`.
    pattern: String,
    path: String,
    parameters: &'a Node,
}

impl FileReader<'_> {
    fn problem(&self, line: Option<usize>, path: &str, message: impl Into<String>) -> Problem {
        Problem { file: Some(self.path.to_owned()), line, path: path.to_owned(), message: message.into() }
    }

    fn report(&mut self, line: usize, path: &str, message: impl Into<String>) {
        let problem = self.problem(Some(line), path, message);
        self.problems.push(problem);
    }

    fn read(mut self, text: &str, node: &str) -> Vec<Given> {
        let mut duplicates = Vec::new();
        let document = document::parse(text, &mut duplicates);
        for error in duplicates {
            self.report(error.line, "", error.message);
        }
        let root = match document {
            Ok(Some(root)) => root,
            Ok(None) => {
                let message =
                    format!("expected `{}: {PARAMETERS_KEY}: ...`, found an empty file", &node[1..]);
                self.problems.push(self.problem(None, "", message));
                return Vec::new();
            }
            Err(error) => {
                self.report(error.line, "", error.message);
                return Vec::new();
            }
        };

        let mut sections = Vec::new();
        let before = self.problems.len();
        self.find_sections(&root, "", "", &mut sections);
        let found = sections.iter().map(|s| s.pattern.as_str()).collect::<Vec<_>>().join(", ");
        let mut ours: Vec<Section> =
            sections.into_iter().filter(|s| pattern_matches(&s.pattern, node)).collect();
        if ours.is_empty() && self.problems.len() == before {
            let found = if found.is_empty() { "none".into() } else { found };
            let message = format!(
                "expected a section for the node {node} (`/**` or `{node}`), found {found}; \
                 a name without its namespace is a node of the root namespace"
            );
            self.problems.push(self.problem(None, "", message));
        }
        ours.sort_by_key(|section| specificity(&section.pattern));

        let mut given = Vec::new();
        for section in &ours {
            let start = given.len();
            let Content::Mapping(_) = section.parameters.content else {
                let found = section.parameters.content.noun();
                let message = format!("expected a mapping of parameters, found {found}");
                self.report(section.parameters.line, &section.path, message);
                continue;
            };
            self.flatten(section.parameters, "", &section.path, start, &mut given);
        }
        given
    }

    /// Collects every `<pattern>: ros__parameters:`, also where namespaces are nested as mappings.
    fn find_sections<'a>(
        &mut self,
        node: &'a Node,
        pattern: &str,
        path: &str,
        sections: &mut Vec<Section<'a>>,
    ) {
        let Content::Mapping(entries) = &node.content else {
            let message =
                format!("expected a mapping with the key {PARAMETERS_KEY}, found {}", node.content.noun());
            self.report(node.line, path, message);
            return;
        };
        for (key, child) in entries {
            let child_path = joined(path, &key.name, '.');
            if key.name == PARAMETERS_KEY && !pattern.is_empty() {
                sections.push(Section { pattern: pattern.to_owned(), path: child_path, parameters: child });
            } else if strsim::damerau_levenshtein(&key.name, PARAMETERS_KEY) <= 2 {
                let message = match pattern {
                    "" => format!("expected the name of a node above {PARAMETERS_KEY}, e.g. `/**`"),
                    _ => format!("unknown key; did you mean {PARAMETERS_KEY} (with two underscores)?"),
                };
                self.report(key.line, &child_path, message);
            } else {
                let child_pattern =
                    joined(pattern.trim_end_matches('/'), key.name.trim_start_matches('/'), '/');
                self.find_sections(child, &child_pattern, &child_path, sections);
            }
        }
    }

    fn flatten(&mut self, node: &Node, name: &str, path: &str, section_start: usize, given: &mut Vec<Given>) {
        if let Content::Mapping(entries) = &node.content {
            for (key, child) in entries {
                let name = joined(name, &key.name, '.');
                let path = joined(path, &key.name, '.');
                self.flatten(child, &name, &path, section_start, given);
            }
            return;
        }
        let value = match value(node) {
            Ok(value) => Some(value),
            Err((line, message)) => {
                self.report(line, path, message);
                None
            }
        };
        if given[section_start..].iter().any(|other| other.name == name) {
            return self.report(
                node.line,
                path,
                "this parameter was already given, once nested and once dotted",
            );
        }
        let source =
            Source { file: Some(self.path.to_owned()), line: Some(node.line), path: path.to_owned() };
        given.push(Given { name: name.to_owned(), value, source });
    }
}

/// Splits an override as it stands on the command line, `name:=value`; the value may be empty text.
///
/// # Errors
/// What was expected, in words for the command line.
pub fn split_override(text: &str) -> Result<(String, String), String> {
    match text.split_once(":=") {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("expected name:=value, e.g. rate:=5.0, found {}", quoted(text))),
    }
}

/// Reads one override `-p name:=value`, the value in YAML; `None` where it is for another node.
///
/// As in ROS, `node:name` limits an override to a node.
pub(super) fn read_override(
    name: &str,
    value_text: &str,
    node: &str,
    problems: &mut Vec<Problem>,
) -> Option<Given> {
    let source = Source { file: None, line: None, path: format!("-p {name}") };
    let (pattern, name) = name.rsplit_once(':').unwrap_or(("**", name));
    if !pattern_matches(pattern, node) {
        return None;
    }
    let mut duplicates = Vec::new();
    let parsed = match document::parse(value_text, &mut duplicates) {
        Ok(Some(root)) => value(&root).map_err(|(_, message)| message),
        Ok(None) => Err(NOTHING.to_owned()),
        Err(error) => Err(error.message),
    };
    let value = match parsed {
        Ok(value) => Some(value),
        Err(message) => {
            problems.push(source.problem(format!("{message}; put text with special characters in quotes")));
            None
        }
    };
    Some(Given { name: name.to_owned(), value, source })
}

const NOTHING: &str =
    "expected a value, found nothing; write '' for an empty string or leave the parameter out";

/// A scalar or a list of scalars of one kind; else the line of the fault and what it is.
fn value(node: &Node) -> Result<ParameterValue, (usize, String)> {
    match &node.content {
        Content::Null => Err((node.line, NOTHING.into())),
        Content::Scalar { text, plain: false } => Ok(ParameterValue::String(text.clone())),
        Content::Scalar { text, plain: true } => Ok(ParameterValue::from_plain(text)),
        Content::Mapping(_) => Err((node.line, "expected a value or a list, found a mapping".into())),
        Content::Sequence(elements) => {
            let values = elements
                .iter()
                .map(|element| match element.content {
                    Content::Scalar { .. } => value(element),
                    _ => Err((
                        element.line,
                        format!("expected a list of single values, found {} in it", element.content.noun()),
                    )),
                })
                .collect::<Result<Vec<_>, _>>()?;
            let shown: Vec<String> = values.iter().map(ToString::to_string).collect();
            ParameterValue::from_list(values).map_err(|odd| {
                let message = format!(
                    "expected a list of one kind, found {} beside {}; put text that looks like a number or boolean in \
                     quotes",
                    shown[odd], shown[0]
                );
                (elements[odd].line, message)
            })
        }
    }
}

fn joined(start: &str, end: &str, separator: char) -> String {
    if start.is_empty() { end.to_owned() } else { format!("{start}{separator}{end}") }
}

/// Whether a section's name is the node's: `*` stands for one part of the name, `**` for any number of parts.
fn pattern_matches(pattern: &str, node: &str) -> bool {
    fn parts_match(pattern: &[&str], name: &[&str]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            (["**", pattern_rest @ ..], _) => {
                parts_match(pattern_rest, name) || (!name.is_empty() && parts_match(pattern, &name[1..]))
            }
            ([part, pattern_rest @ ..], [first, name_rest @ ..]) => {
                (*part == "*" || part == first) && parts_match(pattern_rest, name_rest)
            }
            _ => false,
        }
    }
    let parts = |text: &'_ str| -> Vec<String> {
        let mut parts: Vec<String> =
            text.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        // Neighbouring ** say nothing more than one, but would be tried in every combination.
        parts.dedup_by(|a, b| a == "**" && b == "**");
        parts
    };
    let (pattern, node) = (parts(pattern), parts(node));
    let pattern: Vec<&str> = pattern.iter().map(String::as_str).collect();
    let node: Vec<&str> = node.iter().map(String::as_str).collect();
    parts_match(&pattern, &node)
}

/// 0 for a pattern with `**`, 1 with `*`, 2 for a plain name.
fn specificity(pattern: &str) -> u8 {
    match pattern {
        _ if pattern.split('/').any(|part| part == "**") => 0,
        _ if pattern.split('/').any(|part| part == "*") => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, node: &str) -> (Vec<(String, ParameterValue)>, Vec<String>) {
        let mut problems = Vec::new();
        let given = read_text(Path::new("p.yaml"), text, node, &mut problems);
        let given = given.into_iter().filter_map(|g| Some((g.name, g.value?))).collect();
        (given, problems.iter().map(ToString::to_string).collect())
    }

    fn only_problem(text: &str) -> String {
        let (_, mut problems) = read(text, "/policy_node");
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.remove(0)
    }

    #[test]
    fn patterns_match_as_in_ros() {
        for (pattern, node, expected) in [
            ("/**", "/policy_node", true),
            ("/**", "/a/b/policy_node", true),
            ("policy_node", "/policy_node", true),
            ("/policy_node", "/policy_node", true),
            ("policy_node", "/ns/policy_node", false),
            ("/ns/policy_node", "/ns/policy_node", true),
            ("/*/policy_node", "/ns/policy_node", true),
            ("/*/policy_node", "/a/b/policy_node", false),
            ("/**/policy_node", "/a/b/policy_node", true),
            ("/**/policy_node", "/policy_node", true),
            ("/*", "/other", true),
            ("/*", "/ns/other", false),
            ("", "/policy_node", false),
        ] {
            assert_eq!(pattern_matches(pattern, node), expected, "{pattern} {node}");
        }
    }

    #[test]
    fn specific_sections_come_after_wildcards_whatever_their_order() {
        let text = "policy_node: {ros__parameters: {a: 3}}\n/*: {ros__parameters: {a: 2}}\n\
                    /**: {ros__parameters: {a: 1}}\nother: {ros__parameters: {a: 9, b: ~}}\n";
        let (given, problems) = read(text, "/policy_node");
        let values: Vec<_> = given.iter().map(|(_, value)| value.clone()).collect();
        assert_eq!(values, [1, 2, 3].map(ParameterValue::Integer));
        assert_eq!(problems, Vec::<String>::new(), "another node's section is none of our business");
    }

    #[test]
    fn namespaces_may_be_nested() {
        let text = "/ns:\n  arm:\n    policy_node:\n      ros__parameters:\n        a.b: {c: x}\n";
        let (given, problems) = read(text, "/ns/arm/policy_node");
        assert_eq!(given, [("a.b.c".to_owned(), ParameterValue::String("x".into()))]);
        assert_eq!(problems, Vec::<String>::new());
    }

    #[test]
    fn a_file_without_a_section_for_the_node_names_those_it_has() {
        let (_, problems) = read("policy_node: {ros__parameters: {a: 1}}\n", "/ns/policy_node");
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].contains("/ns/policy_node") && problems[0].contains("found policy_node"),
            "{problems:?}"
        );
    }

    #[test]
    fn structural_faults_are_told_with_line_and_path() {
        assert_eq!(
            only_problem("policy_node:\n  ros_parameters:\n    rate: 5.0\n"),
            "p.yaml:2: policy_node.ros_parameters: unknown key; did you mean ros__parameters (with two underscores)?"
        );
        assert_eq!(
            only_problem("ros__parameters:\n  rate: 5.0\n"),
            "p.yaml:1: ros__parameters: expected the name of a node above ros__parameters, e.g. `/**`"
        );
        assert_eq!(
            only_problem("policy_node: 5\n"),
            "p.yaml:1: policy_node: expected a mapping with the key ros__parameters, found a single value"
        );
        assert_eq!(
            only_problem("/**:\n  ros__parameters: [1]\n"),
            "p.yaml:2: /**.ros__parameters: expected a mapping of parameters, found a list"
        );
        assert!(
            only_problem("- a\n").contains("expected a mapping with the key ros__parameters, found a list")
        );
        assert!(only_problem("").contains("found an empty file"));
        assert!(only_problem("/**: {ros__parameters: {a: 1, a: 2}}\n").contains("already given in line 1"));
        assert!(
            only_problem("/**: {ros__parameters: {a.b: 1, a: {b: 2}}}\n")
                .contains("once nested and once dotted")
        );
        assert!(only_problem("/**: [\n").contains("p.yaml:"));
    }

    #[test]
    fn nulls_and_odd_lists_are_refused() {
        let text = "/**:\n  ros__parameters:\n    a:\n    b: [x, {y: 1}]\n    c: [[1]]\n    d: [x, 1]\n    e: [1, ~]\n";
        let (given, problems) = read(text, "/policy_node");
        assert_eq!(given, []);
        let expected = [
            ("p.yaml:3: /**.ros__parameters.a: ", "found nothing"),
            ("p.yaml:4: /**.ros__parameters.b: ", "found a mapping in it"),
            ("p.yaml:5: /**.ros__parameters.c: ", "found a list in it"),
            ("p.yaml:6: /**.ros__parameters.d: ", "found the integer 1 beside the string \"x\""),
            ("p.yaml:7: /**.ros__parameters.e: ", "found nothing in it"),
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:?}");
        for (problem, (start, part)) in problems.iter().zip(expected) {
            assert!(problem.starts_with(start) && problem.contains(part), "{problem}");
        }
    }

    #[test]
    fn an_override_is_read_as_yaml_and_may_name_its_node() {
        let mut problems = Vec::new();
        let mut read = |name: &str, value: &str| {
            read_override(name, value, "/policy_node", &mut problems).and_then(|g| Some((g.name, g.value?)))
        };
        assert_eq!(read("rate", "5"), Some(("rate".into(), ParameterValue::Integer(5))));
        assert_eq!(
            read("policy_node:instruction", "pick up the cup"),
            Some(("instruction".into(), ParameterValue::String("pick up the cup".into())))
        );
        assert_eq!(read("other_node:rate", "~"), None);
        assert_eq!(
            read("state.arm.joints", "[a, b]"),
            Some(("state.arm.joints".into(), ParameterValue::StringArray(vec!["a".into(), "b".into()])))
        );
        assert_eq!(
            read("instruction", "''"),
            Some(("instruction".into(), ParameterValue::String(String::new())))
        );
        assert_eq!(read("instruction", ""), None);
        assert_eq!(read("instruction", "pick: up"), None);
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 2);
        assert!(problems[0].starts_with("-p instruction: expected a value, found nothing"), "{problems:?}");
        assert!(
            problems[1].contains("found a mapping; put text with special characters in quotes"),
            "{problems:?}"
        );
    }

    #[test]
    fn an_override_is_split_at_its_first_mark() {
        let split = |text| split_override(text).map(|(name, value)| format!("{name}|{value}"));
        assert_eq!(split("rate:=5"), Ok("rate|5".into()));
        assert_eq!(split("policy_node:rate:=5"), Ok("policy_node:rate|5".into()));
        assert_eq!(split("instruction:='a:=b'"), Ok("instruction|'a:=b'".into()));
        assert_eq!(split("instruction:="), Ok("instruction|".into()));
        for text in ["rate=5", ":=5", "", "rate"] {
            assert!(split(text).unwrap_err().contains("expected name:=value"), "{text}");
        }
    }

    #[test]
    fn files_that_cannot_be_read_are_problems() {
        let mut problems = Vec::new();
        let folder = tempfile::tempdir().unwrap();
        read_file(&folder.path().join("absent.yaml"), "/policy_node", &mut problems);
        let binary = folder.path().join("binary.yaml");
        std::fs::write(&binary, [0xff, 0xfe, 0x00]).unwrap();
        read_file(&binary, "/policy_node", &mut problems);
        let huge = folder.path().join("huge.yaml");
        std::fs::File::create(&huge).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        read_file(&huge, "/policy_node", &mut problems);
        let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 3, "{texts:?}");
        assert!(texts[0].contains("absent.yaml: cannot be read"), "{texts:?}");
        assert!(texts[1].contains("binary.yaml: cannot be read"), "{texts:?}");
        assert!(texts[2].contains("at most 1048576 bytes, found 1048577"), "{texts:?}");
    }
}
