//! PCI functions by name: what a command line says, opened by the back end that has it.
//!
//! The software controller is the third that a driver can be attached to; it is made, not
//! opened, on a core of an engine: see `soft`.

use std::fmt;
use std::sync::Arc;

use oxblock_engine::{Error, ErrorKind};
use oxblock_pci::vfio::Vfio;
use oxblock_pci::{Address, Function, PciError};

/// A PCI function in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FunctionSpec {
    /// One that the kernel handed over, by its address: `0000:01:00.0` or `01:00.0`.
    Pci(Address),
}

impl FunctionSpec {
    /// Reads the name of a function.
    ///
    /// Errors: it has the shape of none.
    pub fn parse(word: &str) -> Result<FunctionSpec, Error> {
        word.parse().map(FunctionSpec::Pci).map_err(pci_error)
    }
}

impl fmt::Display for FunctionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FunctionSpec::Pci(address) => address.fmt(f),
        }
    }
}

/// The back ends of one engine. Functions opened through the same value share what they can:
/// memory is mapped once for all that the kernel handed over.
#[derive(Default)]
pub struct Functions {
    vfio: Vfio,
}

impl Functions {
    /// Opens a function for a driver, such as `nvme::Controller::attach`.
    ///
    /// Errors: what the back end says, and what to do about it.
    pub fn open(&self, spec: &FunctionSpec) -> Result<Arc<dyn Function>, Error> {
        match spec {
            FunctionSpec::Pci(address) => {
                let function = self.vfio.open(*address).map_err(pci_error)?;
                Ok(function)
            }
        }
    }
}

/// An error of a PCI function as the engine has them.
pub fn pci_error(error: PciError) -> Error {
    Error::new(ErrorKind::from_errno(error.errno()), error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_functions() {
        let name = |word| FunctionSpec::parse(word).map(|spec| spec.to_string()).ok();
        assert_eq!(name("01:00.0"), Some("0000:01:00.0".to_owned()));
        assert_eq!(name("10000:e1:00.1"), Some("10000:e1:00.1".to_owned()));
        assert_eq!(name("nvme0"), None);
    }

    #[test]
    fn a_function_that_is_not_there_is_named() {
        let spec = FunctionSpec::parse("ffff:ff:1f.7").expect("an address");
        let error = Functions::default().open(&spec).err().expect("no such function");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("ffff:ff:1f.7"), "{error}");
    }
}
