//! A namespace: what identify says of it becomes limits, and queues for the cores that use it.

use std::sync::Arc;

use oxblock_engine::{
    Core, Counter, Driver, Error, ErrorKind, Limits, LocalFuture, MemoryRule, Node, Queue,
};
use oxblock_nvme::command::{PRACT, PRCHK_GUARD, PRCHK_REF};
use oxblock_nvme::identify::{Controller as ControllerPage, ControllerNvm, Namespace, Oncs};
use oxblock_nvme::{dsm, prp, sgl};

use super::controller::Controller;
use super::namespaces::OpenNamespace;
use super::{Quirks, guest, queue_pair};

/// The most logical blocks of one command: NLB is 16 bits, 0-based.
const BLOCKS_MAX: u64 = 65_536;

/// What a queue pair has to know of its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub nsid: u32,
    /// Log2 of the block size in bytes.
    pub block_shift: u32,
    /// Alignment of SGL data blocks, where SGLs are used.
    pub sgl_align: Option<u64>,
    /// There is a volatile write cache: flushes are sent (row 35).
    pub volatile_cache: bool,
    /// Write zeroes may deallocate.
    pub deallocate_zeroes: bool,
    /// Zeroes are written by deallocating: there is no other command for it.
    pub zeroes_by_deallocate: bool,
    /// What commands with data ask for.
    pub protection: Protection,
    /// Ranges in one deallocate command.
    pub ranges_max: u32,
    /// Blocks in one range of it.
    pub range_blocks_max: u32,
    /// NGUID and EUI64, zeroes where it has none.
    pub identifiers: [u8; 24],
}

impl Shape {
    /// Whether the same commands mean the same blocks of the same namespace in both.
    pub fn is_of(&self, other: &Shape) -> bool {
        let format = |shape: &Shape| (shape.block_shift, shape.protection);
        (self.nsid, self.identifiers) == (other.nsid, other.identifiers)
            && format(self) == format(other)
    }
}

/// Protection information (NVM Command Set 1.0, 5.2) that the controller inserts into what is
/// written and strips from what is read (PRACT), so that no metadata crosses the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Protection {
    /// Bits of dword 12.
    pub prinfo: u32,
    /// The bits of the first LBA that dword 14 has as its reference tag.
    pub tag_mask: u64,
}

impl Protection {
    /// None at all.
    pub const NONE: Protection = Protection { prinfo: 0, tag_mask: 0 };
    const GUARD: Protection = Protection { prinfo: PRACT | PRCHK_GUARD, tag_mask: 0 };
    const GUARD_AND_REFERENCE: Protection =
        Protection { prinfo: PRACT | PRCHK_GUARD | PRCHK_REF, tag_mask: u32::MAX as u64 };
}

/// A namespace of an attached controller, or why it cannot be used.
pub(super) struct NamespaceInfo {
    pub shape: Shape,
    pub limits: Limits,
}

/// What of a controller bounds its namespaces.
pub(super) struct Bounds<'a> {
    pub page: &'a ControllerPage,
    pub nvm: &'a ControllerNvm,
    /// The controller reports the size limits of the NVM command set.
    pub has_nvm: bool,
    pub mpsmin: u8,
    /// SGLs may be used.
    pub sgl: bool,
    pub quirks: Quirks,
}

