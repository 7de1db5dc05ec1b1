//! Builds the kernel's VFIO modules anew, with what Debian leaves out: iommufd with a character
//! device for each function, and the mode without an IOMMU. The kernel itself stays as it is.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::fetch::Fetch;
use crate::files::{create, output, rename, write};
use crate::packages::{REBUILT, STOCK};

const MODULES: [&str; 5] = ["iommufd", "vfio", "vfio_iommu_type1", "vfio-pci-core", "vfio-pci"];
/// What the kernel's configuration and makefiles would say.
const KBUILD: &str = "\
ccflags-y += -DCONFIG_IOMMUFD_MODULE=1 -DCONFIG_VFIO_DEVICE_CDEV=1 -DCONFIG_VFIO_NOIOMMU=1
ccflags-y += -DCONFIG_INTERVAL_TREE_SPAN_ITER=1
obj-m += iommufd.o vfio.o vfio_iommu_type1.o vfio-pci-core.o vfio-pci.o
iommufd-y := interval_tree.o $(addprefix drivers/iommu/iommufd/,device.o fault.o hw_pagetable.o \\
    io_pagetable.o ioas.o main.o pages.o vfio_compat.o)
vfio-y := $(addprefix drivers/vfio/,vfio_main.o device_cdev.o group.o iommufd.o container.o virqfd.o)
vfio_iommu_type1-y := drivers/vfio/vfio_iommu_type1.o
vfio-pci-core-y := $(addprefix drivers/vfio/pci/,vfio_pci_core.o vfio_pci_intrs.o vfio_pci_rdwr.o \\
    vfio_pci_config.o)
vfio-pci-y := drivers/vfio/pci/vfio_pci.o drivers/vfio/pci/vfio_pci_igd.o
";
const INTERVAL_TREE: &str = "lib/interval_tree.c";

/// Fetches the source and headers of the kernel of this release, and puts its modules beside the
/// stock ones.
///
/// Errors: what cannot be had, or does not compile.
pub fn run(fetch: &Fetch, release: &str) -> Result<(), String> {
    for tool in ["make", "gcc-12", "xz"] {
        output(Command::new(tool).arg("--version"))?;
    }
    let unpacked = fetch.folder().join("source");
    create(&unpacked)?;
    // 6.12.95+deb12-amd64: the version, Debian's build of it, the flavour.
    let build = release.rsplit_once('-').map_or(release, |(build, _)| build);
    let mut numbers = release.split('.');
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        return Err(format!("{release} is no release of a kernel"));
    };
    let source = format!("linux-source-{major}.{minor}");
    let headers = format!("linux-headers-{release}");
    let common = format!("linux-headers-{build}-common");
    fetch.download(&[&source, &headers, &common, &format!("linux-kbuild-{build}")])?;
    fetch.unpack(&unpacked)?;
    let from = unpacked.join("usr/src");
    let headers = from.join(headers);
    let include = format!("include {}\n", from.join(common).join("Makefile").display());
    write(&headers.join("Makefile"), include.as_bytes())?;
    let modules = unpacked.join("modules");
    lay_out(&from.join(format!("{source}.tar.xz")), &source, &modules)?;
    make(&headers, &modules)?;
    collect(fetch, &modules, release)
}

/// Takes the modules' sources out of the archive.
fn lay_out(archive: &Path, source: &str, modules: &Path) -> Result<(), String> {
    create(modules)?;
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--file").arg(archive).arg("--directory").arg(modules);
    tar.arg("--strip-components=1");
    let wanted = ["drivers/vfio", "drivers/iommu/iommufd", "drivers/iommu/iommu-priv.h"];
    tar.args(wanted.iter().chain(&[INTERVAL_TREE]).map(|path| format!("{source}/{path}")));
    output(&mut tar)?;
    // The kernel has the tree but not its iterator of spans; its symbols must not come twice.
    let tree = modules.join(INTERVAL_TREE);
    let text = fs::read_to_string(&tree).map_err(|e| format!("{}: {e}", tree.display()))?;
    let lines = text.lines().filter(|line| !line.starts_with("EXPORT_SYMBOL"));
    let text: String = lines.flat_map(|line| [line, "\n"]).collect();
    write(&modules.join("interval_tree.c"), text.as_bytes())?;
    write(&modules.join("Kbuild"), KBUILD.as_bytes())
}

fn make(headers: &Path, modules: &Path) -> Result<(), String> {
    let mut make = Command::new("make");
    make.arg("--jobs=2").arg("-C").arg(headers).arg(format!("M={}", modules.display()));
    output(make.args(["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"])).map(drop)
}

/// All modules of the stock kernel, those built in place of theirs.
fn collect(fetch: &Fetch, built: &Path, release: &str) -> Result<(), String> {
    let place = |folder: &Path| folder.join("lib/modules").join(release);
    let from = place(&fetch.done().join(STOCK));
    // Put together elsewhere: what is half done must not look done.
    let folder = fetch.folder().join(REBUILT);
    let to = place(&folder);
    create(&to)?;
    let entries = fs::read_dir(&from).map_err(|e| format!("{}: {e}", from.display()))?;
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default();
        fs::copy(&path, to.join(name)).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    for module in MODULES.map(|name| format!("{name}.ko")) {
        let mut strip = Command::new("strip");
        output(
            strip.arg("--strip-debug").arg("-o").arg(to.join(&module)).arg(built.join(&module)),
        )?;
    }
    fetch.depmod(&folder, release)?;
    rename(&folder, &fetch.done().join(REBUILT))
}
