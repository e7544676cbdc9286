//! Bags that this project did not write (`tests/reference/bags.py` makes them with PyPI packages), whole and damaged.

#[path = "bag/anything.rs"]
mod anything;
#[path = "bag/broken.rs"]
mod broken;
#[path = "bag/foreign.rs"]
mod foreign;
#[path = "bag/samples.rs"]
mod samples;
#[path = "bag/support.rs"]
mod support;
#[path = "bag/written.rs"]
mod written;