impl NamespaceInfo {
    /// Checks a namespace and derives its limits.
    ///
    /// # Errors
    /// In words: what this driver does not do (row 9).
    pub fn new(nsid: u32, namespace: &Namespace, bounds: &Bounds<'_>) -> Result<Self, Error> {
        let refuse = |text: String| Error::new(ErrorKind::NotSupported, text);
        let Some(format) = namespace.format() else {
            let text = "its LBA format is past the list of formats; format it";
            return Err(refuse(text.into()));
        };
        if !(9..=12).contains(&format.lbads) {
            let text = format!(
                "blocks of 2^{} bytes are not supported, 512 to 4096 are; format it otherwise",
                format.lbads
            );
            return Err(refuse(text));
        }
        let protection = match (format.ms.get(), namespace.dps & 7) {
            (0, 0) => Protection::NONE,
            // The controller makes it, checks it, and keeps it to itself.
            (8, 1 | 2) => Protection::GUARD_AND_REFERENCE,
            (8, 3) => Protection::GUARD,
            (bytes, kind) => {
                let text = format!(
                    "{bytes} bytes of metadata for each block with protection type {kind} are not \
                     supported; none are, and 8 with type 1, 2 or 3; format it so"
                );
                return Err(refuse(text));
            }
        };
        let block_shift = u32::from(format.lbads);
        let blocks = namespace.nsze.get();
        if blocks > u64::MAX >> block_shift {
            let text = format!("a size of {blocks} blocks is past 2^64 bytes");
            return Err(refuse(text));
        }
        let shape = Shape { protection, ..shape(nsid, block_shift, namespace, bounds) };
        let limits = limits(&shape, namespace, bounds);
        Ok(Self { shape, limits })
    }
}

fn shape(nsid: u32, block_shift: u32, namespace: &Namespace, bounds: &Bounds<'_>) -> Shape {
    let unlimited = |value: u32, most: u32| if value == 0 { most } else { value.min(most) };
    let sgls = bounds.page.sgls();
    let sgl = bounds.sgl && sgls.supported();
    let mut identifiers = [0; 24];
    identifiers[..16].copy_from_slice(&namespace.nguid);
    identifiers[16..].copy_from_slice(&namespace.eui64);
    Shape {
        nsid,
        block_shift,
        sgl_align: sgl.then(|| u64::from(sgls.alignment())),
        volatile_cache: bounds.page.has_volatile_cache(),
        deallocate_zeroes: namespace.dlfeat & Namespace::DEAC != 0,
        zeroes_by_deallocate: bounds.quirks.contains(Quirks::DEALLOCATE_ZEROES),
        protection: Protection::NONE,
        ranges_max: unlimited(bounds.nvm.dmrl.into(), dsm::RANGES_MAX as u32),
        range_blocks_max: unlimited(bounds.nvm.dmrsl.get(), u32::MAX),
        identifiers,
    }
}

/// Limits of a namespace, in bytes.
fn limits(shape: &Shape, namespace: &Namespace, bounds: &Bounds<'_>) -> Limits {
    let block = 1u64 << shape.block_shift;
    let oncs = bounds.page.oncs();
    let most = BLOCKS_MAX << shape.block_shift;
    // Row 8: a checked shift, and never more than a list of one page describes.
    let mdts = bounds.page.max_transfer(bounds.mpsmin).unwrap_or(u64::MAX);
    let max_transfer = mdts.min(prp::TRANSFER_MAX).min(most) / block * block;
    let bytes = |blocks: u16| u32::from(blocks) << shape.block_shift;
    let bytes0 = |blocks: u16| (u32::from(blocks) + 1) << shape.block_shift;
    let has = |bit: u8| namespace.nsfeat & bit != 0;
    let (awun, awupf) = if has(Namespace::ATOMICS) {
        (namespace.nawun.get(), namespace.nawupf.get())
    } else {
        (bounds.page.awun.get(), bounds.page.awupf.get())
    };
    let mut limits = Limits::new(namespace.nsze.get() << shape.block_shift, block as u32);
    limits.max_transfer = max_transfer as u32;
    // Row 10: any number of blocks; the engine divides by it.
    limits.boundary = match bytes(namespace.noiob.get()) {
        0 if bounds.quirks.contains(Quirks::STRIPES) && mdts <= most => max_transfer as u32,
        noiob => noiob,
    };
    (limits.memory, limits.max_segments) = memory_rule(shape);
    if oncs.contains(Oncs::DATASET_MANAGEMENT) {
        limits.max_discard = max_discard(shape, bounds);
    }
    if shape.zeroes_by_deallocate {
        limits.max_write_zeroes = limits.max_discard;
    } else if oncs.contains(Oncs::WRITE_ZEROES) && !bounds.quirks.contains(Quirks::NO_WRITE_ZEROES)
    {
        limits.max_write_zeroes = max_write_zeroes(bounds, mdts, most) / block * block;
    }
    if has(Namespace::OPTIMAL) {
        limits.optimal_transfer = bytes0(namespace.nows.get());
        limits.discard_alignment = bytes0(namespace.npdg.get());
        limits.write_zeroes_alignment = bytes0(namespace.npwg.get());
    }
    // An atomic write that crosses a boundary of its own is not atomic; say nothing then.
    if namespace.nabsn.get() == 0 {
        limits.atomic_write = bytes0(awun);
    }
    if namespace.nabspf.get() == 0 {
        limits.atomic_write_power_fail = bytes0(awupf);
    }
    limits.volatile_cache = shape.volatile_cache;
    // A deallocation cannot be forced to the medium.
    limits.fua = !(shape.zeroes_by_deallocate && shape.volatile_cache);
    // What is compared with protection information in between is not said.
    limits.compare = oncs.contains(Oncs::COMPARE) && shape.protection == Protection::NONE;
    limits.read_only = namespace.nsattr & 1 != 0;
    limits
}

