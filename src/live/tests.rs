//! Tests of the live topics.
