//! A function in software.