/// SGLs take pieces of any length; PRPs want whole pages but at the ends, from a multiple of 4 on.
fn memory_rule(shape: &Shape) -> (MemoryRule, u32) {
    match shape.sgl_align {
        Some(align) => {
            let segment_align = align as u32;
            let rule = MemoryRule::Dma { segment_align, prp_page: None };
            (rule, sgl::SEGMENT_ENTRIES as u32)
        }
        None => {
            let prp_page = Some(prp::PAGE as u32);
            let rule = MemoryRule::Dma { segment_align: 4, prp_page };
            (rule, prp::LIST_ENTRIES as u32 + 1)
        }
    }
}

/// WZSL where it is reported. A controller that reports limits, but none for write zeroes, has
/// none but that of the field; one too old to report gets no more than MDTS, since some of those
/// take long over more.
fn max_write_zeroes(bounds: &Bounds<'_>, mdts: u64, most: u64) -> u64 {
    let limit = ControllerNvm::size_limit(bounds.nvm.wzsl, bounds.mpsmin);
    let limit = match (limit, bounds.has_nvm) {
        (Some(limit), _) => limit,
        (None, true) => u64::MAX,
        (None, false) => mdts,
    };
    limit.min(most)
}

/// All ranges of one command at their longest, within DMSL.
fn max_discard(shape: &Shape, bounds: &Bounds<'_>) -> u64 {
    let blocks = u64::from(shape.ranges_max) * u64::from(shape.range_blocks_max);
    let blocks = match bounds.nvm.dmsl.get() {
        0 => blocks,
        dmsl => blocks.min(dmsl),
    };
    blocks.min(u64::MAX >> shape.block_shift) << shape.block_shift
}

/// A namespace as a leaf.
pub(super) struct NamespaceDriver {
    pub controller: Arc<Controller>,
    pub namespace: Arc<OpenNamespace>,
}

impl NamespaceDriver {
    /// A queue pair of the core's own, or its part of another's where none is left (row 36).
    async fn open_queue(&self, core: &Core) -> Result<Box<dyn Queue>, Error> {
        self.namespace.check()?;
        let (controller, shape) = (self.controller.clone(), self.namespace.shape);
        let Some(qid) = controller.take_qid()? else {
            return guest::open(core, controller, shape).await;
        };
        let leaf = queue_pair::open(core, controller, shape, qid).await?;
        Ok(Box::new(leaf))
    }
}

