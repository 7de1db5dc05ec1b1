//! The raw format: a child as it is, or a window of it.

use std::sync::Arc;

use oxblock_engine::graph::{
    Access, ChildAsk, ChildRole, ChildSpec, DriverInfo, DriverKind, Opening, Permissions,
    default_access,
};
use oxblock_engine::options::{OptionSpec, Settings};
use oxblock_engine::{
    Body, Core, Error, ErrorKind, Extent, Format, Intent, Limits, LocalFuture, Node,
};

/// The declaration of `raw`.
pub const RAW: DriverInfo = DriverInfo {
    name: "raw",
    kind: DriverKind::Format,
    needs_filename: false,
    supports_backing: false,
    protocols: &[],
    parse_filename: None,
    filename: None,
    probe: Some(|_, _| 1),
    claims: None,
    options: &[
        OptionSpec::size("offset", "where in the file the node begins, bytes").strong().mutable(),
        OptionSpec::size("size", "how long it is, bytes; to the file's end if left out")
            .strong()
            .mutable(),
    ],
    create_options: &[
        OptionSpec::size("size", "Virtual disk size").required(),
        OptionSpec::choice("preallocation", &["off", "falloc", "full"], "Preallocation mode")
            .default("off"),
    ],
    children: &[ChildSpec { name: "file", role: role_of_file, required: true }],
    child_rule: access_to_file,
    open: |opening| Box::pin(async move { open(opening) }),
};

/// A window is data of this node's own; the whole file is shown as it is.
fn role_of_file(settings: &Settings) -> ChildRole {
    let is_window = ["offset", "size"].iter().any(|name| settings.number(name).is_some());
    ChildRole::PRIMARY | if is_window { ChildRole::DATA } else { ChildRole::FILTERED }
}

/// There is nothing in the file but what users write.
fn access_to_file(ask: ChildAsk) -> Access {
    let Access { asked, shared } = default_access(ask);
    let only_if_asked = Permissions::WRITE | Permissions::RESIZE;
    Access { asked: asked & (ask.parent.asked | only_if_asked.complement()), shared }
}

fn open(opening: &Opening<'_>) -> Result<Body, Error> {
    let children = opening.children.iter().map(|(_, node)| node.clone()).collect();
    Ok(Body::Over(raw(opening)?, children))
}

fn raw(opening: &Opening<'_>) -> Result<Arc<Raw>, Error> {
    let file = opening.child("file").ok_or_else(|| invalid("the file is missing".into()))?;
    let (offset, size) = (opening.settings.number("offset"), opening.settings.number("size"));
    let mut raw = Raw::new(file, offset.unwrap_or(0), size)?;
    if opening.probed && !opening.common.read_only {
        raw.guarded = PROBED_SECTOR;
    }
    Ok(Arc::new(raw))
}

/// What another format's header would begin in.
const PROBED_SECTOR: u64 = 512;

struct Raw {
    /// Up to here nothing is written: where the format was guessed, whoever writes could make the
    /// next guess another.
    guarded: u64,
    /// Where in the file the node begins.
    offset: u64,
    /// How long it may be: to the file's end if there is no other.
    size: u64,
}

impl Raw {
    fn new(file: &Node, offset: u64, size: Option<u64>) -> Result<Self, Error> {
        let limits = file.limits();
        let (length, block) = (limits.length, u64::from(limits.block_size));
        let Some(room) = length.checked_sub(offset) else {
            return Err(invalid(format!(
                "Offset ({offset}) cannot be greater than size of the containing file ({length})"
            )));
        };
        if let Some(size) = size.filter(|&size| size > room) {
            return Err(invalid(format!(
                "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  \
                 actual size of the containing file ({length})"
            )));
        }
        if size.is_some_and(|size| !size.is_multiple_of(512)) {
            return Err(invalid("Specified size is not multiple of 512".into()));
        }
        if !offset.is_multiple_of(block) || size.is_some_and(|size| !size.is_multiple_of(block)) {
            return Err(invalid(format!(
                "offset and size must be multiples of the block size of the containing file \
                 ({block})"
            )));
        }
        Ok(Self { guarded: 0, offset, size: size.unwrap_or(u64::MAX - offset) })
    }
}

