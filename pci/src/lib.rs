//! PCI functions: registers, IOMMU, interrupts, reset.
