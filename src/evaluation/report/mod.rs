//! A run for people and programs: terminal, CSV, one HTML page. (JSON is the [`Run`](super::Run) itself.)

pub mod csv;
mod html;
pub(crate) mod number;
pub(crate) mod table;
pub mod terminal;

pub use html::page;
