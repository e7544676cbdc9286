//! What a run's tables, files and page look like, and that nothing from outside can harm them.

#[path = "../examples/report_gallery.rs"]
#[allow(dead_code)]
mod gallery;

use std::{path::PathBuf, process::Command};

use groot_policy::evaluation::{
    ActionSummary, Comparison, Component, ComponentLatency, DenoisingSummary, DimensionPlot, ErrorSummary,
    LatencySummary, MAX_PLOT_POINTS, MAX_PLOTTED_DIMENSIONS, MAX_PLOTTED_TRAJECTORIES, ModeResult, Partial,
    PredictedSeries, Run, RunFileError, SCHEMA, TrajectoryPlot, report,
};
use roxmltree::{Document, ParsingOptions};

fn latency(component: Component, median: f64) -> ComponentLatency {
    let summary = LatencySummary {
        count: 30,
        median,
        p90: median * 1.02,
        p99: median * 1.1,
        mean: median * 1.01,
        min: median * 0.99,
        max: median * 1.2,
    };
    ComponentLatency { component, summary, samples_ms: vec![median, median * 1.02] }
}

fn errors(mse: f64, cosine: f64) -> ErrorSummary {
    ErrorSummary {
        count: 512,
        samples: 1,
        mse: Some(mse),
        mae: Some(mse.sqrt() * 0.8),
        max_abs: Some(mse.sqrt() * 4.0),
        cosine: Some(cosine),
        cosine_min: Some(cosine),
        ..ErrorSummary::default()
    }
}

/// A mode with figures of the size that published studies have.
fn mode(name: &str, dit: &str, [backbone, dit_ms]: [f64; 2], steps: &[f64], recorded: f64) -> ModeResult {
    let overall = steps.iter().sum::<f64>() / steps.len().max(1) as f64;
    let denoising = (!steps.is_empty()).then(|| DenoisingSummary {
        overall: errors(overall, 0.999978),
        steps: steps.iter().map(|mse| errors(*mse, 0.999978)).collect(),
    });
    ModeResult {
        name: name.into(),
        backbone: "PyTorch BF16".into(),
        dit: dit.into(),
        latencies: vec![
            latency(Component::DataProcessing, 4.0),
            latency(Component::Backbone, backbone),
            latency(Component::Dit, dit_ms),
            latency(Component::EndToEnd, backbone + dit_ms),
        ],
        denoising,
        recorded: Some(ActionSummary {
            chunks: 60,
            total: errors(recorded, 0.98),
            ..ActionSummary::default()
        }),
        ..ModeResult::default()
    }
}

fn study() -> Run {
    let mut run = Run {
        schema: SCHEMA,
        title: "study".into(),
        reference: "torch".into(),
        trajectories_done: 5,
        modes: vec![
            mode("torch", "PyTorch BF16", [157.0, 207.0], &[], 0.087),
            mode("tensorrt-fp16", "TRT FP16", [158.0, 78.0], &[1.7e-5, 1.9e-5, 2.0e-5, 2.4e-5], 0.088),
            mode("tensorrt-int8", "TRT INT8", [157.0, 77.0], &[1.8e-5, 2.0e-5, 2.2e-5, 2.5e-5], 0.088),
        ],
        ..Run::default()
    };
    run.source.kind = "rosbag2 (mcap)".into();
    run.source.name = "kitchen".into();
    run.source.damage = vec!["chunk 7 of kitchen_0.mcap: its checksum is wrong; left out".into()];
    run
}

#[test]
fn the_terminal_shows_the_three_tables() {
    assert_eq!(report::terminal::summary(&study()), include_str!("data/report_tables.txt"));
}

