//! PCI functions by name, opened by the back end that has them.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use oxblock_engine::{Error, ErrorKind, Options};
use oxblock_mem::{ArenaOptions, PagePolicy};
use oxblock_pci::vfio::Vfio;
use oxblock_pci::vfio_user::{VfioUserFunction, VfioUserOptions};
use oxblock_pci::{Address, Function};

use super::hardware::pci_error;

/// A PCI function in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FunctionSpec {
    /// One that the kernel handed over, by its address: `0000:01:00.0` or `01:00.0`.
    Pci(Address),
    /// The same behind no IOMMU, which must be asked for: `noiommu:0000:01:00.0`.
    PciNoIommu(Address),
    /// One that another process serves, by its socket.
    VfioUser(PathBuf),
}

impl FunctionSpec {
    /// Reads the name of a function.
    ///
    /// # Errors
    /// `Invalid`: it has the shape of none.
    pub fn parse(word: &str) -> Result<FunctionSpec, Error> {
        if let Some(address) = word.strip_prefix("noiommu:") {
            return address.parse().map(FunctionSpec::PciNoIommu).map_err(pci_error);
        }
        match word.strip_prefix("vfio-user:") {
            Some("") => {
                let text = "`vfio-user:` wants a socket, as in vfio-user:/run/oxblock.sock";
                Err(Error::new(ErrorKind::Invalid, text))
            }
            Some(path) => Ok(FunctionSpec::VfioUser(PathBuf::from(path))),
            None => word.parse().map(FunctionSpec::Pci).map_err(pci_error),
        }
    }

    /// What an engine needs to be like so that it can drive the function.
    pub fn engine_options(&self, options: Options) -> Options {
        match self {
            FunctionSpec::PciNoIommu(_) => Options {
                arena: ArenaOptions { pages: PagePolicy::Contiguous, ..options.arena },
                ..options
            },
            FunctionSpec::Pci(_) | FunctionSpec::VfioUser(_) => options,
        }
    }

    /// Whether the controller is a program, and wants a processor of this machine.
    pub fn is_software(&self) -> bool {
        matches!(self, FunctionSpec::VfioUser(_))
    }
}

impl fmt::Display for FunctionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FunctionSpec::Pci(address) => address.fmt(f),
            FunctionSpec::PciNoIommu(address) => write!(f, "noiommu:{address}"),
            FunctionSpec::VfioUser(path) => write!(f, "vfio-user:{}", path.display()),
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
    /// Opens a function for [`Controller::attach`](super::Controller::attach).
    ///
    /// # Errors
    /// What the back end says, and what to do about it.
    pub fn open(&self, spec: &FunctionSpec) -> Result<Arc<dyn Function>, Error> {
        match spec {
            FunctionSpec::Pci(address) => {
                let function = self.vfio.open(*address).map_err(pci_error)?;
                Ok(function)
            }
            FunctionSpec::PciNoIommu(address) => {
                let function = self.vfio.open_without_iommu(*address).map_err(pci_error)?;
                Ok(function)
            }
            FunctionSpec::VfioUser(path) => {
                let options = VfioUserOptions::default();
                let function = VfioUserFunction::connect(path, options).map_err(pci_error)?;
                Ok(function)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_functions() {
        let name = |word| FunctionSpec::parse(word).map(|spec| spec.to_string()).ok();
        assert_eq!(name("01:00.0"), Some("0000:01:00.0".to_owned()));
        assert_eq!(name("10000:e1:00.1"), Some("10000:e1:00.1".to_owned()));
        assert_eq!(name("noiommu:01:00.0"), Some("noiommu:0000:01:00.0".to_owned()));
        assert_eq!(name("nvme0"), None);
        assert_eq!(name("vfio-user:/run/a.sock"), Some("vfio-user:/run/a.sock".to_owned()));
        assert_eq!(name("vfio-user:"), None);
    }

    #[test]
    fn a_function_that_is_not_there_is_named() {
        let spec = FunctionSpec::parse("ffff:ff:1f.7").expect("an address");
        let error = Functions::default().open(&spec).err().expect("no such function");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("ffff:ff:1f.7"), "{error}");
        let spec = FunctionSpec::parse("vfio-user:/no/such.sock").expect("a socket");
        let error = Functions::default().open(&spec).err().expect("no such socket");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("oxblock nvmet --vfio-user"), "{error}");
    }
}
