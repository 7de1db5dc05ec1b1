//! The declarations of `file` and `host_device`.

use std::fs::FileType;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use oxblock_engine::graph::{DriverInfo, DriverKind, Opening, default_access};
use oxblock_engine::options::{NodeOptions, OptionSpec};
use oxblock_engine::{Body, Error, ErrorKind};

use super::{FileEngine, FileOptions, Locking};

const OPTIONS: &[OptionSpec] = &[
    OptionSpec::text("filename", "its path").required().strong(),
    OptionSpec::choice("aio", &["threads", "native", "io_uring"], "how its calls are made"),
    OptionSpec::choice("locking", &["on", "off", "auto"], "whether others are kept out")
        .default("auto"),
    OptionSpec::bool("sqthread-poll", "a thread of the kernel takes the calls").default("off"),
    OptionSpec::number("queue-depth", 1, 4096, "calls in the kernel at once, for each core")
        .default("128"),
];

/// The declaration of `file`.
pub const FILE: DriverInfo = DriverInfo {
    name: "file",
    kind: DriverKind::Protocol,
    needs_filename: true,
    supports_backing: false,
    protocols: &["file"],
    parse_filename: Some(|name, options| strip(name, "file:", options)),
    filename: None,
    probe: None,
    claims: None,
    options: OPTIONS,
    create_options: &[
        OptionSpec::size("size", "Virtual disk size").required(),
        OptionSpec::choice("preallocation", &["off", "falloc", "full"], "Preallocation mode")
            .default("off"),
    ],
    children: &[],
    child_rule: default_access,
    open: |opening| Box::pin(async move { open(opening, "file", FileType::is_file) }),
};

/// The declaration of `host_device`.
pub const HOST_DEVICE: DriverInfo = DriverInfo {
    name: "host_device",
    protocols: &["host_device"],
    parse_filename: Some(|name, options| strip(name, "host_device:", options)),
    claims: Some(|name| kind_of(Path::new(name)).is_ok_and(|kind| is_device(&kind))),
    create_options: &[],
    open: |opening| Box::pin(async move { open(opening, "host_device", is_device) }),
    ..FILE
};

fn is_device(kind: &FileType) -> bool {
    kind.is_block_device() || kind.is_char_device()
}

fn strip(name: &str, prefix: &str, options: &mut NodeOptions) -> Result<(), Error> {
    options.set("filename", name.strip_prefix(prefix).unwrap_or(name));
    Ok(())
}

fn kind_of(path: &Path) -> Result<FileType, Error> {
    let metadata = path.metadata();
    metadata
        .map(|metadata| metadata.file_type())
        .map_err(|error| Error::from_io(format!("Could not open '{}'", path.display()), error))
}

fn open(opening: &Opening<'_>, driver: &str, suits: fn(&FileType) -> bool) -> Result<Body, Error> {
    let invalid = |text: String| Error::new(ErrorKind::Invalid, text);
    let (settings, common) = (opening.settings, opening.common);
    let filename = settings.text("filename").unwrap_or_default();
    if !suits(&kind_of(Path::new(filename))?) {
        let kind = match driver {
            "file" => "a regular file",
            _ => "either a character or block device",
        };
        return Err(invalid(format!("'{driver}' driver requires '{filename}' to be {kind}")));
    }
    let engine = match settings.choice("aio") {
        Some("threads") => FileEngine::Workers,
        Some("io_uring") => FileEngine::Uring,
        Some("native") if !common.direct => {
            return Err(invalid(
                "aio=native was specified, but it requires cache.direct=on, which was not \
                 specified."
                    .into(),
            ));
        }
        _ => FileEngine::Best,
    };
    let depth = settings.number("queue-depth").and_then(|depth| depth.try_into().ok());
    let driver = super::open(FileOptions {
        direct: common.direct,
        read_only: common.read_only,
        auto_read_only: common.auto_read_only,
        engine,
        sqthread_poll: settings.bool("sqthread-poll") == Some(true),
        queue_depth: depth.unwrap_or(128),
        locking: match settings.choice("locking") {
            Some("on") => Locking::On,
            Some("off") => Locking::Off,
            _ => Locking::Auto,
        },
        ..FileOptions::new(filename)
    })?;
    Ok(Body::Leaf(driver))
}
