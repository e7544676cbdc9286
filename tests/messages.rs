//! The structs that are put on the wire against the message definitions: same names, types and order, field by field.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use groot_policy::ros::{
    msg::{self, Message},
    srv,
};
use serde_reflection::{ContainerFormat, Format, Named, Samples, Tracer, TracerConfig};

/// Fields of a message as `(type, name)`; a package before the type is left out.
type Fields = Vec<(String, String)>;

/// Fields and constants (`(name, value)`) of a definition in the language of `.msg` files.
fn parse(definition: &str) -> (Fields, Vec<(String, u8)>) {
    let (mut fields, mut constants) = (Vec::new(), Vec::new());
    // The standard ones stand on one line below, with semicolons.
    let lines = definition.lines().map(|line| line.split('#').next().unwrap_or_default());
    for line in lines.flat_map(|line| line.split(';')).map(str::trim) {
        let Some((kind, rest)) = line.split_once(char::is_whitespace) else {
            assert!(line.is_empty(), "no field: {line:?}");
            continue;
        };
        match rest.split_once('=') {
            Some((name, value)) => constants.push((name.trim().to_owned(), value.trim().parse().unwrap())),
            None => {
                let kind = kind.rsplit('/').next().unwrap_or(kind);
                fields.push((kind.to_owned(), rest.trim().to_owned()));
            }
        }
    }
    (fields, constants)
}

/// The type of a field as a `.msg` file writes it. A struct of ours may be called `String` like the primitive type.
fn written(format: &Format) -> String {
    match format {
        Format::Bool => "bool".into(),
        Format::U8 => "uint8".into(),
        Format::I32 => "int32".into(),
        Format::I64 => "int64".into(),
        Format::U32 => "uint32".into(),
        Format::U64 => "uint64".into(),
        Format::F32 => "float32".into(),
        Format::F64 => "float64".into(),
        Format::Str => "string".into(),
        Format::Bytes => "uint8[]".into(),
        Format::Seq(element) => format!("{}[]", written(element)),
        Format::TypeName(name) => name.clone(),
        other => panic!("no message has such a field: {other:?}"),
    }
}

/// What serde sees of a message and of the messages inside it.
fn structs<M: Message>() -> BTreeMap<String, Fields> {
    let mut tracer = Tracer::new(TracerConfig::default());
    tracer.trace_type::<M>(&Samples::new()).unwrap();
    let fields = |fields: Vec<Named<Format>>| {
        fields.iter().map(|field| (written(&field.value), field.name.clone())).collect()
    };
    let registry = tracer.registry().unwrap();
    registry
        .into_iter()
        .map(|(name, container)| match container {
            ContainerFormat::Struct(named) => (name, fields(named)),
            other => panic!("{name} is no struct with fields: {other:?}"),
        })
        .collect()
}

