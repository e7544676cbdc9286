//! Damaged and hostile bags.
