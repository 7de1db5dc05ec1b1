//! What an enabled controller is asked and told before it takes I/O: at attach, and after a reset.

use std::sync::Arc;

use oxblock_engine::{Core, Error};
use oxblock_nvme::feature::QueueCounts;
use oxblock_nvme::identify::{Controller as ControllerPage, Oacs, read_ascii};
use oxblock_nvme::{Command, feature};

use super::admin::Admin;
use super::doorbell::ShadowPages;
use super::features::Features;
use super::hardware::Hardware;
use super::namespace::Shape;
use super::namespaces::{Found, Scan};
use super::{NvmeOptions, Quirks, events, identify};

/// What a set-up is to bring about.
pub(super) struct Known<'a> {
    pub options: &'a NvmeOptions,
    /// After a reset: the I/O queue pairs and the shadow doorbells that there were.
    pub before: Option<(u16, Option<&'a ShadowPages>)>,
    pub features: &'a Features,
}

/// What the admin queue told and set up.
pub(super) struct Setup {
    pub page: Box<ControllerPage>,
    /// Its namespaces.
    pub found: Found,
    pub io_queues: u16,
    /// Those that are new.
    pub shadow: Option<ShadowPages>,
}

impl Setup {
    /// Whether a namespace still is what a queue takes it for.
    pub fn has(&self, shape: &Shape) -> bool {
        let found = self.found.get(&shape.nsid);
        found.is_some_and(|info| info.as_ref().is_ok_and(|info| shape.is_of(&info.shape)))
    }
}

/// Sets up a controller that was enabled: at attach, and after each reset.
pub(super) async fn set_up(
    core: &Core,
    admin: &Arc<Admin>,
    hardware: &Arc<Hardware>,
    known: Known<'_>,
) -> Result<Setup, Error> {
    let Known { options, before, features } = known;
    let page = identify::controller(core, admin).await?;
    let named = Quirks::of_identity(page.vid.get(), &read_ascii(&page.mn));
    hardware.set_quirks((hardware.quirks() | named) - options.without_quirks);
    features.set_up(core, admin, hardware, &page).await?;
    admin.set_abort_limit(page.acl);
    if hardware.cap().css_io() {
        identify::select_nvm(core, admin).await?;
    }
    let found = Scan { core, admin, hardware }.look(&page, options.sgl, None).await?;
    let wanted = match (before, options.io_queues) {
        (Some((queues, _)), _) => queues.into(),
        (None, 0) => core.count().saturating_mul(found.len().max(1)),
        (None, asked) => asked.into(),
    };
    let io_queues = ask_for_queues(core, admin, wanted).await?;
    let shadow = match before {
        Some((_, None)) => None,
        Some((_, Some(pages))) => {
            tell_shadow_doorbells(core, admin, pages).await?;
            None
        }
        None if options.shadow_doorbells && page.oacs().contains(Oacs::DOORBELL_BUFFER) => {
            let pages = ShadowPages::new(core.arena(), hardware)?;
            tell_shadow_doorbells(core, admin, &pages).await?;
            Some(pages).filter(ShadowPages::are_taken)
        }
        None => None,
    };
    if let Some(coalescing) = options.coalescing {
        // A controller that has none of it works as well.
        admin.execute(core, coalescing.command(), None).await?;
    }
    events::configure(core, admin, page.oaes.get()).await;
    Ok(Setup { page, found, io_queues: io_queues.min(hardware.qid_max()), shadow })
}

/// I/O queue pairs: as many as wanted, or what the controller grants (row 36). A controller that
/// refuses to say is taken to have one.
async fn ask_for_queues(core: &Core, admin: &Arc<Admin>, wanted: usize) -> Result<u16, Error> {
    let wanted = u16::try_from(wanted).unwrap_or(u16::MAX).clamp(1, u16::MAX - 1);
    let counts = QueueCounts { submission: wanted, completion: wanted };
    let command = Command::set_features(feature::NUMBER_OF_QUEUES, 0, counts.to_dword());
    let done = admin.execute(core, command, None).await?;
    if !done.completion.is_success() {
        return Ok(1);
    }
    let granted = QueueCounts::from_dword(done.completion.dw0());
    // More than asked for must not be used (Base 2.0, 5.27.1.5).
    Ok(granted.submission.min(granted.completion).min(wanted))
}

/// Without shadow doorbells all works as well, only slower.
async fn tell_shadow_doorbells(
    core: &Core,
    admin: &Arc<Admin>,
    pages: &ShadowPages,
) -> Result<(), Error> {
    let (shadow, event_index) = pages.expose()?;
    let command = Command::doorbell_buffer_config(shadow, event_index);
    let done = admin.execute(core, command, None).await?;
    pages.set_taken(done.completion.is_success());
    Ok(())
}
