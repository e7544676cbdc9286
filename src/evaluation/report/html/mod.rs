//! One page with everything: no network, no fonts or scripts from outside, legible without its own script.
//!
//! The page is written as XML that is also HTML, so that a strict parser can check it. Everything that comes from outside
//! (instructions, names of topics, paths) passes [`printable`] and the template's escaping.

mod chart;
mod plots;
mod scale;
mod sections;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{super::run::Run, number::printable};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// The page of a run.
pub fn page(run: &Run) -> String {
    let title = printable(run.title());
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                (PreEscaped(r#"<meta charset="utf-8"/>"#))
                (PreEscaped(r#"<meta name="viewport" content="width=device-width, initial-scale=1"/>"#))
                (PreEscaped(r#"<meta name="color-scheme" content="light dark"/>"#))
                title { (title) " · replay report" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a class="skip" href="#content" { "To the figures" }
                (header(run, &title))
                main id="content" {
                    (sections::banners(run))
                    (sections::cards(run))
                    (legend(run))
                    (sections::time(run))
                    (sections::accuracy(run))
                    (sections::trajectories(run))
                    (sections::along(run))
                    (sections::dimensions(run))
                    (sections::circumstances(run))
                    (sections::definitions())
                }
                footer {
                    p { "Written by " (printable(&run.tool.name)) " " (printable(&run.tool.version))
                        " on " (printable(&run.created)) ". This page loads nothing from elsewhere." }
                }
                script { (PreEscaped("//<![CDATA[\n")) (PreEscaped(SCRIPT)) (PreEscaped("//]]>\n")) }
            }
        }
    }
    .into_string()
}

fn header(run: &Run, title: &str) -> Markup {
    let facts = sections::facts(run);
    html! {
        header {
            p class="eyebrow" { "GR00T N1.6 · replay report" }
            h1 { (title) }
            ul class="facts" { @for fact in facts { li { (fact) } } }
        }
    }
}

/// The modes with their colours; the script makes them switches.
fn legend(run: &Run) -> Markup {
    html! {
        div class="legend" role="group" aria-label="Lines in the plots" {
            (key(chart::Ink::Recorded, "recorded"))
            @for (place, mode) in run.modes.iter().enumerate() {
                (key(chart::Ink::Mode(place), &mode.name))
            }
        }
    }
}

fn key(ink: chart::Ink, label: &str) -> Markup {
    html! {
        span class="key" data-ink=(ink.class()) {
            (swatch(ink)) " " (printable(label))
        }
    }
}

/// A short piece of a line, as in the plots.
fn swatch(ink: chart::Ink) -> Markup {
    html! {
        svg class={ "swatch line " (ink.class()) } viewBox="0 0 30 10" aria-hidden="true" {
            polyline points="1,5 29,5" {}
        }
    }
}