#[test]
fn two_runs_stand_side_by_side_in_the_terminal() {
    let (a, mut b) = (study(), study());
    b.modes[1] = mode("tensorrt-fp16", "TRT FP16", [20.0, 10.0], &[1.7e-5, 1.9e-5], 0.1);
    b.modes.remove(2);
    b.machine.cpu.model = "a faster one".into();
    b.options.stride = 16;
    let text = report::terminal::comparison(&Comparison::new(["orin.json", "thor.json"], &a, &b));
    assert_eq!(text, include_str!("data/report_comparison.txt"));
}

#[test]
fn no_line_of_the_terminal_is_wider_than_100_columns() {
    let mut run = study();
    run.modes[1].name = "a-mode-with-a-name-that-is-very-much-longer-than-any-table-can-be-wide".repeat(2);
    run.notes = vec!["word ".repeat(60)];
    run.partial = Some(Partial { reason: "interrupted".into(), done: 2, planned: Some(5) });
    run.modes[0].denoising = None;
    run.modes[2].denoising.as_mut().unwrap().overall =
        ErrorSummary { non_finite: 3, count: 9, ..Default::default() };
    let text = report::terminal::summary(&run);
    for line in text.lines().filter(|line| !line.contains("a-mode-with") || line.starts_with(' ')) {
        assert!(line.chars().count() <= 100, "{}: {line}", line.chars().count());
    }
    assert!(text.contains("PARTIAL: interrupted after 2 of 5 trajectories"), "{text}");
    assert!(text.contains("tensorrt-int8, DiT: 3 of 12 values are NaN or infinite"), "{text}");
}

#[test]
fn a_run_survives_its_file_and_unknown_fields_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    let run = gallery::gallery().unwrap();
    run.save(&path).unwrap();
    assert_eq!(Run::load(&path).unwrap(), run);
    let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    value["added_later"] = serde_json::json!({ "a": [1, 2] });
    value["modes"][0]["latencies"][0]["component"] = "image decode".into();
    value["options"].as_object_mut().unwrap().remove("stride");
    std::fs::write(&path, value.to_string()).unwrap();
    let read = Run::load(&path).unwrap();
    assert_eq!(read.modes[0].latencies[0].component, Component::Other("image decode".into()));
    assert_eq!((read.options.stride, read.options.horizon), (0, run.options.horizon));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left in the folder");
}

#[test]
fn what_is_no_run_or_a_newer_one_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    let refused = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Run::load(&path).unwrap_err().to_string()
    };
    assert!(refused("{}").ends_with("found no schema number"));
    assert!(refused("[1, 2").contains("expected a run that --save-run wrote"));
    let wrong = refused(r#"{"schema": 1, "modes": [{"timeline": [{"tick": "x"}]}]}"#);
    assert!(wrong.contains("at modes[0].timeline[0].tick: invalid type"), "{wrong}");
    let newer = refused(r#"{"schema": 7, "tool": {"name": "groot_policy", "version": "9.0.0"}, "modes": 3}"#);
    assert!(newer.contains("found schema 7 (written by groot_policy 9.0.0)"), "{newer}");
    assert!(matches!(Run::load(&folder.path().join("none")), Err(RunFileError::Io { .. })));
}

#[test]
fn csv_files_have_all_digits_and_no_formulas() {
    let mut run = study();
    run.modes[2].name = "=HYPERLINK(\"x\")".into();
    let tables = report::csv::tables(&run);
    let table = |name: &str| -> Vec<csv::StringRecord> {
        let (_, text) = tables.iter().find(|(file, _)| file == name).unwrap();
        csv::Reader::from_reader(text.as_bytes()).into_records().map(Result::unwrap).collect()
    };
    let names: Vec<&str> = tables.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "modes.csv",
            "latency.csv",
            "denoising_steps.csv",
            "components.csv",
            "dimensions.csv",
            "horizon.csv"
        ]
    );
    let modes = table("modes.csv");
    assert_eq!((&modes[0][0], &modes[0][1], &modes[2][0]), ("torch", "baseline", "'=HYPERLINK(\"x\")"));
    let latency = table("latency.csv");
    assert_eq!(&latency[3][2], "158");
    assert_eq!(latency[3][5].parse::<f64>().unwrap(), 1000.0 / 236.0);
    assert_eq!(&table("denoising_steps.csv")[1][2], "0.000017");
    assert_eq!(table("components.csv").len(), 12);
    let folder = tempfile::tempdir().unwrap();
    let written = report::csv::write(&run, &folder.path().join("new")).unwrap();
    assert_eq!(written.len(), 6);
    assert_eq!(std::fs::read_to_string(&written[0]).unwrap(), tables[0].1);
}