impl Format for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn limits(&self, children: &[Arc<Limits>]) -> Limits {
        let Some(file) = children.first() else { return Limits::new(0, 1) };
        // A boundary of the file is one of the window's only if it begins at one; the engine
        // keeps to those of the leaf in any case.
        let boundary = u64::from(file.boundary);
        let is_kept = boundary > 0 && self.offset.is_multiple_of(boundary);
        Limits {
            length: file.length.saturating_sub(self.offset).min(self.size),
            boundary: if is_kept { file.boundary } else { 0 },
            ..(**file).clone()
        }
    }

    #[inline]
    fn map(&self, offset: u64, _: u64, intent: Intent) -> Extent {
        if offset >= self.size || (offset < self.guarded && intent != Intent::Read) {
            return Extent::End;
        }
        Extent::Data { child: 0, offset: self.offset + offset, len: self.size - offset }
    }

    fn flushes(&self) -> &[usize] {
        &[0]
    }

    fn reopen<'a>(
        &'a self,
        opening: &'a Opening<'a>,
    ) -> LocalFuture<'a, Result<Option<Arc<dyn Format>>, Error>> {
        Box::pin(async move { raw(opening).map(|raw| Some(raw as Arc<dyn Format>)) })
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

fn invalid(text: String) -> Error {
    Error::new(ErrorKind::Invalid, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{self, MemoryOptions};

    const SIZE: u64 = 1 << 20;

    fn file() -> Arc<Node> {
        let driver = memory::open(MemoryOptions { size: SIZE, block_size: 4096 }).unwrap();
        Node::new("file", driver)
    }

    #[test]
    fn a_window_maps_into_the_file_and_ends_at_its_own_end() {
        let raw = Raw::new(&file(), 8192, Some(65536)).unwrap();
        let data = |offset, len| Extent::Data { child: 0, offset, len };
        assert_eq!(raw.map(0, 4096, Intent::Read), data(8192, 65536));
        assert_eq!(raw.map(61440, 4096, Intent::Write), data(69632, 4096));
        assert_eq!(raw.map(65536, 4096, Intent::Read), Extent::End);
        assert_eq!(raw.limits(&[file().limits()]).length, 65536);
        let rest = Raw::new(&file(), 8192, None).unwrap();
        let limits = rest.limits(&[file().limits()]);
        assert_eq!((limits.length, limits.block_size), (SIZE - 8192, 4096));
    }

    #[test]
    fn a_guess_is_kept_true() {
        let raw = Raw { guarded: PROBED_SECTOR, ..Raw::new(&file(), 0, None).unwrap() };
        for intent in [Intent::Write, Intent::Zero, Intent::Discard] {
            assert_eq!(raw.map(0, 4096, intent), Extent::End);
            assert!(matches!(raw.map(512, 4096, intent), Extent::Data { offset: 512, .. }));
        }
        assert!(matches!(raw.map(0, 4096, Intent::Read), Extent::Data { .. }));
    }

    #[test]
    fn a_boundary_stays_where_the_window_begins_at_one() {
        let limits = |offset| {
            let raw = Raw::new(&file(), offset, None).unwrap();
            let child = Limits { boundary: 16384, ..Limits::new(SIZE, 4096) };
            raw.limits(&[Arc::new(child)]).boundary
        };
        assert_eq!((limits(0), limits(32768), limits(4096)), (16384, 16384, 0));
    }

    #[test]
    fn a_window_outside_the_file_or_between_blocks_is_refused() {
        for (offset, size, words) in [
            (SIZE + 1, None, "cannot be greater than size of the containing file (1048576)"),
            (4096, Some(SIZE), "The sum of offset (4096) and size (1048576) has to be"),
            (u64::MAX, Some(u64::MAX), "Offset (18446744073709551615)"),
            (0, Some(100), "Specified size is not multiple of 512"),
            (512, None, "multiples of the block size of the containing file (4096)"),
            (0, Some(512), "multiples of the block size"),
        ] {
            let error = Raw::new(&file(), offset, size).err().expect("a refusal");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn writes_are_asked_of_the_file_only_where_users_ask_for_them() {
        let reading = Access {
            asked: Permissions::CONSISTENT_READ | Permissions::WRITE_UNCHANGED,
            shared: Permissions::all(),
        };
        for role in [ChildRole::FILTERED, ChildRole::DATA] {
            let ask = ChildAsk { role, parent: reading, writable: true };
            assert_eq!(access_to_file(ask).asked, reading.asked, "{role:?}");
        }
    }
}
