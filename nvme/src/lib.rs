//! NVMe on the wire: registers, commands, pages, status words, queue rings.