fn parse(page: &str) -> Document<'_> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    Document::parse_with_options(page, options)
        .unwrap_or_else(|error| panic!("the page is not well-formed: {error}"))
}

/// Everything that is written on a page.
fn text(document: &Document) -> String {
    let words = document.descendants().filter(|node| {
        node.is_text()
            && node.ancestors().all(|node| !node.has_tag_name("script") && !node.has_tag_name("style"))
    });
    words.filter_map(|node| node.text()).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_page_is_well_formed_and_each_heading_and_plot_has_a_name() {
    let page = report::page(&gallery::gallery().unwrap());
    assert!(page.starts_with("<!DOCTYPE html>"));
    let document = parse(&page);
    let elements = |name: &'static str| document.descendants().filter(move |node| node.has_tag_name(name));
    assert_eq!(elements("h1").count(), 1);
    let mut ids: Vec<&str> = document.descendants().filter_map(|node| node.attribute("id")).collect();
    ids.sort_unstable();
    assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "an id occurs twice: {ids:?}");
    for node in document.descendants().filter_map(|node| node.attribute("aria-labelledby")) {
        assert!(ids.binary_search(&node).is_ok(), "{node} labels something and is not there");
    }
    for svg in elements("svg") {
        let named = svg.attribute("aria-label").is_some_and(|label| label.len() > 10);
        assert!(named || svg.attribute("aria-hidden") == Some("true"));
    }
    // Three modes' histograms, three plots of the DiT, four of the horizon, nine joints of three trajectories, two timelines.
    assert_eq!(elements("figure").count(), 3 + 3 + 4 + 27 + 2);
    for polyline in elements("polyline") {
        let points = polyline.attribute("points").unwrap();
        let numbers = points.split([' ', ',']).all(|number| number.parse::<f64>().is_ok_and(f64::is_finite));
        assert!(numbers, "{points}");
    }
    for element in ["b", "i", "em", "p", "li", "dd", "td"] {
        assert!(elements(element).all(|node| node.tag_name().namespace().is_none()));
    }
}

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    let page = report::page(&gallery::gallery().unwrap());
    assert!(!page.contains("http:") && !page.contains("https:") && !page.contains("//www"));
    assert!(!page.contains("@import") && !page.contains("url("));
    for node in parse(&page).descendants() {
        assert!(
            !["link", "iframe", "object", "embed", "img", "image", "use", "base"]
                .contains(&node.tag_name().name())
        );
        for attribute in node.attributes() {
            assert_ne!(attribute.name(), "src");
            assert!(
                attribute.name() != "href" || attribute.value().starts_with('#'),
                "{}",
                attribute.value()
            );
        }
    }
}

#[test]
fn every_figure_of_the_terminal_stands_on_the_page() {
    for run in [study(), gallery::gallery().unwrap()] {
        let page = report::page(&run);
        let shown = text(&parse(&page));
        let shown: std::collections::HashSet<&str> = shown.split_whitespace().collect();
        let terminal = report::terminal::summary(&run);
        // The rates of the percentiles are the terminal's own: the page shows the median's.
        let rows = terminal
            .lines()
            .filter(|line| !(line.contains(" p90 ") || line.contains(" p99 ")) && line.starts_with(' '));
        let mut figures = 0;
        for figure in rows
            .flat_map(str::split_whitespace)
            .filter(|word| word.contains(['.', 'e']) && word.starts_with(|c: char| c.is_ascii_digit()))
        {
            assert!(shown.contains(figure), "{figure} is not on the page");
            figures += 1;
        }
        assert!(figures > 60, "{figures}");
    }
}

