//! The fio-style harness as a library.
