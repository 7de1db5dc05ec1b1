//! A disk with faults.