const HOSTILE: &str =
    "<script>alert(1)</script>\"' onload=x &amp; ]]> </style> \u{0} \u{202e} \u{1b}[31m =1+1 ";

/// Puts hostile text into everything that is text.
fn poison(value: &mut serde_json::Value) {
    match value {
        // The one component of which there are plots.
        serde_json::Value::String(text) if text == "end_to_end" => {}
        serde_json::Value::String(text) => *text = format!("{HOSTILE}{text}"),
        serde_json::Value::Array(values) => values.iter_mut().for_each(poison),
        serde_json::Value::Object(fields) => fields.values_mut().for_each(poison),
        _ => {}
    }
}

fn poisoned() -> Run {
    let mut run = gallery::gallery().unwrap();
    run.source.damage = vec!["d".into()];
    run.partial = Some(Partial { reason: "r".into(), done: 1, planned: None });
    run.modes[1].failure = Some("f".into());
    run.modes[2].notes = vec!["n".into()];
    run.options.other = [("o".to_owned(), "p".to_owned())].into();
    run.trajectories[0].left_out = vec!["l".into()];
    let mut value = serde_json::to_value(&run).unwrap();
    poison(&mut value);
    value["source"]["messages"] = serde_json::json!({ HOSTILE: 3 });
    value["machine"]["software"] = serde_json::json!({ HOSTILE: HOSTILE });
    serde_json::from_value(value).unwrap()
}

#[test]
fn hostile_text_stays_text_on_the_page() {
    let (page, clean) = (report::page(&poisoned()), report::page(&gallery::gallery().unwrap()));
    let (document, clean) = (parse(&page), parse(&clean));
    let names = |document: &Document, name: &str| {
        document.descendants().filter(|node| node.has_tag_name(name)).count()
    };
    assert_eq!((names(&document, "script"), names(&document, "style")), (1, 1));
    assert_eq!(names(&document, "figure"), names(&clean, "figure"));
    for node in document.descendants() {
        assert!(node.attributes().all(|attribute| !attribute.name().starts_with("on")), "{node:?}");
    }
    let shown = text(&document);
    assert!(
        shown.contains(
            "<script>alert(1)</script>\"' onload=x &amp; ]]> </style> \u{fffd} \u{fffd} \u{fffd}[31m"
        )
    );
    assert!(!page.contains(['\u{0}', '\u{202e}', '\u{1b}']));
}

#[test]
fn hostile_text_does_not_reach_the_terminal() {
    let text = report::terminal::summary(&poisoned());
    assert!(!text.contains(['\u{0}', '\u{202e}', '\u{1b}']));
    let comparison = Comparison::new([HOSTILE, HOSTILE], &poisoned(), &study());
    assert!(!report::terminal::comparison(&comparison).contains(['\u{0}', '\u{202e}', '\u{1b}']));
}

#[test]
fn an_empty_run_and_one_full_of_gaps_make_pages_too() {
    parse(&report::page(&Run::default()));
    let mut run = study();
    run.modes[1].denoising.as_mut().unwrap().steps[2] =
        ErrorSummary { non_finite: 1, ..ErrorSummary::default() };
    run.modes[2].recorded.as_mut().unwrap().total =
        ErrorSummary { non_finite: 2, count: 3, ..ErrorSummary::default() };
    let nothing = DimensionPlot { recorded: vec![f32::NAN; 3], ..DimensionPlot::default() };
    let one = DimensionPlot { recorded: vec![f32::NAN, 1.0, f32::NAN, f32::MAX], ..DimensionPlot::default() };
    run.trajectories =
        vec![TrajectoryPlot { dimensions: vec![nothing, one], step_time_s: f64::NAN, ..Default::default() }];
    let page = report::page(&run);
    let shown = text(&parse(&page));
    assert!(
        shown.contains("tensorrt-int8, against the recording: 2 of 5 values are NaN or infinite"),
        "{shown}"
    );
}

