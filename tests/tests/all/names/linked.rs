//! A format that has nothing but a backing file: its image is a line with its name, and one with
//! its format.

use std::sync::Arc;

use oxblock_drivers::{file, null, raw};
use oxblock_engine::graph::{
    ChildRole, ChildSpec, DriverInfo, DriverKind, Drivers, Opening, default_access,
};
use oxblock_engine::{
    BackingFile, Body, Core, Error, ErrorKind, Extent, Format, Intent, Limits, LocalFuture, Op,
};

const MAGIC: &str = "LINK\n";
const HEADER: usize = 512;

/// The drivers of a library that has this format too.
pub const WITH_LINKED: Drivers =
    Drivers::new(&[&raw::RAW, &file::FILE, &file::HOST_DEVICE, &null::NULL_CO, &LINKED]);

const LINKED: DriverInfo = DriverInfo {
    name: "linked",
    kind: DriverKind::Format,
    needs_filename: false,
    supports_backing: true,
    protocols: &[],
    parse_filename: None,
    filename: None,
    probe: Some(|first, _| if first.starts_with(MAGIC.as_bytes()) { 100 } else { 0 }),
    claims: None,
    options: &[],
    create_options: &[],
    children: &[ChildSpec { name: "file", role: |_| ChildRole::IMAGE, required: true }],
    child_rule: default_access,
    open: |opening| Box::pin(open(opening)),
};

/// What such an image holds.
pub fn image(backing: &str, format: &str) -> Vec<u8> {
    let mut bytes = format!("{MAGIC}{backing}\n{format}\n").into_bytes();
    bytes.resize(HEADER.max(bytes.len()), 0);
    bytes
}

async fn open(opening: &Opening<'_>) -> Result<Body, Error> {
    let invalid = || Error::new(ErrorKind::Invalid, "it is no image of links");
    let file = opening.child("file").ok_or_else(invalid)?;
    let channel = opening.core.open(file).await?;
    let data = opening.core.arena().alloc(HEADER, 512)?;
    let done = channel.run(Op::read(0, data)).await;
    done.result?;
    let mut header = vec![0; HEADER];
    done.op.data.read_at(0, &mut header);
    let text = String::from_utf8_lossy(&header).into_owned();
    let mut lines = text.strip_prefix(MAGIC).ok_or_else(invalid)?.lines();
    let mut line = || lines.next().map(str::to_owned).filter(|line| !line.starts_with('\0'));
    let backing = line().filter(|name| !name.is_empty());
    let format = line().filter(|format| !format.is_empty());
    let backing = backing.map(|name| BackingFile { name, format });
    Ok(Body::Over(Arc::new(Linked { backing }), vec![file.clone()]))
}

struct Linked {
    backing: Option<BackingFile>,
}

impl Format for Linked {
    fn name(&self) -> &'static str {
        "linked"
    }

    fn limits(&self, children: &[Arc<Limits>]) -> Limits {
        children.last().map_or_else(|| Limits::new(0, 1), |last| (**last).clone())
    }

    fn map(&self, _: u64, len: u64, intent: Intent) -> Extent {
        match intent {
            Intent::Read => Extent::Below { child: 1, len },
            _ => Extent::End,
        }
    }

    fn flushes(&self) -> &[usize] {
        &[0]
    }

    fn backing_file(&self) -> Option<BackingFile> {
        self.backing.clone()
    }

    fn close<'a>(&'a self, _: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}