fn own_definition(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("msg").join(format!("{name}.msg"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn check<M: Message>(definition: &str) {
    let (fields, _) = parse(definition);
    let found = structs::<M>();
    // `byte` and `uint8` are one type on the wire.
    let expected: Fields =
        fields.into_iter().map(|(kind, name)| (kind.replace("byte", "uint8"), name)).collect();
    assert_eq!(found[M::NAME], expected, "{}/{}", M::PACKAGE, M::NAME);
}

fn check_own<M: Message>(checked: &mut Vec<String>) {
    assert_eq!(M::PACKAGE, "groot_policy");
    check::<M>(&own_definition(M::NAME));
    checked.push(format!("{}.msg", M::NAME));
}

#[test]
fn every_message_of_the_package_is_its_definition_field_by_field() {
    let mut checked = Vec::new();
    check_own::<msg::ActionChunk>(&mut checked);
    check_own::<msg::ActionGroup>(&mut checked);
    check_own::<msg::InputStatus>(&mut checked);
    check_own::<msg::JointClips>(&mut checked);
    check_own::<msg::PolicyStatus>(&mut checked);
    check_own::<msg::StageLatency>(&mut checked);
    check_own::<msg::StageTiming>(&mut checked);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("msg");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, checked, "every file of msg/ is checked here");
}

#[test]
fn the_standard_messages_are_those_of_ros_2() {
    check::<msg::Time>("int32 sec; uint32 nanosec");
    check::<msg::Duration>("int32 sec; uint32 nanosec");
    check::<msg::Header>("builtin_interfaces/Time stamp; string frame_id");
    check::<msg::String>("string data");
    check::<msg::Bool>("bool data");
    check::<msg::MultiArrayDimension>("string label; uint32 size; uint32 stride");
    check::<msg::MultiArrayLayout>("MultiArrayDimension[] dim; uint32 data_offset");
    check::<msg::Float64MultiArray>("MultiArrayLayout layout; float64[] data");
    check::<msg::Clock>("builtin_interfaces/Time clock");
    check::<msg::Vector3>("float64 x; float64 y; float64 z");
    check::<msg::Twist>("Vector3 linear; Vector3 angular");
    check::<msg::TwistStamped>("std_msgs/Header header; Twist twist");
    check::<msg::KeyValue>("string key; string value");
    check::<msg::DiagnosticStatus>(
        "byte level; string name; string message; string hardware_id; KeyValue[] values",
    );
    check::<msg::DiagnosticArray>("std_msgs/Header header; DiagnosticStatus[] status");
    check::<msg::Log>(
        "builtin_interfaces/Time stamp; uint8 level; string name; string msg; string file; string function; uint32 line",
    );
    check::<msg::Image>(
        "std_msgs/Header header; uint32 height; uint32 width; string encoding; uint8 is_bigendian; uint32 step; \
         uint8[] data",
    );
    check::<msg::CompressedImage>("std_msgs/Header header; string format; uint8[] data");
    check::<msg::JointState>(
        "std_msgs/Header header; string[] name; float64[] position; float64[] velocity; float64[] effort",
    );
    check::<msg::JointTrajectoryPoint>(
        "float64[] positions; float64[] velocities; float64[] accelerations; float64[] effort; \
         builtin_interfaces/Duration time_from_start",
    );
    check::<msg::JointTrajectory>(
        "std_msgs/Header header; string[] joint_names; JointTrajectoryPoint[] points",
    );
    check::<srv::TransitionEvent>(
        "uint64 timestamp; Transition transition; State start_state; State goal_state",
    );
}

#[test]
fn constants_are_those_of_the_definitions() {
    let (_, constants) = parse(&own_definition("PolicyStatus"));
    let expected = [
        ("WATCHDOG_OK", msg::PolicyStatus::WATCHDOG_OK),
        ("WATCHDOG_HOLD", msg::PolicyStatus::WATCHDOG_HOLD),
        ("WATCHDOG_STOP", msg::PolicyStatus::WATCHDOG_STOP),
    ];
    assert_eq!(constants, expected.map(|(name, value)| (name.to_owned(), value)));
    let levels = {
        use msg::DiagnosticStatus as D;
        [D::OK, D::WARN, D::ERROR, D::STALE]
    };
    assert_eq!(levels, [0, 1, 2, 3]);
    let severities = {
        use msg::Log as L;
        [L::DEBUG, L::INFO, L::WARN, L::ERROR, L::FATAL]
    };
    assert_eq!(severities, [10, 20, 30, 40, 50]);
}

#[test]
fn a_definition_is_read_with_comments_constants_and_packages() {
    let (fields, constants) =
        parse("# a message\nuint8 A=1 # one\n\nstd_msgs/Header header\nfloat32[] data # m\n");
    let mut text = String::new();
    for (kind, name) in fields {
        write!(text, "{kind} {name}, ").unwrap();
    }
    assert_eq!(text, "Header header, float32[] data, ");
    assert_eq!(constants, [("A".to_owned(), 1)]);
}
