//! Charts as SVG inside the page.

use maud::{Markup, html};

use super::{super::number::printable, scale::Scale};

/// Size of a chart in its own units. Charts are about as wide as a phone, so that their text stays legible there.
const WIDTH: f64 = 380.0;
const HEIGHT: f64 = 236.0;
/// Margins: left, right, top, bottom.
const LEFT: f64 = 52.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 40.0;

/// What a line stands for; decides its colour and its dashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    /// What the robot did.
    Recorded,
    /// A mode, by its place in the run.
    Mode(usize),
}

impl Ink {
    pub(super) fn class(self) -> String {
        match self {
            Self::Recorded => "recorded".to_owned(),
            Self::Mode(place) => format!("m{}", place % 6),
        }
    }
}

/// A line; NaN parts it.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub label: String,
    pub ink: Ink,
    pub points: Vec<(f64, f64)>,
    /// Points are marked: for lines of few points.
    pub dots: bool,
}

/// A chart of lines.
#[derive(Debug, Clone)]
pub(super) struct Chart {
    pub title: String,
    /// Said after the title, in plain type: a unit for instance.
    pub subtitle: String,
    pub x_label: String,
    pub y_label: String,
    pub x: Scale,
    pub y: Scale,
    pub lines: Vec<Line>,
    /// Vertical marks: chunk boundaries, borders of trajectories.
    /// Each with a word, or none.
    pub marks: Vec<(f64, &'static str)>,
    /// The joint or another name by which the reader can choose.
    pub choice: Option<String>,
    /// The area under the lines is tinted.
    pub filled: bool,
    /// Ticks of the x axis are whole numbers.
    pub whole_x: bool,
}

impl Chart {
    pub(super) fn draw(&self) -> Markup {
        let title = printable(&self.title);
        let ((x_min, x_max), (y_min, y_max)) = (self.x.range(), self.y.range());
        html! {
            figure class="chart" data-choice=[self.choice.as_deref().map(printable)] {
                figcaption { b { (title) } @if !self.subtitle.is_empty() { " " span { (printable(&self.subtitle)) } } }
                svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(self.description())
                    data-x={ (x_min) " " (x_max) " " (u8::from(self.x.is_log())) }
                    data-y={ (y_min) " " (y_max) " " (u8::from(self.y.is_log())) }
                    data-plot={ (LEFT) " " (TOP) " " (WIDTH - RIGHT) " " (HEIGHT - BOTTOM) } {
                    (self.axes())
                    g class="marks" {
                        @for (mark, _) in &self.marks {
                            @if let Some(x) = self.horizontal(*mark) {
                                line x1=(x) x2=(x) y1=(TOP) y2=(round(HEIGHT - BOTTOM)) {}
                            }
                        }
                    }
                    @for line in &self.lines { (self.line(line)) }
                    (self.captions())
                }
            }
        }
    }

    fn horizontal(&self, value: f64) -> Option<f64> {
        self.x.place(value).map(|place| round(LEFT + place * (WIDTH - LEFT - RIGHT)))
    }

    fn vertical(&self, value: f64) -> Option<f64> {
        self.y.place(value).map(|place| round(HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM)))
    }

    fn axes(&self) -> Markup {
        let base = round(HEIGHT - BOTTOM);
        let right = WIDTH - RIGHT;
        let whole = |value: f64| !self.whole_x || value.fract().abs() < 1e-9;
        html! {
            g class="axes" {
                @for (value, label) in self.y.ticks(4) {
                    @if let Some(y) = self.vertical(value) {
                        line x1=(LEFT) x2=(right) y1=(y) y2=(y) {}
                        text x=(LEFT - 6.0) y=(round(y + 4.0)) text-anchor="end" { (label) }
                    }
                }
                line class="base" x1=(LEFT) x2=(right) y1=(base) y2=(base) {}
                @for (value, label) in self.x.ticks(5) {
                    @if let (Some(x), true) = (self.horizontal(value), whole(value)) {
                        line class="tick" x1=(x) x2=(x) y1=(base) y2=(base + 4.0) {}
                        text x=(x) y=(base + 16.0) text-anchor="middle" { (label) }
                    }
                }
                text class="label" x=(round((LEFT + right) / 2.0)) y=(HEIGHT - 6.0) text-anchor="middle" { (printable(&self.x_label)) }
                text class="label" x="2" y="12" { (printable(&self.y_label)) }
            }
        }
    }

    fn line(&self, line: &Line) -> Markup {
        let place = |&(x, y): &(f64, f64)| Some((self.horizontal(x)?, self.vertical(y)?));
        let places: Vec<Option<(f64, f64)>> = line.points.iter().map(place).collect();
        let runs = places.split(Option::is_none).filter(|run| !run.is_empty());
        let runs: Vec<Vec<(f64, f64)>> = runs.map(|run| run.iter().copied().flatten().collect()).collect();
        let dots = line.dots && places.len() <= 80;
        html! {
            g class={ "line " (line.ink.class()) } data-label=(printable(&line.label)) {
                @for run in &runs {
                    @if let [(x, y)] = run.as_slice() {
                        circle class="dot" cx=(x) cy=(y) r="2" {}
                    } @else {
                        @if self.filled { (self.area(run)) }
                        polyline points=(run.iter().map(|(x, y)| format!("{x},{y}")).collect::<Vec<_>>().join(" ")) {}
                    }
                }
                @if dots {
                    @for (x, y) in runs.iter().flatten() { circle class="dot" cx=(x) cy=(y) r="2.6" {} }
                }
            }
        }
    }

    /// The tint under a run of points.
    fn area(&self, run: &[(f64, f64)]) -> Markup {
        let base = HEIGHT - BOTTOM;
        let ends = [run.last().map(|(x, _)| (*x, base)), run.first().map(|(x, _)| (*x, base))];
        let corners = run.iter().copied().chain(ends.into_iter().flatten());
        html! { polygon class="area" points=(corners.map(|(x, y)| format!("{x},{y}")).collect::<Vec<_>>().join(" ")) {} }
    }

    /// The words at the marks, one below the other where they come close.
    fn captions(&self) -> Markup {
        let named = self.marks.iter().filter(|(_, name)| !name.is_empty());
        html! {
            g class="axes" {
                @for (i, (mark, name)) in named.enumerate() {
                    @if let Some(x) = self.horizontal(*mark) {
                        // To the left of a mark in the right half, so that nothing is cut off.
                        @let right = x > (LEFT + WIDTH) / 2.0;
                        text x=(if right { x - 4.0 } else { x + 4.0 }) y=(TOP + 10.0 + 14.0 * i as f64)
                            text-anchor=(if right { "end" } else { "start" }) { (name) }
                    }
                }
            }
        }
    }

    /// The chart in words.
    fn description(&self) -> String {
        let lines: Vec<String> = self
            .lines
            .iter()
            .map(|line| {
                let finite = line.points.iter().map(|(_, y)| *y).filter(|y| y.is_finite());
                let range = finite.fold(None, |range: Option<(f64, f64)>, y| {
                    Some(range.map_or((y, y), |(min, max)| (min.min(y), max.max(y))))
                });
                match range {
                    Some((min, max)) => format!("{} from {min:.4} to {max:.4}", line.label),
                    None => format!("{} without values", line.label),
                }
            })
            .collect();
        printable(&format!("{}: {} over {}. {}.", self.title, self.y_label, self.x_label, lines.join("; ")))
    }
}

/// To a tenth of a unit: nobody sees less, and the page stays small.
fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
