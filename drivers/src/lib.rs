//! Leaf drivers: null, memory, file, nvme.
