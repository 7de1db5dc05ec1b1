//! Tests over everything.