#[test]
fn the_page_of_the_largest_run_is_of_bounded_size() {
    let series =
        |mode: usize| PredictedSeries { mode: format!("m{mode}"), values: vec![0.123; MAX_PLOT_POINTS] };
    let dimension = |i: usize| DimensionPlot {
        name: i.to_string(),
        recorded: vec![0.5; MAX_PLOT_POINTS],
        predicted: (0..6).map(series).collect(),
        ..DimensionPlot::default()
    };
    let plot = |i: usize| TrajectoryPlot {
        name: i.to_string(),
        boundaries: (0..20_000).collect(),
        dimensions: (0..MAX_PLOTTED_DIMENSIONS).map(dimension).collect(),
        ..TrajectoryPlot::default()
    };
    let run = Run { trajectories: (0..MAX_PLOTTED_TRAJECTORIES).map(plot).collect(), ..study() };
    let page = report::page(&run);
    assert!(page.len() < 8 << 20, "{} bytes", page.len());
    assert!(page.contains("of the kept points one in 14 is drawn"));
}

fn chromium() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|path| path.is_file())
}

/// Shows a page in a frame of the given width and gives what `measure`, a JavaScript expression over `frame` and `doc`,
/// says about it; None where there is no Chromium.
fn in_browser(page: &str, width: u32, measure: &str) -> Option<String> {
    let Some(chromium) = chromium() else {
        eprintln!("skipped: no Chromium in PATH");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let framed = page.replace('&', "&amp;").replace('"', "&quot;");
    let html = format!(
        r#"<!DOCTYPE html><meta charset="utf-8"><body><iframe id="f" style="width:{width}px;height:800px;border:0" srcdoc="{framed}"></iframe>
        <script>onload = function () {{
            var frame = document.getElementById("f").contentWindow, doc = frame.document;
            var said = String({measure});
            document.body.textContent = "";
            document.body.setAttribute("data-said", said);
        }}</script>"#
    );
    let file = folder.path().join("frame.html");
    std::fs::write(&file, html).unwrap();
    let output = Command::new(chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
        .arg(&file)
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = dom.split_once("data-said=\"").and_then(|(_, rest)| rest.split_once('"'));
    let said = said.unwrap_or_else(|| panic!("{dom:.2000}\n{}", String::from_utf8_lossy(&output.stderr)));
    Some(said.0.to_owned())
}

#[test]
fn nothing_on_the_page_is_wider_than_a_phone() {
    let mut long = gallery::gallery().unwrap();
    long.title = "a_name_without_any_space_that_goes_on_and_on_".repeat(6);
    long.modes[1].name = "/a/topic/of/a/mode/that/nobody/would/want/to/read/on/any/screen/at/all".into();
    for run in [gallery::gallery().unwrap(), long] {
        for width in [360, 390, 768] {
            let measure = "doc.documentElement.scrollWidth + ' ' + frame.innerWidth";
            let Some(said) = in_browser(&report::page(&run), width, measure) else { return };
            let (content, window) = said.split_once(' ').unwrap();
            assert_eq!(window, width.to_string());
            assert!(content.parse::<u32>().unwrap() <= width, "{content} in {width}");
        }
    }
}

#[test]
fn the_pages_script_runs_and_offers_its_niceties() {
    let measure = "[doc.querySelectorAll('button.key').length, doc.querySelectorAll('select').length, \
                   doc.querySelectorAll('details[open]').length, \
                   (doc.querySelector('button.key').click(), doc.querySelector('g.line.recorded').style.display)]";
    let Some(said) = in_browser(&report::page(&gallery::gallery().unwrap()), 1200, measure) else { return };
    assert_eq!(said, "4,3,1,none");
}
