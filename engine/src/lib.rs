//! The path of one I/O: reactors, slots, queues.