impl Driver for NamespaceDriver {
    fn name(&self) -> &'static str {
        "nvme"
    }

    fn limits(&self) -> Limits {
        self.namespace.limits()
    }

    fn joined(&self, node: &Arc<Node>) {
        self.namespace.join(node);
    }

    fn counters(&self) -> Vec<Counter> {
        self.controller.all_counters()
    }

    fn notice(&self) -> Option<&str> {
        self.controller.vectors().notice()
    }

    fn queue<'a>(&'a self, core: &'a Core) -> LocalFuture<'a, Result<Box<dyn Queue>, Error>> {
        Box::pin(async move {
            let queue = self.open_queue(core).await;
            queue.map_err(|error| error.context(self.controller.name()))
        })
    }

    fn close<'a>(&'a self, _core: &'a Core) -> LocalFuture<'a, Result<(), Error>> {
        // Its queues are deleted by then, and other namespaces may still use the controller,
        // which ends with `Controller::shutdown`.
        Box::pin(async { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds<'a>(page: &'a ControllerPage, nvm: &'a ControllerNvm) -> Bounds<'a> {
        Bounds { page, nvm, has_nvm: true, mpsmin: 0, sgl: true, quirks: Quirks::empty() }
    }

    fn controller() -> Box<ControllerPage> {
        let mut page = ControllerPage::boxed();
        page.oncs = (Oncs::COMPARE | Oncs::DATASET_MANAGEMENT | Oncs::WRITE_ZEROES).bits().into();
        page
    }

    fn namespace(lbads: u8) -> Box<Namespace> {
        let mut page = Namespace::boxed();
        page.nsze = 1000.into();
        page.lbaf[0].lbads = lbads;
        page
    }

    fn refusal(change: impl FnOnce(&mut Namespace)) -> String {
        let (page, nvm) = (controller(), ControllerNvm::boxed());
        let mut namespace = namespace(9);
        change(&mut namespace);
        match NamespaceInfo::new(1, &namespace, &bounds(&page, &nvm)) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("was not refused"),
        }
    }

    /// Row 9. LBADS 0 made a block size of one byte in one driver, and a shift past the width of
    /// the type in another.
    #[test]
    fn formats_that_are_not_supported_are_refused_in_words() {
        for lbads in [0, 1, 8, 13, 16, 255] {
            assert!(refusal(|ns| ns.lbaf[0].lbads = lbads).contains("blocks of 2^"));
        }
        for (bytes, kind) in [(8, 0), (0, 1), (16, 1), (64, 3), (8, 4), (8, 7), (u16::MAX, 2)] {
            let text = refusal(|ns| (ns.lbaf[0].ms, ns.dps) = (bytes.into(), kind));
            let word =
                format!("{bytes} bytes of metadata for each block with protection type {kind}");
            assert!(text.contains(&word), "{text}");
        }
        assert!(refusal(|ns| ns.flbas = 3).contains("past the list"));
        assert!(refusal(|ns| ns.nsze = u64::MAX.into()).contains("past 2^64"));
    }

    /// Row 8.
    #[test]
    fn transfers_are_bounded_by_mdts_and_by_the_list() {
        let (mut page, nvm) = (controller(), ControllerNvm::boxed());
        for (mdts, expected) in
            [(0, 2 << 20), (1, 8192), (5, 131_072), (9, 2 << 20), (255, 2 << 20)]
        {
            page.mdts = mdts;
            let info = NamespaceInfo::new(1, &namespace(9), &bounds(&page, &nvm)).unwrap();
            assert_eq!(info.limits.max_transfer, expected, "MDTS {mdts}");
        }
    }

    /// Row 10.
    #[test]
    fn noiob_need_not_be_a_power_of_two() {
        let (page, nvm) = (controller(), ControllerNvm::boxed());
        let mut namespace = namespace(12);
        namespace.noiob = 3.into();
        let info = NamespaceInfo::new(1, &namespace, &bounds(&page, &nvm)).unwrap();
        assert_eq!(info.limits.boundary, 12_288);
        namespace.noiob = u16::MAX.into();
        let info = NamespaceInfo::new(1, &namespace, &bounds(&page, &nvm)).unwrap();
        assert_eq!(info.limits.boundary, 65_535 * 4096);
    }

    /// Row 12.
    #[test]
    fn sgls_are_used_where_there_are_any() {
        let (mut page, nvm) = (controller(), ControllerNvm::boxed());
        let rule = |page: &ControllerPage, sgl| {
            let bounds = Bounds { sgl, ..bounds(page, &nvm) };
            let info = NamespaceInfo::new(1, &namespace(9), &bounds).unwrap();
            (info.limits.memory, info.limits.max_segments)
        };
        let prp = (MemoryRule::Dma { segment_align: 4, prp_page: Some(4096) }, 513);
        assert_eq!(rule(&page, true), prp);
        page.sgls = 2.into();
        assert_eq!(rule(&page, true), (MemoryRule::Dma { segment_align: 4, prp_page: None }, 256));
        assert_eq!(rule(&page, false), prp);
        page.sgls = 1.into();
        assert_eq!(rule(&page, true), (MemoryRule::Dma { segment_align: 1, prp_page: None }, 256));
        page.sgls = 3.into();
        assert_eq!(rule(&page, true), prp);
    }

    #[test]
    fn optional_commands_have_their_limits() {
        let (mut page, mut nvm) = (controller(), ControllerNvm::boxed());
        page.mdts = 1;
        let info = NamespaceInfo::new(1, &namespace(12), &bounds(&page, &nvm)).unwrap();
        assert_eq!(info.limits.max_discard, (256 * u64::from(u32::MAX)) << 12);
        assert_eq!(info.limits.max_write_zeroes, 65_536 << 12);
        let old = Bounds { has_nvm: false, ..bounds(&page, &nvm) };
        let info = NamespaceInfo::new(1, &namespace(12), &old).unwrap();
        assert_eq!(info.limits.max_write_zeroes, 8192);
        (nvm.dmrl, nvm.wzsl) = (4, 3);
        nvm.dmrsl = 100.into();
        let info = NamespaceInfo::new(1, &namespace(12), &bounds(&page, &nvm)).unwrap();
        assert_eq!(info.limits.max_discard, 400 << 12);
        assert_eq!(info.limits.max_write_zeroes, 32_768);
        nvm.dmsl = 150.into();
        let info = NamespaceInfo::new(1, &namespace(12), &bounds(&page, &nvm)).unwrap();
        assert_eq!(info.limits.max_discard, 150 << 12);
        page.oncs = 0.into();
        let info = NamespaceInfo::new(1, &namespace(12), &bounds(&page, &nvm)).unwrap();
        let limits = info.limits;
        assert_eq!((limits.max_discard, limits.max_write_zeroes), (0, 0));
        assert!(!limits.compare && limits.fua && !limits.volatile_cache);
    }

    #[test]
    fn hints_become_limits() {
        let (mut page, nvm) = (controller(), ControllerNvm::boxed());
        (page.awun, page.awupf) = (7.into(), 0.into());
        let mut namespace = namespace(9);
        (namespace.nows, namespace.npdg, namespace.npwg) = (15.into(), 31.into(), 7.into());
        namespace.nsattr = 1;
        let info = NamespaceInfo::new(1, &namespace, &bounds(&page, &nvm)).unwrap();
        let limits = info.limits;
        assert_eq!((limits.atomic_write, limits.atomic_write_power_fail), (4096, 512));
        assert_eq!((limits.optimal_transfer, limits.discard_alignment), (0, 0));
        assert!(limits.read_only);
        namespace.nsfeat = Namespace::OPTIMAL | Namespace::ATOMICS;
        namespace.nawun = 1.into();
        let info = NamespaceInfo::new(1, &namespace, &bounds(&page, &nvm)).unwrap();
        let limits = info.limits;
        assert_eq!((limits.optimal_transfer, limits.discard_alignment), (8192, 16_384));
        assert_eq!((limits.atomic_write, limits.write_zeroes_alignment), (1024, 4096));
    }
}
